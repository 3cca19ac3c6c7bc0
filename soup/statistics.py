"""Is one model better than another on the same samples: paired differences, with intervals that respect groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist

import numpy as np

from exporters.runtimes import Arrays

RESAMPLES = 2000
Resample = Callable[[Arrays, np.ndarray], np.ndarray]  # `Metric.resampled`: statistics, counts int [B, n] → [B]
FEWEST_UNITS = 3  # with two, the resamples take three values: no interval can be read from them
_BLOCK = 1 << 21  # draws per block: bounds the memory, whatever the number of samples


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference (after - before) in the metric's unit, and the range that holds the true one at `confidence`.

    The ends are infinite where the samples decide nothing, and NaN where a score was NaN.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    method: str
    n: int
    groups: int | None = None


def paired_difference(
    after: np.ndarray, before: np.ndarray, *, groups: np.ndarray | None = None, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of (after - before) over per-sample scores [n], the same samples in the same order.

    Right-or-wrong scores (all 0 or 1) use the paired score interval of Tango (Statistics in Medicine 17, 1998), which
    keeps a width when no sample changed. Other scores, and samples that come in `groups` [n], use `paired_bootstrap`'s
    interval; right-or-wrong scores in groups get the wider of both on each side, Tango's from the counts over their
    design effect (Rao and Scott, Biometrics 48, 1992). Same arguments, same result.
    """
    _same_length(after, before, groups)
    difference = after.astype(np.float64) - before.astype(np.float64)
    if not len(difference) or not np.isfinite(difference).all():
        return _unknown(confidence, n=len(difference), groups=groups)
    binary = all(np.isin(scores, (0, 1)).all() for scores in (after, before))
    if binary and groups is None:
        return _tango_interval(difference, confidence=confidence)
    units = drawn_units(len(difference), groups)
    open_ended = _open_ended(float(difference.mean()), confidence, n=len(difference), groups=groups)
    interval = _closed(open_ended, mean_draws(difference, units, seed=seed), units=int(units.max()) + 1)
    if not binary:
        return interval
    effect = _design_effect(difference, units)
    return _hull(interval, _tango_interval(difference, confidence=confidence, design_effect=effect))


