"""How the data of a task are read: what lists the samples of a split, and the targets that their truth becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.box_records import BoxSample, Truth, in_pixels
from soup.box_sources import open_boxes
from soup.decoded import Decoded
from soup.mask_sources import open_masks
from soup.masks import MaskSample, Palette, checked, fit_mask, read_mask, stacked
from soup.multilabel_csv import read_multilabel
from soup.placement import placement
from soup.preprocess import Preprocess
from soup.sources import Given, Sample, Source, files_identity, open_source, read_csv, several

Classes = Sequence[str] | int | None  # names in the order of the network's scores, or how many there are


class Open(Protocol):
    """Lists the samples of a split; no image is decoded yet."""

    def __call__(self, name: str, source: Given, *, folder: Path, max_bytes: float) -> Source:
        """Raises SoupError for what `source` may not be."""


class Targets(Protocol):
    """What a metric compares with, of the samples that could be decoded."""

    def __call__(self, decoded: Decoded, preprocess: Preprocess | None, *, origin: str, judges: bool) -> Arrays:
        """First axis the sample; `judges` is False for train, whose images are only looked at.

        Raises SoupError for truth that cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Reader:
    """One task's way from files to targets."""

    open: Open
    targets: Targets


def without_bad(source: Source, *, on_bad: Literal["fail", "skip"]) -> tuple[Source, tuple[tuple[str, str], ...]]:
    """The source without what its truth makes unusable, and (id, reason) of all that was wrong.

    Raises SoupError with every problem at once where `on_bad` is "fail". What a function gives is judged when it is
    read: a bad sample's image is then the error.
    """
    if not isinstance(source.samples, Sequence):
        return replace(source, samples=(_judged(sample, on_bad) for sample in source.samples)), ()
    bad = [("", problem) for problem in source.problems]
    bad += [(sample.id, problem) for sample in source.samples for problem in sample.problems]
    told = several([f"{one}: {problem.rstrip('.')}" if one else problem for one, problem in bad])
    if bad and on_bad == "fail":
        raise SoupError(
            f"{source.origin}: {len(bad)} {'problem' if len(bad) == 1 else 'problems'}: {told}. Repair them, or set "
            "data.on_bad_sample: skip, which leaves "
            "out what is bad: a box, or an image whose annotation cannot be read."
        )
    usable = [sample for sample in source.samples if not isinstance(sample.truth, Unusable)]
    if not usable:
        raise SoupError(f"{source.origin}: none of {len(source.samples)} images can be used: {told}.")
    return replace(source, samples=usable, count=len(usable)), tuple(bad)


def _judged(sample: Sample, on_bad: Literal["fail", "skip"]) -> Sample:
    refused = isinstance(sample.truth, Unusable) or (bool(sample.problems) and on_bad == "fail")
    return replace(sample, image=SoupError(several(sample.problems))) if refused else sample


@dataclass(frozen=True, slots=True)
class Unusable:
    """The truth of an image that says nothing."""


def placements(decoded: Decoded, preprocess: Preprocess | None) -> np.ndarray:
    """float64 [n, 4]: (scale_x, scale_y, left, top) of each image, from its own pixels to the network's."""
    if preprocess is None:
        return np.tile([1.0, 1.0, 0.0, 0.0], (len(decoded.sizes), 1))
    found = {tuple(size): placement(tuple(size), preprocess) for size in np.unique(decoded.sizes, axis=0).tolist()}
    return np.array([found[tuple(size)] for size in decoded.sizes.tolist()], np.float64).reshape(-1, 4)


def _labels(decoded: Decoded, preprocess: Preprocess | None, *, origin: str, judges: bool) -> Arrays:
    """{"label": int64 [n]}, or {"labels": bool [n, classes]} where an image may have several."""
    if any(sample.truth is not None for sample in decoded.samples):
        return {"labels": np.stack([np.asarray(sample.truth, bool) for sample in decoded.samples])}
    return {"label": np.array([sample.label for sample in decoded.samples], np.int64)}


def _open_boxes(
    name: str, source: Given, *, folder: Path, max_bytes: float, classes: Sequence[str] | None
) -> Source:  # fmt: skip
    found = open_boxes(name, source, folder=folder, classes=classes, max_bytes=max_bytes)
    boxed = map(_boxed, found.samples)
    samples = list(boxed) if isinstance(found.samples, Sequence) else boxed
    return Source(found.origin, samples, found.count, found.class_names, found.identity, found.notes, found.problems)


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


