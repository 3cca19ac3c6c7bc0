"""The CUDA seam without a GPU: what pycuda raises is told as an environment's failure, and nothing stays behind."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from exporters import ExportError
from exporters.cuda import PyCuda


class DriverError(Exception):
    """pycuda's errors derive from its own base class, not from RuntimeError or MemoryError."""


def driver(log: list[str], **failing: bool) -> SimpleNamespace:
    """The names of pycuda.driver that the seam uses; those in `failing` raise as pycuda does."""

    def act(name: str, result: object = None) -> object:
        def call(*arguments: object) -> object:
            log.append(name)
            if failing.get(name):
                raise DriverError(f"{name} failed")
            return result

        return call

    context = SimpleNamespace(push=act("push"), pop=act("pop"))
    device = SimpleNamespace(retain_primary_context=act("retain", context))
    stream = SimpleNamespace(handle=7, synchronize=act("synchronize"))
    event = SimpleNamespace(record=act("record"), time_till=act("time_till", 1.5))
    return SimpleNamespace(
        Error=DriverError, init=act("init"), Device=act("device", device), Stream=act("stream", stream),
        Event=act("event", event), memcpy_htod_async=act("upload"), memcpy_dtoh_async=act("download"),
        mem_alloc=act("alloc", 42),
    )  # fmt: skip


def test_a_stream_that_cannot_be_made_leaves_no_context_behind() -> None:
    log: list[str] = []
    with pytest.raises(ExportError, match="CUDA: no stream: stream failed") as caught:
        PyCuda(driver(log, stream=True))
    assert caught.value.kind == "environment"
    assert log.count("push") == log.count("pop") == 1


@pytest.mark.parametrize("name", ["upload", "download", "record", "synchronize"])
def test_whatever_fails_on_the_device_is_an_environments_failure(name: str) -> None:
    cuda = PyCuda(driver([], **{name: True}))
    calls = {
        "upload": lambda: cuda.upload(0, np.zeros(1, np.uint8)),
        "download": lambda: cuda.download(np.zeros(1, np.uint8), 0),
        "record": lambda: cuda.record(cuda.start),
        "synchronize": cuda.wait,
    }
    with pytest.raises(ExportError, match=f"CUDA: .*{name} failed") as caught:
        calls[name]()
    assert caught.value.kind == "environment"


def test_time_between_the_events_comes_in_milliseconds_and_closing_twice_is_harmless() -> None:
    log: list[str] = []
    cuda = PyCuda(driver(log))
    assert cuda.wait() == 1.5
    cuda.close()
    cuda.close()
    assert log.count("pop") == 1