def paired_bootstrap(
    reduce: Callable[[Arrays], float],
    after: Arrays,
    before: Arrays,
    *,
    resampled: Resample | None = None,
    groups: np.ndarray | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`reduce(after) - reduce(before)` for metrics that are not means; the first axis of every array is the sample.

    Whole groups are drawn with replacement (Efron and Tibshirani 1993, chapter 8), the same for both models. Percentile
    interval whose arms are stretched by t/z and sqrt(k/(k-1)) for k drawn units, since the plain one is too narrow for
    few of them (Hesterberg, The American Statistician 69, 2015). `resampled` gives what `reduce` gives of repeated
    rows, many at once; without it `reduce` is called 2 × RESAMPLES times.
    """
    arrays = [*after.values(), *before.values()]
    _same_length(*arrays, groups)
    n = len(arrays[0])
    estimate = reduce(after) - reduce(before)
    if not n or not math.isfinite(estimate):
        return _unknown(confidence, n=n, groups=groups)
    units = drawn_units(n, groups)
    draws = reduced_draws(resampled or partial(resampled_by_rows, reduce), after, before, units, seed=seed)
    return _closed(_open_ended(estimate, confidence, n=n, groups=groups), draws, units=int(units.max()) + 1)


def bootstrap_interval(
    estimate: float, draws: np.ndarray, *, n: int, units: int, grouped: bool, confidence: float = 0.95
) -> Interval:
    """`paired_bootstrap`'s interval from differences [B] that were drawn already, of `units` of `n` samples.

    Resamples without a value (NaN) are left out while they are rare, 1 in 20 at most: a class that few images hold.
    """
    if not n or not math.isfinite(estimate):
        return Interval(math.nan, math.nan, math.nan, confidence, "no samples", n, units if grouped else None)
    finite = draws[np.isfinite(draws)]
    kept = finite if len(finite) >= 0.95 * len(draws) else draws
    open_ended = Interval(estimate, -math.inf, math.inf, confidence, "none", n, units if grouped else None)
    return _closed(open_ended, [kept], units=units)


def drawn_units(n: int, groups: np.ndarray | None) -> np.ndarray:
    """int [n]: what is drawn together, numbered from 0: each sample by itself, or its group."""
    return np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)


def mean_draws(difference: np.ndarray, units: np.ndarray, *, seed: int) -> Iterator[np.ndarray]:
    """The mean difference [n] on each of RESAMPLES resamples of whole units, in blocks."""
    sums, sizes = np.bincount(units, weights=difference), np.bincount(units)
    for rows in resampled_units(len(sums), seed=seed):
        yield sums[rows].sum(axis=1) / sizes[rows].sum(axis=1)


def reduced_draws(
    resampled: Resample, after: Arrays, before: Arrays, units: np.ndarray, *, seed: int
) -> Iterator[np.ndarray]:
    """`resampled(after) - resampled(before)` on each of RESAMPLES resamples of whole units, in blocks."""
    for counts in drawn_counts(units, resamples=RESAMPLES, seed=seed):
        yield resampled(after, counts) - resampled(before, counts)


def resampled_by_rows(reduce: Callable[[Arrays], float], statistics: Arrays, counts: np.ndarray) -> np.ndarray:
    """`Resample` of a metric that has no quicker way: each resample's rows, repeated, one after the other."""
    rows = np.arange(counts.shape[1])
    repeated = (np.repeat(rows, row) for row in counts)
    return np.array([reduce({name: array[at] for name, array in statistics.items()}) for at in repeated])


def drawn_counts(units: np.ndarray, *, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of int64 [B, n]: how often each sample is drawn, where whole units are, with replacement."""
    total = int(units.max()) + 1
    for rows in resampled_units(total, seed=seed, resamples=resamples):
        yield np.stack([np.bincount(row, minlength=total) for row in rows])[:, units]


def mcnemar(after_correct: np.ndarray, before_correct: np.ndarray) -> float:
    """Exact two-sided p-value that both models are right equally often (McNemar 1947, with binomial probabilities)."""
    after_correct, before_correct = after_correct.astype(bool), before_correct.astype(bool)
    gained = int((after_correct & ~before_correct).sum())
    lost = int((before_correct & ~after_correct).sum())
    return min(1.0, 2 * binomial_tail(gained + lost, min(gained, lost)))


def binomial_tail(trials: int, at_most: int) -> float:
    """The probability of no more than `at_most` heads in `trials` tosses of a fair coin."""
    log_half = trials * math.log(2)
    return min(1.0, math.fsum(math.exp(_log_choose(trials, k) - log_half) for k in range(at_most + 1)))


def samples_needed(interval: Interval, limit: float) -> int | None:
    """About how many samples would tell whether the true difference is above or below `limit`; None if no number would.

    Assumes the same estimate and a width that shrinks with the square root of the number of samples.
    """
    gap = interval.estimate - limit
    arm = interval.estimate - interval.low if gap > 0 else interval.high - interval.estimate
    if not gap or not math.isfinite(gap) or not math.isfinite(arm):
        return None
    return math.ceil(interval.n * (arm / gap) ** 2)


def difference_text(value: float, *, unit: str) -> str:
    """A signed difference of a metric: "+0.62 points" for unit "%" (a fraction), else four decimals."""
    return f"{_signed(value, unit=unit)} points" if unit == "%" else _signed(value, unit=unit)


def interval_text(interval: Interval, *, unit: str) -> str:
    """One difference with its range, as in "+0.62 points, 95 % interval −0.10 to +1.34"."""
    text = difference_text(interval.estimate, unit=unit)
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{text}, no interval ({interval.method})"
    low, high = (_signed(end, unit=unit) for end in (interval.low, interval.high))
    return f"{text}, {interval.confidence * 100:g} % interval {low} to {high}"


def _signed(value: float, *, unit: str) -> str:
    text = f"{value * 100:+.2f}" if unit == "%" else f"{value:+.4f}"
    return text.replace("-", "−") if text.strip("+-0.") else text.lstrip("+-")


def _design_effect(difference: np.ndarray, units: np.ndarray) -> float:
    """By how much units multiply the variance of the mean, at least 1; they say nothing where no sample changed."""
    sums, sizes, mean = np.bincount(units, weights=difference), np.bincount(units), float(difference.mean())
    alone = float(((difference - mean) ** 2).sum())
    together = float(((sums - sizes * mean) ** 2).sum()) * len(sums) / max(1, len(sums) - 1)
    return max(1.0, together / alone) if alone else 1.0


def _tango_interval(difference: np.ndarray, *, confidence: float, design_effect: float = 1.0) -> Interval:
    """The differences whose score test is not rejected: |estimate - delta| ≤ z · its standard error under delta."""
    n, gained, lost = (
        int(count) / design_effect for count in (len(difference), (difference > 0).sum(), (difference < 0).sum())
    )
    estimate = (gained - lost) / n
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def plausible(delta: float) -> bool:
        b = (2 * n - gained + lost) * delta - gained - lost
        root = math.sqrt(max(0.0, b * b + 8 * n * lost * delta * (1 - delta)))
        lost_rate = (root - b) / (4 * n)  # its maximum-likelihood value given delta
        variance = max(0.0, 2 * lost_rate + delta * (1 - delta)) / n
        return (estimate - delta) ** 2 <= z * z * variance

    low, high = (_last_plausible(plausible, inside=estimate, outside=end) for end in (-1.0, 1.0))
    return Interval(estimate, low, high, confidence, "paired score interval (Tango 1998)", len(difference))


def _last_plausible(plausible: Callable[[float], bool], *, inside: float, outside: float) -> float:
    for _ in range(60):
        middle = (inside + outside) / 2
        if plausible(middle):
            inside = middle
        else:
            outside = middle
    return inside


def resampled_units(units: int, *, seed: int, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """int64 [some of `resamples`, units]: draws with replacement from `units`, in blocks."""
    generator = np.random.default_rng(seed)
    step = max(1, _BLOCK // max(1, units))
    for start in range(0, resamples, step):
        yield generator.integers(0, units, (min(step, resamples - start), units))


def _closed(interval: Interval, draws: Iterable[np.ndarray], *, units: int) -> Interval:
    """The interval with ends from resampled differences; it stays open where those cannot give any."""
    noun = "samples" if interval.groups is None else "groups"
    if units < FEWEST_UNITS:
        return replace(interval, method=f"{units} {noun}, at least {FEWEST_UNITS} are needed")
    drawn = np.concatenate(list(draws))
    if not np.isfinite(drawn).all():
        return replace(interval, method="the metric is undefined on some resamples")
    tail = (1 - interval.confidence) / 2
    low, high = (float(end) for end in np.quantile(drawn, [tail, 1 - tail]))
    stretch = _t_over_z(interval.confidence, freedom=units - 1) * math.sqrt(units / (units - 1))
    low = interval.estimate - stretch * max(0.0, interval.estimate - low)
    high = interval.estimate + stretch * max(0.0, high - interval.estimate)
    return replace(interval, low=low, high=high, method=f"paired bootstrap of {noun}")


def _t_over_z(confidence: float, *, freedom: int) -> float:
    """Quantile of Student's t over that of the normal: Abramowitz and Stegun 26.7.5, within 1 % at 95 % from 2 on."""
    x = NormalDist().inv_cdf((1 + confidence) / 2)
    terms = (
        (x**2 + 1) / 4,
        (5 * x**4 + 16 * x**2 + 3) / 96,
        (3 * x**6 + 19 * x**4 + 17 * x**2 - 15) / 384,
        (79 * x**8 + 776 * x**6 + 1482 * x**4 - 1920 * x**2 - 945) / 92160,
    )
    return 1 + sum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))


def _hull(interval: Interval, other: Interval) -> Interval:
    """No narrower than if the samples were independent: few changed samples leave whole resamples without any."""
    return replace(interval, low=min(interval.low, other.low), high=max(interval.high, other.high))


def _open_ended(estimate: float, confidence: float, *, n: int, groups: np.ndarray | None) -> Interval:
    count = None if groups is None else len(np.unique(groups))
    return Interval(estimate, -math.inf, math.inf, confidence, "none", n, count)


def _unknown(confidence: float, *, n: int, groups: np.ndarray | None) -> Interval:
    reason = "a score is not a finite number" if n else "no samples"
    interval = _open_ended(math.nan, confidence, n=n, groups=groups)
    return replace(interval, low=math.nan, high=math.nan, method=reason)


def _same_length(*arrays: np.ndarray | None) -> None:
    lengths = {len(array) for array in arrays if array is not None}
    if len(lengths) > 1:
        raise ValueError(f"paired scores need one value per sample, got arrays of {sorted(lengths)} values")


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
