"""Boxes from one JSON file in COCO's form (https://cocodataset.org/#format-data, object detection)."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soup import SoupError
from soup.box_files import file_sample, source_of
from soup.box_records import BoxSample, BoxSource, Marked, Size, unknown
from soup.files import shown
from soup.sources import several

_Id = int | str


@dataclass(frozen=True, slots=True)
class _Image:
    """One entry of `images` with the annotations that name it; the lists grow while these are read."""

    name: str
    size: Size | None
    objects: list[Marked] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Classes:
    """Category id → its name, and its number if it has one."""

    order: tuple[str, ...]
    names: Mapping[int, str]
    numbers: Mapping[int, int]


def read_coco(path: Path, images: Path | None, *, classes: Sequence[str] | None, max_bytes: float) -> BoxSource:
    """The images of a file in its order; boxes x y width height become corners, `iscrowd` crowd; segmentations and
    keypoints are passed over.

    Classes are `classes`, found by their names, else the file's categories by ascending id, used or not. Without
    `images`, they are looked for beside the file: in its folder, images/, ../NAME, ../images/NAME and ../images, NAME
    being the file's without `instances_` and `.json`; that which holds most of them is taken, the first of equals.
    Raises SoupError where the file cannot be read, is larger than `max_bytes`, or has nothing to judge by.
    """
    document = read_document(path, max_bytes=max_bytes)
    known = numbered(path, document["categories"], classes)
    entries, problems = listed_images(path, document["images"])
    problems += _annotate(path, document["annotations"], entries, known)
    folder = images or _beside(path, [entry.name for entry in entries.values()])
    samples = [_sample(entry, folder, path) for entry in entries.values()]
    return source_of(
        "COCO",
        samples,
        origin=path,
        images=folder,
        class_names=known.order,
        notes=_notes(path, known),
        problems=problems,
    )


def read_document(path: Path, *, max_bytes: float) -> dict[str, list[object]]:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise SoupError(
                f"{path}: {size / 1e9:.1f} GB, more than data.cache.max_gb = {max_bytes / 1e9:g}. Raise it."
            )
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SoupError(f"{path}: cannot be read as JSON: {getattr(error, 'strerror', None) or error}.") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(key), list) for key in lists):
        found = sorted(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise SoupError(f"{path}: expected an object with the lists {', '.join(lists)} as COCO has it, found {found}.")
    return document


def numbered(path: Path, categories: Sequence[object], wanted: Sequence[str] | None) -> _Classes:
    names: dict[int, str] = {}
    problems = []
    for index, category in enumerate(categories):
        where = f"categories[{index}]"
        number, name = get(category, "id"), get(category, "name")
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(name, str):
            problems.append(f"{where}: expected a whole number 'id' and a text 'name'")
        elif number in names:
            problems.append(f"{where}: the id {number} of '{names[number]}' again")
        else:
            names[number] = name
    if problems or not names:
        raise SoupError(
            f"{path}: {several(problems) or 'no categories'}. Without them no box has a class; repair them."
        )
    ascending = {number: names[number] for number in sorted(names)}
    if wanted is None:
        return _Classes(tuple(ascending.values()), ascending, {number: row for row, number in enumerate(ascending)})
    places = {name: place for place, name in enumerate(wanted)}
    numbers = {number: places[name] for number, name in ascending.items() if name in places}
    return _Classes(tuple(wanted), ascending, numbers)


def listed_images(path: Path, items: Sequence[object]) -> tuple[dict[Hashable, _Image], list[str]]:
    """Entries by their ids; those that cannot be told apart are left out."""
    entries: dict[Hashable, _Image] = {}
    names: dict[str, object] = {}
    problems = []
    for index, item in enumerate(items):
        number, name = get(item, "id"), get(item, "file_name")
        where = f"{path}: images[{index}]"
        if not isinstance(number, _Id) or not isinstance(name, str) or not name:
            problems.append(f"{where}: expected 'id' and 'file_name'")
            continue
        name = posixpath.normpath(name.replace("\\", "/"))
        if number in entries or name in names:
            told = f"the id {number}" if number in entries else f"'{name}'"
            first = entries[number].name if number in entries else f"id {names[name]}"
            problems.append(f"{where}: {told} again, as of {first}; this entry is not used")
            continue
        names[name] = number
        sides = _whole(get(item, "height")), _whole(get(item, "width"))
        entries[number] = _Image(name, sides if all(sides) else None)
    if not entries:
        raise SoupError(
            f"{path}: no images{f': {several(problems)}' if problems else ''}. Give a file that lists some."
        )
    return entries, problems


def _annotate(path: Path, items: Sequence[object], entries: Mapping[Hashable, _Image], known: _Classes) -> list[str]:
    """Gives every image its objects and problems; returns the problems of annotations for no image."""
    orphans = []
    for index, item in enumerate(items):
        number, image = get(item, "id"), get(item, "image_id")
        where = f"annotation {number}" if isinstance(number, _Id) else f"annotations[{index}]"
        entry = entries.get(image) if isinstance(image, _Id) else None
        if entry is None or not isinstance(item, dict):
            orphans.append(f"{path}: {where}: for no image, its image_id {image!r} is none that is used")
            continue
        try:
            entry.objects.append(_marked(item, where, known))
        except SoupError as error:
            entry.problems.append(f"{path}: {where}: {error}")
    return orphans


def _marked(item: Mapping[str, object], where: str, known: _Classes) -> Marked:
    """Raises SoupError with the bare reason."""
    category, box, crowd, area = map(item.get, ("category_id", "bbox", "iscrowd", "area"))
    label = known.numbers.get(category) if isinstance(category, int) else None
    if label is None:
        name = known.names.get(category) if isinstance(category, int) else None
        if name is not None:
            raise SoupError(unknown(name, known.order))
        raise SoupError(f"its category_id {category!r} is not among the file's categories")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise SoupError(f"its bbox is {box!r:.80}, expected four numbers x y width height")
    if crowd not in (None, 0, 1):
        raise SoupError(f"its iscrowd is {crowd!r:.80}, expected 0 or 1")
    if area is not None and not _is_number(area):
        raise SoupError(f"its area is {area!r:.80}, expected a number")
    x, y, width, height = map(_float, box)
    corners = x, y, x + width, y + height
    return Marked(where, corners, label, crowd=bool(crowd), area=None if area is None else _float(area))


def _beside(path: Path, names: Sequence[str]) -> Path:
    stem = path.stem.removeprefix("instances_")
    above = path.parent.parent
    folders = [path.parent, path.parent / "images", above / stem, above / "images" / stem, above / "images"]
    held = {folder: sum(_is_there(folder / name) for name in names) for folder in folders if folder.is_dir()}
    best = max(held, key=lambda folder: held[folder])
    if not held[best]:
        raise SoupError(
            f"{path}: '{names[0]}' and its other images are in none of {', '.join(map(str, folders))}. "
            "Say where they are: {images: FOLDER, annotations: FILE}."
        )
    return best


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _sample(entry: _Image, folder: Path, path: Path) -> BoxSample:
    image, name = folder / entry.name, shown(entry.name)
    return file_sample(name, image, entry.objects, where=str(path), told=entry.size, problems=entry.problems)


def _notes(path: Path, known: _Classes) -> list[str]:
    twice = sorted({name for name in known.order if known.order.count(name) > 1})
    return [f"{path}: several classes have the same name: {several(twice)}"] if twice else []


def get(item: object, key: str) -> object:
    return item.get(key) if isinstance(item, dict) else None


def _whole(value: object) -> int:
    """A side in pixels; 0 where the file tells none."""
    return int(value) if isinstance(value, int) and value > 0 else 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _float(value: object) -> float:
    """Inf where JSON's integer is beyond what floats hold; the check of the box tells."""
    try:
        return float(value) if isinstance(value, (int, float)) else float("nan")
    except OverflowError:
        return float("inf")
