"""What is measured of one network: accuracy and flips, the accuracy-aware pass, the time to quantise, and engines.

Logits are kept in a folder by the hash of graph and images, times and engines by what they depend on: a run that was
ended goes on where it was, and a graph that has changed is measured again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import precision_variants as variants
from benchmarks.precision_networks import LARGEST_BATCH, Subject
from benchmarks.precision_variants import METHODS, THEIRS
from exporters.audit import audit_onnx, share
from exporters.layers import compute_layers
from exporters.onnx_to_tensorrt import find_builder, onnx_to_tensorrt
from soup.doctor import versions
from soup.files import canonical_json, sha256_bytes, write_file
from soup.precision_audit import engine_audit
from soup.statistics import paired_difference

ROOT = Path(__file__).parents[1]
RAISED = ("exporters/*int8*.py", "exporters/layers.py", "soup/sensitivity.py", "benchmarks/precision_variants.py")
TIMED = (
    "calib/*.py",
    "exporters/*int8*.py",
    "exporters/tapp*.py",
    "exporters/taps.py",
    "benchmarks/precision_variants.py",
)


@dataclass(frozen=True, slots=True)
class Bench:
    """A network, what makes its variants by each method, and the folder that keeps logits."""

    subject: Subject
    kept: Path
    forges: Mapping[variants.Method, variants.Forge]

    @staticmethod
    def of(subject: Subject, kept: Path) -> Bench:
        """With a forge for each method; nothing is measured yet."""
        return Bench(subject, kept, {method: variants.forge(subject, method) for method in METHODS})

    def logits(self, graph: bytes, split: str) -> np.ndarray:
        """Of a graph on all images of a split."""
        inputs = self.subject.splits[split][0]
        name = sha256_bytes(
            f"{sha256_bytes(graph)} {sha256_bytes(inputs.tobytes())} {_versions()['onnxruntime']}".encode()
        )
        path = self.kept / f"{name[:32]}.npy"
        if not path.exists():
            found = variants.answers(graph, inputs, where=self.subject.name)
            self.kept.mkdir(parents=True, exist_ok=True)
            staged = path.with_suffix(".part.npy")
            np.save(staged, found)
            staged.rename(path)
        return np.load(path)

    def compared(self, graph: bytes, split: str) -> dict[str, float]:
        """A graph beside FP32, with the 95 % interval of the difference in points."""
        labels = self.subject.splits[split][1]
        after, before = self.logits(graph, split), self.logits(self.subject.graph, split)
        right, was = (np.argmax(logits, 1) == labels for logits in (after, before))
        interval = paired_difference(right, was)
        ends = {"low": 100 * interval.low, "high": 100 * interval.high}
        return {**variants.compared(after, before, labels), **ends}


def graphs(bench: Bench) -> Iterator[tuple[str, str, bytes]]:
    """(who made it, what it is, graph), with nothing yet done about what a graph loses."""
    subject = bench.subject
    yield "soup", "FP32", subject.graph
    yield "soup", "FP16", bench.forges["minmax"].make("fp16").graph
    for method, forge in bench.forges.items():
        yield "soup", f"INT8 {method}", forge.make("int8").graph
    yield "quantize_static", "INT8, its defaults (minmax)", variants.static(subject, "minmax")
    for method in ("minmax", "entropy"):
        for_tensorrt = variants.static(subject, method, **variants.FOR_TENSORRT)
        yield "quantize_static", f"INT8 {method}, set for TensorRT", for_tensorrt
    if importlib.util.find_spec("modelopt") is not None:
        for method in ("minmax", "entropy"):
            yield "ModelOpt", f"INT8 {method}", variants.by_modelopt(subject, method)


def network_row(bench: Bench) -> dict[str, Any]:
    """What the others are measured against."""
    subject, layers = bench.subject, compute_layers(variants.proto(bench.subject.graph))
    found = {split: bench.compared(subject.graph, split) for split in ("val", "test")}
    return {
        "layers": len(layers), "macs": sum(layer.macs or 0 for layer in layers),
        **{split: row["accuracy"] for split, row in found.items()},
        **{f"{split}_images": row["images"] for split, row in found.items()},
        "calibration_images": min(len(subject.calibration), variants.DEFAULTS.samples),
    }  # fmt: skip


def accuracy_rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """Each graph on the test images."""
    for maker, label, graph in graphs(bench):
        part = variants.share(graph, where=label) if "INT8" in label else None
        yield {"by": maker, "graph": label, "share": part, "size_bytes": len(graph), **bench.compared(graph, "test")}


def raised(bench: Bench, method: variants.Method, *, allowed: float) -> tuple[bytes, dict[str, Any]]:
    """INT8 as it may ship: as it is where it passes on val, else with the layers that the pass keeps in FP32."""
    made = bench.forges[method]
    plain = made.make("int8").graph
    before, on_test = (bench.compared(plain, split)["points"] for split in ("val", "test"))
    found = {"passed": True, "layers": [], "evaluations": 1, "seconds": 0.0}
    if not -before <= allowed:
        key = {"table": made.table().sha256, "allowed": allowed, "code": sources(RAISED), **_versions()}
        path = bench.kept / f"{bench.subject.name}-{method}-{allowed}.json"
        [found] = remembered(path, key, lambda: [_pass(bench, method, allowed=allowed)])
    graph = made.make("int8", keep=found["layers"]).graph
    row = {
        "method": method, "allowed": allowed, "val_points": before, "before_points": on_test, **found,
        "val_points_after": bench.compared(graph, "val")["points"],
        "share": variants.share(graph, where=bench.subject.name),
        **{f"test_{key}": value for key, value in bench.compared(graph, "test").items()},
    }  # fmt: skip
    return graph, row


def _pass(bench: Bench, method: variants.Method, *, allowed: float) -> dict[str, Any]:
    started, before = time.perf_counter(), bench.logits(bench.subject.graph, "val")
    found = variants.raised(bench.subject, bench.forges[method], before, allowed=allowed)
    seconds = time.perf_counter() - started
    kept = {"passed": found.passed, "layers": list(found.layers), "evaluations": found.evaluations}
    return {**kept, "seconds": seconds}


def time_rows(subject: Subject, *, images: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Both quantisers in turns, from the float graph to the INT8 one, on the same images in the same batches."""
    for method in METHODS:
        make_ours = functools.partial(variants.quantized, subject, method, count=images)
        make_theirs = functools.partial(variants.static, subject, method, count=images)
        turns = [(timed(make_ours), timed(make_theirs) if method in THEIRS else None) for _ in range(repeats)]
        ours, theirs = [turn[0] for turn in turns], [turn[1] for turn in turns if turn[1]]
        yield {"method": method, "images": images, "repeats": repeats, **medians(ours, theirs)}


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the wall clock, and of all cores."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def medians(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> dict[str, float | None]:
    """The median of each clock, and the ratios; None where there is nothing to compare with."""
    (wall, cpu), other = map(statistics.median, zip(*ours, strict=True)), list(zip(*theirs, strict=True))
    if not theirs:
        return {"soup": wall, "other": None, "ratio": None, "cpu_ratio": None}
    their_wall, their_cpu = map(statistics.median, other)
    return {"soup": wall, "other": their_wall, "ratio": wall / their_wall, "cpu_ratio": cpu / their_cpu}


