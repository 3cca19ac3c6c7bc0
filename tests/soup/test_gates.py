"""Which verdict a measurement gets, and which exit code the verdicts get."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup.gates import (
    PRIORITY,
    Check,
    Exit,
    Kind,
    Place,
    Quantile,
    Subject,
    Verdict,
    accuracy_gate,
    compare,
    exit_code,
    first_exit,
    gain_gate,
    latency_gate,
    outputs_gate,
    require_gates,
    same_place,
    samples_for,
    stopping,
    why_not,
)
from soup.statistics import Interval

SUBJECT = Subject("accuracy", "torch→onnx", "onnxruntime on cpu")
ORIN = Place("tensorrt", "NVIDIA Jetson Orin Nano Developer Kit")
checks = st.builds(
    Check,
    name=st.just("a"),
    hop=st.just("gate"),
    kind=st.sampled_from(get_args(Kind)),
    verdict=st.sampled_from(get_args(Verdict)),
    message=st.just(""),
)
ends = st.floats(-1, 1)


def interval(low: float, high: float, n: int = 1000) -> Interval:
    return Interval((low + high) / 2, low, high, 0.95, "test", n)


def accuracy(low: float, high: float, *, max_drop: float = 0.005, higher_is_better: bool = True) -> Check:
    return accuracy_gate(interval(low, high), SUBJECT, max_drop=max_drop, higher_is_better=higher_is_better)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.004, 0.001, "pass"),
        (-0.005, 0.001, "pass"),
        (-0.020, -0.006, "fail"),
        (-0.020, -0.005, "inconclusive"),
        (-0.006, 0.020, "inconclusive"),
        (-math.inf, math.inf, "inconclusive"),
        (math.nan, math.nan, "fail"),
    ],
)
def test_a_drop_passes_by_its_far_end_and_fails_by_its_near_end(low, high, verdict):
    """Correctness 45, and 40: the check says at which hop."""
    check = accuracy(low, high)
    assert (check.verdict, check.kind, check.hop) == (verdict, "accuracy", "torch→onnx")


@settings(max_examples=30, deadline=None)
@given(ends, ends, st.floats(0, 0.1))
def test_a_loss_that_rises_is_judged_like_a_score_that_falls(one, other, max_drop):
    low, high = sorted((one, other))
    rising = accuracy(low, high, max_drop=max_drop, higher_is_better=False)
    falling = accuracy(-high, -low, max_drop=max_drop)
    assert rising.verdict == falling.verdict
    assert rising.measured == pytest.approx(falling.measured)


@settings(max_examples=30, deadline=None)
@given(ends, ends, st.floats(0, 0.1))
def test_allowing_a_drop_and_asking_for_a_negative_gain_are_the_same_gate(one, other, max_drop):
    low, high = sorted((one, other))
    gain = gain_gate(interval(low, high), SUBJECT, min_gain=-max_drop, higher_is_better=True)
    assert gain.verdict == accuracy(low, high, max_drop=max_drop).verdict


def test_an_undecided_gate_says_about_how_many_samples_would_decide():
    check = accuracy(-0.010, 0.010)
    assert check.samples_needed == 4000
    assert check.message == (
        "0.00 points, 95 % interval −1.00 to +1.00: a drop beyond 0.50 points is neither shown nor excluded; "
        "about 4,000 samples would decide"
    )


@pytest.mark.parametrize("gap", [0.0, 1e-17, -1e-17, 1e-200])
def test_no_number_of_samples_decides_what_is_the_limit_but_for_rounding(gap):
    """The number grows with the inverse of the gap's square: it would be absurd, or too large for a float."""
    for sign in (1, -1):
        found = Interval(sign * gap, -0.25, 0.25, 0.95, "test", 100)
        for check in (
            accuracy_gate(found, SUBJECT, max_drop=0, higher_is_better=True),
            gain_gate(found, SUBJECT, min_gain=0, higher_is_better=True),
        ):
            assert (check.verdict, check.samples_needed) == ("inconclusive", None)
            assert check.message.endswith("neither shown nor excluded")


def test_a_passing_and_a_failing_gate_read_as_one_sentence():
    assert accuracy(-0.001, 0.003).message == (
        "+0.10 points, 95 % interval −0.10 to +0.30: a drop beyond 0.50 points is excluded"
    )
    assert accuracy(-0.03, -0.01).message == (
        "−2.00 points, 95 % interval −3.00 to −1.00: the drop is beyond the limit of 0.50 points"
    )
    gain = gain_gate(interval(0.1, 0.3), SUBJECT, min_gain=0.5, higher_is_better=True, unit="")
    assert gain.message == ("+0.2000, 95 % interval +0.1000 to +0.3000: the gain is below the 0.5000 asked for")
    assert "not a number" in accuracy(math.nan, math.nan).message
    assert accuracy(math.nan, math.nan).measured is None


