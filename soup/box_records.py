"""The true boxes of an image, whatever file they came from, and what is wrong with a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from soup import SoupError
from soup.sources import Source, several

Size = tuple[int, int]  # height, width
MAX_CLASS = 10**6  # a class number beyond is a slip of the pen


@dataclass(frozen=True, slots=True)
class Truth:
    """What is to be found in one image; bad boxes are left out already."""

    boxes: np.ndarray  # float32 [g, 4]: x1 y1 x2 y2 in pixels of the original image, edges at 0 and width or height
    labels: np.ndarray  # int32 [g]
    crowd: np.ndarray  # bool [g]: COCO's iscrowd, VOC's difficult; neither right nor wrong to find
    area: np.ndarray  # float32 [g]: the annotation's own, the box's where it tells none
    normalized: bool = False  # boxes and area are parts of the image's sides: `in_pixels` makes pixels of them


@dataclass(frozen=True, slots=True)
class BoxSample:
    """One image before preprocessing with its boxes, and everything that is wrong with either."""

    id: str
    image: object  # path, array, PIL image or tensor; a SoupError with the bare reason where it cannot be used
    truth: Truth | None  # None where the annotation or the image cannot be used
    size: Size | None  # of the original; None where only decoding tells
    problems: tuple[str, ...] = ()  # each names file and record, without a full stop
    group: str | None = None

    @property
    def usable(self) -> bool:
        """Whether the image can be judged, maybe without some of its boxes."""
        return self.truth is not None


BoxSource = Source[BoxSample]


@dataclass(frozen=True, slots=True)
class Marked:
    """One object as its file gives it, its box not checked yet."""

    where: str  # the record, as messages name it
    corners: tuple[float, float, float, float]  # x1 y1 x2 y2
    label: int
    crowd: bool = False
    area: float | None = None


def in_pixels(truth: Truth, size: Size) -> Truth:
    """Normalised boxes in pixels of an image of `size` = (height, width); others are returned as they are."""
    if not truth.normalized:
        return truth
    height, width = size
    boxes = truth.boxes * np.array([width, height, width, height], np.float32)
    return replace(truth, boxes=boxes, area=truth.area * np.float32(height * width), normalized=False)


def checked(
    objects: Sequence[Marked], *, where: str, size: Size | None, margin: float = 1, normalized: bool = False
) -> tuple[Truth, list[str]]:
    """The sane boxes, clipped to the image, and a sentence on each of the others.

    A box that reaches over an edge by `margin` or less is clipped in silence; by more it is left out, like one with
    NaN, without area, or with its corners swapped. `size` is (1, 1) for normalised boxes; None: no edges are known.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = np.array([one.corners for one in objects], np.float64).reshape(-1, 4).astype(np.float32)
        edges = np.inf if size is None else np.array([*size[::-1], *size[::-1]], np.float32)
        clipped = np.minimum(np.maximum(boxes, -np.inf if size is None else np.float32(0)), edges)
        sides = clipped[:, 2:] - clipped[:, :2]
        own = (sides[:, 0] * sides[:, 1]).tolist()
        told = [box if one.area is None else one.area for one, box in zip(objects, own, strict=True)]
        area = np.array(told, np.float64).astype(np.float32)
        sane = (np.abs(boxes - clipped) <= np.float32(margin)) & (np.tile(sides, 2) > 0)  # not for NaN
        kept = sane.all(axis=1) & (area >= 0) & (area < np.inf)
    limits = "" if size is None else "(0 to 1)" if normalized else f"({size[1]}×{size[0]})"
    problems = [
        f"{where}: {objects[row].where}: {_wrong(boxes[row], told[row], limits, boxed=bool(sane[row].all()))}"
        for row in np.flatnonzero(~kept).tolist()
    ]
    return Truth(
        boxes=clipped[kept],
        labels=np.array([one.label for one in objects], np.int32)[kept],
        crowd=np.array([one.crowd for one in objects], bool)[kept],
        area=area[kept],
        normalized=normalized,
    ), problems


def _wrong(box: np.ndarray, area: float, limits: str, *, boxed: bool) -> str:
    told = "the box (" + " ".join(f"{value:.7g}" for value in box) + ")"
    if boxed:
        return f"its area is {area:g}, expected a finite number from 0"
    if not np.isfinite(box).all():
        return f"{told} holds NaN or Inf"
    if box[2] < box[0] or box[3] < box[1]:
        return f"{told} has a negative width or height"
    if box[2] == box[0] or box[3] == box[1]:
        return f"{told} has zero area"
    return f"{told} reaches outside of the image {limits}".rstrip()


def unusable(name: str, reason: SoupError, *problems: str) -> BoxSample:
    """A sample that is left out as a whole: `reason` stands for its image."""
    return BoxSample(name, reason, None, None, problems)


def unknown(name: str, classes: Sequence[str]) -> str:
    """What is wrong with an object of a class that is not among `classes`."""
    return f"'{name}' is no known class, expected one of {', '.join(classes[:10])}{' …' if len(classes) > 10 else ''}"


def refuse_empty(origin: str, samples: Sequence[BoxSample], problems: Sequence[str] = ()) -> None:
    """Raises SoupError, with all that is wrong, where no image has a box that can be found or missed."""
    truths = [sample.truth for sample in samples if sample.truth is not None]
    if any((~truth.crowd).any() for truth in truths):
        return
    wrong = [*problems, *(problem for sample in samples for problem in sample.problems)]
    raise SoupError(
        f"{origin}: no box to judge by in {len(samples)} images, expected one or more"
        f"{f': {several(wrong)}' if wrong else ' that are neither crowd nor difficult'}. "
        "Repair the annotations, or point at others."
    )
