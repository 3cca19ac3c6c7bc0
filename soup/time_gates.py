"""Gates on time beyond a percentile's limit: ratios of two models' times, and throughput. Pure, as `gates`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist

from exporters.interleaved import Pair
from exporters.latency import Latency
from soup.files import finite
from soup.gates import TAIL_CONFIDENCE, Check, Place, Subject, invalid_text, same_place, verdict_of

_FIGURES = ("p50_ms", "p90_ms", "p99_ms")


@dataclass(frozen=True, slots=True)
class Ratio:
    """One model's time over another's, and the range that holds the true one; the ends are None of too few samples.

    `how` says in words what was compared, `invalid` why it counts for nothing.
    """

    value: float
    low: float | None
    high: float | None
    how: str
    invalid: tuple[str, ...] = ()


def ratio_of_pair(pair: Pair) -> Ratio:
    """A's time over B's, of both timed in turns: what slows the device for a while falls on both."""
    how = f"in {pair.blocks} rounds of turns, {pair.confidence * 100:g} % interval"
    return Ratio(pair.ratio, pair.low, pair.high, how, pair.throttled)


def ratio_of_latencies(a: Latency, b: Latency) -> Ratio:
    """A's median over B's, each timed by itself: the ends are those of both medians, put against each other."""
    low = None if a.p50_lower_ms is None or b.p50_upper_ms is None else _over(a.p50_lower_ms, b.p50_upper_ms)
    high = None if a.p50_upper_ms is None or b.p50_lower_ms is None else _over(a.p50_upper_ms, b.p50_lower_ms)
    how = f"medians {a.p50_ms:.2f} ms and {b.p50_ms:.2f} ms, bounds at {min(a.confidence, b.confidence) * 100:g} % each"
    return Ratio(_over(a.p50_ms, b.p50_ms), low, high, how, (*a.throttled, *b.throttled))


def ratio_to_figures(latency: Latency, figures: Mapping[str, float]) -> Ratio | None:
    """A latency over the first of p50_ms, p90_ms and p99_ms that another tool's figures have, taken as exact.

    None where they have none of these.
    """
    name = next((one for one in _FIGURES if one in figures), None)
    if name is None:
        return None
    label, stated = name.removesuffix("_ms"), figures[name]
    value, low, high = {
        "p50": (latency.p50_ms, latency.p50_lower_ms, latency.p50_upper_ms),
        "p90": (latency.p90_ms, latency.p90_lower_ms, latency.p90_upper_ms),
        "p99": (latency.p99_ms, latency.p99_lower_ms, latency.p99_upper_ms),
    }[label]
    ends = [None if end is None else _over(end, stated) for end in (low, high)]
    how = f"{label} {value:.2f} ms, bounds at {latency.confidence * 100:g} %, over the {stated:.2f} ms that it states"
    return Ratio(_over(value, stated), ends[0], ends[1], how, latency.throttled)


def ratio_gate(
    ratio: Ratio, subject: Subject, *, max_ratio: float, against: str, wanted: Place, actual: Place
) -> Check:
    """Pass where a ratio beyond `max_ratio` is excluded, fail where it is shown, inconclusive between; NaN fails.

    Pending where it was measured at another place than the gate names.
    """
    message = f"{ratio.value:.3f} times the time of {against} on {actual} ({ratio.how}{_ends(ratio)})"
    check = Check(
        subject.name, subject.hop, "latency", "pending", message, finite(ratio.value), max_ratio, "×", subject.where
    )
    if not same_place(wanted, actual):
        return replace(check, message=f"{message}, but the gate names {wanted}")
    if ratio.invalid and math.isfinite(ratio.value):
        return replace(check, verdict="inconclusive", message=f"{message}, {invalid_text(ratio.invalid)}")
    low, high = _bounds(ratio)
    verdict = verdict_of(high <= max_ratio, low <= max_ratio)
    return replace(check, verdict=verdict, message=f"{message}; limit {max_ratio:g} times")


def speedup_gate(fp16_over_int8: Ratio | None, subject: Subject, *, minimum: float) -> Check:
    """Pass where INT8 is at least `minimum` times as fast as FP16, fail where that is excluded; NaN fails.

    Pending (None) where not both were timed on one device.
    """
    if fp16_over_int8 is None:
        message = f"INT8 and FP16 were not both timed on one device; INT8 must be at least {minimum:g} times as fast"
        return Check(subject.name, subject.hop, "speedup", "pending", message, None, minimum, "×", subject.where)
    ratio, (low, high) = fp16_over_int8, _bounds(fp16_over_int8)
    message = f"INT8 is {ratio.value:.3f} times as fast as FP16 ({ratio.how}{_ends(ratio)})"
    check = Check(
        subject.name, subject.hop, "speedup", "inconclusive", message, finite(ratio.value), minimum, "×", subject.where
    )
    if ratio.invalid and math.isfinite(ratio.value):
        return replace(check, message=f"{message}, {invalid_text(ratio.invalid)}")
    verdict = verdict_of(low >= minimum, high >= minimum)
    return replace(check, verdict=verdict, message=f"{message}; limit {minimum:g} times")


def throughput_gate(latency: Latency, subject: Subject, *, min_per_s: float, wanted: Place, actual: Place) -> Check:
    """Pass where a throughput below `min_per_s` is excluded, fail where it is shown, inconclusive between; NaN fails.

    The ends come from the mean time's standard error (normal, at TAIL_CONFIDENCE each side), which takes calls for
    independent. A paced run gives no more than the camera does: below the limit, it decides nothing. Pending where it
    was measured at another place than the gate names, inconclusive where the device was throttled.
    """
    value = latency.throughput
    check = Check(subject.name, subject.hop, "throughput", "inconclusive", "", None, min_per_s, "1/s", subject.where)
    if value is None:
        return replace(check, message=f"throughput was not measured on {actual}; limit {min_per_s:g} per second")
    message = f"{value:,.1f} samples per second on {actual} from {latency.samples:,} calls"
    check = replace(check, message=message, measured=finite(value))
    if not same_place(wanted, actual):
        named = f"{message}, but the gate of {min_per_s:g} per second names {wanted}"
        return replace(check, verdict="pending", message=named)
    if latency.throttled and math.isfinite(value):
        return replace(check, message=f"{message}, {invalid_text(latency.throttled)}")
    off = NormalDist().inv_cdf(TAIL_CONFIDENCE) * (math.inf if latency.cv is None else latency.cv)
    off /= math.sqrt(max(1, latency.samples))
    low, high = value / (1 + off), math.inf if off >= 1 else value / (1 - off)
    if latency.contract.get("loop") == "paced":
        high, message = math.inf, f"{message}, at the camera's rate"
    verdict = verdict_of(low >= min_per_s, high >= min_per_s and math.isfinite(value))
    message = f"{message}, at least {low:,.1f} with {TAIL_CONFIDENCE * 100:g} % confidence; limit {min_per_s:g}"
    return replace(check, verdict=verdict, message=message)


def _bounds(ratio: Ratio) -> tuple[float, float]:
    """The ends, open where they are not known; NaN stays NaN."""
    if math.isnan(ratio.value):
        return math.nan, math.nan
    return -math.inf if ratio.low is None else ratio.low, math.inf if ratio.high is None else ratio.high


def _ends(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return ", too few for an interval"
    return f" {ratio.low:.3f} to {ratio.high:.3f}"


def _over(a: float, b: float) -> float:
    return a / b if b else math.nan
