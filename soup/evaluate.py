"""A model's predictions on a split, scored sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from exporters.runtimes import Arrays, Predict
from soup import SoupError
from soup.tasks import Metric

KEPT_BYTES = 256 * 1024**2  # of raw outputs, for each evaluation
_ANSWERS = "answers/"


class Samples(Protocol):
    """What is evaluated on: preprocessed batches of inputs with their targets, any number of times."""

    @property
    def targets(self) -> Arrays:
        """Of all samples, in their order."""

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
    outputs: Arrays | None = None  # every output of the first samples (`kept_rows`), where they were asked for
    not_finite: int = 0  # samples seen with NaN or Inf in any output
    difficulty: np.ndarray | None = None  # float32[n_total], `Metric.difficulty`; 0 where not seen
    worst: float | None = None  # the worst value that was still within reach, where it stopped
    answers: Arrays | None = None  # `Task.answers`, first axis n_total, where they were asked for


@dataclass(slots=True)
class Memory:
    """What is known of one model on one split, by sample; `evaluate` asks only for the rest, and adds it here."""

    seen: np.ndarray  # bool[n]
    per_sample: dict[str, np.ndarray] = field(default_factory=dict)
    difficulty: np.ndarray | None = None
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    answers: dict[str, np.ndarray] = field(default_factory=dict)  # empty where they are the outputs themselves
    known: Arrays = field(default_factory=dict)  # `Metric.known` of all samples

    @staticmethod
    def of(evaluation: Evaluation, kept: Arrays | None = None) -> Memory:
        """What an evaluation saw, copied; `kept` as `kept_arrays` has it."""
        outputs, answers = outputs_and_answers(kept or {})
        return Memory(
            evaluation.seen.copy(), _copied(evaluation.per_sample),
            None if evaluation.difficulty is None else evaluation.difficulty.copy(), _copied(outputs),
            {} if answers is outputs else _copied(answers),
        )  # fmt: skip

    def shown(self, seen: np.ndarray, metric: Metric, *, stopped: bool, keep_outputs: bool) -> Evaluation:
        """As an evaluation that saw these samples and no others, so that it does not tell what else is known."""
        per_sample = _masked(self.per_sample, seen)
        difficulty = None if self.difficulty is None else _masked({"": self.difficulty}, seen)[""]
        outputs = _masked(self.outputs, seen) if keep_outputs and self.outputs else None
        return Evaluation(
            len(seen), seen, per_sample,
            None if stopped else metric.reduce(per_sample),
            metric.upper_bound(self.bounded(seen), seen) if stopped else None,
            outputs,
            0 if difficulty is None else int(np.isposinf(difficulty).sum()),
            difficulty,
            metric.worst_bound(self.bounded(seen), seen) if stopped else None,
            None if outputs is None else _masked(self.answers, seen) if self.answers else outputs,
        )  # fmt: skip

    def bounded(self, seen: np.ndarray) -> dict[str, np.ndarray]:
        """The statistics of these samples, with what is known of the others before they are asked."""
        return {**_masked(self.per_sample, seen), **self.known}


def kept_rows(outputs: Arrays, total: int) -> int:
    """Of how many samples, from the first on, raw outputs are kept: as many as KEPT_BYTES hold. Dense heads are large.

    The same for every runtime, as their rows are equally large.
    """
    return int(min(total, max(1, KEPT_BYTES // max(1, _row_bytes(outputs)))))


def _row_bytes(outputs: Arrays) -> float:
    """Of one sample."""
    return sum(array.nbytes for array in outputs.values()) / max(1, len(next(iter(outputs.values()))))


def kept_arrays(evaluation: Evaluation) -> Arrays | None:
    """Outputs and answers as one mapping, for the ledger; answers that are the outputs themselves once."""
    if evaluation.outputs is None or evaluation.answers is None:
        return evaluation.outputs
    if evaluation.answers is evaluation.outputs:
        return evaluation.outputs
    return {**evaluation.outputs, **{f"{_ANSWERS}{name}": array for name, array in evaluation.answers.items()}}


def outputs_and_answers(kept: Arrays) -> tuple[Arrays, Arrays]:
    """What `kept_arrays` put together."""
    answers = {name.removeprefix(_ANSWERS): array for name, array in kept.items() if name.startswith(_ANSWERS)}
    outputs = {name: array for name, array in kept.items() if not name.startswith(_ANSWERS)}
    return outputs, answers or outputs


def evaluate(
    predict: Predict,
    samples: Samples,
    metric: Metric,
    *,
    batch: int = 64,
    order: Sequence[int] | np.ndarray | None = None,
    must_beat: float | None = None,
    limit: int | None = None,
    start: np.ndarray | None = None,
    memory: Memory | None = None,
    keep_outputs: bool = False,
    keep_at_most: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score `predict` on every sample once, in `order` (a permutation; the samples' own without).

    With `must_beat` it stops where even a perfect rest would leave the value short of it (below it, or above it for a
    loss), which never changes a decision: reaching `must_beat` exactly is enough. NaN never reaches it. With `limit`
    it stops at the batch with which so many samples were seen.

    `keep_outputs` keeps them as `kept_rows` says; where those of all samples take more than `keep_at_most` bytes, none.
    `start` (bool[n]) are samples of `memory` that count as seen from the beginning. All else in `memory` only saves
    forward passes: where it stops, and what it gives, is as if each sample had been asked anew.
    Raises SoupError where an output does not have one row per sample; ValueError where `samples` or `order` miscounts.
    """
    total = len(samples)
    wanted = np.arange(total) if order is None else np.asarray(order)
    if not np.array_equal(np.sort(wanted), np.arange(total)):
        raise ValueError(f"order is no permutation of {total} samples")
    memory = Memory(np.zeros(total, bool)) if memory is None else memory
    memory.known = memory.known or metric.known(samples.targets)
    seen = np.zeros(total, bool) if start is None else start.copy()
    limit = total if limit is None else limit
    stopped = bool(seen.any()) and (seen.sum() >= limit or _falls_short(memory, seen, must_beat, metric))
    todo = wanted[~seen[wanted]]
    for at in range(0, 0 if stopped else len(todo), batch):
        step = todo[at : at + batch]
        asked = step[~memory.seen[step]]
        _ask(predict, samples, metric, asked, memory=memory, keep_outputs=keep_outputs, at_most=keep_at_most)
        seen[step] = True
        if progress:
            progress(int(seen.sum()), total)
        if stopped := seen.sum() >= limit or _falls_short(memory, seen, must_beat, metric):
            break
    return memory.shown(seen, metric, stopped=stopped and not seen.all(), keep_outputs=keep_outputs)


