"""How fast a model file is on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from exporters.latency import Latency
from exporters.plan import plan_flavour
from exporters.runtimes import RuntimeInfo, TensorInfo
from soup import Progress, SoupError, silent
from soup.files import sha256_file
from soup.manifest import FILE_NAME, read_manifest
from soup.proof import TIMED, Artifact, open_artifact, time_runtime


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What `soup bench` tells of one model file on this machine."""

    model: Path
    info: RuntimeInfo
    latency: Latency


def bench(model: Path, *, batch: int | None = None, progress: Progress = silent) -> BenchResult:
    """Latency of an ONNX file, an engine, or a release's ONNX model, on random inputs (uniform in 0..1, seed 0).

    `batch` is samples per call, None the graph's own (1 where it is dynamic). Raises SoupError or ExportError for a
    file that cannot be opened here, or whose hash is not the one in the manifest beside it.
    """
    path = model / "model.onnx" if model.is_dir() else model
    if not path.is_file():
        raise SoupError(f"{path}: not found, expected an .onnx file, an engine, or a release folder.")
    engine = path.suffix == ".engine" or plan_flavour(path.read_bytes()) is not None
    artifact = Artifact(path.name, "engine" if engine else "onnx", _expected_sha256(path), batch or 1)
    with open_artifact(path.parent, artifact) as runtime:
        artifact = replace(artifact, batch=_bench_batch(path, runtime.inputs, batch))
        inputs = _random_inputs(runtime.inputs, artifact.timed_batch)
        progress(f"timing {artifact.file}: {TIMED}", 0, 0)
        return BenchResult(path, runtime.info, time_runtime(runtime, inputs, artifact))


def _expected_sha256(path: Path) -> str:
    """The hash in the manifest beside the file, where it lies in a release; else its own."""
    if (path.parent / FILE_NAME).is_file():
        listed = read_manifest(path.parent).files.get(path.name)
        if listed is not None:
            return listed.sha256
    return sha256_file(path)


def _bench_batch(path: Path, infos: Sequence[TensorInfo], asked: int | None) -> int:
    own = infos[0].shape[0]
    if not isinstance(own, int):
        return asked or 1
    if asked not in (None, own):
        raise SoupError(f"{path}: takes {own} samples per call, expected --batch {own} and not {asked}. Leave it out.")
    return own


def _random_inputs(infos: Sequence[TensorInfo], batch: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    inputs = {}
    for info in infos:
        if any(isinstance(axis, str) for axis in info.shape[1:]):
            raise SoupError(f"input '{info.name}' has shape {info.shape}: only the first axis may be dynamic.")
        shape = (batch, *(int(axis) for axis in info.shape[1:]))
        inputs[info.name] = generator.random(shape).astype(info.dtype)
    return inputs
