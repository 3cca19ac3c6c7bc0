"""Two models on the same samples: differences in pairs, outputs, flips (correctness 40, 45)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from soup.build_folder import Hop
from soup.evaluate import Evaluation
from soup.gates import compare
from soup.judge import hop, other_values, paired, prefixed, renamed_as
from soup.search import Rule, search
from soup.statistics import Interval, paired_difference
from soup.tasks import Metric, metric_named

LABELS = np.arange(40) % 4
METRIC = metric_named("classification", "accuracy")


def logits(right: int, *, rows: int = 40) -> np.ndarray:
    """Logits that are right on the first `right` rows, and off by one class on the others."""
    classes = np.where(np.arange(rows) < right, LABELS[:rows], (LABELS[:rows] + 1) % 4)
    return np.eye(4, dtype=np.float32)[classes] * 3


def evaluation(outputs: np.ndarray, *, metric: Metric = METRIC, keep: bool = True, name: str = "output") -> Evaluation:
    per_sample = metric.per_sample({name: outputs}, {"label": LABELS[: len(outputs)]})
    value = metric.reduce(per_sample)
    kept = {name: outputs} if keep else None
    return Evaluation(len(outputs), np.ones(len(outputs), bool), per_sample, value, None, kept, answers=kept)


def step(before: Evaluation, after: Evaluation, *, metric: Metric = METRIC) -> tuple[Hop, Interval]:
    return hop("a → b", before, after, metric=metric, groups=None, split="val", where="torch")


def test_a_metric_that_is_a_mean_is_compared_by_the_paired_interval_of_its_samples() -> None:
    after, before = evaluation(logits(36)).per_sample, evaluation(logits(30)).per_sample
    interval = paired(METRIC, after, before, groups=None)
    assert interval == paired_difference(after["correct"], before["correct"])
    assert interval.estimate == pytest.approx(6 / 40)


def test_groups_are_passed_on_and_widen_the_interval() -> None:
    after, before = evaluation(logits(36)).per_sample, evaluation(logits(30)).per_sample
    groups = np.repeat(np.arange(4), 10).astype(str)
    grouped, single = paired(METRIC, after, before, groups=groups), paired(METRIC, after, before, groups=None)
    assert (grouped.groups, single.groups) == (4, None)
    assert grouped.high - grouped.low > single.high - single.low


def test_a_metric_of_several_statistics_is_resampled_through_its_own_reader() -> None:
    class Ratio:
        name, unit, higher_is_better = "ratio", "", True

        def reduce(self, statistics: dict[str, np.ndarray]) -> float:
            return float(statistics["hits"].sum() / statistics["tries"].sum())

        def resampled(self, statistics: dict[str, np.ndarray], counts: np.ndarray) -> np.ndarray:
            return np.array(counts @ statistics["hits"] / (counts @ statistics["tries"]))

    random = np.random.default_rng(0)
    before = {"hits": random.integers(0, 3, 50), "tries": np.full(50, 4)}
    after = {"hits": before["hits"] + 1, "tries": before["tries"]}
    interval = paired(Ratio(), after, before, groups=None)  # type: ignore[arg-type]
    assert interval.estimate == pytest.approx(0.25)
    assert interval.low == pytest.approx(0.25)  # every resample differs by exactly that


def test_a_hop_tells_values_flips_outputs_and_verdict() -> None:
    record, interval = step(evaluation(logits(10)), evaluation(logits(38)))
    assert (record.before, record.after, record.flips) == (10 / 40, 38 / 40, 28)
    assert record.outputs[0].max_abs == 3.0
    assert record.difference.estimate == interval.estimate == pytest.approx(28 / 40)
    assert record.difference.verdict == "better"
    assert (record.name, record.split, record.where) == ("a → b", "val", "torch")


def test_a_hop_names_the_class_that_lost_most_where_it_is_given_labels() -> None:
    before, after = logits(40), logits(40)
    after[[3, 7, 11, 15]] = after[[2, 6, 10, 14]]  # of class 3, ten images
    names = ["a", "b", "c", "dog"]
    record, _ = hop(
        "a → b", evaluation(before), evaluation(after), metric=METRIC, groups=None, split="val", where="torch",
        labels=LABELS, class_names=names,
    )  # fmt: skip
    worst = record.worst_class
    assert worst is not None
    assert (worst.name, worst.n, worst.before, worst.after) == ("dog", 10, 1.0, 0.6)
    assert (worst.difference.estimate, worst.difference.confidence) == (pytest.approx(-0.4), pytest.approx(0.9875))
    assert step(evaluation(before), evaluation(after))[0].worst_class is None


def test_a_record_of_a_hop_from_before_classes_were_told_still_reads() -> None:
    record, _ = step(evaluation(logits(9)), evaluation(logits(9)))
    older = {name: value for name, value in asdict(record).items() if name != "worst_class"}
    assert TypeAdapter(Hop).validate_python(older) == record


def test_a_loss_that_rises_is_worse() -> None:
    metric = metric_named("classification", "cross_entropy")
    before, after = (evaluation(logits(right), metric=metric) for right in (38, 10))
    record, interval = step(before, after, metric=metric)
    assert interval.estimate > 0
    assert record.difference.verdict == "worse"


def test_outputs_that_were_not_kept_leave_flips_unknown() -> None:
    record, _ = step(evaluation(logits(9), keep=False), evaluation(logits(9)))
    assert record.flips is None
    assert record.outputs == ()


def test_renamed_outputs_are_compared_by_position_under_the_first_name() -> None:
    record, _ = step(evaluation(logits(9)), evaluation(logits(9), name="logits"))
    assert [one.name for one in record.outputs] == ["output"]
    assert record.flips == 0
    with pytest.raises(ValueError, match="shorter"):
        renamed_as({"a": np.zeros(1), "b": np.zeros(1)}, {"x": np.zeros(1)})


def test_outputs_that_are_not_finite_have_no_largest_difference_and_count_as_flips() -> None:
    """NaN must fail a check: a record of it holds None, and never a number that a limit would accept."""
    broken = logits(40)
    broken[7] = math.nan
    record, _ = step(evaluation(logits(40)), evaluation(broken))
    assert record.outputs[0].max_abs is None
    assert record.flips == 1


def test_prefixed_names_keep_the_arrays() -> None:
    array = np.ones(3)
    assert prefixed("val/winner", {"correct": array}) == {"val/winner/correct": array}


def test_pure_noise_is_called_better_no_more_often_than_the_stated_level() -> None:
    """Correctness 32: every candidate is right by chance, independent on val and test; 95 % intervals, two-sided."""
    random, metric = np.random.default_rng(0), METRIC
    runs, better = 300, 0
    for _ in range(runs):
        on_test: dict[frozenset[str], np.ndarray] = {}

        def score(weights: Mapping[str, float], must_beat: float | None, on_test: Any = on_test) -> Evaluation:
            on_val = random.random(200) < 0.8
            on_test[frozenset(weights)] = random.random(400) < 0.8
            return Evaluation(200, np.ones(200, bool), {"correct": on_val}, float(on_val.mean()), None)

        found = search(list("abcdef"), score, methods=("uniform", "greedy"), rule=Rule(higher_is_better=True))
        winner, single = (on_test[frozenset(one.weights)] for one in (found.winner, found.singles[0]))
        interval = paired(metric, {"correct": winner}, {"correct": single}, groups=None)
        better += compare(interval, higher_is_better=True) == "better"
    assert 0 < better <= 0.05 * runs


def test_the_task_s_other_metrics_are_of_the_same_answers() -> None:
    after, before = evaluation(logits(30)), evaluation(logits(20))
    told = other_values(after, before, {"label": LABELS}, task="classification", settings={}, but="accuracy")
    assert [one.metric for one in told] == ["top5", "cross_entropy", "balanced_accuracy", "f1", "ece"]  # no weights
    labels, classes = torch.from_numpy(LABELS), torch.from_numpy(logits(30))
    by_name = {one.metric: one for one in told}
    assert by_name["cross_entropy"].model == pytest.approx(torch.nn.functional.cross_entropy(classes, labels).item())
    assert by_name["balanced_accuracy"].best_single == pytest.approx(0.5)
    assert (by_name["ece"].unit, by_name["cross_entropy"].unit) == ("%", "")
    weighted = {"weights": [1.0, 0.0, 0.0, 0.0]}
    told = other_values(after, before, {"label": LABELS}, task="classification", settings=weighted, but="f1")
    assert {one.metric: one.model for one in told}["weighted_accuracy"] == pytest.approx(8 / 10)
    forgotten = evaluation(logits(20), keep=False)
    assert other_values(after, forgotten, {"label": LABELS}, task="classification", settings={}, but="f1") == ()


def test_the_image_whose_mask_moved_most_is_told_by_its_name() -> None:
    metric = metric_named("segmentation", "miou", {"classes": 2, "ignore_index": 255, "score_at": "input"})
    targets = {"mask": np.zeros((3, 1, 4), np.uint8)}
    found = []
    for ids in (np.zeros((3, 1, 4), int), np.array([[[0, 0, 0, 1]], [[0, 1, 1, 1]], [[0, 0, 0, 0]]])):
        answers = metric.task.answers({"ids": ids}, targets)
        statistics = metric.per_sample(answers, targets)
        found.append(Evaluation(3, np.ones(3, bool), statistics, 0.0, None, {"ids": ids}, answers=answers))
    told, _ = hop("a → b", *found, metric=metric, groups=None, split="val", where="torch", ids=("x", "y.png", "z"))
    assert told.moved == "33.33 % of 12 pixels have another class, 75.00 % in the worst image (y.png)"
    unnamed, _ = hop("a → b", *found, metric=metric, groups=None, split="val", where="torch")
    assert unnamed.moved.endswith("75.00 % in the worst image")