def value_on(evaluation: Evaluation, rows: np.ndarray, metric: Metric) -> float:
    """The metric of some of the samples alone (bool[n_total])."""
    return metric.reduce({name: array[rows] for name, array in evaluation.per_sample.items()})


def without_numbers(outputs: Arrays, targets: Arrays, metric: Metric, *, total: int) -> Evaluation:
    """Of a model that cannot be asked: NaN for each of `total` samples, where its `outputs` (of any rows) have a value.

    Its value is NaN too, also for a metric that takes such a sample for a wrong one.
    """
    nothing = {name: np.full((total, *array.shape[1:]), np.nan, np.float32) for name, array in outputs.items()}
    hardest = np.full(total, np.inf, np.float32)
    statistics = metric.per_sample(metric.task.answers(nothing, targets), targets)
    return Evaluation(total, np.ones(total, bool), statistics, np.nan, None, None, total, hardest)


def _ask(
    predict: Predict, samples: Samples, metric: Metric, rows: np.ndarray, *, memory: Memory, keep_outputs: bool,
    at_most: int | None,
) -> None:  # fmt: skip
    """One forward pass over `rows`, at most a batch of them."""
    if not len(rows):
        return
    asked = 0
    for indices, inputs, targets in samples.batches(len(rows), order=rows.tolist()):
        outputs = predict(inputs)
        check_rows(outputs, len(indices))
        _mark(memory.seen, indices)
        answers = metric.task.answers(outputs, targets)
        statistics = metric.per_sample(answers, targets)
        _scatter(memory.per_sample, statistics, indices, total=len(memory.seen))
        hardness = metric.difficulty(statistics, answers, targets)
        difficulty = np.where(_finite_rows(outputs, len(indices)), hardness, np.inf)
        hard = {} if memory.difficulty is None else {"": memory.difficulty}
        _scatter(hard, {"": difficulty.astype(np.float32)}, indices, total=len(memory.seen))
        memory.difficulty = hard[""]
        if keep_outputs and (at_most is None or _row_bytes(outputs) * len(memory.seen) <= at_most):
            _keep(memory, outputs, answers, indices)
        asked += len(indices)
    if asked != len(rows):
        raise ValueError(f"the batches held {asked} of {len(rows)} samples")


def _keep(memory: Memory, outputs: Arrays, answers: Arrays, indices: np.ndarray) -> None:
    total = len(memory.seen)
    rows = len(next(iter(memory.outputs.values()))) if memory.outputs else kept_rows(outputs, total)
    first = indices < rows
    _scatter(memory.outputs, {name: array[first] for name, array in outputs.items()}, indices[first], total=rows)
    if answers is not outputs or rows < total:
        _scatter(memory.answers, answers, indices, total=total)


def _falls_short(memory: Memory, seen: np.ndarray, must_beat: float | None, metric: Metric) -> bool:
    """Whether the best that unseen samples could still give is not enough."""
    if must_beat is None or seen.all():
        return False
    bound = metric.upper_bound(memory.bounded(seen), seen)
    if bound is None:
        return False
    return not (bound >= must_beat if metric.higher_is_better else bound <= must_beat)


def _mark(seen: np.ndarray, indices: np.ndarray) -> None:
    if seen[indices].any() or len(np.unique(indices)) != len(indices):
        raise ValueError(f"a sample came twice, in the batch {indices.tolist()}")
    seen[indices] = True


def check_rows(outputs: Arrays, rows: int) -> None:
    """Raise SoupError where there is no output, or one without a row for each of `rows` samples."""
    if not outputs:
        raise SoupError("model: it gave no output, expected at least one array.")
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise SoupError(
                f"model: output '{name}' has shape {array.shape}, expected {rows} rows, one for each sample."
            )


def _finite_rows(outputs: Arrays, rows: int) -> np.ndarray:
    finite = np.ones(rows, bool)
    for array in outputs.values():
        if array.dtype.kind == "f":
            finite &= np.isfinite(array).reshape(rows, -1).all(axis=1)
    return finite


def _scatter(whole: dict[str, np.ndarray], part: Mapping[str, np.ndarray], indices: np.ndarray, *, total: int) -> None:
    for name, values in part.items():
        if name not in whole:
            whole[name] = np.zeros((total, *values.shape[1:]), values.dtype)
        whole[name][indices] = values


def _masked(arrays: Arrays, seen: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays with zeros where not seen; themselves where all is."""
    if seen.all():
        return dict(arrays)
    masked = {name: np.zeros_like(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        rows = seen[: len(array)]
        masked[name][rows] = array[rows]
    return masked


def _copied(arrays: Arrays) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in arrays.items()}
