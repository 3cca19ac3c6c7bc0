"""From a detector's raw boxes to its answers: which of many overlapping boxes are detections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.tasks.boxes import Detections, iou, padded, to_original
from soup.tasks.weighted_fusion import fused

_SLACK = 0.05  # by which a score may be beyond 0 or 1: low precisions round
_BLOCK = 128  # candidates that are compared at once: most images have their detections after one or two


@dataclass(frozen=True, slots=True)
class Suppression:
    """How boxes become detections. "Above" is strictly above, for scores and for overlaps.

    nms         a box goes where a better one that stays overlaps it by more than `iou`
    soft_linear, soft_gaussian    its score is lowered instead: Bodla et al. 2017 (arXiv 1704.04503), equations 2 and 3;
                its `score` decides again at the end. (Equation 2 has ≥ at the overlap, its authors' code >, as here.)
    weighted_fusion    boxes above `iou` become their mean: Solovyev et al. 2019 (arXiv 1910.13302) for one model, so
                the fused score is the plain mean
    none        the best candidates, for networks that say everything once
    """

    method: Literal["nms", "soft_linear", "soft_gaussian", "weighted_fusion", "none"] = "nms"
    iou: float = 0.5
    score: float = 0.05  # candidates are above it; not negative
    max_detections: int = 100  # per image
    candidates: int = 1000  # the best of them, per image, before suppression
    class_agnostic: bool = False  # boxes of different classes compete, too
    sigma: float = 0.5  # of soft_gaussian
    voting_iou: float | None = None  # what is kept becomes the mean of the candidates that overlap it by more


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Pairs of an anchor and a class, best first; of equal scores the lower anchor, then the lower class."""

    boxes: np.ndarray  # float32 [k, 4]
    scores: np.ndarray  # float32 [k]
    labels: np.ndarray  # int64 [k]
    groups: np.ndarray  # int64 [k]: who competes with whom, the labels or all 0


def suppress(boxes: np.ndarray, scores: np.ndarray, rules: Suppression) -> Detections:
    """One image's detections of boxes [A, 4] with the probabilities [A, C] of their classes.

    Each pair of an anchor and a class is a candidate of its own, as in torchvision's and Ultralytics' evaluation. Not
    finite scores and boxes are none. Of equal scores the lower anchor wins, then the lower class; under soft-NMS the
    candidate that was ahead before, under weighted_fusion the cluster whose first member was.
    With `voting_iou`, each box that was kept (by any method) becomes the mean, weighted by their own scores, of all
    candidates of its class (of any, where `class_agnostic`) that overlap it by more (Gidaris and Komodakis 2015,
    arXiv 1505.01749, section 4.3); it stays where none does, as a box of no area.
    """
    candidates = _candidates(boxes, scores, rules)
    if not len(candidates.scores) or rules.max_detections < 1:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    if rules.method == "weighted_fusion":
        found = _fused(candidates, rules)
    elif rules.method == "none":
        found = _kept(candidates, np.arange(min(rules.max_detections, len(candidates.scores))), candidates.scores)
    elif rules.method == "nms":
        found = _kept(candidates, _nms(candidates, rules), candidates.scores)
    else:
        found = _kept(candidates, *_soft_nms(candidates, rules))
    return found if rules.voting_iou is None else _voted(found, candidates, rules.voting_iou, rules=rules)


def detections(outputs: Arrays, targets: Arrays, rules: Suppression) -> dict[str, np.ndarray]:
    """The answers of a batch, `padded` to `rules.max_detections`, in pixels of the original images and clipped to them.

    `outputs` are read by position: boxes [n, A, 4] and scores [n, A, C], or, where NMS is in the graph, boxes
    [n, D, 4], scores [n, D] and labels [n, D] (-1 for none); of the latter only `max_detections` of the rules counts.
    Overlaps are those in the network's input; boxes are clipped last. `targets` are "placement" and "size".
    Raises SoupError for other outputs.
    """
    arrays = list(outputs.values())
    inside = len(arrays) == 3 and arrays[1].ndim == 2
    _check(outputs, inside=inside)
    found = []
    for row, (placement, size) in enumerate(zip(targets["placement"], targets["size"], strict=True)):
        if inside:
            one = _listed(*(array[row] for array in arrays), most=rules.max_detections)
        else:
            one = suppress(arrays[0][row], arrays[1][row], rules)
        found.append(Detections(to_original(one.boxes, placement, size), one.scores, one.labels))
    return padded(found, rules.max_detections)


def _candidates(boxes: np.ndarray, scores: np.ndarray, rules: Suppression) -> _Candidates:
    values = np.asarray(scores, np.float32)
    finite = np.isfinite(boxes).all(axis=1)
    if not finite.all():
        values = np.where(finite[:, None], values, np.float32(-np.inf))
    values = values.reshape(-1)
    pairs = np.flatnonzero((values > np.float32(rules.score)) & (values < np.inf))
    pairs = pairs[_best_first(values[pairs], rules.candidates)]
    anchors, labels = np.divmod(pairs, max(1, scores.shape[1]))
    groups = np.zeros_like(labels) if rules.class_agnostic else labels
    return _Candidates(boxes[anchors].astype(np.float32), values[pairs], labels, groups)


def _best_first(values: np.ndarray, most: int) -> np.ndarray:
    """int64: rows of the highest values, descending, ties by the lower row, also at the cut."""
    rows = np.arange(len(values))
    if len(values) > most:
        last = np.partition(values, len(values) - most)[len(values) - most] if most > 0 else np.inf
        above, level = np.flatnonzero(values > last), np.flatnonzero(values == last)
        rows = np.sort(np.concatenate([above, level[: most - len(above)]]))
    return rows[np.argsort(-values[rows], kind="stable")]


def _kept(candidates: _Candidates, rows: np.ndarray, scores: np.ndarray) -> Detections:
    """These candidates with these scores, [k] of all candidates."""
    labels = candidates.labels[rows].astype(np.int32)
    return Detections(candidates.boxes[rows], scores[rows].astype(np.float32), labels)


def _nms(candidates: _Candidates, rules: Suppression) -> np.ndarray:
    """Rows that stay, in order. A block after the other, so that it ends where there are detections enough."""
    kept: np.ndarray = np.zeros(0, np.int64)
    for start in range(0, len(candidates.scores), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(candidates.scores)))
        block = block[~_compete(candidates, kept, block, rules.iou).any(axis=0)]
        lost = np.zeros(len(block), bool)
        beaten = np.triu(_compete(candidates, block, block, rules.iou), 1)
        for row in np.flatnonzero(beaten.any(axis=1)):
            if not lost[row]:
                lost |= beaten[row]
        kept = np.concatenate([kept, block[~lost]])
        if len(kept) >= rules.max_detections:
            break
    return kept[: rules.max_detections]


