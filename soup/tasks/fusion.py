"""Detections of several models, epochs or views of one image become one list: an ensemble, which costs inference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.tasks.boxes import Detections, iou, padded, unpadded
from soup.tasks.weighted_fusion import Clusters, fused, weighted_means

Mode = Literal["union", "intersection", "weighted"]


@dataclass(frozen=True, slots=True)
class Fusion:
    """How the boxes of several models become one list. "Above" is strictly above.

    union, intersection    Boxes of a class form clusters in which each part has at most one: the best box left (by
        score; of equal ones the earlier part's, then its earlier box) founds a cluster; of every other part the box
        left that overlaps the founder most joins, where that is above `iou` (of equal overlaps the better box). Its
        score is its founder's, so that no vote lowers it; its box the mean of its members, weighted by score times the
        part's weight. One part alone comes out as it went in.
    weighted    Weighted boxes fusion as `weighted_fusion.fused` does it (Solovyev et al. 2019, arXiv 1910.13302), with
        scores times the part's weight, in the order of these (ties as above); own boxes of a part fuse, too. The score
        of T boxes is their mean times min(T, N) / (sum of the N weights), equation 5 where all weights are 1.

    Clusters that boxes of fewer than `min_votes` parts form are dropped (None: 1, and all parts for intersection), so
    are those whose score is not above `score`; all boxes vote, whatever their score. The best `max_detections` stay;
    of equal scores the cluster that was founded earlier.
    """

    mode: Mode
    iou: float = 0.5
    min_votes: int | None = None
    score: float = 0.0
    weights: Sequence[float] | None = None  # one per model, None for equal ones
    max_detections: int = 100


@dataclass(frozen=True, slots=True)
class _Pooled:
    """The boxes of all parts in the order in which they found clusters."""

    boxes: np.ndarray  # float32 [n, 4]
    scores: np.ndarray  # float64 [n]
    labels: np.ndarray  # int32 [n]
    part: np.ndarray  # int64 [n]
    weighted: np.ndarray  # float64 [n]: scores times the part's weight


def fuse(parts: Sequence[Detections], rules: Fusion) -> Detections:
    """One list out of several of the same image, all boxes in pixels of the original, by the rules of `Fusion`.

    Raises SoupError for no parts, weights that are not one positive number each, and votes that cannot be.
    """
    shares = _shares(rules.weights, parts=len(parts))
    needed = _needed(rules.min_votes, mode=rules.mode, parts=len(parts))
    boxes = _pooled(parts, shares, mode=rules.mode)
    weighted = rules.mode == "weighted"
    clusters = _weighted(boxes, shares, overlap=rules.iou) if weighted else _voted(boxes, overlap=rules.iou)
    voters = np.zeros((len(clusters.first), len(parts)), bool)
    voters[clusters.of, boxes.part] = True
    kept = np.flatnonzero((voters.sum(axis=1) >= needed) & (clusters.scores > rules.score))
    kept = kept[np.argsort(-clusters.scores[kept], kind="stable")][: rules.max_detections]
    labels = boxes.labels[clusters.first[kept]].astype(np.int32)
    return Detections(clusters.boxes[kept].astype(np.float32), clusters.scores[kept].astype(np.float32), labels)


def fuse_answers(answers: Sequence[Arrays], rules: Fusion) -> dict[str, np.ndarray]:
    """`fuse`, image by image, of answers to the same images in the same order; `padded` to `max_detections`.

    Raises SoupError as `fuse` does, and where they do not have the same number of images.
    """
    _shares(rules.weights, parts=len(answers))
    images = [len(one["labels"]) for one in answers]
    if len(set(images)) > 1:
        raise SoupError(f"fusion: answers to {images} images, expected the same split for all. Evaluate them on one.")
    fused_images = [fuse([unpadded(one, row) for one in answers], rules) for row in range(images[0])]
    return padded(fused_images, rules.max_detections)


def _pooled(parts: Sequence[Detections], shares: np.ndarray, *, mode: Mode) -> _Pooled:
    part: np.ndarray = np.repeat(np.arange(len(parts)), [len(one) for one in parts])
    boxes, labels = np.concatenate([one.boxes for one in parts]), np.concatenate([one.labels for one in parts])
    scores = np.concatenate([one.scores for one in parts]).astype(np.float64)
    weighted = scores * shares[part]
    order = np.argsort(-(weighted if mode == "weighted" else scores), kind="stable")
    return _Pooled(boxes[order], scores[order], labels[order], part[order], weighted[order])


def _weighted(pooled: _Pooled, shares: np.ndarray, *, overlap: float) -> Clusters:
    clusters = fused(pooled.boxes, pooled.weighted, pooled.labels, iou=overlap)
    return replace(clusters, scores=clusters.scores * np.minimum(clusters.sizes, len(shares)) / shares.sum())


def _voted(pooled: _Pooled, *, overlap: float) -> Clusters:
    first, of = np.unique(_founders(pooled, overlap), return_inverse=True)
    of = of.reshape(-1)
    means = weighted_means(pooled.boxes, pooled.weighted, of, count=len(first))
    return Clusters(means, pooled.scores[first], np.bincount(of, minlength=len(first)), first, of)


def _founders(pooled: _Pooled, overlap: float) -> np.ndarray:
    """int64 [n]: the row of the founder of each box's cluster."""
    founder = np.arange(len(pooled.scores))
    for label in np.unique(pooled.labels):
        rows = np.flatnonzero(pooled.labels == label)
        part = pooled.part[rows]
        overlaps = iou(pooled.boxes[rows], pooled.boxes[rows])
        near = (overlaps > overlap) & (part[:, None] != part)
        left = np.ones(len(rows), bool)
        for row in np.flatnonzero(near.any(axis=1)):
            if not left[row]:
                continue
            left[row] = False
            rivals = np.flatnonzero(near[row] & left)
            rivals = rivals[np.argsort(-overlaps[row, rivals], kind="stable")]
            joined = rivals[np.unique(part[rivals], return_index=True)[1]]  # the first of each part
            left[joined] = False
            founder[rows[joined]] = rows[row]
    return founder


def _shares(weights: Sequence[float] | None, *, parts: int) -> np.ndarray:
    """float64 [parts]."""
    if not parts:
        raise SoupError("fusion: there is nothing to fuse, expected the detections of one model or more.")
    if weights is None:
        return np.ones(parts)
    if len(weights) != parts or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise SoupError(f"fusion: weights are {list(weights)}, expected {parts} positive numbers, one for each model.")
    return np.array(weights, np.float64)


def _needed(min_votes: int | None, *, mode: Mode, parts: int) -> int:
    if min_votes is None:
        return parts if mode == "intersection" else 1
    if not 1 <= min_votes <= parts:
        raise SoupError(f"fusion: min_votes is {min_votes}, expected 1 to {parts}, the number of models.")
    return min_votes
