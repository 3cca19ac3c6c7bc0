"""NVIDIA's own timing tool beside ours: run trtexec where it is, and read its figures."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exporters import ExportError

# A line of the "Performance summary" of 8.4 to 11.x: "Throughput: 234.19 qps", and for each kind of time
# "GPU Compute Time: min = 1 ms, max = 2 ms, …, median = 1.5 ms, percentile(99%) = 2 ms" (NVIDIA TensorRT documentation,
# Command-Line Programs, trtexec). 8.0 to 8.4 print one percentile, later versions three.
_THROUGHPUT = re.compile(r"\bThroughput: *([\d.]+) *qps")
_KINDS = {"gpu": "GPU Compute Time", "latency": "Latency", "enqueue": "Enqueue Time"}
_VALUE = re.compile(r"(min|max|mean|median|percentile\(([\d.]+)%\)) = ([\d.]+) ms")
_BANNER = re.compile(r"&&&& (RUNNING|PASSED|FAILED) TensorRT\.trtexec \[TensorRT v([\d.]+)\]")
_VERSION = re.compile(r"\bTensorRT version: *(\d+(?:\.\d+)+)")
_ERROR = re.compile(r"\[E\] *(.*)")
_PLACES = ("usr/src/tensorrt/bin/trtexec", "opt/tensorrt/bin/trtexec")  # JetPack's and the NGC container's


@dataclass(frozen=True, slots=True)
class Times:
    """One kind of time in milliseconds; `percentiles_ms` holds those that this version prints."""

    min_ms: float
    mean_ms: float
    median_ms: float
    max_ms: float
    percentiles_ms: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrtexecFigure:
    """What trtexec says of a model. `gpu` is the kernels alone; `latency` adds the copies, where it made any.

    `throughput_qps` is calls per second, with the next one queued ahead: it is not one over the latency. `command` is
    part of the figure, since defaults changed between versions (CUDA graph, spin wait and no transfers since 11).
    """

    version: str
    command: tuple[str, ...]
    throughput_qps: float
    gpu: Times
    latency: Times | None
    enqueue: Times | None


def find_trtexec(root: Path = Path("/")) -> Path | None:
    """The tool on PATH, or where JetPack and NVIDIA's containers have it."""
    found = shutil.which("trtexec")
    places = [Path(found)] if found else [root / place for place in _PLACES]
    return next((place for place in places if place.is_file()), None)


def run_trtexec(command: Sequence[str], *, max_seconds: float = 900.0) -> TrtexecFigure:
    """Run a whole command line, the program first, and read what it prints.

    Raises ExportError: environment where the program cannot be started, build where it fails, prints no figures, or
    takes longer than `max_seconds` (it builds an engine first); it is ended then.
    """
    where = Path(command[0]).name
    try:
        done = subprocess.run(
            list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=max_seconds, check=False,
        )  # fmt: skip
    except OSError as error:
        raise ExportError(f"{command[0]}: cannot be started: {error.strerror}.", kind="environment") from error
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{where}: not done after {max_seconds:.0f} s, and ended.") from error
    if done.returncode != 0 or "&&&& FAILED" in done.stdout:
        reasons = "; ".join(dict.fromkeys(_ERROR.findall(done.stdout))) or "it printed no error"
        raise ExportError(f"{where}: failed with exit code {done.returncode}: {reasons}")
    return parse_trtexec(done.stdout, command=command)


def parse_trtexec(text: str, *, command: Sequence[str] = ()) -> TrtexecFigure:
    """The figures in trtexec's output. Raises ExportError (build) without version, throughput or GPU times."""
    summary = text.rpartition("=== Performance summary ===")[2]
    throughput = _THROUGHPUT.search(summary)
    version = trtexec_version(text)
    times = {kind: _times(summary, name) for kind, name in _KINDS.items()}
    gpu = times["gpu"]
    if throughput is None or version is None or gpu is None:
        parts = {"version": version, "throughput": throughput, "GPU Compute Time": gpu}
        missing = ", ".join(name for name, value in parts.items() if value is None)
        raise ExportError(f"trtexec: its output has no {missing}, expected the Performance summary of 8.4 to 11.")
    return TrtexecFigure(
        version, tuple(command), float(throughput[1]), gpu, latency=times["latency"], enqueue=times["enqueue"]
    )


def trtexec_version(text: str) -> str | None:
    """ "8.6.2" of the banner's v8602, "10.3.0" of v100300; the log's own line, where there is one, comes first.

    NV_TENSORRT_VERSION is major × 1000 + minor × 100 + patch up to 9, major × 10000 + minor × 100 + patch from 10 on
    (NvInferRuntimeBase.h, NvInferVersion.h).
    """
    told = _VERSION.search(text)
    if told:
        return told[1]
    banner = _BANNER.search(text)
    if banner is None:
        return None
    number = banner[2]
    if "." in number:
        return number
    parts = divmod(int(number), 1000 if len(number) < 6 else 10_000)
    return f"{parts[0]}.{parts[1] // 100}.{parts[1] % 100}"


def _times(summary: str, name: str) -> Times | None:
    """The line of that name; "Latency" is not "H2D Latency", "GPU Compute Time" not "Total GPU Compute Time"."""
    line = re.search(rf"(?:^|\] ){name}: (min = .*)$", summary, re.MULTILINE)
    if line is None:
        return None
    found = {label: (percent, float(value)) for label, percent, value in _VALUE.findall(line[1])}
    if not {"min", "max", "mean", "median"} <= found.keys():
        return None
    percentiles = {float(percent): value for percent, value in found.values() if percent}
    return Times(found["min"][1], found["mean"][1], found["median"][1], found["max"][1], percentiles)