def _compete(candidates: _Candidates, a: np.ndarray, b: np.ndarray, threshold: float) -> np.ndarray:
    """bool [a, b]: pairs of candidates of one group that overlap by more than the threshold."""
    above = iou(candidates.boxes[a], candidates.boxes[b]) > threshold
    above &= candidates.groups[a][:, None] == candidates.groups[b]
    return above


def _soft_nms(candidates: _Candidates, rules: Suppression) -> tuple[np.ndarray, np.ndarray]:
    """(rows in the order of their final scores, float64 [k] scores of all candidates).

    All classes take turns: what is picked has the highest score left, and no score ever rises, so that it may end
    where there are detections enough or the highest score is too low.
    """
    scores = candidates.scores.astype(np.float64)
    left = scores.copy()  # -1 where picked
    members = {group: np.flatnonzero(candidates.groups == group) for group in np.unique(candidates.groups).tolist()}
    picked: list[int] = []
    for _ in range(min(rules.max_detections, len(scores))):
        best = int(left.argmax())
        if not left[best] > rules.score:
            break
        picked.append(best)
        scores[best], left[best] = left[best], -1
        rivals = members[int(candidates.groups[best])]
        rivals = members[int(candidates.groups[best])] = rivals[left[rivals] > rules.score]
        left[rivals] *= _decay(iou(candidates.boxes[best : best + 1], candidates.boxes[rivals])[0], rules)
    return np.array(picked, np.int64), scores


