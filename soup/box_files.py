"""Files of detection data: found by name, listed, measured, and told apart where they are missing."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from soup import SoupError
from soup.box_records import BoxSample, BoxSource, Marked, Size, checked, unusable
from soup.files import shown
from soup.image_files import SUFFIXES, files_below
from soup.sources import Sample, Source, files_identity

_ORIENTATION = 0x0112  # the EXIF tag (Exif 2.32, 4.6.4); 5 to 8 stand for a quarter turn


def by_key(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, list[Path]]:
    """`files_below` by their path in the folder without the suffix."""
    found: dict[str, list[Path]] = {}
    for path in files_below(folder, suffixes):
        found.setdefault(relative(path.with_suffix(""), folder), []).append(path)
    return dict(sorted(found.items()))


def relative(path: Path, folder: Path) -> str:
    """A file's path in `folder`, with slashes, as text that can be written anywhere."""
    return shown(path.relative_to(folder).as_posix())


def listed(path: Path, known: Mapping[str, object], images: Path) -> tuple[dict[str, str], list[str]]:
    """Key of each line of a list file → the line as messages name it; and what is wrong with the list.

    A line is a key of `known` with or without suffix, or the path of an image below `images` from the list's folder.
    Raises SoupError where it cannot be read, or names nothing.
    """
    try:
        texts = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SoupError(f"{path}: cannot be read as a list of images: {error}.") from error
    lines: dict[str, str] = {}
    problems = []
    for number, text in enumerate(map(str.strip, texts), start=1):
        if text:
            key, where = _key(text, path.parent, known, images), f"{path}: line {number} '{text}'"
            problems += (
                [f"{where}: the same image as in {lines[key].removeprefix(f'{path}: ')}"] if key in lines else []
            )
            lines.setdefault(key, where)
    if not lines:
        raise SoupError(f"{path}: names no image, expected one on each line.")
    return lines, problems


def file_sample(
    name: str, image: Path, objects: Sequence[Marked], *, where: str, told: Size | None, problems: Sequence[str] = ()
) -> BoxSample:
    """A sample with boxes in pixels; `told` is the image's size as its annotation has it."""
    try:
        size = measured(image, told)
    except SoupError as error:
        return unusable(name, error, f"{where}: {image}: {str(error).rstrip('.')}", *problems)
    truth, bad = checked(objects, where=where, size=size)
    return BoxSample(name, image, truth, size, (*problems, *bad))


def measured(path: Path, told: Size | None) -> Size:
    """Height and width, from the head of the file. Raises SoupError with the bare reason, also where `told` differs.

    `told` may be the size after the turn that EXIF asks for, too: cv2 makes that turn, PIL does not.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            found = image.height, image.width
            turned = told not in (None, found) and image.getexif().get(_ORIENTATION, 1) > 4
    except UnidentifiedImageError as error:
        raise SoupError("no image format that PIL knows") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise SoupError(str(getattr(error, "strerror", None) or error)) from error
    if told is None or told == found or (turned and told == found[::-1]):
        return told or found
    raise SoupError(f"has {found[1]}×{found[0]} pixels, but its annotation says {told[1]}×{told[0]}")


def source_of(
    kind: str,
    samples: Sequence[BoxSample],
    *,
    origin: Path,
    images: Path,
    class_names: tuple[str, ...] | None,
    notes: Sequence[str],
    problems: Sequence[str],
) -> BoxSource:
    """The source that a reader hands back."""
    boxes = sum(len(sample.truth.labels) for sample in samples if sample.truth is not None)
    first = f"{origin}: read as {kind}: {len(samples):,} images from {images} with {boxes:,} boxes"
    return Source(
        origin=str(origin),
        samples=samples,
        count=len(samples),
        class_names=class_names,
        identity=files_identity(images, [Sample(one.id, one.image, 0, None) for one in samples]),
        notes=(first, *notes),
        problems=tuple(problems),
    )


def _key(text: str, beside: Path, known: Mapping[str, object], images: Path) -> str:
    stem = text[: -len(Path(text).suffix)] if text.lower().endswith((*SUFFIXES, ".xml", ".txt")) else text
    if text in known or stem in known:
        return text if text in known else stem
    inside = os.path.relpath(os.path.abspath(beside / stem), os.path.abspath(images))  # noqa: PTH100
    return shown(Path(inside).as_posix()) if Path(inside).as_posix() in known else stem