def engine_row(graph: bytes, path: Path) -> dict[str, Any]:
    """An engine of the graph, built ahead of time; `path` is for both files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".onnx").write_bytes(graph)
    built = onnx_to_tensorrt(path.with_suffix(".onnx"), path, profile=(1, 8, LARGEST_BATCH), workspace_bytes=None)
    return {
        "seconds": built.seconds, "size_bytes": built.size_bytes, "onnx_bytes": len(graph), "layers": built.layers,
        "peak_memory_bytes": built.peak_memory_bytes, "dtypes": dict(built.dtypes), "sha256": built.sha256,
        "builder": f"{built.flavour} {built.version}", "warnings": list(built.log_warnings),
    }  # fmt: skip


def median_build(graph: bytes, path: Path, *, repeats: int) -> list[dict[str, Any]]:
    """The one of several builds that took the median time."""
    rows = [engine_row(graph, path) for _ in range(repeats)]
    return [sorted(rows, key=lambda row: float(row["seconds"]))[len(rows) // 2]]


def times(bench: Bench, folder: Path, *, images: int, repeats: int) -> list[dict[str, Any]]:
    """`time_rows`, or what they were with the same graph, images, libraries and code."""
    key = {
        "graph": sha256_bytes(bench.subject.graph), "images": images, "repeats": repeats, "code": sources(TIMED),
        **_versions(),
    }  # fmt: skip
    path = folder / f"{bench.subject.name}-times.json"
    return remembered(path, key, lambda: list(time_rows(bench.subject, images=images, repeats=repeats)))


def engines(bench: Bench, graphs: Mapping[str, bytes], folder: Path, *, repeats: int) -> list[dict[str, Any]]:
    """An engine of each precision, the median build of several; none where no TensorRT is installed."""
    builder = find_builder()
    rows = []
    for precision, graph in graphs.items() if builder else ():
        path = folder / f"{bench.subject.name}-{precision.replace(' ', '-').lower()}.engine"
        key = {"graph": sha256_bytes(graph), "builder": str(builder), "repeats": repeats}

        build = functools.partial(median_build, graph, path, repeats=repeats)
        (row,) = remembered(path.with_suffix(".json"), key, build)
        rows.append({"precision": precision, **row, "share": engine_share(graph, path, precision.lower())})
    return rows


def engine_share(graph: bytes, path: Path, precision: str) -> float:
    """The part of the multiply-adds that the engine computes in the precision, by the builder's own record."""
    asked: Any = precision
    audits = audit_onnx(graph, asked=asked, kept=(), where=path.name)
    return share(engine_audit(path.with_suffix(".layers.json"), audits), asked)


def remembered(path: Path, key: Mapping[str, object], make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What `make` gives, read from `path` where it was measured with the same key."""
    digest = sha256_bytes(canonical_json(key))
    if path.exists() and (found := json.loads(path.read_text()))["key"] == digest:
        return list(found["rows"])
    rows = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, canonical_json({"key": digest, "rows": rows}))
    return rows


def sources(patterns: tuple[str, ...]) -> str:
    """One hash of the code that a time depends on."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _versions() -> dict[str, str]:
    return {name: version for name, version in versions().items() if name in ("onnx", "onnxruntime", "numpy")}