def test_a_limit_that_depends_on_something_says_on_what():
    check = accuracy_gate(
        interval(-0.03, -0.01), SUBJECT, max_drop=0.0093, higher_is_better=True, basis="1 % of the soup's 93.00 %"
    )
    assert check.message == (
        "−2.00 points, 95 % interval −3.00 to −1.00: the drop is beyond the limit of 0.93 points "
        "(1 % of the soup's 93.00 %)"
    )


def test_better_and_worse_need_an_interval_without_zero():
    assert compare(interval(0.001, 0.1), higher_is_better=True) == "better"
    assert compare(interval(0.001, 0.1), higher_is_better=False) == "worse"
    assert compare(interval(0.0, 0.1), higher_is_better=True) == "undecided"
    assert compare(interval(math.nan, math.nan), higher_is_better=True) == "undecided"


@pytest.mark.parametrize(
    ("measured", "verdict"), [(1e-4, "pass"), (1.1e-4, "fail"), (math.nan, "fail"), (math.inf, "fail")]
)
def test_outputs_are_within_their_limit_or_they_fail(measured, verdict):
    check = outputs_gate(measured, SUBJECT, limit=1e-4)
    assert (check.verdict, check.kind, check.limit) == (verdict, "outputs", 1e-4)


def latency(
    value: float, upper: float | None, *, samples: int = 1000, actual: Place = ORIN, invalid: tuple[str, ...] = ()
) -> Check:
    quantile = Quantile(99, value, upper, samples, invalid)
    return latency_gate(quantile, SUBJECT, limit_ms=10, wanted=Place("tensorrt", "orin-nano"), actual=actual)


@pytest.mark.parametrize(
    ("value", "upper", "verdict"),
    [
        (9, 10, "pass"),
        (9, 11, "inconclusive"),
        (10, 11, "inconclusive"),
        (10.1, 11, "fail"),
        (math.nan, math.nan, "fail"),
    ],
)
def test_a_latency_passes_by_its_upper_bound_and_fails_by_its_estimate(value, upper, verdict):
    assert latency(value, upper).verdict == verdict


def test_a_percentile_is_not_judged_from_too_few_samples():
    """Correctness 41: 458 samples cannot bound a p99 at 99 %, 459 can."""
    assert [samples_for(percent) for percent in (99, 90, 50)] == [459, 44, 7]
    assert 1 - 0.99**458 < 0.99 <= 1 - 0.99**459
    few = latency(20, None, samples=458)
    assert (few.verdict, few.samples_needed) == ("inconclusive", 459)
    assert latency(9, 9.5, samples=459).verdict == "pass"
    assert latency(math.nan, None, samples=10).verdict == "fail"


@pytest.mark.parametrize(("value", "upper"), [(9, 9.5), (11, 12)])
def test_a_latency_of_a_device_that_throttled_judges_nothing(value, upper):
    """Correctness 41: neither a pass nor a failure can be read from it, and the reasons are told."""
    check = latency(value, upper, invalid=("the GPU's clock fell from 900 to 600 MHz", "power mode changed"))
    assert (check.verdict, check.samples_needed) == ("inconclusive", None)
    assert check.message == (
        f"p99 {value:.2f} ms on tensorrt on NVIDIA Jetson Orin Nano Developer Kit from 1,000 samples, which counts for "
        "nothing, since the device was slowed down meanwhile: the GPU's clock fell from 900 to 600 MHz; "
        "power mode changed"
    )
    elsewhere = latency(value, upper, invalid=("hot",), actual=Place("onnxruntime", "cpu (AMD EPYC 7B13)"))
    assert elsewhere.verdict == "pending"
    assert latency(math.nan, None, invalid=("hot",)).verdict == "fail"


def test_a_latency_measured_elsewhere_is_recorded_and_pending():
    check = latency(99, 100, actual=Place("onnxruntime", "cpu (AMD EPYC 7B13)"))
    assert (check.verdict, check.measured, check.unit) == ("pending", 99, "ms")
    assert check.message == (
        "p99 99.00 ms on onnxruntime on cpu (AMD EPYC 7B13) from 1,000 samples, "
        "but the gate of 10 ms names tensorrt on orin-nano"
    )


