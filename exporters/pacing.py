"""When each call starts: one after the other, or at a camera's rate; and how long a warm-up goes on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

NANOSECONDS_PER_MS = 1e6
NANOSECONDS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time comes from: `now` gives nanoseconds and never goes back, `sleep` takes seconds."""

    now: Callable[[], int] = time.perf_counter_ns
    sleep: Callable[[float], None] = time.sleep
    name: str = "perf_counter_ns"


SYSTEM = Clock()


@dataclass(frozen=True, slots=True)
class UntilStable:
    """Warm up until the medians of two successive windows of `window` calls differ by `tolerance` of the later at most.

    Not before `least` calls, not beyond `most`. Two windows of ten say nothing of drift over minutes, and are not meant
    to: the state before and after is for that.
    """

    least: int = 20
    most: int = 300
    window: int = 10
    tolerance: float = 0.02


@dataclass(frozen=True, slots=True)
class Timing:
    """How to time: warm-up calls (a number, or until stable), timed calls, and the seconds after which each part ends.

    `rate_hz` is a camera's: a call for each frame, when it is due. None is a closed loop.
    """

    warmup: int | UntilStable = field(default_factory=UntilStable)
    iterations: int = 500
    max_seconds: float = 20.0
    rate_hz: float | None = None


@dataclass(slots=True)
class Timed:
    """What was timed: a duration per call in ns, and how long all of it took; `late` and `dropped` frames if paced."""

    durations: list[int] = field(default_factory=list)
    span: int = 0
    late: int | None = None
    dropped: int | None = None


def warm_up(call: Callable[[], object], timing: Timing, *, clock: Clock) -> tuple[int, bool | None]:
    """Calls made, at the rate that will be timed, and whether they became stable (None if a number was asked for)."""
    rule = timing.warmup
    if isinstance(rule, int):
        return len(run(call, timing, calls=rule, clock=clock).durations), None
    durations: list[int] = []
    begin = clock.now()
    while len(durations) < rule.most and clock.now() - begin < timing.max_seconds * NANOSECONDS_PER_S:
        durations += run(call, timing, calls=rule.window, clock=clock).durations
        if len(durations) >= rule.least and is_stable(durations, window=rule.window, tolerance=rule.tolerance):
            return len(durations), True
    return len(durations), False


def run(call: Callable[[], object], timing: Timing, *, calls: int, clock: Clock) -> Timed:
    """`calls` calls, in a closed loop or paced as `timing` says, or fewer where they take longer than it allows."""
    if timing.rate_hz is None:
        return closed_loop(call, calls=calls, max_seconds=timing.max_seconds, clock=clock)
    return paced(call, rate_hz=timing.rate_hz, calls=calls, max_seconds=timing.max_seconds, clock=clock)


def is_stable(durations: list[int], *, window: int, tolerance: float) -> bool:
    """Whether the medians of the last two windows agree; false where there are not two."""
    if len(durations) < 2 * window:
        return False
    earlier, later = statistics.median(durations[-2 * window : -window]), statistics.median(durations[-window:])
    return abs(earlier - later) <= tolerance * later


def closed_loop(call: Callable[[], object], *, calls: int, max_seconds: float, clock: Clock) -> Timed:
    """The next call starts when the last has returned. At least one call where `calls` is not 0."""
    timed = Timed()
    begin = end = clock.now()
    while len(timed.durations) < calls and (not timed.durations or end - begin < max_seconds * NANOSECONDS_PER_S):
        start = clock.now()
        call()
        end = clock.now()
        timed.durations.append(end - start)
    timed.span = end - begin
    return timed


def paced(call: Callable[[], object], *, rate_hz: float, calls: int, max_seconds: float, clock: Clock) -> Timed:
    """A frame falls due every 1/`rate_hz` seconds, and its call starts then; between calls the device idles.

    A frame that falls due during a call is late: it waits, its time counts from when it was due, so that what an
    application waits for is not left out (the "coordinated omission" of load generators: G. Tene, How NOT to Measure
    Latency). Of several late frames the newest runs, the others are dropped, as by a camera without a queue. A frame
    on time counts from the start of its call, so that the timer's own delay is not the model's.
    """
    timed = Timed(late=0, dropped=0)
    late = dropped = frame = 0
    period = NANOSECONDS_PER_S / rate_hz
    begin = end = clock.now()
    while len(timed.durations) < calls and (not timed.durations or end - begin < max_seconds * NANOSECONDS_PER_S):
        now = clock.now()
        newest = int((now - begin) // period)
        if newest > frame:
            dropped, frame = dropped + newest - frame, newest
        due = begin + round(frame * period)
        if timed.durations and end > due:
            late += 1
            start = due
        else:
            start = _wait_until(due, clock=clock)
        call()
        end = clock.now()
        timed.durations.append(end - start)
        frame += 1
    timed.span, timed.late, timed.dropped = end - begin, late, dropped
    return timed


def _wait_until(due: int, *, clock: Clock) -> int:
    """Sleep, not spin: a core that spins keeps the clocks up which a camera's pauses let fall."""
    while (now := clock.now()) < due:
        clock.sleep((due - now) / NANOSECONDS_PER_S)
    return now
