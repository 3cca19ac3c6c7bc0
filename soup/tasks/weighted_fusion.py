"""Weighted boxes fusion: overlapping boxes become their mean (Solovyev, Wang and Gabruseva 2019, arXiv 1910.13302)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from soup.tasks.boxes import area

_LEAST = 1e-60  # a weight below any float32 above 0, so that boxes of score 0 have a mean, too
_NO_UNION = 1e-300  # what boxes without area are divided by


@dataclass(frozen=True, slots=True)
class Clusters:
    """Boxes that were fused, in the order of their first (best) members."""

    boxes: np.ndarray  # float64 [m, 4]: means of the members, weighted by score
    scores: np.ndarray  # float64 [m]: plain means of the members' scores, not rescaled yet
    sizes: np.ndarray  # int64 [m]: members
    first: np.ndarray  # int64 [m]: row of the best member
    of: np.ndarray  # int64 [n]: the cluster of each box


def fused(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, *, iou: float) -> Clusters:
    """Steps 1 to 6 of the paper's algorithm, section 3, for boxes [n, 4] whose scores [n] descend, class by class.

    Each box in turn joins the cluster of its class whose fused box overlaps it most, where that is above `iou` (of
    equal overlaps the older cluster), and the fused box is computed anew; else it founds a cluster. A box without
    area overlaps nothing. Sums are float64, in the order of the boxes.
    """
    founder: np.ndarray = np.arange(len(scores))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        founder[rows] = rows[_founders(boxes[rows].astype(np.float64), scores[rows].astype(np.float64), iou=iou)]
    first, of = np.unique(founder, return_inverse=True)
    of = of.reshape(-1)
    sizes = np.bincount(of, minlength=len(first))
    return Clusters(
        weighted_means(boxes, scores, of, count=len(first)),
        np.bincount(of, weights=scores, minlength=len(first)) / np.maximum(sizes, 1),
        sizes, first, of,
    )  # fmt: skip


def weighted_means(boxes: np.ndarray, weights: np.ndarray, of: np.ndarray, *, count: int) -> np.ndarray:
    """float64 [count, 4]: the mean box of each cluster `of` [n], weighted by `weights` [n], none below 0."""
    weights = np.maximum(weights.astype(np.float64), _LEAST)
    total = np.bincount(of, weights=weights, minlength=count)
    sums = [np.bincount(of, weights=weights * column, minlength=count) for column in boxes.astype(np.float64).T]
    means: np.ndarray = np.stack(sums, axis=1) / total[:, None]
    return means


def _founders(boxes: np.ndarray, scores: np.ndarray, *, iou: float) -> np.ndarray:
    """int64 [n]: the row of the founder of each box's cluster, for float64 boxes of one class in order.

    Corners are kept as (x1, y1, -x2, -y2), so that one maximum makes the corners of all intersections.
    """
    weights = np.maximum(scores, _LEAST).tolist()
    corners = boxes * (1, 1, -1, -1)
    weighted = corners * np.array(weights)[:, None]
    areas = area(boxes).tolist()
    fused_corners, fused_areas = np.empty((4, len(boxes))), np.empty(len(boxes))
    sums, totals, rows = np.empty((len(boxes), 4)), [0.0] * len(boxes), [0] * len(boxes)
    founder = np.arange(len(boxes))
    count = 0
    for row, weight in enumerate(weights):
        at = _best(fused_corners[:, :count], fused_areas[:count], corners[row], areas[row], iou=iou) if count else -1
        if at < 0:
            at, count = count, count + 1
            sums[at], totals[at], rows[at] = weighted[row], weight, row
            fused_corners[:, at], fused_areas[at] = corners[row], areas[row]
        else:
            founder[row] = rows[at]
            sums[at] += weighted[row]
            totals[at] += weight
            mean = sums[at] / totals[at]
            fused_corners[:, at] = mean
            fused_areas[at] = max(0.0, -mean[0] - mean[2]) * max(0.0, -mean[1] - mean[3])
    return founder


def _best(fused: np.ndarray, areas: np.ndarray, corners: np.ndarray, own: float, *, iou: float) -> int:
    """The fused box (corners [4, m]) that overlaps one box most, -1 where none does by more than `iou`."""
    lowest = np.maximum(fused, corners[:, None])
    sides = np.minimum(lowest[:2] + lowest[2:], 0)  # both negated, so their product is the intersection
    intersection = sides[0] * sides[1]
    overlap = intersection / np.maximum(areas + own - intersection, _NO_UNION)
    best = int(overlap.argmax())
    return best if overlap[best] > iou else -1
