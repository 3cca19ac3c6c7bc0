"""One pass over a split: every sample once, and an early stop that changes no decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup import SoupError
from soup.evaluate import evaluate
from soup.tasks.classification import METRICS

ACCURACY = METRICS["accuracy"]


@dataclass(frozen=True)
class Table:
    """Samples whose input is the model's output."""

    scores: np.ndarray
    labels: np.ndarray

    @property
    def targets(self):
        return {"label": self.labels}

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch: int, *, order: Sequence[int] | None = None) -> Iterator[tuple]:
        wanted = np.arange(len(self)) if order is None else np.asarray(order)
        for start in range(0, len(wanted), batch):
            indices = wanted[start : start + batch]
            yield indices, {"input": self.scores[indices]}, {"label": self.labels[indices]}


def echo(inputs):
    return {"output": inputs["input"]}


def table(count: int, seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    return Table(rng.normal(size=(count, 4)).astype(np.float32), rng.integers(0, 4, count))


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_every_sample_counts_once_whatever_the_batch_size_and_order(batch):
    """Correctness 31: the last, smaller batch too."""
    samples = table(10)
    calls = []
    evaluation = evaluate(
        echo, samples, ACCURACY, batch=batch, order=range(9, -1, -1), progress=lambda *step: calls.append(step)
    )
    right = samples.scores.argmax(axis=1) == samples.labels
    assert evaluation.value == right.mean()
    assert evaluation.seen.all()
    assert np.array_equal(evaluation.per_sample["correct"], right)
    assert calls[-1] == (10, 10)
    assert evaluation.bound is None
    assert evaluation.outputs is None


def test_outputs_are_kept_in_the_order_of_the_samples():
    samples = table(7)
    evaluation = evaluate(echo, samples, ACCURACY, batch=3, order=[6, 0, 3, 1, 5, 2, 4], keep_outputs=True)
    assert np.array_equal(evaluation.outputs["output"], samples.scores)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 40),
    batch=st.integers(1, 9),
    name=st.sampled_from(sorted(METRICS)),
    against=st.sampled_from(["itself", "another", "a little less"]),
    nan=st.booleans(),
)
def test_an_early_stop_rejects_only_what_the_whole_pass_would_reject(seed, count, batch, name, against, nan):
    metric = METRICS[name]
    rng = np.random.default_rng(seed)
    samples = table(count, seed)
    if nan:
        samples.scores[rng.integers(0, count)] = np.nan
    whole = evaluate(echo, samples, metric).value
    rival = evaluate(echo, Table(table(count, seed + 1).scores, samples.labels), metric).value
    must_beat = {"itself": whole, "another": rival, "a little less": np.nextafter(whole, -np.inf)}[against]
    order = rng.permutation(count)
    stopped = evaluate(echo, samples, metric, batch=batch, order=order, must_beat=must_beat)
    accepted = whole >= must_beat if metric.higher_is_better else whole <= must_beat
    assert accepted or stopped.value is None or stopped.seen.all()
    if stopped.value is None:
        assert not accepted
        assert not stopped.seen.all()
    else:
        assert np.array_equal(stopped.value, whole, equal_nan=True)


def test_a_hopeless_candidate_is_not_seen_to_the_end():
    """Seven of ten wrong: after the first batch at most 0.5 is in reach, and 0.6 was asked for."""
    samples = Table(np.eye(2)[[1] * 5 + [0] * 5], np.zeros(10, np.int64))
    stopped = evaluate(echo, samples, ACCURACY, batch=5, must_beat=0.6)
    assert stopped.value is None
    assert stopped.bound == 0.5
    assert stopped.seen.tolist() == [True] * 5 + [False] * 5
    assert evaluate(echo, samples, ACCURACY, batch=5, must_beat=0.5).value == 0.5


def test_reaching_the_loss_of_the_other_exactly_is_enough():
    """What is left can still cost nothing, and here it does."""
    scores = np.array([[0.0, 1.0]] * 2 + [[2000.0, 0.0]] * 4)
    samples = Table(scores, np.zeros(6, np.int64))
    whole = evaluate(echo, samples, METRICS["cross_entropy"]).value
    assert evaluate(echo, samples, METRICS["cross_entropy"], batch=2, must_beat=whole).value == whole
    assert evaluate(echo, samples, METRICS["cross_entropy"], batch=2, must_beat=np.nextafter(whole, 0)).value is None


def test_a_nan_loss_stops_at_once_and_is_counted():
    """Correctness 17: it never passes a comparison."""
    scores = np.zeros((6, 2), np.float32)
    scores[1] = np.nan
    samples = Table(scores, np.zeros(6, np.int64))
    stopped = evaluate(echo, samples, METRICS["cross_entropy"], batch=2, must_beat=9.0)
    assert stopped.value is None
    assert stopped.seen.sum() == 2
    assert stopped.not_finite == 1
    assert np.isnan(evaluate(echo, samples, METRICS["cross_entropy"], batch=2).value)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "no output"),
        ({"output": np.zeros((3, 4))}, "expected 5 rows"),
        ({"output": np.float32(1)}, "expected 5 rows"),
    ],
)
def test_an_output_without_a_row_per_sample_is_refused(outputs, message):
    with pytest.raises(SoupError, match=message):
        evaluate(lambda inputs: outputs, table(5), ACCURACY)


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 3], [0, 1, 2, 2]])
def test_an_order_that_is_no_permutation_is_a_bug(order):
    with pytest.raises(ValueError, match="permutation"):
        evaluate(echo, table(3), ACCURACY, order=order)


@dataclass(frozen=True)
class Loader(Table):
    """A loader with a sampler's habits: gives the samples at `places`."""

    places: tuple[tuple[int, ...], ...]

    def batches(self, batch, *, order=None):
        for places in self.places:
            yield next(Table.batches(self, len(places), order=places))


@pytest.mark.parametrize(
    ("places", "message"),
    [(((0, 1), (2,), (0,)), "came twice"), (((0, 0), (1, 2)), "came twice"), (((0, 1),), "2 of 3")],
)
def test_samples_that_come_twice_or_not_at_all_are_a_bug(places, message):
    """Correctness 31: no sampler padding, no dropped last batch."""
    samples = table(3)
    with pytest.raises(ValueError, match=message):
        evaluate(echo, Loader(samples.scores, samples.labels, places), ACCURACY)
