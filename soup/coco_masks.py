"""Masks from COCO's files: instances, whose outlines are drawn, and panoptic PNGs (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import importlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from soup import SoupError
from soup.box_files import measured
from soup.coco_boxes import get, listed_images, numbered, read_document
from soup.files import shown
from soup.masks import MaskSample, MaskSource, Size, dtype_of, identity_of, looked_up, read_pixels, unusable
from soup.sources import Source, several

_BACKGROUND = 0  # of instances: what no outline covers
_VOID = 0  # of panoptic PNGs: the id of pixels without a segment
_LONGEST = 60  # bits of a run length: the compressed form would go on for ever


@dataclass(frozen=True, slots=True)
class Region:
    """One annotated object, checked: outlines in pixels, or the lengths of runs down the columns, off first."""

    label: int
    crowd: bool
    polygons: tuple[tuple[float, ...], ...] = ()
    runs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Entry:
    """An image with its annotations."""

    name: str
    size: Size | None
    items: list[Mapping[str, object]]


def read_instances(
    path: Path, images: Path, *, ignore_index: int, classes: Sequence[str] | None, max_bytes: float
) -> MaskSource:  # fmt: skip
    """Background is class 0, and so is an image without annotations; then categories by ascending id.

    Where objects of different classes overlap, and where a crowd region covers no object, pixels are `ignore_index`.
    Raises SoupError as `coco_boxes.read_coco`; an image with any bad annotation is not used.
    """
    document = read_document(path, max_bytes=max_bytes)
    known = numbered(path, document["categories"], classes)
    order = known.order if classes is not None else ("background", *known.order)
    numbers = {number: label + (classes is None) for number, label in known.numbers.items()}
    entries, problems = _annotated(path, document)
    if any(isinstance(get(item, "segmentation"), list) for item in document["annotations"]):
        _need_pycocotools()  # whose absence is no fault of an image
    samples = []
    for entry in entries:
        where = f"{path}: image '{shown(entry.name)}'"
        try:
            size = _measured(images / entry.name, entry.size)
            regions = _each(partial(_region, numbers=numbers, size=size), entry.items)
            draw = partial(drawn, regions, size, ignore_index=ignore_index, dtype=dtype_of(len(order), ignore_index))
            samples.append(MaskSample(shown(entry.name), images / entry.name, draw, where))
        except SoupError as error:
            samples.append(unusable(shown(entry.name), where, str(error)))
    return _source(path, samples, order, ignore_index, problems)


def read_panoptic(
    path: Path, images: Path, masks: Path, *, ignore_index: int, classes: Sequence[str] | None, max_bytes: float
) -> MaskSource:
    """Categories by ascending id, things and stuff alike, from 0; no segment, and crowds, are `ignore_index`.

    The PNGs in `masks` hold segment ids as R + 256 G + 256² B. Raises SoupError as `coco_boxes.read_coco`.
    """
    document = read_document(path, max_bytes=max_bytes)
    known = numbered(path, document["categories"], classes)
    entries, problems = _annotated(path, document)
    samples = []
    for entry in entries:
        where = f"{path}: image '{shown(entry.name)}'"
        try:
            _measured(images / entry.name, entry.size)
            png, segments = _segments(entry, numbers=known.numbers, ignore_index=ignore_index)
            if not (masks / png).is_file():
                raise SoupError(f"no file {masks / png}, its mask")
            read = partial(by_segment, masks / png, segments)
            samples.append(MaskSample(shown(entry.name), images / entry.name, read, str(masks / png)))
        except SoupError as error:
            samples.append(unusable(shown(entry.name), where, str(error)))
    return _source(path, samples, known.order, ignore_index, problems)


def drawn(
    regions: Sequence[Region], size: Size, *, ignore_index: int, dtype: np.dtype[np.generic]
) -> np.ndarray:  # fmt: skip
    """The class of each pixel, [h, w]; the order of the regions does not matter."""
    labels: np.ndarray = np.full(size, _BACKGROUND, np.int64)
    unclear: np.ndarray = np.zeros(size, bool)
    for region in (one for one in regions if not one.crowd):
        covered = _covered(region, size)
        unclear |= covered & (labels != _BACKGROUND) & (labels != region.label)
        labels[covered] = region.label
    for region in (one for one in regions if one.crowd):
        unclear |= _covered(region, size) & (labels == _BACKGROUND)
    labels[unclear] = ignore_index
    return labels.astype(dtype)


def by_segment(path: Path, segments: Mapping[int, int]) -> np.ndarray:
    """The class of each pixel's segment. Raises SoupError with the bare reason."""

    def pixels(image: object) -> np.ndarray:
        mode = getattr(image, "mode", None)
        if mode != "RGB":
            raise SoupError(f"is an image of mode {mode}, expected RGB: segment ids as R + 256 G + 256² B")
        return np.asarray(image)

    ids = read_pixels(path, pixels).astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
    return looked_up(ids, segments, lambda number: f"the segment {number}", "its segments_info")


def run_lengths(text: str) -> list[int]:
    """COCO's compressed runs: 5 bits in a character from '0' on, low ones first, from the third run on as differences.

    As `rleFrString` of pycocotools, which trusts them. Raises SoupError for text that is none.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > _LONGEST:
            raise SoupError(f"its counts are no compressed run lengths, at {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise SoupError("its counts are cut off")
    return runs


def _annotated(path: Path, document: Mapping[str, Sequence[object]]) -> tuple[list[_Entry], list[str]]:
    """The images in the file's order, and what is wrong with records that belong to none."""
    found, problems = listed_images(path, document["images"])
    entries: dict[Hashable, _Entry] = {number: _Entry(one.name, one.size, []) for number, one in found.items()}
    for index, item in enumerate(document["annotations"]):
        image = get(item, "image_id")
        entry = entries.get(image) if isinstance(image, (int, str)) else None
        if entry is None or not isinstance(item, dict):
            where = f"annotation {get(item, 'id')}" if get(item, "id") is not None else f"annotations[{index}]"
            problems.append(f"{path}: {where}: for no image, its image_id {image!r:.80} is none that is used")
        else:
            entry.items.append(item)
    return list(entries.values()), problems


