"""What flows through a graph on real inputs: its inner tensors, batch by batch, by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from exporters import ExportError
from exporters.ort_session import onnxruntime_errors, open_session
from exporters.runtimes import Arrays
from exporters.taps import with_taps


def tapped(
    model: bytes, names: Sequence[str], batches: Iterable[Arrays], *, where: str
) -> Iterator[dict[str, np.ndarray]]:
    """The tensors `names` by name, for each batch of inputs; a graph with a static batch is fed so many at a time.

    A last batch that a static one cannot be filled with is left out. Raises ExportError: input where the graph has no
    such tensor or cannot be loaded, environment without onnxruntime, build where it fails on the inputs.
    """
    session = open_session(with_taps(model, names), where=where, provider="cpu", threads=None)
    wanted, axis = list(dict.fromkeys(names)), session.get_inputs()[0].shape[0]
    for inputs in batches:
        count = len(next(iter(inputs.values())))
        size = axis if isinstance(axis, int) else count
        for start in range(0, count - size + 1, size):
            feed = {name: np.ascontiguousarray(array[start : start + size]) for name, array in inputs.items()}
            try:
                yield dict(zip(wanted, session.run(wanted, feed), strict=True))
            except onnxruntime_errors() as error:
                shapes = {name: array.shape for name, array in feed.items()}
                raise ExportError(f"{where}: ONNX Runtime cannot run it on {shapes}: {error}") from error
