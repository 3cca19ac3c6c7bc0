"""How far the inner tensors of two graphs are apart on the same samples, a few at a time so that a big network fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from exporters.onnx_facts import OnnxFacts
from exporters.ort_session import open_session
from exporters.precision import Precision
from exporters.runtimes import Arrays, check_inputs
from exporters.tapped import tapped
from exporters.taps import tensor_names, with_taps
from soup import Progress, SoupError
from soup.golden import Golden
from soup.proof import as_fed

MEASURE = "||a - b|| / max(||a||, 1e-6 sqrt(n)) over all golden samples, a the reference's tensor of n numbers"
_FLOOR = 1e-6  # of a tensor's root mean square: a dead layer's tensor is all zero
_BUDGET_BYTES = 256 << 20  # of tapped tensors, of both graphs, at a time
_ROWS = 8  # samples at once where the batch is dynamic


@dataclass(slots=True)
class Distance:
    """Squares over the samples seen so far, in float64; `note` where the two cannot be compared."""

    difference: float = 0.0
    reference: float = 0.0
    count: int = 0
    note: str = ""

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        if a.shape != b.shape:
            self.note = f"has shape {b.shape}, expected {a.shape}"
            return
        wide, other = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so, and departs
            off = wide - other
            self.difference += float(off @ off)
            self.reference += float(wide @ wide)
        self.count += a.size

    @property
    def error(self) -> float:
        """NaN where anything was not finite or could not be compared."""
        if self.note or not math.isfinite(self.difference + self.reference):
            return math.nan
        scale = max(math.sqrt(self.reference), _FLOOR * math.sqrt(self.count))
        return math.sqrt(self.difference) / scale if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX file in memory, by the name that it is told by."""

    label: str
    model: bytes
    facts: OnnxFacts = field(repr=False)

    @property
    def precision(self) -> Precision:
        """By what is in it: Q/DQ nodes, or half-precision weights."""
        if "DequantizeLinear" in self.facts.nodes:
            return "int8"
        return "fp16" if "float16" in self.facts.weights else "fp32"


def compare_tensors(
    reference: Graph, examined: Graph, golden: Golden, *, progress: Progress
) -> tuple[dict[str, Distance], int]:
    """Sums by tensor, for those that are floating-point numbers in both; and how many only the reference has."""
    names = list(dict.fromkeys(tensor_names(reference.model)))
    theirs = {*tensor_names(examined.model)}
    shared = [name for name in names if name in theirs]
    if not shared:
        raise SoupError(f"{examined.label}: has no tensor of {reference.label}'s by name. Give two forms of one model.")
    rows = _rows(reference, examined)
    sizes = _sizes(reference, shared, rows=rows)
    feeds = [_feed(graph, golden, rows=rows) for graph in (reference, examined)]
    distances = {name: Distance() for name in sizes}
    chunks = list(_chunks(sizes))
    for done, chunk in enumerate(chunks):
        progress(f"comparing {len(sizes)} tensors of {examined.label}", done, len(chunks))
        ours, others = (
            tapped(graph.model, chunk, _slices(feed, rows), where=graph.label)
            for graph, feed in zip((reference, examined), feeds, strict=True)
        )
        for one, other in zip(ours, others, strict=True):
            for name in chunk:
                distances[name].add(one[name], other[name])
    return distances, len(names) - len(shared)


def _rows(reference: Graph, examined: Graph) -> int:
    """Samples of one call: the static batch of either."""
    sizes = {size for graph in (reference, examined) if (size := _static_batch(graph)) is not None}
    if len(sizes) > 1:
        message = f"takes {_static_batch(examined)} samples a call, {reference.label} takes {_static_batch(reference)}"
        raise SoupError(f"{examined.label}: {message}. Give two graphs of one batch, or of a dynamic one.")
    return next(iter(sizes), _ROWS)


def _slices(feed: Arrays, rows: int) -> Iterator[Arrays]:
    count = len(next(iter(feed.values())))
    for start in range(0, count, rows):
        yield {name: array[start : start + rows] for name, array in feed.items()}


def _static_batch(graph: Graph) -> int | None:
    axis = graph.facts.inputs[0].shape[0] if graph.facts.inputs and graph.facts.inputs[0].shape else None
    return axis if isinstance(axis, int) else None


def _feed(graph: Graph, golden: Golden, *, rows: int) -> Arrays:
    """The golden inputs as the graph takes them; a static batch is filled up by the last sample."""
    if len(graph.facts.inputs) != len(golden.inputs):
        have, want = len(graph.facts.inputs), len(golden.inputs)
        raise SoupError(f"{graph.label}: takes {have} inputs, the golden samples have {want}. Give another graph.")
    feed = as_fed(golden.inputs, graph.facts.inputs)
    check_inputs(feed, graph.facts.inputs, where=graph.label)
    count = len(golden)
    whole = count if _static_batch(graph) is None else -(-count // rows) * rows
    filled = np.minimum(np.arange(whole), count - 1)
    return {name: array[filled] for name, array in feed.items()}


def _sizes(graph: Graph, names: Sequence[str], *, rows: int) -> dict[str, int]:
    """Bytes of each floating-point tensor in one call, as ONNX Runtime infers its shape; unknown axes count once."""
    session = open_session(with_taps(graph.model, names), where=graph.label, provider="cpu", threads=1)
    sizes = {}
    for info in session.get_outputs():
        if info.type in ("tensor(float)", "tensor(float16)", "tensor(double)"):
            axes = [
                axis if isinstance(axis, int) else rows if at == 0 else 1 for at, axis in enumerate(info.shape or ())
            ]
            sizes[info.name] = 8 * math.prod(axes)
    return {name: sizes[name] for name in names if name in sizes}


def _chunks(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in order, as many at once as the budget has room for, of two graphs; one that alone has none goes alone."""
    chunk: list[str] = []
    used = 0
    for name, size in sizes.items():
        if chunk and used + 2 * size > _BUDGET_BYTES:
            yield chunk
            chunk, used = [], 0
        chunk.append(name)
        used += 2 * size
    if chunk:
        yield chunk
