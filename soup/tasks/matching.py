"""Which detection found which box of one image, by the rules of COCO and of Pascal VOC. The IoU is pycocotools'."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError

COCO_LIMIT = 100  # detections per image and class, the best by score; the rest do not exist for COCO
_NO_LABEL = -1


def coco_matches(
    answers: Arrays, targets: Arrays, *, thresholds: np.ndarray, area: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """bool [n, D, T] matched, and bool [n, D, T] ignored: what COCOeval.evaluateImg calls dtMatches and dtIgnore.

    At each threshold, by falling score, a detection takes the free box of its class with the highest IoU (the later one
    of equals) among those that count, else among crowds and boxes whose area is out of range (pixels², both ends in);
    only a crowd can be taken again, and its IoU is the share of the detection that it covers. Ignored is what took such
    a box, or took none and is out of range itself. Lin et al., ECCV 2014, and the reference code.
    """
    overlap = overlaps(answers, targets, crowd=targets["crowd"])
    passive = _passive(targets, area)
    taken = _taken(overlap, answers, targets["crowd"], passive, thresholds)
    images = np.arange(len(taken))[:, None, None]
    outside = ~_within(_areas(answers["boxes"]), area)
    matched = taken >= 0
    by_taken = np.pad(passive, ((0, 0), (0, 1)))[images, taken]  # -1 is the column that was added
    ignored = np.where(matched, by_taken, outside[:, :, None])
    return matched, ignored & (answers["labels"] >= 0)[:, :, None]


def voc_matches(answers: Arrays, targets: Arrays, *, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """bool [n, D, 1] matched, and bool [n, D, 1] ignored, by the rules of the Pascal VOC devkit (IJCV 88, 2010, 4.2).

    The box of its class with the highest IoU (the first of equals) decides on a detection: below the threshold it is
    a false alarm, at a difficult box ignored, at any other matched if it has the highest score (the first of equals)
    of those that chose this box, else a false alarm. Corners are continuous: the devkit's + 1 counts the pixels between
    integer corners, so its IoU of boxes of few pixels is a little higher.
    """
    overlap = overlaps(answers, targets, crowd=np.zeros_like(targets["crowd"]))
    if not overlap.shape[2]:
        nothing = np.zeros((*overlap.shape[:2], 1), bool)
        return nothing, nothing
    best = overlap.argmax(axis=2)
    images = np.arange(len(best))[:, None]
    hit = overlap.max(axis=2) >= threshold
    difficult = hit & targets["crowd"][images, best]
    order = by_score(answers)
    image, place = np.nonzero(np.take_along_axis(hit & ~difficult, order, axis=1))  # by image, then by falling score
    detection = order[image, place]
    _, first = np.unique(image * overlap.shape[2] + best[image, detection], return_index=True)
    matched = np.zeros_like(hit)
    matched[image[first], detection[first]] = True
    return matched[:, :, None], difficult[:, :, None]


def positives(targets: Arrays, classes: int, *, area: tuple[float, float]) -> np.ndarray:
    """int32 [n, classes]: boxes that count, which are no crowd and of an area within the range (both ends in)."""
    labels = targets["labels"]
    image, truth = np.nonzero((labels >= 0) & ~_passive(targets, area))
    counts = np.zeros((len(labels), classes), np.int32)
    np.add.at(counts, (image, labels[image, truth]), 1)
    return counts


def limited(answers: Arrays, limit: int = COCO_LIMIT) -> Arrays:
    """The answers without the labels of detections beyond the `limit` best of their image and class."""
    labels = answers["labels"]
    if labels.shape[1] <= limit:
        return answers
    order = by_score(answers)
    image, place = np.nonzero(np.take_along_axis(labels, order, axis=1) >= 0)
    detection = order[image, place]
    groups = np.lexsort((place, labels[image, detection], image))
    image, detection = image[groups], detection[groups]
    beyond = run_positions(image, labels[image, detection]) >= limit
    kept = labels.copy()
    kept[image[beyond], detection[beyond]] = _NO_LABEL
    return {**answers, "labels": kept}


def by_score(answers: Arrays) -> np.ndarray:
    """int64 [n, D]: each image's detections by falling score, the first of equals first, padding last."""
    keys = np.where(answers["labels"] >= 0, -answers["scores"].astype(np.float64), np.inf)
    return np.argsort(keys, axis=1, kind="stable")


