"""How long a call takes, with percentiles that the number of calls can bear."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from exporters.device_state import DeviceState, throttled
from exporters.pacing import (
    NANOSECONDS_PER_MS,
    NANOSECONDS_PER_S,
    SYSTEM,
    Clock,
    Timed,
    Timing,
    UntilStable,
    run,
    warm_up,
)

CONFIDENCE = 0.99
Contract = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Latency:
    """Time per call over every timed call: nothing is clipped, dropped or averaged before the percentiles.

    `p99_ms` is the nearest-rank percentile. `p99_upper_ms` is at or above the true one with probability `confidence`,
    `p99_lower_ms` at or below it; None where there are too few samples to say so (an upper bound of p99 at 0.99 needs
    459). `gpu_…` is the GPU's own time by CUDA events, without transfers; None where the runtime has none.

    `throughput` is samples per second over the timed span, `cv` the standard deviation over the mean. `stable` says
    whether the warm-up came to rest. `late` and `dropped` are frames, of a paced run only. `throttled` says why the
    device was slowed down meanwhile; the `verdict` is then "invalid", and no limit may be called kept by it.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    p50_upper_ms: float | None
    p90_upper_ms: float | None
    p99_upper_ms: float | None
    confidence: float
    mean_ms: float
    min_ms: float
    max_ms: float
    samples: int
    warmup: int
    contract: Contract
    p50_lower_ms: float | None = None
    p90_lower_ms: float | None = None
    p99_lower_ms: float | None = None
    gpu_p50_ms: float | None = None
    gpu_p90_ms: float | None = None
    gpu_p99_ms: float | None = None
    throughput: float | None = None
    cv: float | None = None
    stable: bool | None = None
    late: int | None = None
    dropped: int | None = None
    before: DeviceState | None = None
    after: DeviceState | None = None
    throttled: tuple[str, ...] = ()
    verdict: Literal["valid", "invalid"] = "valid"


def measure(
    call: Callable[[], object],
    timing: Timing,
    *,
    contract: Contract,
    gpu_ms: Callable[[], float | None] | None = None,
    state: Callable[[], DeviceState] | None = None,
    clock: Clock = SYSTEM,
) -> Latency:
    """Time `call` in a closed loop or at a camera's rate, after a warm-up, as `timing` says.

    Warm-up and timed calls each end at their number or after `max_seconds`, but not before one timed call; `warmup` and
    `samples` say how many there were. The garbage collector is off meanwhile and is set back in the end. `contract` is
    what the caller knows (batch, threads, whether transfers are included); how it was timed is added to it.
    `gpu_ms` is asked after each call for the GPU's time of that call; `state` before the warm-up and after the last.
    """
    gpu: list[float] = []
    before = state() if state else None
    with no_garbage_collection():
        warm, stable = warm_up(call, timing, clock=clock)
        timed = run(_noting(call, gpu_ms, gpu), timing, calls=max(timing.iterations, 1), clock=clock)
    after = state() if state else None
    stopped = "iterations" if len(timed.durations) >= timing.iterations else "max_seconds"
    found = summarize(
        np.array(timed.durations) / NANOSECONDS_PER_MS,
        warmup=warm,
        contract={**contract, **how_timed(timing, clock), "stopped_by": stopped},
    )
    found = replace(
        _with_gpu(found, gpu),
        throughput=_throughput(timed, contract),
        stable=stable,
        late=timed.late,
        dropped=timed.dropped,
    )
    return judged(found, before=before, after=after)


def how_timed(timing: Timing, clock: Clock) -> Contract:
    """What a figure's contract says of the timing itself."""
    paced: Contract = {} if timing.rate_hz is None else {"rate_hz": timing.rate_hz}
    rule = timing.warmup
    until: Contract = {"stable_within": rule.tolerance} if isinstance(rule, UntilStable) else {}
    return {
        "loop": "closed" if timing.rate_hz is None else "paced",
        "percentile": "nearest rank",
        "clock": clock.name,
        "garbage_collection": False,
        **paced,
        **until,
    }


