"""How likely chance alone would make a candidate look this much better: one number per decision of a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from statistics import NormalDist

import numpy as np

from exporters.runtimes import Arrays
from soup.statistics import (
    FEWEST_UNITS,
    RESAMPLES,
    Resample,
    binomial_tail,
    drawn_units,
    mean_draws,
    reduced_draws,
    resampled_by_rows,
)

_BLOCK = 1 << 21  # tosses per block: bounds the memory, whatever the number of groups


def p_value(
    after: Arrays,
    before: Arrays,
    reduce: Callable[[Arrays], float],
    *,
    higher_is_better: bool,
    resampled: Resample | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[float, str]:
    """One-sided p-value that `after` is no better than `before` on the same samples (first axis), and the test's name.

    A single right-or-wrong statistic [n]: McNemar's test with exact binomial probabilities (1947). All else, and
    samples in `groups` [n]: how far out zero lies among the resampled differences of `soup.statistics` (whole groups
    drawn; the percentile interval turned round, Efron and Tibshirani 1993, section 13.3), widened for few drawn units
    as its intervals are (Hesterberg 2015): by sqrt(k/(k-1)), and read from Student's t instead of the normal. So
    p ≤ 2.5 % and a 95 % interval beyond zero say the same, up to rounding. At best 1 / (RESAMPLES + 1), as t widens it.

    Right-or-wrong statistics in groups get the larger p of that and of McNemar's test with whole groups exchanged
    between the models, at random RESAMPLES times (Pitman 1937; Phipson and Smyth 2010 for its p-value): bootstraps of
    few groups, most of them unchanged, are too sure.

    A single statistic [n] is taken for a mean, as `soup.judge.paired` does; `reduce` is asked about all others, and
    `resampled` about many resamples at once.
    NaN, too few units and a metric that some resample leaves undefined give 1.0. Same arguments, same result.
    """
    single = len(after) == 1 and all(array.ndim == 1 for array in after.values())
    sign = 1.0 if higher_is_better else -1.0
    units = drawn_units(len(next(iter(after.values()))), groups)
    if not single:
        estimate = sign * (reduce(after) - reduce(before))
        resample = resampled or partial(resampled_by_rows, reduce)
        draws = (sign * block for block in reduced_draws(resample, after, before, units, seed=seed))
        return _bootstrap(estimate, draws, units=units, grouped=groups is not None)
    ((new,), (old,)) = after.values(), before.values()
    gains = sign * (new.astype(np.float64) - old.astype(np.float64))
    binary = len(gains) > 0 and all(np.isin(scores, (0, 1)).all() for scores in (new, old))
    if binary and groups is None:
        return _mcnemar(gains)
    estimate = float(gains.mean()) if len(gains) else math.nan
    found = _bootstrap(estimate, mean_draws(gains, units, seed=seed), units=units, grouped=groups is not None)
    return max(found, _exchanged(gains, units, seed=seed)) if binary else found


def _mcnemar(gains: np.ndarray) -> tuple[float, str]:
    """Among the samples that changed, as many gained or more, if either way were as likely."""
    gained, lost = int((gains > 0).sum()), int((gains < 0).sum())
    return binomial_tail(gained + lost, lost), "exact McNemar test"


def _exchanged(gains: np.ndarray, units: np.ndarray, *, seed: int) -> tuple[float, str]:
    """As many gained or more, net, if each group's models were exchanged or not by the toss of a coin."""
    sums = np.bincount(units, weights=gains)
    sums = sums[sums != 0]
    generator, step = np.random.default_rng(seed), max(1, _BLOCK // max(1, len(sums)))
    as_many = 1
    for start in range(0, RESAMPLES, step):
        kept = generator.integers(0, 2, (min(step, RESAMPLES - start), len(sums)), np.int8)
        as_many += int((kept @ sums >= sums.sum()).sum())  # the sum with signs is twice that of the kept, less all
    return as_many / (RESAMPLES + 1), "exchange of groups (McNemar)"


def _bootstrap(estimate: float, draws: Iterable[np.ndarray], *, units: np.ndarray, grouped: bool) -> tuple[float, str]:
    noun = "groups" if grouped else "samples"
    if not len(units) or not math.isfinite(estimate):
        return 1.0, "a score is not a finite number" if len(units) else "no samples"
    count = int(units.max()) + 1
    if count < FEWEST_UNITS:
        return 1.0, f"{count} {noun}, at least {FEWEST_UNITS} are needed"
    drawn = np.concatenate(list(draws))
    if not np.isfinite(drawn).all():
        return 1.0, "the metric is undefined on some resamples"
    reach = estimate * math.sqrt((count - 1) / count)
    beyond = (1 + int((estimate - drawn >= reach).sum())) / (1 + len(drawn))
    p = 1.0 if beyond >= 1 else _t_tail(-NormalDist().inv_cdf(beyond), freedom=count - 1)
    return p, f"paired bootstrap of {noun}"


def _t_tail(t: float, *, freedom: int) -> float:
    """P(T ≥ t) of Student's t for whole degrees of freedom, exact (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine2 = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(1 + odd, freedom, 2):  # cos^1, cos^3, … or cos^0, cos^2, …, each times its running fraction
        total += term
        term *= cosine2 * power / (power + 1)
    central = 2 / math.pi * (angle + sine * total) if odd else sine * total  # P(|T| < t), negative for t < 0
    return (1 - central) / 2
