"""Warm-up until stable and calls at a camera's rate, on a clock that moves only while something runs or sleeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.latency import measure
from exporters.pacing import Clock, Timing, UntilStable, is_stable, paced, warm_up

MS = 1_000_000


class Device:
    """Calls that take the given milliseconds, and a clock that they and sleeping move on."""

    def __init__(self, durations_ms: Iterator[float]) -> None:
        self.now, self.starts, self.durations = 0, list[float](), durations_ms
        self.clock = Clock(lambda: self.now, self.sleep, "fake")

    def call(self) -> None:
        self.starts.append(self.now / MS)
        self.now += round(next(self.durations) * MS)

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def taking(*durations_ms: float, then: float) -> Device:
    return Device(chain(durations_ms, repeat(then)))


def test_frames_start_when_they_are_due_and_the_device_idles_between() -> None:
    device = taking(then=4.0)
    found = paced(device.call, rate_hz=50, calls=5, max_seconds=60, clock=device.clock)
    assert device.starts == [0, 20, 40, 60, 80]
    assert [duration / MS for duration in found.durations] == [4.0] * 5
    assert (found.late, found.dropped, found.span) == (0, 0, 84 * MS)


def test_a_frame_that_waits_for_the_last_is_late_and_its_time_counts_from_when_it_was_due() -> None:
    device = taking(25.0, then=4.0)
    found = paced(device.call, rate_hz=50, calls=3, max_seconds=60, clock=device.clock)
    assert device.starts == [0, 25, 40]
    assert [duration / MS for duration in found.durations] == [25.0, 9.0, 4.0]
    assert (found.late, found.dropped) == (1, 0)


def test_of_several_frames_that_fell_due_meanwhile_the_newest_runs_and_the_others_are_dropped() -> None:
    device = taking(70.0, then=4.0)
    found = paced(device.call, rate_hz=50, calls=3, max_seconds=60, clock=device.clock)
    assert device.starts == [0, 70, 80]  # of the frames due at 20, 40 and 60 the one of 60 runs, 10 ms late
    assert [duration / MS for duration in found.durations] == [70.0, 14.0, 4.0]
    assert (found.late, found.dropped) == (1, 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 90), min_size=1, max_size=40), st.sampled_from([24.0, 30.0, 59.94, 120.0]))
def test_every_frame_is_run_or_dropped_and_none_starts_before_it_is_due(durations: list[float], rate: float) -> None:
    device = Device(iter(durations))
    found = paced(device.call, rate_hz=rate, calls=len(durations), max_seconds=1e9, clock=device.clock)
    assert found.dropped is not None
    assert found.late is not None
    period = 1000 / rate
    last_frame = len(durations) + found.dropped - 1
    assert last_frame * period - 1e-3 <= device.starts[-1]
    assert all(later - earlier >= 0.1 - 1e-3 for earlier, later in zip(device.starts, device.starts[1:], strict=False))
    assert found.late <= len(durations) - 1


def test_a_paced_measurement_says_its_rate_and_its_late_frames() -> None:
    device = taking(*[4.0] * 20, 25.0, then=4.0)
    timing = Timing(UntilStable(least=20, window=10), iterations=10, max_seconds=60, rate_hz=50)
    found = measure(device.call, timing, contract={"batch": 2}, clock=device.clock)
    assert (found.contract["loop"], found.contract["rate_hz"]) == ("paced", 50)
    assert (found.warmup, found.stable, found.samples, found.late, found.dropped) == (20, True, 10, 1, 0)
    assert device.starts[:3] == [0, 20, 40]  # the warm-up runs at the camera's rate too
    assert found.throughput == pytest.approx(2 * 10 / 0.184)


def test_a_closed_loop_has_no_late_frames() -> None:
    device = taking(then=4.0)
    found = measure(device.call, Timing(0, 5, 60), contract={}, clock=device.clock)
    assert (found.late, found.dropped, found.stable) == (None, None, None)


def test_the_warm_up_goes_on_until_two_windows_agree() -> None:
    device = taking(*[100.0] * 10, *[50.0] * 10, *[20.0] * 10, then=10.0)
    rule = UntilStable(least=20, most=300, window=10, tolerance=0.02)
    assert warm_up(device.call, Timing(rule, 1, 60), clock=device.clock) == (50, True)


def test_the_warm_up_makes_its_least_calls_though_all_agree() -> None:
    device = taking(then=10.0)
    rule = UntilStable(least=40, most=300, window=10)
    assert warm_up(device.call, Timing(rule, 1, 60), clock=device.clock) == (40, True)


def test_a_device_that_never_comes_to_rest_is_told_at_the_cap() -> None:
    device = Device(float(1 + index // 10) for index in range(10_000))
    rule = UntilStable(least=20, most=40, window=10, tolerance=0.02)
    assert warm_up(device.call, Timing(rule, 1, 60), clock=device.clock) == (40, False)


def test_a_warm_up_ends_with_its_time_too() -> None:
    device = taking(then=400.0)
    assert warm_up(device.call, Timing(UntilStable(window=10), 1, 1.0), clock=device.clock) == (3, False)


@pytest.mark.parametrize(("second", "stable"), [(98.1, True), (97.9, False), (102.03, True), (102.1, False)])
def test_windows_agree_within_two_percent_of_the_later(second: float, stable: bool) -> None:
    durations = [round(value * 1000) for value in [100.0] * 3 + [second] * 3]
    assert is_stable(durations, window=3, tolerance=0.02) is stable


def test_one_outlier_in_a_window_does_not_keep_it_from_being_stable() -> None:
    assert is_stable([100, 100, 100, 100, 5000, 100], window=3, tolerance=0.02)
    assert not is_stable([100] * 5, window=3, tolerance=0.02)


@pytest.mark.parametrize("run", [measure])
def test_exceptions_in_a_call_go_through(run: Callable[..., object]) -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0, Timing(), contract={})
