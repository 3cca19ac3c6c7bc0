"""The child that builds: started, watched, and ended with its parent whatever ends that; its death is told in words."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from exporters import ExportError
from exporters.build_request import Request
from exporters.engine_builder import peak_memory_bytes

Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all (0: not known)
_TICK_SECONDS = 0.1  # how often the child's memory and the deadline are looked at


def run_child(request: Request, *, timeout_s: float | None, progress: Progress | None) -> dict[str, Any]:
    """The child's result event. Whatever ends this function early ends the child too, and removes what it had begun."""
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    command = [sys.executable, "-m", "exporters.engine_builder"]
    # `-m` looks in the working directory first: make that the folder of this very package.
    folder = Path(__file__).parents[1]
    try:
        with (
            _holding(request.to_json()) as stdin,
            tempfile.TemporaryFile() as stderr,
            subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, cwd=folder) as process,
        ):
            return _watch(process, request, deadline, timeout_s=timeout_s, progress=progress, stderr=stderr)
    finally:
        for path in request.partial_paths:
            with contextlib.suppress(OSError):  # its folder may be what was wrong
                path.unlink(missing_ok=True)


def _holding(line: str) -> IO[bytes]:
    """A file at its beginning; a command line could not hold the ranges of a large network."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    file.write(line.encode())
    file.seek(0)
    return file


def _watch(
    process: subprocess.Popen[bytes], request: Request, deadline: float | None, *, timeout_s: float | None,
    progress: Progress | None, stderr: IO[bytes],
) -> dict[str, Any]:  # fmt: skip
    last: dict[str, Any] = {}
    last_log, peak_bytes = "nothing was logged", 0
    try:
        for event in _events(process, deadline):
            peak_bytes = max(peak_bytes, peak_memory_bytes(process.pid))
            last = event or last
            last_log = event.get("log", last_log)
            if progress and "phase" in event:
                progress(event["phase"], event["done"], event["total"])
    except TimeoutError as error:
        process.kill()
        raise ExportError(
            f"{request.onnx_path}: the engine was not built within {timeout_s:g} s; the build was stopped."
        ) from error
    except BaseException:
        process.kill()
        raise
    code = process.wait()
    if "error" in last:
        raise ExportError(last["error"], kind=last["kind"])
    if code == 0 and "result" in last:
        return dict(last["result"])
    raise _death(request, code, last_log=last_log, peak_bytes=peak_bytes, stderr=stderr)


def _events(process: subprocess.Popen[bytes], deadline: float | None) -> Iterator[dict[str, Any]]:
    """The child's events until it closes its end; an empty one at every tick. Raises TimeoutError past the deadline."""
    assert process.stdout is not None
    descriptor, rest = process.stdout.fileno(), b""
    while True:
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError
        if not select.select([descriptor], [], [], _TICK_SECONDS)[0]:
            yield {}
            continue
        block = os.read(descriptor, 1 << 16)
        if not block:
            return
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _death(request: Request, code: int, *, last_log: str, peak_bytes: int, stderr: IO[bytes]) -> Exception:
    """Why a child ended without result or error: killed, crashed, or a bug of ours with its traceback."""
    peak = f"at a peak of {peak_bytes / 2**20:.0f} MiB of memory"
    if code == -signal.SIGKILL:
        return ExportError(
            f"{request.onnx_path}: the system killed the build (SIGKILL) {peak}, most likely for want of memory. "
            "Allow a smaller workspace, end other programs, or add swap."
        )
    if code < 0:
        name = signal.Signals(-code).name
        return ExportError(
            f"{request.onnx_path}: {request.flavour} crashed ({name}) {peak}; its last words: '{last_log.strip()}'. "
            "Try another TensorRT version, and report it to NVIDIA with the model."
        )
    stderr.seek(0)
    return RuntimeError(f"the engine builder ended with code {code}:\n{stderr.read().decode(errors='replace')}")