@pytest.mark.parametrize(
    ("wanted", "actual", "same"),
    [
        (Place("tensorrt", "orin-nano"), ORIN, True),
        (Place("tensorrt", "Orin Nano"), Place("tensorrt_rtx", ORIN.device), True),
        (Place("tensorrt_rtx", "orin-nano"), ORIN, False),
        (Place("tensorrt", "orin-nano"), Place("tensorrt", "NVIDIA Orin NX"), False),
        (Place("tensorrt", "rtx-4070"), Place("tensorrt", "NVIDIA GeForce RTX 40700"), False),
        (Place("onnxruntime", "cpu"), Place("onnxruntime", "cpu (AMD EPYC 7B13)"), True),
        (Place("onnxruntime", "cpu"), Place("onnxruntime", "NVIDIA H100"), False),
        (Place(None, None), ORIN, True),
        (Place("tensorrt", None), Place(None, None), False),
    ],
)
def test_a_gate_applies_on_the_runtime_and_device_it_names(wanted, actual, same):
    assert same_place(wanted, actual) is same


def test_what_is_required_and_was_not_run_is_pending():
    found = require_gates(["onnx", "engine", "device"], {"onnx": "done", "engine": "failed"})
    assert [(check.name, check.verdict) for check in found] == [
        ("onnx", "pass"),
        ("engine", "fail"),
        ("device", "pending"),
    ]
    assert exit_code(found) == Exit.ENVIRONMENT


FAILED = {
    "hash": 1, "outputs": 1, "precision": 1, "contract": 1, "size": 1, "memory": 1, "dla": 1, "build": 7, "require": 6,
    "accuracy": 3, "per_class": 3, "flips": 3, "gain": 3, "latency": 4, "throughput": 4, "speedup": 4,
}  # fmt: skip


@pytest.mark.parametrize(("verdict", "kind"), list(product(get_args(Verdict), get_args(Kind))))
def test_every_verdict_of_every_kind_has_the_designs_exit_code(verdict, kind):
    check = Check("a", "gate", kind, verdict, "")
    open_requirement = 6 if kind == "require" else 0
    expected = {"pass": 0, "fail": FAILED[kind], "inconclusive": 5, "pending": open_requirement}[verdict]
    assert exit_code([check]) == expected
    assert exit_code([check], allow_inconclusive=True) == (0 if verdict == "inconclusive" else expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(checks, max_size=6), st.randoms(use_true_random=False))
def test_the_exit_code_is_the_first_in_priority_whatever_the_order(found, random):
    codes = [exit_code([check]) for check in found]
    shuffled = random.sample(found, len(found))
    assert exit_code(shuffled) == min((code for code in codes if code), key=PRIORITY.index, default=Exit.OK)


@settings(max_examples=50, deadline=None)
@given(st.lists(checks, max_size=6), st.booleans())
def test_what_stops_a_file_is_the_first_failure_else_the_first_undecided_and_never_what_is_open(found, allow):
    failed = [check for check in found if check.verdict == "fail" and check.kind != "require"]
    undecided = [check for check in found if check.verdict == "inconclusive" and not allow]
    assert stopping(found, allow_inconclusive=allow) is next(iter([*failed, *undecided]), None)


def test_a_failure_is_told_before_what_is_undecided_and_open_requirements_hide_neither():
    undecided = Check("a", "gate", "accuracy", "inconclusive", "neither")
    failed = Check("b", "gate", "latency", "fail", "slow")
    open_one = Check("c", "gate", "require", "fail", "not there")
    assert why_not([undecided, open_one, failed]) == "b, gate: slow"
    assert why_not([open_one, undecided]) == "a, gate: neither"
    assert why_not([open_one, undecided], allow_inconclusive=True) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(checks, max_size=5), checks)
def test_a_check_that_passes_changes_no_exit_code(found, check):
    assert exit_code([*found, replace(check, verdict="pass")]) == exit_code(found)


@settings(max_examples=30, deadline=None)
@given(ends, ends, st.floats(0, 0.1), st.floats(0, 0.1))
def test_a_wider_limit_never_turns_a_pass_into_a_fail(one, other, max_drop, more):
    low, high = sorted((one, other))
    order = ["fail", "inconclusive", "pass"]
    strict, lenient = accuracy(low, high, max_drop=max_drop), accuracy(low, high, max_drop=max_drop + more)
    assert order.index(lenient.verdict) >= order.index(strict.verdict)


def test_several_exits_at_once_give_the_designs_first():
    assert [int(code) for code in PRIORITY] == [2, 1, 7, 6, 3, 4, 5]
    assert first_exit([Exit.LATENCY, Exit.OK, Exit.BUILD]) == 7
    assert first_exit([]) == 0