def summarize(times_ms: np.ndarray, *, warmup: int, contract: Contract, confidence: float = CONFIDENCE) -> Latency:
    """Percentiles and their bounds from one time per call, float64[samples] with at least one sample."""
    ordered = np.sort(times_ms)
    count = len(ordered)

    def at(rank: int | None) -> float | None:
        return None if rank is None else float(ordered[rank - 1])

    upper = {p: at(upper_bound_rank(count, percent=p, confidence=confidence)) for p in (50, 90, 99)}
    lower = {p: at(lower_bound_rank(count, percent=p, confidence=confidence)) for p in (50, 90, 99)}
    p50, p90, p99 = (float(ordered[nearest_rank(count, percent=percent) - 1]) for percent in (50, 90, 99))
    return Latency(
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p50_upper_ms=upper[50],
        p90_upper_ms=upper[90],
        p99_upper_ms=upper[99],
        confidence=confidence,
        mean_ms=float(times_ms.mean(dtype=np.float64)),
        min_ms=float(ordered[0]),
        max_ms=float(ordered[-1]),
        samples=count,
        warmup=warmup,
        contract=contract,
        p50_lower_ms=lower[50],
        p90_lower_ms=lower[90],
        p99_lower_ms=lower[99],
        cv=coefficient_of_variation(times_ms),
    )


def coefficient_of_variation(times_ms: np.ndarray) -> float | None:
    """Standard deviation (n - 1) over the mean; None of fewer than two times, or where the mean is 0."""
    mean = float(times_ms.mean(dtype=np.float64))
    if len(times_ms) < 2 or mean == 0:
        return None
    return float(times_ms.std(ddof=1, dtype=np.float64)) / mean


def judged(latency: Latency, *, before: DeviceState | None, after: DeviceState | None) -> Latency:
    """The latency with the device's states around it, invalid where the device was slowed down meanwhile."""
    reasons = throttled(before, after) if before is not None and after is not None else ()
    return replace(latency, before=before, after=after, throttled=reasons, verdict="invalid" if reasons else "valid")


def nearest_rank(count: int, *, percent: int) -> int:
    """The rank (from 1) of the smallest sample with at least `percent` % of all at or below it."""
    return max(-(-count * percent // 100), 1)


def upper_bound_rank(count: int, *, percent: int, confidence: float = CONFIDENCE) -> int | None:
    """The smallest rank (from 1) whose sample is at or above the true percentile with probability >= confidence.

    The number of samples below the true percentile is binomial (count, percent/100) whatever the distribution of times,
    so the r-th smallest is below it only where r or more fall short of it (David and Nagaraja, Order Statistics, 7.1).
    """
    misses = _binomial_tail(count, percent / 100)  # misses[r] = P(at least r samples below the percentile)
    ranks = np.flatnonzero(misses[1:] <= 1 - confidence)
    return int(ranks[0]) + 1 if len(ranks) else None


def lower_bound_rank(count: int, *, percent: int, confidence: float = CONFIDENCE) -> int | None:
    """The greatest rank (from 1) whose sample is at or below the true percentile with probability >= confidence."""
    reached = _binomial_tail(count, percent / 100)  # reached[r] = P(at least r samples at or below the percentile)
    ranks = np.flatnonzero(reached[1:] >= confidence)
    return int(ranks[-1]) + 1 if len(ranks) else None


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Off inside of it; afterwards as it was."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _binomial_tail(count: int, chance: float) -> np.ndarray:
    """P(X >= r) for r = 0 … count, float64."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    successes = np.arange(count + 1)
    log_ways = log_factorial[count] - log_factorial - log_factorial[::-1]
    weights = np.exp(log_ways + successes * np.log(chance) + (count - successes) * np.log1p(-chance))
    tail: np.ndarray = np.cumsum(weights[::-1])[::-1]
    return tail


def _noting(
    call: Callable[[], object], gpu_ms: Callable[[], float | None] | None, into: list[float]
) -> Callable[[], object]:
    """The call, which also keeps the GPU's time where there is one: reading a float costs next to nothing."""
    if gpu_ms is None:
        return call

    def noting() -> None:
        call()
        value = gpu_ms()
        into.append(math.nan if value is None else value)

    return noting


def _with_gpu(latency: Latency, gpu: list[float]) -> Latency:
    if not gpu or any(map(math.isnan, gpu)):
        return latency
    ordered = np.sort(gpu)
    p50, p90, p99 = (float(ordered[nearest_rank(len(ordered), percent=percent) - 1]) for percent in (50, 90, 99))
    return replace(latency, gpu_p50_ms=p50, gpu_p90_ms=p90, gpu_p99_ms=p99)


def _throughput(timed: Timed, contract: Contract) -> float | None:
    batch = contract.get("batch", 1)
    if not isinstance(batch, int) or timed.span <= 0:
        return None
    return batch * len(timed.durations) / (timed.span / NANOSECONDS_PER_S)
