"""Average precision from what became of each detection, also of images counted several times or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import numpy as np

from exporters.runtimes import Arrays
from soup.tasks.matching import run_positions

Reading = Literal["101 points", "11 points", "area"]
_POINTS = {"101 points": np.linspace(0.0, 1.0, 101), "11 points": np.arange(11) / 10}
_BLOCK = 1 << 23  # weights of a block of draws: 64 MB
_SHORT = 64  # elements: numpy's accumulate along the first axis takes 4 ns for one, a row's own call is worth more


def average_precisions(statistics: Arrays, counts: np.ndarray, *, thresholds: int, reading: Reading) -> np.ndarray:
    """float64 [B, classes]: mean over `thresholds` of each class's AP with image i counted counts[b, i] times.

    NaN where no truth of the class is counted. `statistics`, by image: `score` and `label` [n, D] (label -1 for
    padding), bit t of `matched` and of `ignored` (uint16 [n, D]), `positives` (int [n, classes]). Detections rank by
    score, equals by image and then by place. AP is the mean, over the recalls of the `reading`, of the highest
    precision at that recall or beyond: "101 points" are COCO's (what COCOeval gives), "11 points" VOC's until 2009,
    "area" is VOC's since (Everingham et al., IJCV 88, 2010, 4.2).
    """
    truths = counts @ statistics["positives"].astype(np.int64)
    result = np.where(truths > 0, 0.0, np.nan)
    most = counts.max(axis=0, initial=0)
    by_image = np.ascontiguousarray(counts.T, np.float64)
    bits = np.arange(thresholds)[:, None]
    width = statistics["label"].shape[1]
    for label, ranked in _ranked(statistics, thresholds):
        places, copies = _with_copies(statistics, ranked, most)
        ignored = (statistics["ignored"].ravel()[places] >> bits & 1).astype(bool)
        matched = (statistics["matched"].ravel()[places] >> bits & 1).astype(bool) & ~ignored
        end = (
            int(np.flatnonzero(matched.any(axis=0)).max(initial=-1)) + 1
        )  # false alarms after the last match cost nothing
        places, copies, matched, ignored = places[:end], copies[:end], matched[:, :end], ignored[:, :end]
        step = max(1, _BLOCK // max(1, end))
        for start in range(0, len(counts), step):
            block = slice(start, start + step)
            weights = _weights(by_image[:, block], places // width, copies)
            result[block, label] += _readings(weights, matched, ignored, truths[block, label], reading)
    return result


def _ranked(statistics: Arrays, thresholds: int) -> Iterator[tuple[int, np.ndarray]]:
    """Each class that was detected, and its detections' places in the flattened [n, D], best first.

    Without those that are ignored at every threshold.
    """
    labels, never = statistics["label"].ravel(), (1 << thresholds) - 1
    places = np.flatnonzero((labels >= 0) & (statistics["ignored"].ravel() & never != never))
    places = places[np.lexsort((-statistics["score"].ravel()[places], labels[places]))]
    classes, starts = np.unique(labels[places], return_index=True)
    if len(classes):
        yield from zip(classes.tolist(), np.split(places, starts[1:]), strict=True)


def _with_copies(statistics: Arrays, places: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places, and -1 where a detection counts as often as its image, in one block.

    A block of equal fates can be one: where a match is repeated, precision rises, so that the last of them decides, and
    false alarms are only counted. But where an image's detections tie with different fates, its copies come one after
    the other, a, b, a, b and not a, a, b, b: those get a place for each copy j up to the `most` (int [n]) that any
    draw has of it, and count once where their image counts more than j times.
    """
    images = places // statistics["label"].shape[1]
    scores = statistics["score"].ravel()[places]
    fates = statistics["matched"].ravel()[places].astype(np.int64) << 16 | statistics["ignored"].ravel()[places]
    starts = np.flatnonzero(run_positions(images, scores) == 0)
    runs = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(places)))
    differ = (np.minimum.reduceat(fates, starts) != np.maximum.reduceat(fates, starts))[runs] & (most[images] > 1)
    if not differ.any():
        return places, np.full(len(places), -1)
    entries = np.repeat(np.arange(len(places)), np.where(differ, most[images], 1))
    copies = np.where(differ[entries], run_positions(entries), -1)
    order = np.lexsort((entries, copies, runs[entries]))
    return places[entries[order]], copies[order]


def _weights(counts: np.ndarray, images: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """float64 [N, b]: how often each detection is counted; counts [n, b]."""
    weights: np.ndarray = counts[images]
    (split,) = np.nonzero(copies >= 0)
    if len(split):
        weights[split] = weights[split] > copies[split, None]
    return weights


def _readings(
    weights: np.ndarray, matched: np.ndarray, ignored: np.ndarray, truths: np.ndarray, reading: Reading
) -> np.ndarray:
    """float64 [b]: the mean AP over thresholds; weights [N, b], matched and ignored bool [T, N], truths int [b].

    Only a match can raise the recall, or have the highest precision from there on: false alarms between lower it.
    A match that is not counted repeats the point before it, or has a precision of 0.
    """
    any_at = np.flatnonzero((matched | ignored).any(axis=0))
    own, ranked = weights[any_at], _accumulated(np.add, weights)[any_at]
    total = np.zeros(weights.shape[1])
    for hits, misses in zip(matched[:, any_at], ignored[:, any_at], strict=True):
        at = np.flatnonzero(hits | misses)
        if not len(at):
            continue
        seen, found = ranked[at], own[at]
        if misses.any():
            seen -= _accumulated(np.add, found * misses[at, None])
            found *= hits[at, None]
        total += _reading(_accumulated(np.add, found), seen, truths, reading)
    return total / len(matched)


def _reading(found: np.ndarray, seen: np.ndarray, truths: np.ndarray, reading: Reading) -> np.ndarray:
    """float64 [b]: the AP of matches among detections, both [J, b] so far, of truths [b]; changes its arguments."""
    if reading == "101 points":
        seen += np.spacing(1)  # so that a lone match has COCOeval's precision, a little below 1
    else:
        np.maximum(seen, 1, out=seen)
    precision = np.divide(found, seen, out=seen)
    _accumulated(np.maximum, precision[::-1])
    recall = np.divide(found, np.maximum(truths, 1), out=found)
    reached = recall if reading == "area" else _points_reached(recall, _POINTS[reading])
    area: np.ndarray = np.einsum("jb,jb->b", np.diff(reached, axis=0, prepend=0), precision)
    return area


def _points_reached(recall: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The share of the evenly spaced points that are at or below the recall."""
    nearest = np.rint(recall * (len(points) - 1)).astype(np.intp)  # all before it are below, all after it above
    reached: np.ndarray = (nearest + (points[nearest] <= recall)) / len(points)
    return reached


def _accumulated(ufunc: np.ufunc, rows: np.ndarray) -> np.ndarray:
    """`ufunc.accumulate` along the first axis, in place."""
    if rows.shape[1] < _SHORT:
        ufunc.accumulate(rows, axis=0, out=rows)
    else:
        for before, row in pairwise(rows):
            ufunc(before, row, out=row)
    return rows