def overlaps(answers: Arrays, targets: Arrays, *, crowd: np.ndarray) -> np.ndarray:
    """float64 [n, D, G]: the IoU of detections and boxes of the same class; -1 for padding and other classes.

    Where `crowd` (bool [n, G]) the intersection is over the detection's own area. Raises SoupError (environment)
    without pycocotools.
    """
    library = _library()
    found, truths = answers["labels"], targets["labels"]
    result = np.full((*found.shape, truths.shape[1]), -1.0)
    for image in np.flatnonzero((found >= 0).any(axis=1) & (truths >= 0).any(axis=1)):
        rows, columns = np.flatnonzero(found[image] >= 0), np.flatnonzero(truths[image] >= 0)
        values = library.iou(
            _corner_and_size(answers["boxes"][image, rows]),
            _corner_and_size(targets["boxes"][image, columns]),
            crowd[image, columns].tolist(),
        )
        same = found[image, rows][:, None] == truths[image, columns]
        result[image, rows[:, None], columns] = np.where(same, values, -1.0)
    return result


def run_positions(*keys: np.ndarray) -> np.ndarray:
    """int64 [n]: the place of each element in its run of equal keys, from 0."""
    places = np.arange(len(keys[0]))
    starts = np.ones(len(places), bool)
    starts[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    result: np.ndarray = places - np.maximum.accumulate(np.where(starts, places, 0))
    return result


def _taken(
    overlap: np.ndarray, answers: Arrays, crowd: np.ndarray, passive: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """int64 [n, D, T]: the box that each detection takes, -1 for none; one step per rank, all images at once."""
    image, detection, truth = np.nonzero(overlap >= thresholds.min())
    values = overlap[image, detection, truth]
    liked = np.lexsort((-truth, -values, passive[image, truth], detection, image))  # a detection's best box first
    image, detection, truth, values = image[liked], detection[liked], truth[liked], values[liked]
    slot = run_positions(image, detection)
    shape = (*overlap.shape[:2], int(slot.max(initial=0)) + 1)
    boxes, values_of = np.zeros(shape, np.int64), np.full(shape, -1.0)
    boxes[image, detection, slot], values_of[image, detection, slot] = truth, values
    taken = np.full((*overlap.shape[:2], len(thresholds)), -1)
    free = np.ones((len(overlap), len(thresholds), max(1, overlap.shape[2])), bool)
    for ranked in by_score(answers).T:
        rows = np.flatnonzero(values_of[np.arange(len(ranked)), ranked, 0] >= 0)
        at = ranked[rows]
        wanted = boxes[rows, at]
        possible = values_of[rows, at][:, None, :] >= thresholds[:, None]
        possible &= free[rows[:, None, None], np.arange(len(thresholds))[:, None], wanted[:, None, :]]
        row, threshold = np.nonzero(possible.any(axis=2))
        chosen = wanted[row, possible[row, threshold].argmax(axis=1)]
        taken[rows[row], at[row], threshold] = chosen
        free[rows[row], threshold, chosen] = crowd[rows[row], chosen]
    return taken


def _passive(targets: Arrays, area: tuple[float, float]) -> np.ndarray:
    """bool [n, G]: boxes that are no loss if missed, and no gain if found."""
    passive: np.ndarray = targets["crowd"] | ~_within(targets["area"].astype(np.float64), area)
    return passive


def _within(areas: np.ndarray, area: tuple[float, float]) -> np.ndarray:
    within: np.ndarray = (areas >= area[0]) & (areas <= area[1])
    return within


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = _corner_and_size(boxes)[..., 2:]
    product: np.ndarray = sides[..., 0] * sides[..., 1]
    return product


def _corner_and_size(boxes: np.ndarray) -> np.ndarray:
    """x1, y1, x2, y2 → x1, y1, width, height, float64."""
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def _library() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise SoupError(
            "metric: average precision needs pycocotools. pip install 'edgesoup[detection]'", kind="environment"
        ) from error
    library: ModuleType = mask
    return library