def _measured(image: Path, told: Size | None) -> Size:
    try:
        return measured(image, told)
    except SoupError as error:
        raise SoupError(f"its file {image}: {error}") from error


def _source(
    path: Path, samples: Sequence[MaskSample], order: tuple[str, ...], ignore: int, problems: Sequence[str]
) -> MaskSource:  # fmt: skip
    if not any(sample.usable for sample in samples):
        wrong = several([*problems, *(problem for sample in samples for problem in sample.problems)])
        raise SoupError(f"{path}: none of {len(samples)} images has a mask that can be used: {wrong}. Repair the file.")
    return Source(str(path), samples, len(samples), order, identity_of(samples), problems=tuple(problems))


def _each(read: partial[Region], items: Sequence[Mapping[str, object]]) -> tuple[Region, ...]:
    """All regions of an image. Raises SoupError with everything that is wrong with any."""
    regions, wrong = [], []
    for item in items:
        try:
            regions.append(read(item))
        except SoupError as error:
            wrong.append(f"annotation {item.get('id')}: {error}")
    if wrong:
        raise SoupError(several(wrong))
    return tuple(regions)


def _region(item: Mapping[str, object], *, numbers: Mapping[int, int], size: Size) -> Region:
    label, crowd, shape = _label(item, numbers), _crowd(item), item.get("segmentation")
    if isinstance(shape, dict):
        return Region(label, crowd, runs=_runs(shape, size))
    if not isinstance(shape, list) or not shape:
        raise SoupError(f"its segmentation is {shape!r:.80}, expected polygons or run lengths")
    return Region(label, crowd, polygons=tuple(_polygon(outline, size) for outline in shape))


def _label(item: Mapping[str, object], numbers: Mapping[int, int]) -> int:
    category = item.get("category_id")
    if not isinstance(category, int) or category not in numbers:
        raise SoupError(
            f"its category_id {category!r:.80} is that of no class, expected one of {several(list(map(str, numbers)))}"
        )
    return numbers[category]


def _crowd(item: Mapping[str, object]) -> bool:
    crowd = item.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise SoupError(f"its iscrowd is {crowd!r:.80}, expected 0 or 1")
    return bool(crowd)


def _polygon(outline: object, size: Size) -> tuple[float, ...]:
    """x, y, x, y, …; far outside of the image pycocotools would ask for more memory than there is."""
    if not isinstance(outline, list) or not all(isinstance(x, (int, float)) for x in outline) or len(outline) % 2:
        raise SoupError(f"its polygon is {outline!r:.80}, expected numbers x, y, x, y, …")
    if len(outline) < 6:
        raise SoupError(f"its polygon has {len(outline) // 2} points, expected 3 or more")
    for axis, side in enumerate(size[::-1]):
        for place in outline[axis::2]:
            if not (math.isfinite(place) and -side <= place <= 2 * side):
                raise SoupError(f"its polygon reaches {place:.6g}, far outside of the image {size[1]}×{size[0]}")
    return tuple(map(float, outline))


def _runs(shape: Mapping[str, object], size: Size) -> tuple[int, ...]:
    counts = shape.get("counts")
    if shape.get("size") != list(size):
        raise SoupError(
            f"its run lengths are for the size {shape.get('size')!r:.80}, expected {list(size)} as its image"
        )
    runs = run_lengths(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise SoupError(f"its counts are {counts!r:.80}, expected run lengths")
    if sum(runs) != size[0] * size[1]:
        raise SoupError(f"its run lengths add up to {sum(runs):,} pixels, expected {size[0] * size[1]:,}")
    return tuple(runs)


def _segments(entry: _Entry, *, numbers: Mapping[int, int], ignore_index: int) -> tuple[str, dict[int, int]]:
    """The PNG's name, and segment id → class."""
    if len(entry.items) != 1:
        raise SoupError(f"has {len(entry.items)} annotations, expected one with its segments")
    name, infos = entry.items[0].get("file_name"), entry.items[0].get("segments_info")
    if not isinstance(name, str) or not isinstance(infos, list):
        raise SoupError("its annotation lacks file_name or segments_info")
    segments, wrong = {_VOID: ignore_index}, []
    for index, info in enumerate(infos):
        number = get(info, "id")
        try:
            if not isinstance(info, dict) or not isinstance(number, int) or not 0 < number < 1 << 24:
                raise SoupError(f"its id is {number!r:.80}, expected a whole number from 1 to {(1 << 24) - 1}")
            if number in segments:
                raise SoupError(f"its id {number} again")
            label = _label(info, numbers)
            segments[number] = ignore_index if _crowd(info) else label
        except SoupError as error:
            wrong.append(f"segments_info[{index}]: {error}")
    if wrong:
        raise SoupError(several(wrong))
    return name, segments


def _covered(region: Region, size: Size) -> np.ndarray:
    """bool [h, w]."""
    runs: Sequence[int] = region.runs
    if not runs:
        coco = _need_pycocotools()
        outlines = coco.frPyObjects([list(outline) for outline in region.polygons], *size)
        runs = run_lengths(coco.merge(outlines)["counts"].decode())
    covered: np.ndarray = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size, order="F")
    return covered


def _need_pycocotools() -> Any:
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise SoupError(
            "polygons are drawn by the module 'pycocotools'. Run: pip install 'edgesoup[detection]'", kind="environment"
        ) from error
