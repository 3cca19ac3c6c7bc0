"""Gates on ratios of times and on throughput."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.interleaved import Pair
from exporters.latency import Latency, summarize
from soup.gates import Check, Exit, Place, Subject, exit_code
from soup.time_gates import (
    Ratio,
    ratio_gate,
    ratio_of_latencies,
    ratio_of_pair,
    ratio_to_figures,
    speedup_gate,
    throughput_gate,
)

SUBJECT = Subject("model.engine", "gate", "tensorrt on Orin")
HERE, ORIN = Place("onnxruntime", "cpu (AMD EPYC 7B13)"), Place("tensorrt", "NVIDIA Jetson Orin Nano")
ORDER = ["fail", "inconclusive", "pass"]


def latency(ms: float, *, samples: int = 500, spread: float = 0.01, loop: str = "closed") -> Latency:
    times = ms * (1 + spread * np.sin(np.arange(samples)))
    found = summarize(times, warmup=5, contract={"batch": 1, "loop": loop})
    return replace(found, throughput=1000 / ms)


def ratio(value: float, low: float | None, high: float | None, *, invalid: tuple[str, ...] = ()) -> Ratio:
    return Ratio(value, low, high, "medians", invalid)


def relative(found: Ratio, *, max_ratio: float = 1.05, actual: Place = ORIN) -> Check:
    wanted = Place("tensorrt", "orin-nano")
    return ratio_gate(found, SUBJECT, max_ratio=max_ratio, against="the best single", wanted=wanted, actual=actual)


def throughput(found: Latency, *, min_per_s: float, actual: Place = ORIN) -> Check:
    return throughput_gate(
        found, SUBJECT, min_per_s=min_per_s, wanted=Place("tensorrt", "orin-nano"), actual=actual
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (ratio(1.0, 0.98, 1.05), "pass"),
        (ratio(1.04, 1.02, 1.06), "inconclusive"),
        (ratio(1.1, 1.06, 1.2), "fail"),
        (ratio(1.0, None, None), "inconclusive"),
        (ratio(1.0, 0.98, 1.02, invalid=("the clock fell",)), "inconclusive"),
        (ratio(2.0, 1.9, 2.1, invalid=("the clock fell",)), "inconclusive"),
        (ratio(math.nan, 0.98, 1.02, invalid=("the clock fell",)), "fail"),
        (ratio(math.nan, None, None), "fail"),
    ],
)
def test_a_ratio_passes_by_its_far_end_and_fails_by_its_near_end(found: Ratio, verdict: str) -> None:
    check = relative(found)
    assert (check.verdict, check.kind, check.limit, check.unit) == (verdict, "latency", 1.05, "×")
    assert relative(found, actual=HERE).verdict == "pending"


def test_a_ratio_reads_as_one_sentence() -> None:
    assert relative(ratio(1.021, 1.01, 1.032)).message == (
        "1.021 times the time of the best single on tensorrt on NVIDIA Jetson Orin Nano (medians 1.010 to 1.032); "
        "limit 1.05 times"
    )
    assert relative(ratio(1.0, None, None, invalid=("hot",))).message.endswith(
        "(medians, too few for an interval), which counts for nothing, since the device was slowed down meanwhile: hot"
    )


def test_a_pair_timed_in_turns_gives_its_own_interval_and_reasons() -> None:
    one = latency(5)
    pair = Pair(1.01, 0.99, 1.03, 0.95, 0.02, 40, one, one, ("the clock fell",), "invalid")
    found = ratio_of_pair(pair)
    assert (found.value, found.low, found.high, found.invalid) == (1.01, 0.99, 1.03, ("the clock fell",))
    assert "40 rounds" in found.how


def test_two_latencies_are_compared_by_the_far_ends_of_their_medians() -> None:
    a, b = latency(10), latency(5)
    found = ratio_of_latencies(a, b)
    assert found.value == pytest.approx(a.p50_ms / b.p50_ms)
    assert found.low == pytest.approx((a.p50_lower_ms or 0) / (b.p50_upper_ms or 0))
    assert found.high == pytest.approx((a.p50_upper_ms or 0) / (b.p50_lower_ms or 0))
    assert (found.low or 0) < found.value < (found.high or 0)
    few = ratio_of_latencies(latency(10, samples=3), b)
    assert (few.low, few.high) == (None, None)
    assert ratio_of_latencies(replace(a, throttled=("hot",)), b).invalid == ("hot",)


def test_figures_of_another_tool_are_taken_as_exact_and_by_the_first_percentile_they_have() -> None:
    ours = latency(10)
    found = ratio_to_figures(ours, {"p99_ms": 8.0, "accuracy": 0.9})
    assert found is not None
    assert found.value == pytest.approx(ours.p99_ms / 8)
    assert found.high == pytest.approx((ours.p99_upper_ms or 0) / 8)
    median = ratio_to_figures(ours, {"p99_ms": 8.0, "p50_ms": 5.0})
    assert median is not None
    assert median.value == pytest.approx(ours.p50_ms / 5)
    assert ratio_to_figures(ours, {"accuracy": 0.9}) is None


@pytest.mark.parametrize(
    ("found", "verdict", "code"),
    [
        (ratio(1.8, 1.7, 1.9), "pass", 0),
        (ratio(1.0, 0.98, 1.02), "inconclusive", 5),
        (ratio(0.9, 0.85, 0.95), "fail", 4),
        (ratio(math.nan, 1.7, 1.9), "fail", 4),
        (ratio(0.9, 0.85, 0.95, invalid=("hot",)), "inconclusive", 5),
        (None, "pending", 0),
    ],
)
def test_int8_that_is_slower_than_fp16_fails(found: Ratio | None, verdict: str, code: int) -> None:
    check = speedup_gate(found, SUBJECT, minimum=1.0)
    assert (check.verdict, check.kind, exit_code([check])) == (verdict, "speedup", Exit(code))


def test_a_speedup_reads_as_one_sentence() -> None:
    assert speedup_gate(ratio(0.9, 0.85, 0.95), SUBJECT, minimum=1.0).message == (
        "INT8 is 0.900 times as fast as FP16 (medians 0.850 to 0.950); limit 1 times"
    )
    assert speedup_gate(None, SUBJECT, minimum=1.0).message == (
        "INT8 and FP16 were not both timed on one device; INT8 must be at least 1 times as fast"
    )


def test_a_throughput_is_held_to_what_its_scatter_leaves_sure() -> None:
    steady = latency(10)
    assert throughput(steady, min_per_s=99).verdict == "pass"
    assert throughput(steady, min_per_s=100).verdict == "inconclusive"
    assert throughput(steady, min_per_s=101).verdict == "fail"
    off = 2.3263478740408408 * (steady.cv or 0) / math.sqrt(500)
    assert throughput(steady, min_per_s=100 / (1 + off) - 1e-9).verdict == "pass"
    assert throughput(steady, min_per_s=100 / (1 + off) + 1e-9).verdict == "inconclusive"
    assert throughput(steady, min_per_s=100 / (1 - off) - 1e-9).verdict == "inconclusive"
    assert throughput(steady, min_per_s=100 / (1 - off) + 1e-9).verdict == "fail"
    assert throughput(steady, min_per_s=99).message == (
        "100.0 samples per second on tensorrt on NVIDIA Jetson Orin Nano from 500 calls, at least 99.9 with 99 % "
        "confidence; limit 99"
    )


def test_a_throughput_that_cannot_judge_says_why() -> None:
    steady = latency(10)
    paced = throughput(latency(10, loop="paced"), min_per_s=200)
    assert paced.verdict == "inconclusive"
    assert "at the camera's rate" in paced.message
    assert throughput(latency(10, loop="paced"), min_per_s=50).verdict == "pass"
    assert throughput(steady, min_per_s=200, actual=HERE).verdict == "pending"
    assert throughput(replace(steady, throttled=("hot",)), min_per_s=200).verdict == "inconclusive"
    assert throughput(replace(steady, throughput=None), min_per_s=200).verdict == "inconclusive"
    assert throughput(replace(steady, cv=None), min_per_s=200).verdict == "inconclusive"
    for broken in (replace(steady, throughput=math.nan), replace(steady, throughput=math.nan, cv=None)):
        check = throughput(broken, min_per_s=1)
        assert (check.verdict, check.measured) == ("fail", None)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 3), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.1, 3), st.floats(0, 1))
def test_a_wider_limit_never_makes_a_verdict_worse(value, under, over, limit, more):
    found = ratio(value, value - under, value + over)
    strict, lenient = relative(found, max_ratio=limit), relative(found, max_ratio=limit + more)
    assert ORDER.index(lenient.verdict) >= ORDER.index(strict.verdict)
    slow, fast = (speedup_gate(found, SUBJECT, minimum=floor) for floor in (limit, limit + more))
    assert ORDER.index(slow.verdict) >= ORDER.index(fast.verdict)
    low, high = (throughput(latency(10), min_per_s=floor * 50) for floor in (limit, limit + more))
    assert ORDER.index(low.verdict) >= ORDER.index(high.verdict)
