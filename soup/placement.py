"""Where an image lies in the network's input: whole pixels of every resize, letterbox and crop, for `fit` and boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from soup.preprocess import Letterbox, Preprocess, Size

Sides = tuple[int, int]  # height, width


@dataclass(frozen=True, slots=True)
class Geometry:
    """An image scaled to `inner`, its upper left corner put at `offset` of a canvas `outer`; a crop has it negative."""

    inner: Sides
    outer: Sides
    offset: Sides  # (top, left)


def geometry(size: Sides, preprocess: Preprocess) -> Geometry:
    """What `fit` does to an image of `size` (height, width), as decoded: letterbox, or resize and then crop."""
    if preprocess.letterbox is not None:
        return _letterboxed(size, preprocess.letterbox)
    inner = size if preprocess.resize is None else _resized(size, preprocess.resize)
    outer = inner if preprocess.crop is None else as_sides(preprocess.crop)
    top, left = (_crop_offset(have, wanted) for have, wanted in zip(inner, outer, strict=True))
    return Geometry(inner, outer, (top, left))


def placement(size: Sides, preprocess: Preprocess) -> np.ndarray:
    """float64 [4] (scale_x, scale_y, left, top) of an image of `size` (height, width), as decoded.

    x_input = x_original * scale_x + left, and y likewise, of continuous coordinates: pixel i reaches from i to i + 1.
    The scales are those of the whole sides that the image is resized to, not the ratio that these were rounded from.
    A crop has a negative left and top.
    """
    found = geometry(size, preprocess)
    (scale_y, scale_x), (top, left) = np.divide(found.inner, size), found.offset
    return np.array([scale_x, scale_y, left, top], np.float64)


def fitted_size(size: Sides, preprocess: Preprocess) -> Sides:
    """Height and width of what `fit` makes of an image of `size` (height, width), as decoded."""
    return geometry(size, preprocess).outer


def as_sides(size: Size) -> Sides:
    """A square's one side twice."""
    return (size, size) if isinstance(size, int) else size


def _letterboxed(size: Sides, box: Letterbox) -> Geometry:
    inner = _inner(size, box)
    outer = as_sides(box.size)
    if box.stride is not None:
        height, width = (math.ceil((side + box.margin) / box.stride) * box.stride for side in inner)
        outer = height, width
    top, left = ((have - need) // 2 if box.centered else 0 for have, need in zip(outer, inner, strict=True))
    return Geometry(inner, outer, (top, left))


def _inner(size: Sides, box: Letterbox) -> Sides:
    """The sides that the image is scaled to; in the order of the trainers' own float operations, so never one off."""
    most = as_sides(box.size)
    scale = min(most[0] / size[0], most[1] / size[1])
    if box.shorter is not None:
        scale = min(scale, box.shorter / min(size))
    if not box.scale_up:
        scale = min(scale, 1.0)
    if box.rounding == "detr":
        height, width = _as_detr(size, box)
    else:
        height, width = (_ROUNDINGS[box.rounding](side * scale) for side in size)
    return min(max(height, 1), most[0]), min(max(width, 1), most[1])


def _as_detr(size: Sides, box: Letterbox) -> Sides:
    """The longer side is truncated from what the shorter one was before it was rounded."""
    short, long, most = min(size), max(size), max(as_sides(box.size))
    wanted: float = most if box.shorter is None else box.shorter
    if long / short * wanted > most:
        wanted = most * short / long
    if not box.scale_up:
        wanted = min(wanted, short)
    sides = round(wanted), int(wanted * long / short)
    return sides if size[0] <= size[1] else sides[::-1]


def _half_up(side: float) -> int:
    return math.floor(side + 0.5)


_ROUNDINGS: Mapping[str, Callable[[float], int]] = {
    "nearest": round, "half_up": _half_up, "floor": math.floor, "ceil": math.ceil,
}  # fmt: skip


def _resized(size: Sides, wanted: Size) -> Sides:
    if not isinstance(wanted, int):
        return wanted
    height, width = size
    shorter = min(height, width)
    return (wanted, int(wanted * width / shorter)) if height == shorter else (int(wanted * height / shorter), wanted)


def _crop_offset(have: int, wanted: int) -> int:
    """As torchvision's center_crop: half of what is missing, truncated; half of what is too much, rounded to even."""
    return (wanted - have) // 2 if wanted > have else -round((have - wanted) / 2)
