"""What became of one model's boxes in another model's answers to the same images: lost, new, moved, other scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.tasks import Moves
from soup.tasks.boxes import iou

SAME_IOU = 0.5  # two boxes of one class that overlap by less are not the same detection
_SAME_CORNERS = 0.01  # pixels that rounding may move a corner by
STILL_IOU = 0.9  # a pair that overlaps by less has moved


def box_moves(before: Arrays, after: Arrays) -> Moves:
    """Boxes of the same image and class are paired one to one, the highest IoU first, down to SAME_IOU.

    Of equal IoU the nearer scores go first, then the earlier boxes. Figures: `lost` and `new` boxes without a partner,
    `moved` pairs below STILL_IOU, `boxes` before, `mean_iou` of the pairs, `score_drift` the mean and
    `max_score_drift` the largest difference of their scores (NaN without a pair). An image changed where a box was
    lost, is new or moved; scores alone change none. Raises SoupError where the images are not as many.
    """
    if len(before["labels"]) != len(after["labels"]):
        raise SoupError(
            f"answers: {len(after['labels'])} images after, {len(before['labels'])} before, expected the same images. "
            "Evaluate both on the whole split."
        )
    pairs = np.array([pair for image in range(len(before["labels"])) for pair in _paired(before, after, image)])
    image, overlap, drift = pairs.reshape(-1, 3).T
    n = len(before["labels"])
    matched = np.bincount(image.astype(np.int64), minlength=n)
    lost, new = ((one["labels"] >= 0).sum(axis=1) - matched for one in (before, after))
    moved = np.bincount(image[overlap < STILL_IOU].astype(np.int64), minlength=n)
    figures = {
        "boxes": float((before["labels"] >= 0).sum()),
        "lost": float(lost.sum()),
        "new": float(new.sum()),
        "moved": float(moved.sum()),
        "mean_iou": float(overlap.mean()) if len(overlap) else np.nan,
        "score_drift": float(drift.mean()) if len(drift) else np.nan,
        "max_score_drift": float(drift.max()) if len(drift) else np.nan,
    }
    changed: np.ndarray = lost + new + moved > 0
    return Moves(changed, figures, _sentence(figures, changed, pairs=len(overlap)))


def _paired(before: Arrays, after: Arrays, image: int) -> Iterator[tuple[int, float, float]]:
    """(image, IoU, |difference of the scores|) of each pair."""
    one, other = np.flatnonzero(before["labels"][image] >= 0), np.flatnonzero(after["labels"][image] >= 0)
    overlap = iou(before["boxes"][image, one], after["boxes"][image, other])
    apart = np.abs(before["boxes"][image, one][:, None] - after["boxes"][image, other]).max(axis=2, initial=0)
    overlap[apart <= _SAME_CORNERS] = 1  # also of boxes that lie outside of the image, and have no area in it
    overlap[before["labels"][image, one][:, None] != after["labels"][image, other]] = 0
    drift = np.abs(before["scores"][image, one][:, None].astype(np.float64) - after["scores"][image, other])
    rows, columns = np.nonzero(overlap >= SAME_IOU)
    order = np.lexsort((columns, rows, drift[rows, columns], -overlap[rows, columns]))
    free_rows, free_columns = np.ones(len(one), bool), np.ones(len(other), bool)
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            yield image, float(overlap[row, column]), float(drift[row, column])


def _sentence(figures: dict[str, float], changed: np.ndarray, *, pairs: int) -> str:
    boxes, lost, new, moved = (f"{int(figures[key]):,}" for key in ("boxes", "lost", "new", "moved"))
    images = f"in {int(changed.sum()):,} of {len(changed):,} images" if changed.any() else f"in {len(changed):,} images"
    plain = f"of {boxes} boxes {lost} lost, {new} new, {moved} moved (IoU below {STILL_IOU:g}) {images}"
    if not pairs:
        return plain
    drift = f"scores differ by {figures['score_drift']:.1e}, at most {figures['max_score_drift']:.1e}"
    return f"{plain}; mean IoU {figures['mean_iou']:.4f}, {drift}"
