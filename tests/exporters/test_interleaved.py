"""Two models in turns: the interval covers, drift falls out, and the verdict follows from the interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from exporters.device_state import DeviceState
from exporters.interleaved import Pair, Turns, measure_pair, median_interval, no_cost
from exporters.pacing import Clock


class Device:
    """A clock that two calls of the given milliseconds move on, faster or slower by `drift` per call."""

    def __init__(self, a_ms: float, b_ms: float, *, noise: float = 0.0, drift: float = 0.0, seed: int = 0) -> None:
        self.now, self.calls, self.order = 0, 0, ""
        self.noise, self.drift, self.random = noise, drift, np.random.default_rng(seed)
        self.a, self.b = self.taking(a_ms, "a"), self.taking(b_ms, "b")
        self.clock = Clock(lambda: self.now, lambda seconds: None, "fake")

    def taking(self, base_ms: float, name: str):  # type: ignore[no-untyped-def]
        def call() -> None:
            self.calls, self.order = self.calls + 1, self.order + name
            factor = self.random.lognormal(0, self.noise) * (1 + self.drift * self.calls)
            self.now += round(base_ms * factor * 1e6)

        return call

    def pair(self, **turns: float) -> Pair:
        return measure_pair(self.a, self.b, turns=Turns(**turns), contract={"batch": 1}, clock=self.clock)  # type: ignore[arg-type]


def test_a_model_that_takes_a_tenth_longer_fails() -> None:
    found = Device(11.0, 10.0, noise=0.02).pair()
    assert found.ratio == pytest.approx(1.1, rel=0.01)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.ratio <= found.high
    assert (found.verdict, found.blocks, found.margin) == ("fail", 60, 0.02)
    assert (found.a.samples, found.b.samples) == (600, 600)
    assert (found.a.contract["loop"], found.a.contract["batch"]) == ("interleaved", 1)


@pytest.mark.parametrize(("a_ms", "b_ms"), [(10.0, 10.0), (7.0, 10.0)])
def test_a_model_that_is_as_fast_or_faster_passes(a_ms: float, b_ms: float) -> None:
    assert Device(a_ms, b_ms, noise=0.02).pair().verdict == "pass"


def test_noise_that_hides_the_difference_is_inconclusive() -> None:
    assert Device(10.2, 10.0, noise=0.3).pair(blocks=10, calls=1).verdict == "inconclusive"


def test_a_steady_drift_falls_on_both_alike() -> None:
    """Without turns, A first and B after it, this drift would make B 60 % slower."""
    found = Device(10.0, 10.0, drift=0.001).pair()
    assert found.ratio == pytest.approx(1.0, abs=1e-3)
    assert found.verdict == "pass"


def test_the_turns_are_abba_and_then_baab() -> None:
    device = Device(1.0, 1.0)
    device.pair(blocks=6, calls=2)
    assert device.order.endswith("aabbbbaa" + "bbaaaabb" + "aabbbbaa" + "bbaaaabb")


def test_it_stops_by_time_but_not_before_the_interval_has_its_six_blocks() -> None:
    assert Device(10.0, 10.0).pair(max_seconds=0.01).blocks == 6
    assert 6 < Device(10.0, 10.0).pair(max_seconds=2.0).blocks < 60


def test_a_throttled_device_decides_nothing() -> None:
    device, states = Device(7.0, 10.0), iter([DeviceState(), DeviceState(slowdowns=("GPU hardware slowdown",))])
    found = measure_pair(device.a, device.b, contract={}, state=lambda: next(states), clock=device.clock)
    assert (found.verdict, found.throttled) == ("invalid", ("GPU hardware slowdown",))
    assert (found.a.verdict, found.b.verdict) == ("invalid", "invalid")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_interval_is_the_sign_tests(count: int, confidence: float) -> None:
    """Both ranks by scipy's binomial: the k-th smallest and the k-th greatest."""
    low, high = median_interval(np.arange(1.0, count + 1), confidence=confidence)
    k = int(stats.binom.ppf((1 - confidence) / 2, count, 0.5))
    if stats.binom.cdf(k, count, 0.5) > (1 - confidence) / 2:
        k -= 1  # the greatest number of values outside that is still unlikely enough
    assert (low, high) == ((k + 1.0, count - k + 0.0) if k >= 0 else (None, None))


def test_the_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    true = 1.03
    covered = 0
    for seed in range(200):
        ratios = np.sort(true * np.random.default_rng(seed).lognormal(0, 0.1, size=40))
        low, high = median_interval(ratios, confidence=0.95)
        assert low is not None
        assert high is not None
        covered += low <= true <= high
    assert covered >= 184  # 0.95 of 200, less two standard errors of a binomial


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.9, 1.02, "pass"), (0.9, 1.0201, "inconclusive"), (1.02, 1.1, "inconclusive"), (1.021, 1.1, "fail"),
     (None, 1.0, "inconclusive"), (math.nan, math.nan, "fail")],
)  # fmt: skip
def test_the_verdict_follows_from_the_interval(low: float | None, high: float | None, verdict: str) -> None:
    assert no_cost(low, high, margin=0.02) == verdict
