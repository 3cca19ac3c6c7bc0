from __future__ import annotations

from ctypes import c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import pytest

from exporters.memory import available_bytes, gpu_free_bytes


class Driver:
    """libcuda with one device, as far as it is asked; `missing` is a call that fails."""

    def __init__(self, *, free: int, integrated: bool, missing: str = "") -> None:
        self.free, self.integrated, self.missing = free, integrated, missing
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            first = getattr(arguments[0], "_obj", None) if arguments else None
            if name == "cuMemGetInfo_v2":
                assert isinstance(first, c_size_t)
                first.value = self.free
            elif name == "cuDeviceGetAttribute" and arguments[1] == 18:
                assert isinstance(first, c_int)
                first.value = int(self.integrated)
            elif name == "cuDevicePrimaryCtxRetain":
                assert isinstance(first, c_void_p)
            return int(name == self.missing)

        return call


def test_a_gpu_with_its_own_memory_tells_how_much_is_free_and_is_left_as_it_was() -> None:
    driver = Driver(free=5 << 30, integrated=False)

    assert gpu_free_bytes(driver) == 5 << 30
    assert driver.calls[-3:] == ["cuMemGetInfo_v2", "cuCtxPopCurrent_v2", "cuDevicePrimaryCtxRelease_v2"]


def test_a_gpu_that_shares_the_hosts_memory_is_not_asked() -> None:
    driver = Driver(free=5 << 30, integrated=True)

    assert gpu_free_bytes(driver) == 0
    assert "cuMemGetInfo_v2" not in driver.calls


@pytest.mark.parametrize(
    "call",
    [
        "cuInit",
        "cuDeviceGet",
        "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain",
        "cuCtxPushCurrent_v2",
        "cuMemGetInfo_v2",
    ],
)
def test_a_driver_that_fails_anywhere_tells_nothing(call: str) -> None:
    driver = Driver(free=5 << 30, integrated=False, missing=call)

    assert gpu_free_bytes(driver) == 0
    assert ("cuDevicePrimaryCtxRelease_v2" in driver.calls) == (call in ("cuCtxPushCurrent_v2", "cuMemGetInfo_v2"))


def test_the_hosts_memory_is_what_is_available_not_what_is_free(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  8000 kB\nMemFree:  1000 kB\nMemAvailable:  5000 kB\n")

    assert available_bytes(tmp_path / "meminfo") == 5000 * 1024
    assert available_bytes(tmp_path / "absent") == 0
    (tmp_path / "meminfo").write_text("MemTotal:  8000 kB\n")
    assert available_bytes(tmp_path / "meminfo") == 0
