"""How long a call takes, with percentiles that the number of calls can bear."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.99
_NANOSECONDS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Latency:
    """Time per call over every timed call: nothing is clipped, dropped or averaged before the percentiles.

    `p99_ms` is the nearest-rank percentile. `p99_upper_ms` is at or above the true one with probability `confidence`,
    None where there are too few samples to say so (459 are needed for p99 at 0.99).
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
    contract: Mapping[str, str | int | float | bool]


def measure(
    call: Callable[[], object],
    *,
    warmup: int,
    iterations: int,
    max_seconds: float,
    contract: Mapping[str, str | int | float | bool],
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Latency:
    """Time `call` in a closed loop: the next call starts when the last has returned.

    Warm-up and timed calls each end at their number or after `max_seconds`, but not before one timed call; `warmup` and
    `samples` say how many there were. The garbage collector is off meanwhile and is set back in the end. `clock` gives
    nanoseconds and never goes back. `contract` is what the caller knows (batch, threads, whether transfers are
    included); how it was timed is added to it.
    """
    with _no_garbage_collection():
        warm = _timed(call, calls=warmup, max_seconds=max_seconds, clock=clock)
        timed = _timed(call, calls=max(iterations, 1), max_seconds=max_seconds, clock=clock)
    how = {
        "loop": "closed",
        "percentile": "nearest rank",
        "clock": getattr(clock, "__name__", "custom"),
        "garbage_collection": False,
        "stopped_by": "iterations" if len(timed) >= iterations else "max_seconds",
    }
    return summarize(np.array(timed) / _NANOSECONDS_PER_MS, warmup=len(warm), contract={**contract, **how})


def summarize(
    times_ms: np.ndarray,
    *,
    warmup: int,
    contract: Mapping[str, str | int | float | bool],
    confidence: float = CONFIDENCE,
) -> Latency:
    """Percentiles and their upper bounds from one time per call, float64[samples] with at least one sample."""
    ordered = np.sort(times_ms)
    count = len(ordered)
    upper = {percent: upper_bound_rank(count, percent=percent, confidence=confidence) for percent in (50, 90, 99)}
    bounds = {percent: None if rank is None else float(ordered[rank - 1]) for percent, rank in upper.items()}
    p50, p90, p99 = (float(ordered[nearest_rank(count, percent=percent) - 1]) for percent in (50, 90, 99))
    return Latency(
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p50_upper_ms=bounds[50],
        p90_upper_ms=bounds[90],
        p99_upper_ms=bounds[99],
        confidence=confidence,
        mean_ms=float(times_ms.mean(dtype=np.float64)),
        min_ms=float(ordered[0]),
        max_ms=float(ordered[-1]),
        samples=count,
        warmup=warmup,
        contract=contract,
    )


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


def _binomial_tail(count: int, chance: float) -> np.ndarray:
    """P(X >= r) for r = 0 … count, float64."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    successes = np.arange(count + 1)
    log_ways = log_factorial[count] - log_factorial - log_factorial[::-1]
    weights = np.exp(log_ways + successes * np.log(chance) + (count - successes) * np.log1p(-chance))
    tail: np.ndarray = np.cumsum(weights[::-1])[::-1]
    return tail


def _timed(call: Callable[[], object], *, calls: int, max_seconds: float, clock: Callable[[], int]) -> list[int]:
    times: list[int] = []
    begin = end = clock()
    while len(times) < calls and (not times or end - begin < max_seconds * 1e9):
        start = clock()
        call()
        end = clock()
        times.append(end - start)
    return times


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
