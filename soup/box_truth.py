"""The boxes of images as a split's targets: in pixels of each image, padded to the most that one has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.box_records import BoxSample, Truth, in_pixels
from soup.box_sources import open_boxes
from soup.decoded import Decoded
from soup.preprocess import Preprocess
from soup.sources import Given, Sample, Source, several
from soup.truth import Reader, Unusable, placements


def boxes(classes: Sequence[str] | None) -> Reader:
    """Of detection; `classes` are the names in the order of the network's scores, None for the data's order."""
    return Reader(partial(_open_boxes, classes=classes), _box_targets)


def _open_boxes(
    name: str, source: Given, *, folder: Path, max_bytes: float, classes: Sequence[str] | None
) -> Source[Sample]:  # fmt: skip
    return open_boxes(name, source, folder=folder, classes=classes, max_bytes=max_bytes).mapped(_boxed)


def _boxed(sample: BoxSample) -> Sample:
    truth = Unusable() if sample.truth is None else sample
    return Sample(sample.id, sample.image, 0, sample.group, truth, sample.problems)


def _box_targets(decoded: Decoded, preprocess: Preprocess | None, *, origin: str, judges: bool) -> Arrays:
    """Boxes in pixels of each image, padded to the most that one has."""
    pairs = list(zip(decoded.samples, decoded.sizes.tolist(), strict=True))
    if turned := [told for sample, size in pairs if (told := _other_size(sample, size))]:
        raise SoupError(
            f"{origin}: annotations of another size than the image as it is read: {several(turned)}. The image may be "
            "turned by its EXIF orientation, which preprocess.backend cv2 follows and pil does not."
        )
    truths = [_in_pixels(sample, size) for sample, size in pairs]
    if judges and not any((~truth.crowd).any() for truth in truths):
        raise SoupError(f"{origin}: none of {len(truths)} images has a box, expected some: nothing can be judged.")
    width = max(len(truth.boxes) for truth in truths)
    return {
        "boxes": _padded([truth.boxes for truth in truths], width, 0, np.float32, (4,)),
        "labels": _padded([truth.labels for truth in truths], width, -1, np.int32),
        "crowd": _padded([truth.crowd for truth in truths], width, 0, bool),
        "area": _padded([truth.area for truth in truths], width, 0, np.float32),
        "size": decoded.sizes.astype(np.int32),
        "placement": placements(decoded, preprocess),
    }


def _other_size(sample: Sample, size: Sequence[int]) -> str:
    """In what the annotation's size differs, or nothing."""
    wanted = sample.truth.size if isinstance(sample.truth, BoxSample) else None
    if wanted is None or tuple(wanted) == tuple(size):
        return ""
    return f"{sample.id} is {size}, annotated as {list(wanted)}"


def _in_pixels(sample: Sample, size: Sequence[int]) -> Truth:
    assert isinstance(sample.truth, BoxSample)
    assert sample.truth.truth is not None  # else it is Unusable
    return in_pixels(sample.truth.truth, (size[0], size[1]))


def _padded(
    rows: Sequence[np.ndarray], width: int, fill: float, dtype: type, rest: tuple[int, ...] = ()
) -> np.ndarray:  # fmt: skip
    whole: np.ndarray = np.full((len(rows), width, *rest), fill, dtype)
    for place, row in enumerate(rows):
        whole[place, : len(row)] = row
    return whole
