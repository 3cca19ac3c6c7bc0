"""Class scores on one grid of pixels, read on another: bilinear as torch's F.interpolate, nearest for ids. numpy only.

Coordinates count from the outer edge of the first pixel, so pixel i has its centre at i + 0.5 (align_corners=False).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Axis:
    """What each of `n` pixels along one side takes from the pixels of another grid along it."""

    low: np.ndarray  # int [n]: the pixel whose centre is at or before it
    high: np.ndarray  # int [n]: the one after, or the last
    weight: np.ndarray  # float64 [n]: the share of `high`; `low` has the rest
    nearest: np.ndarray  # int [n]: the pixel that holds it
    inside: np.ndarray  # bool [n]: False beyond the grid, where the others name the pixel at its edge

    def is_same(self, inputs: int) -> bool:
        """Whether the pixels are those of a grid of `inputs`, one by one."""
        return len(self.low) == inputs and not self.weight.any() and np.array_equal(self.low, np.arange(inputs))


Grid = tuple[Axis, Axis]  # rows, columns


def axis(places: np.ndarray, inputs: int, *, first: int = 0, last: int | None = None) -> Axis:
    """The centres `places`, float64 [n], on a side of `inputs` pixels, of which only `first` to `last` may be read."""
    last = inputs - 1 if last is None else last
    spot = np.clip(places - 0.5, first, last)
    low = spot.astype(np.intp)
    return Axis(
        low=low,
        high=np.minimum(low + 1, last),
        weight=spot - low,
        nearest=np.clip(np.floor(places), 0, inputs - 1).astype(np.intp),
        inside=(places >= 0) & (places < inputs),
    )


def resized(inputs: Sequence[int], outputs: Sequence[int]) -> Grid:
    """A grid of (height, width) `outputs` over the whole of one of `inputs`."""
    rows, columns = (
        axis((np.arange(wanted) + 0.5) * (have / wanted), have) for have, wanted in zip(inputs, outputs, strict=True)
    )
    return rows, columns


def placed(size: Sequence[int], placement: Sequence[float], canvas: Sequence[int]) -> Grid:
    """The pixels of an image of `size` on a canvas where it lies at `placement` = (scale_x, scale_y, left, top).

    Only the canvas pixels that the image covers are read, as if the rest was cut off before resizing, which is how
    trainers undo a letterbox. Image pixels with their centre beyond the canvas (cropped away) are not `inside`.
    """
    scale_x, scale_y, left, top = (float(number) for number in placement)
    rows = _placed(int(size[0]), scale_y, top, int(canvas[0]))
    return rows, _placed(int(size[1]), scale_x, left, int(canvas[1]))


def shown_on(canvas: Sequence[int], cells: Sequence[int], placement: Sequence[float], size: Sequence[int]) -> Grid:
    """The other way round: the centres of (height, width) `cells` over the canvas, on the pixels of the image."""
    scale_x, scale_y, left, top = (float(number) for number in placement)
    rows, columns = (
        axis(((np.arange(count) + 0.5) * (side / count) - offset) / scale, int(pixels))
        for count, side, offset, scale, pixels in zip(
            cells, canvas, (top, left), (scale_y, scale_x), size, strict=True
        )
    )  # fmt: skip
    return rows, columns


def inside(grid: Grid) -> np.ndarray:
    """bool [H, W]: which pixels of `grid` lie on the other one."""
    rows, columns = grid
    both: np.ndarray = rows.inside[:, None] & columns.inside
    return both


def bilinear(plane: np.ndarray, grid: Grid) -> np.ndarray:
    """One plane [h, w] of floats at the pixels of `grid`; NaN spreads to all that take a share, even of zero."""
    rows, columns = grid
    if not columns.is_same(plane.shape[1]):
        plane = _mixed(plane.take(columns.low, 1), plane.take(columns.high, 1), columns.weight)
    if not rows.is_same(plane.shape[0]):
        plane = _mixed(plane.take(rows.low, 0), plane.take(rows.high, 0), rows.weight[:, None])
    return plane


def nearest(plane: np.ndarray, grid: Grid) -> np.ndarray:
    """One plane [h, w] of anything at the pixels of `grid`."""
    rows, columns = grid
    return plane.take(rows.nearest, 0).take(columns.nearest, 1)


def highest(scores: np.ndarray, grids: Sequence[Grid], *, dtype: np.dtype[np.generic], none: int) -> np.ndarray:
    """`dtype` [H, W]: the class of the highest score [classes, h, w] at each pixel, after one resize per grid in turn.

    Of equal ones the lowest class; `none` where a score is NaN.
    """
    kind = np.result_type(scores.dtype, np.float32)
    best: np.ndarray | None = None
    for place, given in enumerate(scores):
        plane = given.astype(kind, copy=False)
        for grid in grids:
            plane = bilinear(plane, grid)
        if best is None:
            best, ids = plane.copy(), np.zeros(plane.shape, dtype)
            continue
        np.maximum(ids, (plane > best).astype(dtype) * dtype.type(place), out=ids)  # faster than to write where it is
        np.maximum(best, plane, out=best)  # keeps NaN
    if best is None:
        raise ValueError("no classes")
    ids[np.isnan(best)] = none
    return ids


def leads(scores: np.ndarray) -> np.ndarray:
    """float [h, w]: the highest of scores [classes, h, w] less the second; NaN where they do not rank."""
    kind = np.result_type(scores.dtype, np.float32)
    best = scores[0].astype(kind)
    second = np.full_like(best, -np.inf)
    for plane in scores[1:]:
        np.maximum(second, np.minimum(best, plane), out=second)
        np.maximum(best, plane, out=best)
    with np.errstate(invalid="ignore"):  # Inf less Inf
        lead: np.ndarray = best - second
    return lead


def _placed(pixels: int, scale: float, offset: float, canvas: int) -> Axis:
    first = min(max(0, round(offset)), canvas - 1)
    last = max(first, min(canvas, round(offset + pixels * scale)) - 1)
    return axis((np.arange(pixels) + 0.5) * scale + offset, canvas, first=first, last=last)


def _mixed(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # Inf less Inf
        high -= low
        high *= weight.astype(high.dtype)
        high += low
    return high