def _decay(overlaps: np.ndarray, rules: Suppression) -> np.ndarray:
    if rules.method == "soft_gaussian":
        smooth: np.ndarray = np.exp(-(overlaps**2) / rules.sigma)
        return smooth
    return np.where(overlaps > rules.iou, 1 - overlaps, 1.0)


def _fused(candidates: _Candidates, rules: Suppression) -> Detections:
    clusters = fused(candidates.boxes, candidates.scores, candidates.groups, iou=rules.iou)
    best = _best_first(clusters.scores, rules.max_detections)
    labels = candidates.labels[clusters.first[best]].astype(np.int32)
    return Detections(clusters.boxes[best].astype(np.float32), clusters.scores[best].astype(np.float32), labels)


def _voted(found: Detections, candidates: _Candidates, threshold: float, *, rules: Suppression) -> Detections:
    votes = (iou(found.boxes, candidates.boxes) > threshold).astype(np.float64)
    if not rules.class_agnostic:
        votes *= found.labels[:, None] == candidates.labels
    votes *= candidates.scores
    total = votes.sum(axis=1)
    sums = np.einsum("kc,cd->kd", votes, candidates.boxes.astype(np.float64))  # not by BLAS: the same bits everywhere
    means = sums / np.where(total > 0, total, 1)[:, None]
    boxes = np.where(total[:, None] > 0, means, found.boxes).astype(np.float32)
    return Detections(boxes, found.scores, found.labels)


def _listed(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, *, most: int) -> Detections:
    """What a graph with NMS inside found."""
    rows = np.flatnonzero((labels >= 0) & np.isfinite(scores) & np.isfinite(boxes).all(axis=1))
    rows = rows[_best_first(scores[rows].astype(np.float32), most)]
    return Detections(boxes[rows].astype(np.float32), scores[rows].astype(np.float32), labels[rows].astype(np.int32))


def _check(outputs: Arrays, *, inside: bool) -> None:
    shapes = [array.shape for array in outputs.values()]
    fits = len(shapes) >= 2 and len(shapes[0]) == 3 and shapes[0][2] == 4 and shapes[1][:2] == shapes[0][:2]
    if fits and (shapes[2] == shapes[1] if inside else len(shapes[1]) == 3):
        _check_scores(*list(outputs.items())[1], lowest=-1 if inside else 0)
        return
    found = ", ".join(f"'{name}' {array.shape}" for name, array in outputs.items()) or "none"
    raise SoupError(
        f"model: its outputs are {found}, expected boxes (images, anchors, 4) and scores (images, anchors, classes), "
        "or, with NMS inside, boxes (images, found, 4), scores (images, found) and labels (images, found). "
        "Choose the adapter that fits the model."
    )


def _check_scores(name: str, scores: np.ndarray, *, lowest: int) -> None:
    """Logits would rank as probabilities do, and be cut by a threshold that means nothing to them."""
    if not scores.size or (scores.min() > lowest - _SLACK and scores.max() < 1 + _SLACK):
        return
    finite = scores[np.isfinite(scores)]  # of NaN too the two above say nothing
    if finite.size and not (finite.min() > lowest - _SLACK and finite.max() < 1 + _SLACK):
        raise SoupError(
            f"model: its scores, output '{name}', are {finite.min():.4g} to {finite.max():.4g}, expected probabilities "
            "from 0 to 1. Apply the sigmoid or softmax in the adapter."
        )
