from __future__ import annotations

import gc
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from exporters.device_state import DeviceState
from exporters.latency import (
    Latency,
    lower_bound_rank,
    measure,
    nearest_rank,
    summarize,
    upper_bound_rank,
)
from exporters.pacing import Clock, Timing


def fake_clock(durations_ms: Iterable[float]) -> tuple[Callable[[], None], Clock]:
    """A call that takes the given times on a clock that moves only while it runs."""
    now = 0
    waiting = iter(durations_ms)

    def call() -> None:
        nonlocal now
        now += round(next(waiting) * 1e6)

    def sleep(seconds: float) -> None:
        nonlocal now
        now += round(seconds * 1e9)

    return call, Clock(lambda: now, sleep, "fake")


def timed(
    durations_ms: list[float], *, warmup: int = 0, iterations: int | None = None, max_seconds: float = 1e9
) -> Latency:
    call, clock = fake_clock(durations_ms)
    count = len(durations_ms) - warmup if iterations is None else iterations
    return measure(call, Timing(warmup, count, max_seconds), contract={"batch": 1}, clock=clock)


@pytest.mark.parametrize(("samples", "claimed"), [(458, False), (459, True)])
def test_a_p99_bound_at_99_percent_confidence_needs_459_samples(samples: int, claimed: bool) -> None:
    """Correctness 41."""
    found = timed([float(ms) for ms in range(1, samples + 1)])
    assert (found.p99_upper_ms is not None) is claimed
    assert found.p99_upper_ms in (None, found.max_ms)
    assert found.confidence == 0.99


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.sampled_from([50, 90, 99]), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_bounds_rank_is_the_smallest_one_that_the_binomial_allows(
    count: int, percent: int, confidence: float
) -> None:
    """Correctness 41. P(r-th smallest >= quantile) = P(Binomial(count, percent) <= r - 1)."""
    ranks = np.arange(1, count + 1)
    enough = ranks[stats.binom.cdf(ranks - 1, count, percent / 100) >= confidence]
    assert upper_bound_rank(count, percent=percent, confidence=confidence) == (enough[0] if len(enough) else None)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.sampled_from([50, 90, 99]), st.sampled_from([0.9, 0.95, 0.98]))
def test_the_lower_bounds_rank_is_the_greatest_one_that_the_binomial_allows(
    count: int, percent: int, confidence: float
) -> None:
    """Correctness 41. P(r-th smallest <= quantile) = P(Binomial(count, percent) >= r)."""
    ranks = np.arange(1, count + 1)
    enough = ranks[stats.binom.sf(ranks - 1, count, percent / 100) >= confidence]
    assert lower_bound_rank(count, percent=percent, confidence=confidence) == (enough[-1] if len(enough) else None)


def test_the_bounds_enclose_the_true_percentile_as_often_as_they_say() -> None:
    """Correctness 41, by brute force: 2,000 runs of 600 skewed times each, each bound at 0.99 of its own."""
    times = np.random.default_rng(1).lognormal(size=(2000, 600))
    for percent in (50, 90):
        truth = stats.lognorm(s=1).ppf(percent / 100)
        runs = [summarize(run, warmup=0, contract={}) for run in times]
        lower = [getattr(run, f"p{percent}_lower_ms") for run in runs]
        covered = np.mean([bound is not None and bound <= truth for bound in lower])
        assert 0.985 <= covered <= 0.998


def test_the_bound_covers_the_true_percentile_as_often_as_it_says() -> None:
    """Correctness 41, by brute force: 2,000 runs of 600 skewed times each."""
    times = np.random.default_rng(0).lognormal(size=(2000, 600))
    truth = stats.lognorm(s=1).ppf(0.9)
    bounds = [summarize(run, warmup=0, contract={}).p90_upper_ms for run in times]
    covered = np.mean([bound is not None and bound >= truth for bound in bounds])
    assert 0.985 <= covered <= 0.998


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=300))
def test_percentiles_are_numpys_inverted_cdf_over_every_single_call(durations_ms: list[int]) -> None:
    """Correctness 41: nothing is clipped, dropped or averaged first."""
    found = timed([float(ms) for ms in durations_ms])
    expected = np.quantile(durations_ms, [0.5, 0.9, 0.99], method="inverted_cdf")
    assert [found.p50_ms, found.p90_ms, found.p99_ms] == expected.tolist()
    assert (found.samples, found.min_ms, found.max_ms) == (len(durations_ms), min(durations_ms), max(durations_ms))
    assert found.mean_ms == pytest.approx(np.mean(durations_ms))


def test_the_nearest_rank_is_computed_in_integers() -> None:
    assert [nearest_rank(count, percent=99) for count in (1, 99, 100, 101, 700)] == [1, 99, 99, 100, 693]


