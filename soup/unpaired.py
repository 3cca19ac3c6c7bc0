"""A share of right answers, and the difference of two, where no image ties one to the other."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from soup.statistics import Interval, drawn_units


def wilson(share: float, n: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """The true shares that a share of `n` independent images does not reject (Wilson, JASA 22, 1927).

    The interval is all of 0 to 1 where n is 0, and NaN where the share is.
    """
    if not n > 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    arm = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return middle - arm, middle + arm


def share_difference(
    after: float, before: float, *, n: tuple[float, float], confidence: float = 0.95, design_effect: float = 1.0
) -> Interval:
    """after - before, shares of (n of after, n of before) images that are not paired, or not known to be.

    Newcombe's hybrid of two Wilson intervals (Statistics in Medicine 17, 1998, page 873, method 10). For models judged
    on the same images it is wider than the paired interval, since they mostly err on the same ones. Images in groups
    count for fewer: for n over their `design_effect` (Rao and Scott, Biometrics 48, 1992).
    """
    estimate = after - before
    (low_a, high_a), (low_b, high_b) = (
        wilson(share, count / design_effect, confidence=confidence)
        for share, count in zip((after, before), n, strict=True)
    )
    low = estimate - math.hypot(after - low_a, high_b - before)
    high = estimate + math.hypot(high_a - after, before - low_b)
    return Interval(estimate, low, high, confidence, "unpaired score interval (Newcombe 1998)", int(min(n)))


def design_effect(scores: np.ndarray, groups: np.ndarray | None) -> float:
    """By how much groups multiply the variance of the mean of scores [n], at least 1 (Rao and Scott 1992)."""
    if groups is None or not len(scores):
        return 1.0
    units = drawn_units(len(scores), groups)
    off = scores.astype(np.float64) - float(scores.astype(np.float64).mean())
    alone, sums = float((off**2).sum()), np.bincount(units, weights=off)
    return max(1.0, float((sums**2).sum()) * len(sums) / max(1, len(sums) - 1) / alone) if alone else 1.0
