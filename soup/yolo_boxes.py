"""Boxes from YOLO's text files, one for each image: a line is a class number, centre x and y, width and height.

All four are parts of the image's sides (https://docs.ultralytics.com/datasets/detect/). A line with the corners of a
polygon instead stands for the box around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from soup import SoupError
from soup.box_files import by_key, listed, measured, relative, source_of
from soup.box_records import MAX_CLASS, BoxSample, BoxSource, Marked, checked, unknown, unusable
from soup.sources import several

_NO_LABELS = ("classes", "labels", "obj", "train", "val", "test")  # names of lists that lie beside label files


def read_yolo(images: Path, labels: Path, *, split: Path | None, classes: Sequence[str] | None) -> BoxSource:
    """The images that the list file `split` names, or all below `images`, in sorted order; boxes stay normalised.

    The labels of images/sub/a.jpg are labels/sub/a.txt; an image without such a file has no objects, as YOLO has it.
    Class names are looked for as classes.txt and data.yaml in both folders and the two above each. Where they are found
    `classes` numbers anew by name; else it names the numbers. Without either, a class is its number.
    Raises SoupError where there is nothing to judge by. What is wrong with an image is told with its sample.
    """
    pictures, texts = by_key(images), by_key(labels, (".txt",))
    if not pictures:
        raise SoupError(f"{images}: holds no images.")
    names, notes = _names(images, labels)
    lines, problems = ({}, []) if split is None else listed(split, pictures, images)
    samples = []
    for key in lines or pictures:
        if key not in pictures:
            samples.append(unusable(key, SoupError("no such image"), f"{lines[key]}: no {key}.* in {images}"))
        for picture in pictures.get(key, []):
            samples.append(
                _sample(relative(picture, images), picture, texts.get(key, []), names=names, classes=classes)
            )
    bare = [key for key in lines or pictures if key in pictures and key not in texts]
    if bare:
        notes += [f"{labels}: {len(bare):,} images have no label file and count as without objects: {several(bare)}"]
    if split is None:
        alone = [key for key in texts if key not in pictures and Path(key).name not in _NO_LABELS]
        problems += [f"{texts[key][0]}: for no image, no {key}.* in {images}" for key in alone]
    return source_of(
        "YOLO",
        samples,
        origin=split or images,
        images=images,
        class_names=tuple(classes or names) or None,
        notes=notes,
        problems=problems,
    )


def _names(images: Path, labels: Path) -> tuple[tuple[str, ...], list[str]]:
    """Class names in the order of their numbers, and where they came from."""
    folders = [labels, *labels.parents[:2], images, *images.parents[:2]]
    for path in (folder / name for folder in dict.fromkeys(folders) for name in ("classes.txt", "data.yaml")):
        if not path.is_file():
            continue
        try:
            text = path.read_text("utf-8-sig")
            found = _from_yaml(text) if path.suffix == ".yaml" else [line.strip() for line in text.splitlines()]
        except (OSError, ValueError, yaml.YAMLError) as error:
            told = " ".join(str(error).split())
            raise SoupError(f"{path}: cannot be read for the names of the classes: {told}.") from error
        while found and not found[-1]:
            found = found[:-1]
        if found:
            return tuple(found), [f"{path}: names {len(found)} classes"]
    return (), []


def _from_yaml(text: str) -> list[str]:
    """The list `names`, or the map from number to name. Raises ValueError for others."""
    document = yaml.safe_load(text)
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise ValueError(f"names has the keys {', '.join(map(str, names))}, expected 0 to {len(names) - 1}")
        names = [names.get(number, names.get(str(number))) for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError("expected 'names' as a list, or a map from number to name")
    return [str(name) for name in names]


def _sample(
    name: str, image: Path, texts: Sequence[Path], *, names: Sequence[str], classes: Sequence[str] | None
) -> BoxSample:
    try:
        size = measured(image, None)
    except SoupError as error:
        return unusable(name, error, f"{image}: {str(error).rstrip('.')}")
    if not texts:
        return BoxSample(name, image, checked([], where="", size=(1, 1), normalized=True)[0], None)
    try:
        lines = texts[0].read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        told = f"{texts[0]}: cannot be read: {getattr(error, 'strerror', None) or error}"
        return unusable(name, SoupError("its labels cannot be read"), told)
    problems: list[str] = []
    objects = list(_objects(lines, f"{texts[0]}", names, classes, problems))
    # Whichever way EXIF turns it, a pixel is at most this part of a side.
    truth, bad = checked(objects, where=str(texts[0]), size=(1, 1), margin=1 / min(size), normalized=True)
    return BoxSample(name, image, truth, None, (*problems, *bad))


def _objects(
    lines: Sequence[str], where: str, names: Sequence[str], classes: Sequence[str] | None, problems: list[str]
) -> Iterator[Marked]:
    """The objects of the lines that can be read; appends what is wrong with the others."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = _values(line)
            yield Marked(f"line {number}", _corners(values[1:]), _label(values[0], names, classes))
        except SoupError as error:
            problems.append(f"{where}: line {number}: {error}")


def _values(line: str) -> list[float]:
    try:
        values = [float(cell) for cell in line.split()]
    except ValueError:
        raise SoupError(f"'{line.strip():.80}' is not of numbers only") from None
    if len(values) == 5 or (len(values) > 6 and len(values) % 2):
        return values
    raise SoupError(
        f"{len(values)} numbers, expected 5 (class, centre x and y, width, height), or a class and 3 or more corners"
    )


def _corners(values: Sequence[float]) -> tuple[float, float, float, float]:
    if len(values) > 4:
        across, down = values[0::2], values[1::2]
        odd = [value for value in values if not abs(value) < float("inf")]
        return (odd[0],) * 4 if odd else (min(across), min(down), max(across), max(down))
    x, y, width, height = values
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _label(value: float, names: Sequence[str], classes: Sequence[str] | None) -> int:
    count = len(names or classes or ()) or MAX_CLASS
    if not (0 <= value < count and value.is_integer()):
        raise SoupError(f"the class {value:g} is none of the numbers 0 to {count - 1}")
    label = int(value)
    if classes is None or not names:
        return label
    if names[label] not in classes:
        raise SoupError(unknown(names[label], classes))
    return list(classes).index(names[label])
