"""A model's predictions on a split, scored sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from exporters.runtimes import Arrays, Predict
from soup import SoupError
from soup.tasks import Metric


class Samples(Protocol):
    """What is evaluated on: preprocessed batches of inputs with their targets, any number of times."""

    def __len__(self) -> int:
        """Number of samples."""

    def batches(self, batch: int, *, order: Sequence[int] | None = None) -> Iterator[tuple[np.ndarray, Arrays, Arrays]]:
        """(indices int64[b], inputs, targets) for each batch; the last may be smaller; every sample exactly once."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one model on one split, kept per sample so that two of them can be compared in pairs."""

    n_total: int
    seen: np.ndarray  # bool[n_total]
    per_sample: Arrays  # statistics of the metric, first axis n_total (zeros where not seen)
    value: float | None  # None where it stopped early
    bound: float | None  # the best value that was still within reach, where it stopped
    outputs: Arrays | None = None  # every output, first axis n_total, where they were asked for
    not_finite: int = 0  # samples seen with NaN or Inf in any output


def evaluate(
    predict: Predict,
    samples: Samples,
    metric: Metric,
    *,
    batch: int = 64,
    order: Sequence[int] | None = None,
    must_beat: float | None = None,
    keep_outputs: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score `predict` on every sample once, in `order` (a permutation; the samples' own without).

    With `must_beat` it stops where even a perfect rest would leave the value short of it (below it, or above it for a
    loss), which never changes a decision: reaching `must_beat` exactly is enough. NaN never reaches it.
    Raises SoupError where an output does not have one row per sample; ValueError where `samples` or `order` miscounts.
    """
    total = len(samples)
    if order is not None and not np.array_equal(np.sort(order), np.arange(total)):
        raise ValueError(f"order is no permutation of {total} samples")
    seen = np.zeros(total, bool)
    per_sample: dict[str, np.ndarray] = {}
    kept: dict[str, np.ndarray] = {}
    not_finite = 0
    bound: float | None = None
    for indices, inputs, targets in samples.batches(batch, order=order):
        outputs = predict(inputs)
        _check_rows(outputs, len(indices))
        _mark(seen, indices)
        _scatter(per_sample, metric.per_sample(outputs, targets), indices, total=total)
        not_finite += _count_not_finite(outputs, len(indices))
        if keep_outputs:
            _scatter(kept, outputs, indices, total=total)
        if progress:
            progress(int(seen.sum()), total)
        if must_beat is not None and not seen.all():
            bound = metric.upper_bound(per_sample, seen)
            if bound is not None and not _reaches(bound, must_beat, metric):
                return Evaluation(total, seen, per_sample, None, bound, kept if keep_outputs else None, not_finite)
    if not seen.all():
        raise ValueError(f"the batches held {int(seen.sum())} of {total} samples")
    return Evaluation(
        total, seen, per_sample, metric.reduce(per_sample), None, kept if keep_outputs else None, not_finite
    )


def _reaches(bound: float, must_beat: float, metric: Metric) -> bool:
    return bound >= must_beat if metric.higher_is_better else bound <= must_beat


def _mark(seen: np.ndarray, indices: np.ndarray) -> None:
    if seen[indices].any() or len(np.unique(indices)) != len(indices):
        raise ValueError(f"a sample came twice, in the batch {indices.tolist()}")
    seen[indices] = True


def _check_rows(outputs: Arrays, rows: int) -> None:
    if not outputs:
        raise SoupError("model: it gave no output, expected at least one array.")
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise SoupError(
                f"model: output '{name}' has shape {array.shape}, expected {rows} rows, one for each sample."
            )


def _count_not_finite(outputs: Arrays, rows: int) -> int:
    finite = np.ones(rows, bool)
    for array in outputs.values():
        if array.dtype.kind == "f":
            finite &= np.isfinite(array).reshape(rows, -1).all(axis=1)
    return rows - int(finite.sum())


def _scatter(whole: dict[str, np.ndarray], part: Mapping[str, np.ndarray], indices: np.ndarray, *, total: int) -> None:
    for name, values in part.items():
        if name not in whole:
            whole[name] = np.zeros((total, *values.shape[1:]), values.dtype)
        whole[name][indices] = values
