"""Boxes from Pascal VOC's XML files, one for each image (Everingham et al., The PASCAL VOC Development Kit, 2012).

Corners are taken as they are written, as torchvision's VOCDetection gives them: the edges of a box in pixels, so its
width is xmax - xmin. The development kit means them as the first and last pixel inside, counted from 1, and would have
xmin - 1 and ymin - 1; but the tools that write such files today (LabelImg, CVAT, Roboflow) write edges, trainers feed
them as they are, and a box whose corners coincide is a slip of the mouse and not an object of one pixel.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from soup import SoupError
from soup.box_files import by_key, file_sample, listed, relative, source_of
from soup.box_records import BoxSample, BoxSource, Marked, Size, unknown, unusable
from soup.sources import several

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"1": True, "true": True, "0": False, "false": False, "": False, "unspecified": False}


@dataclass(frozen=True, slots=True)
class _Object:
    where: str
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True, slots=True)
class _Annotation:
    """One XML file."""

    size: Size | None
    objects: tuple[_Object, ...]
    problems: tuple[str, ...]  # of objects that cannot be read


_Found = Mapping[str, _Annotation | SoupError]


class _NoDoctype(ElementTree.TreeBuilder):
    """Entities are declared in a DOCTYPE, and a few of them, one in the other, make gigabytes; VOC has none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise SoupError("holds a DOCTYPE, expected plain XML")


def read_voc(annotations: Path, images: Path, *, split: Path | None, classes: Sequence[str] | None) -> BoxSource:
    """The images that the list file `split` names, or all that have an XML file of their name (its path below
    `annotations`), in sorted order.

    Classes are `classes`, else all names in the folder in sorted order, whatever the split, so that splits agree.
    `difficult` objects are crowd. A size of 0 in the annotation counts as none.
    Raises SoupError where there is nothing to judge by. What is wrong with an image is told with its sample.
    """
    files, pictures = by_key(annotations, (".xml",)), by_key(images)
    if not files:
        raise SoupError(f"{annotations}: holds no .xml files, expected one for each image.")
    found = {key: _read(paths[0]) for key, paths in files.items()}
    names = {
        one.name for annotation in found.values() if isinstance(annotation, _Annotation) for one in annotation.objects
    }
    class_names = tuple(sorted(names) if classes is None else classes)
    lines, problems = ({}, []) if split is None else listed(split, {**files, **pictures}, images)
    samples = [
        _sample(key, found.get(key), files.get(key, []), pictures.get(key, []), images=images, class_names=class_names)
        if key in files
        else unusable(key, SoupError("no annotation"), f"{lines[key]}: no {key}.xml in {annotations}")
        for key in lines or files
    ]
    return source_of(
        "Pascal VOC",
        samples,
        origin=split or annotations,
        images=images,
        class_names=class_names,
        notes=_notes(annotations, found, pictures, lines),
        problems=problems,
    )


def _notes(annotations: Path, found: _Found, pictures: Mapping[str, object], lines: Mapping[str, str]) -> list[str]:
    """What was passed over."""
    bare = [] if lines else [key for key in pictures if key not in found]
    others = [key for key, one in found.items() if isinstance(one, SoupError) and lines and key not in lines]
    return [
        f"{annotations}: {len(keys)} {what}: {several(keys)}"
        for keys, what in (
            (bare, "images have no .xml and are left out"),
            (others, "files outside of the list cannot be read, and add no classes"),
        )
        if keys
    ]


def _sample(
    key: str,
    found: _Annotation | SoupError | None,
    files: Sequence[Path],
    pictures: Sequence[Path],
    *,
    images: Path,
    class_names: tuple[str, ...],
) -> BoxSample:
    path = files[0]
    if not isinstance(found, _Annotation):
        return unusable(key, found or SoupError("no annotation"), f"{path}: {found}")
    if len(pictures) != 1:
        told = f"{len(pictures)} images of its name" if pictures else f"no image {key}.*"
        return unusable(key, SoupError(told), f"{path}: {told} in {images}, expected one")
    known = {name: number for number, name in enumerate(class_names)}
    objects = [
        Marked(f"{one.where} '{one.name}'", one.corners, known[one.name], crowd=one.difficult)
        for one in found.objects
        if one.name in known
    ]
    strange = [f"{one.where}: {unknown(one.name, class_names)}" for one in found.objects if one.name not in known]
    return file_sample(
        relative(pictures[0], images),
        pictures[0],
        objects,
        where=str(path),
        told=found.size,
        problems=[f"{path}: {problem}" for problem in (*found.problems, *strange)],
    )


def _read(path: Path) -> _Annotation | SoupError:
    try:
        parser = ElementTree.XMLParser(target=_NoDoctype())
        parser.feed(path.read_bytes())
        root: ElementTree.Element = parser.close()
    except SoupError as error:
        return error
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        return SoupError(f"cannot be read as XML: {getattr(error, 'strerror', None) or error}")
    if root.tag != "annotation":
        return SoupError(f"is <{root.tag}>, expected an <annotation>")
    objects: list[_Object] = []
    problems = []
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            objects.append(_object(element, f"object {number}"))
        except SoupError as error:
            problems.append(str(error))
    try:
        return _Annotation(_size(root), tuple(objects), tuple(problems))
    except SoupError as error:
        return error


def _object(element: ElementTree.Element, where: str) -> _Object:
    name, box = _text(element, "name"), element.find("bndbox")
    if not name or box is None:
        raise SoupError(f"{where}: no <{'bndbox' if name else 'name'}>")
    where_named = f"{where} '{name}'"
    texts = [_text(box, corner) for corner in _CORNERS]
    flag = _text(element, "difficult").lower()
    if flag not in _FLAGS:
        raise SoupError(f"{where_named}: <difficult> is '{flag}', expected 0 or 1")
    try:
        left, top, right, bottom = map(float, texts)
    except ValueError:
        told = " ".join(f"{corner} '{text}'" for corner, text in zip(_CORNERS, texts, strict=True))
        raise SoupError(f"{where_named}: {told}, expected four numbers") from None
    return _Object(where, name, (left, top, right, bottom), _FLAGS[flag])


def _size(root: ElementTree.Element) -> Size | None:
    """As annotated; tools that did not know it leave it out, or write 0."""
    texts = _text(root, "size/height"), _text(root, "size/width")
    try:
        height, width = (int(float(text or "0")) for text in texts)
    except (ValueError, OverflowError):
        raise SoupError(f"<size> is {' and '.join(texts)}, expected whole numbers") from None
    return (height, width) if height > 0 and width > 0 else None


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