def _open_masks(
    name: str, source: Given, *, folder: Path, max_bytes: float, ignore_index: int, classes: Sequence[str] | None,
    palette: Palette | None,
) -> Source:  # fmt: skip
    """Those that judge are read once, so that all that is wrong with them is told at once."""
    found = open_masks(
        name, source, folder=folder, ignore_index=ignore_index, classes=classes, palette=palette, max_bytes=max_bytes
    )  # fmt: skip
    if name != "train" and isinstance(found.samples, Sequence):
        names = classes or found.class_names
        found = checked(found, classes=None if names is None else len(names))
    masked = map(_masked, found.samples)
    samples = list(masked) if isinstance(found.samples, Sequence) else masked
    return Source(
        found.origin, samples, found.count, found.class_names, found.identity, problems=found.problems
    )  # fmt: skip


def _masked(sample: MaskSample) -> Sample:
    truth = sample if sample.usable else Unusable()
    return Sample(sample.id, sample.image, 0, sample.group, truth, sample.problems)


def _mask_targets(
    decoded: Decoded, preprocess: Preprocess | None, *, origin: str, judges: bool, ignore_index: int,
    classes: Sequence[str] | None, at: Literal["image", "input"],
) -> Arrays:  # fmt: skip
    """Class numbers at the size of each image, or at the network's; none of images that judge nothing."""
    if not judges:
        return {}
    count = None if classes is None else len(classes)
    found = []
    for sample, size in zip(decoded.samples, decoded.sizes.tolist(), strict=True):
        assert isinstance(sample.truth, MaskSample)
        mask = read_mask(sample.truth, classes=count, ignore_index=ignore_index, size=(size[0], size[1]))
        if at == "input" and preprocess is not None:
            mask = fit_mask(mask, preprocess, ignore_index=ignore_index)
        found.append(mask)
    whole = stacked(found, ignore_index=ignore_index)
    if not (whole != ignore_index).any():
        raise SoupError(f"{origin}: all pixels of {len(found)} masks are {ignore_index}: nothing can be judged.")
    canvas = decoded.images.shape[1:3] if decoded.images.dtype == np.uint8 else decoded.images.shape[2:4]
    return {
        "mask": whole,
        "size": decoded.sizes.astype(np.int32),
        "placement": placements(decoded, preprocess),
        "canvas": np.tile(np.array(canvas, np.int32), (len(found), 1)),
    }


def _open_several(
    name: str, source: Given, *, folder: Path, max_bytes: float, classes: Classes
) -> Source:  # fmt: skip
    """labels.csv with any number of labels a row, or a function that gives (image, bool [classes][, id])."""
    if callable(source):
        return open_source(name, source, folder=folder, max_bytes=max_bytes, several_labels=True)
    path = folder / Path(str(source)).expanduser()
    if not isinstance(source, str) or path.suffix != ".csv":
        raise SoupError(
            f"data.{name}: '{source}', expected a .csv or a callable, since classification.multilabel is set."
        )
    columns, rows = read_csv(path)
    if "path" not in columns or not rows:
        raise SoupError(f"{path}: no column path, or no rows below the header, expected path,labels. Add them.")
    if bad := [f"line {line}" for line, row in rows.items() if not row.get("path")]:
        raise SoupError(f"{path}: without path: {several(bad)}. Fill them in.")
    truth, names = read_multilabel(path, columns, rows, classes=classes)
    samples = [
        Sample(row["path"], path.parent / row["path"], 0, row.get("group") or None, labels)
        for row, labels in zip(rows.values(), truth, strict=True)
    ]
    return Source(str(path), samples, len(samples), names, files_identity(path.parent, samples))


LABELS = Reader(open_source, _labels)


def several_labels(classes: Classes) -> Reader:
    """Of images with any number of labels; `classes` as `read_multilabel` takes them, so that splits number alike."""
    return Reader(partial(_open_several, classes=classes), _labels)


def boxes(classes: Sequence[str] | None) -> Reader:
    """Of detection; `classes` are the names in the order of the network's scores, None for the data's order."""
    return Reader(partial(_open_boxes, classes=classes), _box_targets)


def masks(
    ignore_index: int, *, classes: Sequence[str] | None, at: Literal["image", "input"], palette: Palette | None = None
) -> Reader:
    """Of segmentation; pixels of `ignore_index` count for nothing, `at` says at which size masks are compared.

    `palette` is the class of each colour, where masks are colour images.
    """
    return Reader(
        partial(_open_masks, ignore_index=ignore_index, classes=classes, palette=palette),
        partial(_mask_targets, ignore_index=ignore_index, classes=classes, at=at),
    )
