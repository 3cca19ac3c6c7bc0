"""The gates on answers, each against whom it names, in pairs where images are known and by figures where not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup.answer_gates import Answers, OnVal, answer_checks, flips_gate
from soup.gate_sections import Gates
from soup.gates import Check, Exit, Subject, exit_code
from soup.statistics import paired_difference
from soup.tasks import metric_named
from soup.unpaired import share_difference, wilson

LABELS = np.arange(400) % 4
METRIC = metric_named("classification", "accuracy")
ON = OnVal(METRIC, LABELS, None, ("a", "b", "c", "dog"))
SUBJECT = Subject("model.onnx", "soup → INT8")
ORDER = ["fail", "inconclusive", "pass"]


def answers(label: str, right: int, *, outputs: bool = True, shift: float = 0.0) -> Answers:
    """Right on the first `right` images, off by one class on the others."""
    classes = np.where(np.arange(400) < right, LABELS, (LABELS + 1) % 4)
    logits = np.eye(4, dtype=np.float32)[classes] * 3 + np.float32(shift)
    statistics = METRIC.per_sample({"output": logits}, {"label": LABELS})
    kept = {"output": logits} if outputs else None
    return Answers(label, statistics, kept, METRIC.reduce(statistics), 400, kept)


AFTER = answers("INT8", 360)
AGAINST = {"best_single": answers("best single", 380, outputs=False), "soup": answers("soup", 396)}


def judged(gates: dict[str, object], *, after: Answers = AFTER, **others: Answers) -> tuple[Check, ...]:
    against = {**AGAINST, **others}
    return answer_checks(Gates.model_validate(gates), after, against, on=ON, file="m.onnx", where="cpu")  # type: ignore[arg-type]


def test_each_rule_is_held_against_whom_it_names() -> None:
    rules = [{"max_drop": 0.07}, {"max_drop": 0.07, "against": "soup"}]
    single, soup = judged({"accuracy": rules})
    assert (single.hop, single.verdict, single.measured) == ("best single → INT8", "inconclusive", pytest.approx(0.05))
    assert (soup.hop, soup.verdict, soup.measured) == ("soup → INT8", "inconclusive", pytest.approx(0.09))
    interval = paired_difference(AFTER.per_sample["correct"], AGAINST["soup"].per_sample["correct"])  # type: ignore[index]
    assert (-interval.high <= 0.07 < -interval.low) == (soup.verdict == "inconclusive")
    (alone,) = judged({"accuracy": {"max_drop": 0.2}})
    assert (alone.verdict, alone.name, alone.where) == ("pass", "m.onnx", "cpu")


def test_a_relative_limit_is_a_share_of_what_it_is_compared_with() -> None:
    both = judged({"accuracy": {"max_drop": 0.01, "max_drop_relative": 0.02, "against": "soup"}})
    assert [check.limit for check in both] == [0.01, pytest.approx(0.02 * 0.99)]
    assert both[1].message.endswith("the drop is beyond the limit of 1.98 points (2 % of the 99.00 % of the soup)")


def test_what_nobody_is_there_to_compare_with_is_pending() -> None:
    (check,) = judged({"accuracy": {"max_drop": 0.01, "against": "baseline"}})
    assert (check.verdict, check.hop, check.measured) == ("pending", "baseline → INT8", None)
    assert check.message == "the baseline is not here to compare with"
    assert judged({}) == ()


def test_a_figure_with_its_number_of_images_is_compared_without_pairs() -> None:
    stated = Answers("baseline", value=0.95, n=2000)
    (check,) = judged({"accuracy": {"max_drop": 0.2, "against": "baseline"}}, baseline=stated)
    expected = share_difference(0.9, 0.95, n=(400, 2000))
    assert (check.verdict, check.measured) == ("pass", pytest.approx(0.05))
    assert f"{expected.low * 100:+.2f}".replace("-", "−") in check.message


@pytest.mark.parametrize("limit", [0.001, 0.9])
def test_a_figure_alone_decides_nothing_and_says_what_is_missing(limit: float) -> None:
    (check,) = judged(
        {"accuracy": {"max_drop": limit, "against": "baseline"}}, baseline=Answers("baseline", value=0.95)
    )
    assert (check.verdict, check.measured, exit_code([check])) == ("inconclusive", pytest.approx(0.05), Exit.UNDECIDED)
    assert "no interval (the baseline does not tell its number of images)" in check.message
    for gates in (
        {"per_class_drop": {"max_drop": 0.1, "against": "baseline"}},
        {"flips": {"max_count": 400, "against": "baseline"}},
        {"outputs": {"max_error": 100, "against": "baseline"}},
    ):
        (check,) = judged(gates, baseline=Answers("baseline", value=0.95, n=400))
        assert check.verdict == "inconclusive"
        assert "the baseline" in check.message


def test_a_figure_that_is_not_a_number_fails() -> None:
    (check,) = judged({"accuracy": {"max_drop": 0.9, "against": "baseline"}}, baseline=Answers("baseline", n=400))
    assert check.verdict == "fail"


def test_a_loss_as_a_figure_alone_has_no_interval() -> None:
    metric = metric_named("classification", "cross_entropy")
    after = Answers("INT8", {"loss": np.full(400, 0.3)})
    gates = Gates.model_validate({"accuracy": {"max_drop": 0.01, "against": "baseline"}})
    (check,) = answer_checks(
        gates, after, {"baseline": Answers("baseline", value=0.2, n=400)}, on=OnVal(metric, LABELS, None, None),
        file="m.onnx", where=None,
    )  # fmt: skip
    assert (check.verdict, check.measured) == ("inconclusive", pytest.approx(0.1))
    assert "does not tell what each image cost" in check.message


def test_the_class_that_lost_too_much_fails_the_gate_under_its_name() -> None:
    outputs = dict(AGAINST["soup"].outputs or {})
    outputs["output"] = np.where((LABELS == 3)[:, None], outputs["output"][:, [1, 2, 3, 0]], outputs["output"])
    statistics = METRIC.per_sample(outputs, {"label": LABELS})
    after = Answers("INT8", statistics, outputs)
    (check,) = judged({"per_class_drop": {"max_drop": 0.1, "against": "soup"}}, after=after)
    assert (check.verdict, check.kind, exit_code([check])) == ("fail", "per_class", Exit.ACCURACY)
    assert check.message.startswith("class 'dog' (100 images) −98.00 points")


def test_flips_are_counted_on_val_and_their_share_has_an_interval() -> None:
    count, share = judged({"flips": {"max_count": 36, "max_share": 0.09}})[::-1]
    assert count.kind == share.kind == "flips"
    by_kind = {check.unit: check for check in (count, share)}
    assert (by_kind["images"].verdict, by_kind["images"].measured) == ("pass", 36)
    assert by_kind["images"].message == "36 of 400 images change their answer, within the limit of 36"
    low, high = wilson(0.09, 400)
    assert by_kind["%"].verdict == "inconclusive"
    assert by_kind["%"].message == (
        f"36 of 400 images change their answer: 9.00 %, 95 % interval {low * 100:.2f} to {high * 100:.2f}; "
        "limit 9.00 %, more is possible"
    )
    assert [check.verdict for check in judged({"flips": {"max_count": 35, "max_share": 0.01}})] == ["fail", "fail"]
    assert judged({"flips": {"max_share": high + 1e-9}})[0].verdict == "pass"


def test_flips_of_grouped_images_count_for_fewer_and_none_at_all_is_no_pass() -> None:
    flipped = np.repeat([True, False, False, False], 10)
    groups = np.repeat(np.arange(4), 10)
    (alone,) = flips_gate(flipped, SUBJECT, max_share=0.42, max_count=None, groups=None)
    (grouped,) = flips_gate(flipped, SUBJECT, max_share=0.42, max_count=None, groups=groups)
    assert (alone.verdict, grouped.verdict) == ("pass", "inconclusive")
    nothing = flips_gate(flipped[:0], SUBJECT, max_share=1.0, max_count=0, groups=None)
    assert [check.verdict for check in nothing] == ["fail", "fail"]


def test_outputs_are_held_to_their_largest_difference_and_smallest_cosine() -> None:
    after = answers("INT8", 396, shift=0.25)
    error, cosine = judged({"outputs": {"max_error": 0.25, "cosine": 0.999}}, after=after)
    assert (error.verdict, error.measured) == ("pass", pytest.approx(0.25))
    a, b = (one.outputs["output"].ravel().astype(float) for one in (AGAINST["soup"], after))  # type: ignore[index]
    assert cosine.measured == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert (cosine.verdict, cosine.kind) == ("fail", "outputs")
    assert cosine.message == f"smallest cosine of outputs {cosine.measured:.6f}, under the limit of 0.999"
    assert judged({"outputs": {"max_error": 0.24}}, after=after)[0].verdict == "fail"


def test_outputs_that_are_not_finite_fail_whatever_the_limit() -> None:
    logits = dict(AFTER.outputs or {})
    logits["output"] = np.where(np.arange(400)[:, None] == 7, np.nan, logits["output"])
    broken = Answers("INT8", AFTER.per_sample, logits, answers=logits)
    checks = judged({"outputs": {"max_error": 1e9, "cosine": 0}}, after=broken)
    assert [(check.verdict, check.measured) for check in checks] == [("fail", None)] * 2
    (count,) = judged({"flips": {"max_count": 36}}, after=broken)
    assert count.verdict == "fail"  # 36 flips, and one image without a class
    before = Answers("soup", outputs={"logits": np.zeros((400, 4)), "other": np.zeros((400, 1))})
    second = Answers("INT8", AFTER.per_sample, {"logits": np.zeros((400, 4)), "other": np.full((400, 1), np.nan)})
    checks = judged({"outputs": {"max_error": 1e9, "cosine": 0}}, after=second, soup=before)
    assert [check.verdict for check in checks] == ["fail", "fail"]
    infinite = Answers("INT8", AFTER.per_sample, {"output": np.full((400, 4), math.inf)})
    assert judged({"outputs": {"max_error": 1e9}}, after=infinite)[0].verdict == "fail"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 400), st.floats(0, 1), st.floats(0, 1), st.integers(0, 50))
def test_a_wider_limit_never_makes_a_verdict_worse(count, max_share, more, extra):
    flipped = np.arange(400) < count
    strict, lenient = (
        flips_gate(flipped, SUBJECT, max_share=share, max_count=limit, groups=None)
        for share, limit in ((max_share, 20), (max_share + more, 20 + extra))
    )
    assert all(ORDER.index(b.verdict) >= ORDER.index(a.verdict) for a, b in zip(strict, lenient, strict=True))