def test_an_outlier_stays_in() -> None:
    assert timed([1.0] * 98 + [5000.0, 5000.0]).p99_ms == 5000.0


def test_warm_up_calls_are_counted_and_left_out() -> None:
    found = timed([900.0, 800.0, 1.0, 2.0, 3.0], warmup=2)
    assert (found.warmup, found.samples, found.max_ms) == (2, 3, 3.0)


def test_it_stops_at_the_time_limit_and_says_so() -> None:
    found = timed([400.0] * 100, iterations=100, max_seconds=1.0)
    assert (found.samples, found.contract["stopped_by"]) == (3, "max_seconds")


def test_one_call_is_timed_whatever_the_limits() -> None:
    assert timed([7.0], iterations=0, max_seconds=0.0).samples == 1


def test_the_contract_carries_what_the_caller_knows_and_how_it_was_timed() -> None:
    contract = timed([1.0]).contract
    assert contract["batch"] == 1
    assert contract["loop"] == "closed"
    assert contract["garbage_collection"] is False
    assert contract["stopped_by"] == "iterations"


@pytest.mark.parametrize("was_on", [True, False])
def test_garbage_collection_is_off_while_timing_and_set_back_after_an_exception(was_on: bool) -> None:
    seen = []

    def call() -> None:
        seen.append(gc.isenabled())
        if len(seen) == 3:
            raise KeyboardInterrupt

    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(KeyboardInterrupt):
            measure(call, Timing(1, 9, 9), contract={})
        assert gc.isenabled() is was_on
    finally:
        gc.enable()
    assert seen == [False, False, False]


def test_the_real_clock_is_named() -> None:
    assert measure(lambda: None, Timing(0, 3, 60), contract={}).contract["clock"] == "perf_counter_ns"


def test_the_coefficient_of_variation_is_the_deviation_over_the_mean() -> None:
    times = [1.0, 2.0, 4.0, 7.0]
    assert timed(times).cv == pytest.approx(stats.variation(times, ddof=1))
    assert timed([1.0]).cv is None


def test_throughput_counts_samples_over_all_of_the_time() -> None:
    call, clock = fake_clock([100.0] * 10)
    found = measure(call, Timing(0, 10, 60.0), contract={"batch": 4}, clock=clock)
    assert found.throughput == pytest.approx(40.0)


def test_the_gpus_own_times_have_percentiles_of_their_own() -> None:
    gpu = iter([0.1] * 3 + [float(value) for value in range(1, 101)])
    call, clock = fake_clock([5.0] * 103)
    last = [0.0]

    def timed_call() -> None:
        call()
        last[0] = next(gpu)

    found = measure(timed_call, Timing(3, 100, 60.0), contract={}, gpu_ms=lambda: last[0], clock=clock)
    assert (found.gpu_p50_ms, found.gpu_p90_ms, found.gpu_p99_ms) == (50.0, 90.0, 99.0)
    assert found.p50_ms == 5.0


def test_a_runtime_that_does_not_tell_the_gpus_time_has_none() -> None:
    call, clock = fake_clock([5.0] * 4)
    found = measure(call, Timing(0, 4, 60.0), contract={}, gpu_ms=lambda: None, clock=clock)
    assert (found.gpu_p50_ms, found.gpu_p99_ms) == (None, None)


def test_a_latency_of_a_throttled_device_is_invalid() -> None:
    """Issue 4: no limit may be called kept by it."""
    states = iter([DeviceState(counts={"cpu0 core": 3}), DeviceState(counts={"cpu0 core": 5})])
    call, clock = fake_clock([5.0] * 4)
    found = measure(call, Timing(0, 4, 60.0), contract={}, state=lambda: next(states), clock=clock)
    assert (found.verdict, found.throttled) == ("invalid", ("cpu0 core rose by 2",))
    assert (found.before, found.after) == (DeviceState(counts={"cpu0 core": 3}), DeviceState(counts={"cpu0 core": 5}))


def test_a_device_that_stays_as_it_is_gives_a_valid_latency() -> None:
    call, clock = fake_clock([5.0] * 4)
    state = DeviceState(counts={"cpu0 core": 3}, temperatures_c={"CPU": 90.0})
    found = measure(call, Timing(0, 4, 60.0), contract={}, state=lambda: state, clock=clock)
    assert (found.verdict, found.throttled) == ("valid", ())


def test_the_states_are_read_before_the_warm_up_and_after_the_last_call() -> None:
    order: list[str] = []
    call, clock = fake_clock([5.0] * 4)

    def noted() -> None:
        call()
        order.append("call")

    def state() -> DeviceState:
        order.append("state")
        return DeviceState()

    measure(noted, Timing(2, 2, 60.0), contract={}, state=state, clock=clock)
    assert order == ["state", *["call"] * 4, "state"]
