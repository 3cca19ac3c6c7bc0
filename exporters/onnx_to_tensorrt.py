"""ONNX to a TensorRT engine, built in a process of its own, so that its memory is freed and its death is told."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from exporters import ExportError
from exporters.engine_builder import Request, peak_memory_bytes
from exporters.flavours import Flavour
from exporters.gpu import Gpu, find_gpu

_TICK_SECONDS = 0.1  # how often the child's memory and the deadline are looked at


@dataclass(frozen=True, slots=True)
class Builder:
    """What would build here: classic TensorRT for `gpu`, or tensorrt_rtx, ahead of time where there is none."""

    flavour: Flavour
    version: str
    gpu: Gpu | None


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """A built engine, hashed as it lies on disk.

    `compute_capabilities` is empty for a portable tensorrt_rtx engine (Ampere and later). `dtypes` counts layers by
    TensorRT's name of the type they compute on. Where the builder's record was not readable, `layers` is None.
    """

    path: Path
    layers_path: Path
    flavour: Flavour
    version: str
    compute_capabilities: tuple[str, ...]
    seconds: float
    peak_memory_bytes: int
    size_bytes: int
    sha256: str
    layers: int | None
    dtypes: Mapping[str, int]
    log_warnings: tuple[str, ...]


def find_builder() -> Builder | None:
    """Classic TensorRT where it is installed and has the GPU that it needs, else tensorrt_rtx, else None.

    Neither is imported: their libraries would stay in memory.
    """
    gpu = find_gpu()
    flavours: tuple[Flavour, ...] = ("tensorrt", "tensorrt_rtx") if gpu else ("tensorrt_rtx",)
    for flavour in flavours:
        spec = importlib.util.find_spec(flavour)
        if spec is not None and spec.origin is not None:  # a stray folder of that name has no origin
            distributions = importlib.metadata.packages_distributions().get(flavour, [])
            version = importlib.metadata.version(distributions[0]) if distributions else "unknown"
            return Builder(flavour, version, gpu)
    return None


def onnx_to_tensorrt(
    onnx_path: Path,
    engine_path: Path,
    *,
    profile: tuple[int, int, int] | None,
    workspace_bytes: int | None,
    compute_capabilities: Sequence[str] = (),
    timeout_s: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> EngineBuild:
    """Build a strongly typed engine and write it with its layer record (`<engine stem>.layers.json`) beside it.

    `profile` is the batch (min, opt, max) of every dynamic input, None for a static graph. `compute_capabilities`
    ("8.6", "8.9") are for tensorrt_rtx; none means portable there, and the GPU at hand for classic TensorRT. `progress`
    gets the names of phases. After a failure a part of the engine may lie at `engine_path`: stage the folder.

    Raises ExportError: input (file, profile, capability), environment (no builder that could), build (everything else).
    """
    _check_profile(profile)
    _check_compute_capabilities(compute_capabilities)
    if not onnx_path.is_file():
        raise ExportError(f"{onnx_path}: not found, expected an ONNX model.", kind="input")
    builder = _required_builder()
    layers_path = engine_path.with_suffix(".layers.json")
    request = Request(
        onnx_path=str(onnx_path.resolve()),
        engine_path=str(engine_path.resolve()),
        layers_path=str(layers_path.resolve()),
        flavour=builder.flavour,
        profile=profile,
        workspace_bytes=workspace_bytes,
        compute_capabilities=_to_set(builder, tuple(dict.fromkeys(compute_capabilities))),
    )
    started = time.monotonic()
    result = _run_child(request, timeout_s=timeout_s, progress=progress)
    return EngineBuild(
        path=engine_path,
        layers_path=layers_path,
        flavour=builder.flavour,
        version=result["version"],
        compute_capabilities=_built_for(builder, request),
        seconds=time.monotonic() - started,
        peak_memory_bytes=result["peak_memory_bytes"],
        size_bytes=result["size_bytes"],
        sha256=result["sha256"],
        layers=result["layers"],
        dtypes=result["dtypes"],
        log_warnings=tuple(result["warnings"]),
    )


def _check_profile(profile: tuple[int, int, int] | None) -> None:
    if profile is None:
        return
    least, usual, greatest = profile
    if not 1 <= least <= usual <= greatest:
        raise ExportError(
            f"profile: batch (min, opt, max) is {profile}, expected 1 <= min <= opt <= max.", kind="input"
        )


def _check_compute_capabilities(names: Sequence[str]) -> None:
    wrong = [name for name in names if not re.fullmatch(r"\d{1,2}\.\d", name)]
    if wrong:
        raise ExportError(f"compute capabilities: {', '.join(map(repr, wrong))}, expected the form 8.6.", kind="input")


def _to_set(builder: Builder, asked: tuple[str, ...]) -> tuple[str, ...]:
    """What must be set in the builder: nothing where classic TensorRT is asked for the very GPU that it has."""
    own = (builder.gpu.compute_capability,) if builder.gpu and builder.flavour == "tensorrt" else None
    return () if asked == own else asked


def _built_for(builder: Builder, request: Request) -> tuple[str, ...]:
    if builder.flavour == "tensorrt" and builder.gpu:
        return (builder.gpu.compute_capability,)
    return request.compute_capabilities


def _required_builder() -> Builder:
    if builder := find_builder():
        return builder
    here = "no tensorrt or tensorrt_rtx" if find_gpu() else "no NVIDIA GPU and no tensorrt_rtx"
    raise ExportError(
        f"TensorRT: nothing here can build an engine ({here}). Install a builder: pip install 'edgesoup[rtx]' "
        "(builds ahead of time, also without a GPU), or build on the device, from the release folder.",
        kind="environment",
    )


def _run_child(request: Request, *, timeout_s: float | None, progress: Callable[[str], None] | None) -> dict[str, Any]:
    """The child's result event. Whatever ends this function early ends the child too."""
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    command = [sys.executable, "-m", "exporters.engine_builder", json.dumps(asdict(request))]
    # `-m` looks in the working directory first: make that the folder of this very package.
    folder = Path(__file__).parents[1]
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, cwd=folder
        ) as process,
    ):
        last: dict[str, Any] = {}
        last_log, peak_bytes = "nothing was logged", 0
        try:
            for event in _events(process, deadline):
                peak_bytes = max(peak_bytes, peak_memory_bytes(process.pid))
                last = event or last
                last_log = event.get("log", last_log)
                if progress and "phase" in event:
                    progress(event["phase"])
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
