"""Two models on one device in one run, in turns: is the one slower than the other?"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exporters.device_state import DeviceState
from exporters.latency import (
    Contract,
    Latency,
    judged,
    lower_bound_rank,
    no_garbage_collection,
    summarize,
    upper_bound_rank,
)
from exporters.pacing import NANOSECONDS_PER_MS, NANOSECONDS_PER_S, SYSTEM, Clock, Timing, UntilStable, warm_up

Call = Callable[[], object]
Verdict = Literal["pass", "fail", "inconclusive", "invalid"]
# Of nine runs of a network against itself on two busy cores (benchmarks/latency.py) eight ratios were within it of 1.
MARGIN = 0.02
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Turns:
    """How two models take turns: blocks of A B B A, so that a steady drift falls on both alike.

    Each turn is `calls` calls. A block's figure is its median of A over its median of B; it ends after `max_seconds`,
    but not before the six blocks that an interval of the median at 0.95 needs.
    """

    blocks: int = 60
    calls: int = 5
    max_seconds: float = 60.0
    margin: float = MARGIN
    confidence: float = CONFIDENCE


@dataclass(frozen=True, slots=True)
class Pair:
    """`ratio` is A's time over B's: the median over blocks, with the interval `low` to `high` at `confidence`.

    `verdict` is "pass" (A costs no more than B, but for `margin`) where `high` is within 1 + margin, "fail" where `low`
    is beyond, else "inconclusive"; "invalid" where the device was throttled meanwhile. `low` and `high` are None of too
    few blocks.
    """

    ratio: float
    low: float | None
    high: float | None
    confidence: float
    margin: float
    blocks: int
    a: Latency
    b: Latency
    throttled: tuple[str, ...]
    verdict: Verdict


def measure_pair(
    a: Call,
    b: Call,
    *,
    turns: Turns = Turns(),
    contract: Contract,
    state: Callable[[], DeviceState] | None = None,
    clock: Clock = SYSTEM,
) -> Pair:
    """Time both in one run after a warm-up of each; who comes first changes from block to block.

    The interval is made of order statistics of the blocks' ratios, which hold for any distribution of blocks that do
    not depend on each other (David and Nagaraja, Order Statistics, 7.1); a block is paired, so what slows the device
    for longer than one falls out of its ratio. The design follows Kalibera and Jones, Rigorous Benchmarking in
    Reasonable Time (ISMM 2013): repeat where the noise enters, and say the ratio with its interval.
    """
    before = state() if state else None
    with no_garbage_collection():
        warm = [warm_up(call, Timing(UntilStable(), 1, turns.max_seconds / 4), clock=clock)[0] for call in (a, b)]
        blocks = _blocks(a, b, turns, clock=clock)
    after = state() if state else None
    ratios = np.sort([statistics.median(times_a) / statistics.median(times_b) for times_a, times_b in blocks])
    low, high = median_interval(ratios, confidence=turns.confidence)
    how: Contract = {**contract, "loop": "interleaved", "calls_per_turn": turns.calls, "clock": clock.name}
    latencies = [
        judged(
            summarize(np.concatenate([block[side] for block in blocks]) / NANOSECONDS_PER_MS, warmup=warm[side],
                      contract=how),
            before=before, after=after,
        )
        for side in (0, 1)
    ]  # fmt: skip
    throttled = latencies[0].throttled
    verdict: Verdict = "invalid" if throttled else no_cost(low, high, margin=turns.margin)
    return Pair(
        ratio=float(np.median(ratios)), low=low, high=high, confidence=turns.confidence, margin=turns.margin,
        blocks=len(blocks), a=latencies[0], b=latencies[1], throttled=throttled, verdict=verdict,
    )  # fmt: skip


def median_interval(ordered: np.ndarray, *, confidence: float) -> tuple[float | None, float | None]:
    """Bounds of the median at `confidence` together, from float64[n] in ascending order; None of too few."""
    each = 1 - (1 - confidence) / 2
    low = lower_bound_rank(len(ordered), percent=50, confidence=each)
    high = upper_bound_rank(len(ordered), percent=50, confidence=each)
    return (
        None if low is None else float(ordered[low - 1]),
        None if high is None else float(ordered[high - 1]),
    )


def no_cost(low: float | None, high: float | None, *, margin: float) -> Verdict:
    """Whether a ratio with this interval is at most 1 + margin; NaN fails."""
    if low is None or high is None:
        return "inconclusive"
    if high <= 1 + margin:
        return "pass"
    return "inconclusive" if low <= 1 + margin else "fail"


def _blocks(a: Call, b: Call, turns: Turns, *, clock: Clock) -> list[tuple[list[int], list[int]]]:
    """Durations of A and of B in ns, by block: A B B A, then B A A B, and so on."""
    blocks: list[tuple[list[int], list[int]]] = []
    begin = clock.now()
    while len(blocks) < turns.blocks and (
        len(blocks) < 6 or clock.now() - begin < turns.max_seconds * NANOSECONDS_PER_S
    ):
        times: tuple[list[int], list[int]] = ([], [])
        first = len(blocks) % 2
        for side in (first, 1 - first, 1 - first, first):
            call = (a, b)[side]
            for _ in range(turns.calls):
                start = clock.now()
                call()
                times[side].append(clock.now() - start)
        blocks.append(times)
    return blocks
