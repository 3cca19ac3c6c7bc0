"""Where to clip: the largest magnitude that a symmetric INT8 scale still covers, from a histogram of magnitudes."""

from __future__ import annotations

import numpy as np

from calib.histograms import BINS, Histogram

_LEVELS = 128  # magnitudes of a symmetric int8, 0 to 127
_COARSE, _FINE = 96, 16  # candidates of the search for the least error


def percentile_threshold(histogram: Histogram, percentile: float) -> float:
    """The magnitude that `percentile` percent of the values do not exceed, within its bin by proportion.

    The largest where that is in the first bin: of a tensor that is 0 nearly everywhere the rest is what counts.
    """
    counts = histogram.counts
    wanted = percentile / 100 * float(counts.sum())
    below = np.cumsum(counts)
    index = min(int(np.searchsorted(below, wanted)), BINS - 1)
    if not index:
        return histogram.largest
    inside = (wanted - float(below[index] - counts[index])) / max(1, counts[index])
    return _capped(histogram, float(index + inside) * histogram.top / BINS)


def entropy_threshold(histogram: Histogram) -> float:
    """The threshold whose 128 levels lose the least information about the distribution, by Kullback and Leibler.

    As in TensorRT's calibrator (S. Migacz, "8-bit Inference with TensorRT", GTC 2017, S7310): for each number of bins
    from 128, P is the histogram with what lies above added to its last bin, Q the same bins (without what lies above)
    merged to 128 levels and spread evenly over the bins of P that hold anything; the least KL(P||Q) wins, of equal ones
    that which clips least. The first bin counts as the second: zeros are exact in INT8, and after a ReLU there are so
    many that they would decide (as NVIDIA's pytorch-quantization does).

    Not theirs: a threshold whose squared error is above that of no clipping at all is no candidate. A histogram with
    spikes, which images with a plain background give, has a KL that is low where a seventh of the values is clipped
    (the first activation of a MobileNetV3-Small: this one range flipped 48 of 500 answers, docs/precision.md).
    """
    used = _used_bins(histogram)
    candidates = np.arange(_LEVELS, used + 1)
    if not len(candidates):
        return histogram.largest
    counts = histogram.counts[:used].astype(np.float64)
    counts[0] = counts[1]
    divergence = _divergences(counts, candidates)
    best_first = candidates[np.lexsort((-candidates, divergence))]
    thresholds = (_capped(histogram, float(bins) * histogram.top / BINS) for bins in best_first)
    limit = squared_errors(histogram, np.array([histogram.largest]))
    return next(one for one in thresholds if squared_errors(histogram, np.array([one])) <= limit)


def mse_threshold(histogram: Histogram) -> float:
    """The threshold with the least expected squared error of clipping and rounding, of those tried.

    Values are taken to lie evenly within their bin; those in the first, at most 1/2048 of the largest and most of them
    0 after a ReLU, as exact. 96 thresholds in geometric steps from 1/64 of the largest value up
    to it, then twice 16 about the best one.
    """
    if not histogram.largest:
        return 0.0
    low, high = histogram.largest / 64, histogram.largest
    for count in (_COARSE, _FINE, _FINE):
        tried = np.geomspace(low, high, count)
        best = int(np.argmin(squared_errors(histogram, tried)))
        low, high = tried[max(0, best - 1)], tried[min(count - 1, best + 1)]
    return float(tried[best])


def squared_errors(histogram: Histogram, thresholds: np.ndarray) -> np.ndarray:
    """The summed squared error of all values for each threshold (float64), as INT8 with scale threshold / 127."""
    used = _used_bins(histogram)
    edges = np.arange(used + 1) * (histogram.top / BINS)
    density = histogram.counts[:used] / (histogram.top / BINS)
    density[:1] = 0
    errors = (density @ np.diff(_error_integral(edges, threshold)) for threshold in thresholds)
    return np.fromiter(errors, dtype=np.float64, count=len(thresholds))


def _error_integral(x: np.ndarray, threshold: float) -> np.ndarray:
    """The integral from 0 to x ≥ 0 of the squared distance to the nearest of 128 levels up to `threshold`."""
    scale = threshold / (_LEVELS - 1)
    level = np.minimum(np.rint(x / scale), _LEVELS - 1)
    # Each level before brings a whole cell of scale³ / 12, but for the first, which begins at 0 with half a cell.
    return np.asarray(level * scale**3 / 12 + (x - level * scale) ** 3 / 3)


def _divergences(counts: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """KL(P||Q) of each candidate, inf where Q has nothing in a place where P has.

    Σ P log P − P log Q needs, of each level, only sums over its bins: they come from running sums, so a candidate costs
    128 steps whatever its number of bins.
    """
    edges = candidates[:, None] * np.arange(_LEVELS + 1) // _LEVELS  # [candidates, levels + 1]
    total = counts.sum()
    clipped = total - np.concatenate([[0.0], np.cumsum(counts)])[candidates]
    last = counts[candidates - 1]
    own, filled = _between(counts, edges), _between((counts > 0).astype(np.float64), edges)
    p_log_p = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])[candidates]
    p_log_p += _x_log_x(last + clipped) - _x_log_x(last)
    weights = own.copy()
    weights[:, -1] += clipped
    filled[:, -1] += (last == 0) & (clipped > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(weights > 0, np.log(own / filled), 0.0)
        p_log_q = (weights * logs).sum(axis=1)
        divergence = (p_log_p - p_log_q) / total - np.log(total) + np.log(total - clipped)
    return np.asarray(np.nan_to_num(divergence, nan=np.inf, posinf=np.inf))


def _between(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    running = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(np.diff(running[edges], axis=1))


def _x_log_x(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x * np.log(np.maximum(x, 1.0)), 0.0)


def _used_bins(histogram: Histogram) -> int:
    filled = np.flatnonzero(histogram.counts)
    return int(filled[-1]) + 1 if len(filled) else 0


def _capped(histogram: Histogram, threshold: float) -> float:
    return min(threshold, histogram.largest)
