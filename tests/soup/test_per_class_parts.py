"""A metric's own parts by class (IoU, AP) under two models: drops, intervals, and the gate's verdicts on them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from soup.gates import Subject
from soup.judge import class_scores, class_values
from soup.per_class import Parts, Scores, bonferroni, per_class_gate, worst_class
from soup.statistics import bootstrap_interval, paired_bootstrap
from soup.tasks import by_class
from soup.tasks.segmentation import metrics

SUBJECT = Subject("model.onnx", "best single → INT8", "onnxruntime on cpu")
MIOU = metrics(3, 255, "input")["miou"]


def evaluated(wrong: dict[int, float], *, images: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Statistics of masks 8×8 of three classes, so large a share of each class's pixels taken for the next one."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, (images, 8, 8))
    share = np.array([wrong.get(label, 0.0) for label in range(3)])[truth]
    answers = np.where(random.random(truth.shape) < share, (truth + 1) % 3, truth).astype(np.uint8)
    return MIOU.per_sample({"classes": answers}, {"mask": truth.astype(np.uint8)})


def found(after: dict[str, np.ndarray], before: dict[str, np.ndarray], groups: np.ndarray | None = None) -> Parts:
    parts = class_scores(MIOU, after, before, labels=None, groups=groups, class_names=("ground", "bar", "disc"))
    assert isinstance(parts, Parts)
    return parts


def test_each_class_has_the_metric_s_own_part_and_the_images_that_hold_it() -> None:
    after, before = evaluated({2: 0.5}), evaluated({2: 0.1}, seed=1)
    parts = found(after, before)
    assert (parts.after == by_class(MIOU, after)).all()
    assert (parts.losses == parts.before - parts.after).all()
    assert parts.counts.tolist() == [40, 40, 40]
    assert (parts.units, parts.grouped) == (40, False)
    worst = worst_class(parts)
    assert worst is not None
    assert (worst.label, worst.name) == (2, "disc")
    assert worst.interval.confidence == bonferroni(3)


def test_the_interval_of_a_class_is_the_paired_bootstrap_of_it_alone() -> None:
    after, before = evaluated({2: 0.5}), evaluated({2: 0.1}, seed=1)

    def alone(statistics: dict[str, np.ndarray]) -> float:
        return float(by_class(MIOU, statistics)[2])

    def drawn(statistics: dict[str, np.ndarray], counts: np.ndarray) -> np.ndarray:
        return MIOU.resampled_by_class(statistics, counts)[:, 2]

    expected = paired_bootstrap(alone, after, before, resampled=drawn)
    interval = found(after, before).of(2, confidence=0.95).interval
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert interval.estimate == expected.estimate
    assert interval.method == "paired bootstrap of samples"


def test_whole_groups_are_drawn_together() -> None:
    after, before = evaluated({2: 0.5}), evaluated({2: 0.1}, seed=1)
    groups = np.repeat(np.arange(4), 10)
    parts = found(after, before, groups)
    assert (parts.units, parts.grouped) == (4, True)
    interval = parts.of(2, confidence=0.95).interval
    assert (interval.groups, interval.method) == (4, "paired bootstrap of groups")


def test_the_gate_fails_a_class_whose_drop_is_shown_and_passes_where_more_is_excluded() -> None:
    same, worse = evaluated({}), evaluated({1: 0.4})
    failed = per_class_gate(found(worse, same), SUBJECT, max_drop=0.1, min_images=10)
    assert failed.verdict == "fail"
    assert failed.message.startswith("class 'bar' (40 images) −")
    assert "(Bonferroni over 3 classes)" in failed.message
    passed = per_class_gate(found(same, same), SUBJECT, max_drop=0.01, min_images=10)
    assert passed.verdict == "pass"
    assert "is excluded in each of 3 classes" in passed.message
    assert passed.measured == 0


def test_a_class_that_val_does_not_hold_is_not_judged_and_keeps_the_gate_open() -> None:
    after = evaluated({})
    for name in ("confusion", "truth"):
        after[name][..., 2] = 0
    after["confusion"][:, 2] = 0
    parts = found(after, after)
    assert math.isnan(parts.losses[2])
    assert parts.counts.tolist() == [40, 40, 0]
    assert worst_class(parts) is None
    gate = per_class_gate(parts, SUBJECT, max_drop=0.5, min_images=10)
    assert gate.verdict == "inconclusive"
    assert gate.message == "class 'disc' (0 images): too few, the gate asks for 10; about 10 of its images would decide"


def test_a_metric_that_is_better_when_lower_loses_by_rising() -> None:
    draws = np.random.default_rng(0).normal(0.2, 0.01, (2000, 2))
    rose = Parts(np.array([0.5, 0.3]), np.array([0.3, 0.3]), draws, np.array([50, 50]), 50, False, None, False)
    assert rose.losses.tolist() == [pytest.approx(0.2), 0]
    gate = per_class_gate(rose, SUBJECT, max_drop=0.1, min_images=10, unit="")
    assert gate.verdict == "fail"
    assert gate.measured == pytest.approx(0.2)


def test_labels_of_single_images_stay_what_a_class_is_judged_by() -> None:
    scores = class_scores(
        MIOU, {"correct": np.array([True, False])}, {"correct": np.array([True, True])}, labels=np.array([0, 1]),
        groups=None, class_names=None,
    )  # fmt: skip
    assert isinstance(scores, Scores)
    assert scores.losses.tolist() == [0, 1]


def test_an_interval_from_draws_leaves_out_rare_resamples_without_a_value_and_opens_where_they_are_many() -> None:
    draws = np.random.default_rng(0).normal(0.1, 0.02, 2000)
    plain = bootstrap_interval(0.1, draws, n=60, units=60, grouped=False)
    assert plain.low < 0.1 - 1.9 * 0.02 < 0.1 + 1.9 * 0.02 < plain.high
    assert (plain.n, plain.groups, plain.confidence) == (60, None, 0.95)
    rare, many = draws.copy(), draws.copy()
    rare[:100], many[:101] = np.nan, np.nan
    kept = bootstrap_interval(0.1, rare, n=60, units=60, grouped=True)
    without = bootstrap_interval(0.1, draws[100:], n=60, units=60, grouped=True)
    assert (kept.low, kept.high, kept.groups) == (without.low, without.high, 60)
    opened = bootstrap_interval(0.1, many, n=60, units=60, grouped=False)
    assert (opened.low, opened.high) == (-math.inf, math.inf)
    assert opened.method == "the metric is undefined on some resamples"


@pytest.mark.parametrize(("estimate", "n"), [(math.nan, 5), (0.1, 0)])
def test_nothing_to_draw_from_is_no_interval(estimate: float, n: int) -> None:
    interval = bootstrap_interval(estimate, np.zeros(10), n=n, units=5, grouped=False)
    assert math.isnan(interval.estimate)
    assert math.isnan(interval.low)
    assert interval.method == "no samples"


def test_two_units_are_too_few_for_any_interval() -> None:
    interval = bootstrap_interval(0.1, np.full(2000, 0.1), n=9, units=2, grouped=True)
    assert (interval.estimate, interval.low, interval.high) == (0.1, -math.inf, math.inf)
    assert interval.method == "2 groups, at least 3 are needed"


def test_the_report_s_values_by_class_are_the_metric_s_own_best_single_beside_model() -> None:
    after, before = evaluated({1: 0.25}), evaluated({1: 0.5}, seed=1)
    values = class_values(MIOU, after, before, ("ground", "bar", "disc"))
    assert [(one.name, one.images) for one in values] == [("ground", 40), ("bar", 40), ("disc", 40)]
    assert [one.model for one in values] == pytest.approx(by_class(MIOU, after))
    assert [one.best_single for one in values] == pytest.approx(by_class(MIOU, before))
    assert values[1].model > values[1].best_single
