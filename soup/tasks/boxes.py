"""Boxes, x1 y1 x2 y2 in pixels: overlap, the way between image and network input, and the records of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exporters.runtimes import Arrays

PADDING = -1  # score and label of a row of answers that holds no detection


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in ONE image, best first."""

    boxes: np.ndarray  # float32 [k, 4]
    scores: np.ndarray  # float32 [k], descending
    labels: np.ndarray  # int32 [k]

    def __len__(self) -> int:
        return len(self.scores)

    def taken(self, rows: np.ndarray) -> Detections:
        """Some of them: indices in the order wanted, or bool [k]."""
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows])


def area(boxes: np.ndarray) -> np.ndarray:
    """float64 [k] of boxes [k, 4]: square pixels, width times height without the "+ 1" of old VOC code.

    0 for a box whose second corner is not beyond its first on both axes.
    """
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    np.maximum(sides, 0, out=sides)
    product: np.ndarray = sides[:, 0] * sides[:, 1]
    return product


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: float64 [ka, kb] of boxes [ka, 4] and [kb, 4], summed in float64.

    0 with a box of no area, also with itself, and with one that holds NaN; never NaN.
    """
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.astype(np.float64).T[:, :, None], b.astype(np.float64).T
    with np.errstate(invalid="ignore"):  # Inf less Inf
        intersection = np.minimum(ax2, bx2)
        intersection -= np.maximum(ax1, bx1)
        height = np.minimum(ay2, by2)
        height -= np.maximum(ay1, by1)
        np.maximum(intersection, 0, out=intersection)
        np.maximum(height, 0, out=height)
        intersection *= height
        union = area(a)[:, None] + area(b)
        union -= intersection
        overlap: np.ndarray = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return overlap


def clip(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """Boxes [..., 4] cut at the borders of an image, in their dtype; one wholly outside keeps no area."""
    cut: np.ndarray = np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))
    return cut


def to_original(boxes: np.ndarray, placement: np.ndarray, size: np.ndarray) -> np.ndarray:
    """float32 [k, 4] in pixels of the original image, clipped to it, of boxes in pixels of the network's input.

    `placement` float64 [4] is (scale_x, scale_y, left, top): x_input = x_original * scale_x + left, y likewise;
    `size` [2] is the original's (height, width).
    """
    scale, offset = _both_corners(placement)
    original = (boxes.astype(np.float64) - offset) / scale
    return clip(original, float(size[0]), float(size[1])).astype(np.float32)


def to_input(boxes: np.ndarray, placement: np.ndarray) -> np.ndarray:
    """float32 [k, 4] in pixels of the network's input, of boxes in pixels of the original image; nothing is clipped."""
    scale, offset = _both_corners(placement)
    moved: np.ndarray = (boxes.astype(np.float64) * scale + offset).astype(np.float32)
    return moved


def padded(found: Sequence[Detections], width: int) -> dict[str, np.ndarray]:
    """The answers of these images: boxes float32 [n, width, 4], scores float32 [n, width], labels int32 [n, width].

    Rows beyond an image's own are box 0, score -1, label -1. Raises ValueError where an image has more than `width`.
    """
    if most := max((len(one) for one in found if len(one) > width), default=0):
        raise ValueError(f"{most} detections in an image, expected at most {width}")
    answers = {
        "boxes": np.zeros((len(found), width, 4), np.float32),
        "scores": np.full((len(found), width), PADDING, np.float32),
        "labels": np.full((len(found), width), PADDING, np.int32),
    }
    for row, one in enumerate(found):
        answers["boxes"][row, : len(one)] = one.boxes
        answers["scores"][row, : len(one)] = one.scores
        answers["labels"][row, : len(one)] = one.labels
    return answers


def unpadded(answers: Arrays, row: int) -> Detections:
    """One image's detections out of `padded` answers: the rows whose label is not -1, which need not come first."""
    real = answers["labels"][row] != PADDING
    return Detections(answers["boxes"][row][real], answers["scores"][row][real], answers["labels"][row][real])


def _both_corners(placement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset), each float64 [4], for x1 y1 x2 y2."""
    values = np.asarray(placement, np.float64)
    return np.tile(values[:2], 2), np.tile(values[2:], 2)
