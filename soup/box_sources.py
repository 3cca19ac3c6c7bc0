"""Where the images and boxes of a split come from: VOC, COCO or YOLO files, or the user's function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from soup import SoupError
from soup.box_files import by_key, measured
from soup.box_records import (
    MAX_CLASS,
    BoxSample,
    BoxSource,
    Marked,
    Size,
    Truth,
    checked,
    in_pixels,
    refuse_empty,
    unusable,
)
from soup.coco_boxes import read_coco
from soup.sources import from_function
from soup.voc_boxes import read_voc
from soup.yolo_boxes import read_yolo

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["BoxSample", "BoxSource", "Truth", "in_pixels", "open_boxes", "refuse_empty"]

Parts = Mapping[str, str | None]  # images, annotations[, list]
_EXPECTED = (
    "Give a Pascal VOC folder (Annotations/ and JPEGImages/) or its ImageSets/Main/LIST.txt, a COCO .json, "
    "a YOLO folder (images/ and labels/) or its images/SPLIT, or {images: …, annotations: …[, list: …]}."
)


def open_boxes(
    name: str,
    source: str | Parts | Callable[[], object],
    *,
    folder: Path,
    classes: Sequence[str] | None = None,
    max_bytes: float,
) -> BoxSource:
    """List the images of the split `name` with their boxes; paths are relative to `folder`. No image is decoded yet.

    A path: what each reader says (`voc_boxes`, `coco_boxes`, `yolo_boxes`). A VOC folder stands for all its images, a
    file ROOT/ImageSets/KIND/LIST.txt for those that it names. Of a YOLO folder's path the last `images` becomes
    `labels`. Parts: `images` is a folder, `annotations` a COCO file, or a folder of VOC's .xml or YOLO's .txt, `list` a
    file that names images of such a folder, one on each line.
    Function: called without arguments, gives a dataset (len and index) or an iterable of
    (image, {"boxes": [g, 4] x1 y1 x2 y2 in pixels, "labels": [g][, "iscrowd": [g]][, "area": [g]]}[, id]), as
    torchvision's detectors take it, but with classes counted from 0: there is no background. It is read in turn, so
    that problems are told with each sample, and `refuse_empty` is the caller's to ask at the end.

    `classes`: the order of the class names; without it, each reader has its own. Raises SoupError where nothing sane
    can follow; what is wrong with single images and boxes is in `BoxSample.problems` and `BoxSource.problems`.
    """
    found = _listed(name, source, folder=folder, classes=classes, max_bytes=max_bytes)
    if name != "train" and isinstance(found.samples, Sequence):  # train judges nothing
        refuse_empty(found.origin, found.samples, found.problems)
    return found


def _listed(
    name: str,
    source: str | Parts | Callable[[], object],
    *,
    folder: Path,
    classes: Sequence[str] | None,
    max_bytes: float,
) -> BoxSource:
    if isinstance(source, Mapping):
        return _from_parts(f"data.{name}", source, folder=folder, classes=classes, max_bytes=max_bytes)
    if not isinstance(source, str):
        names = None if classes is None else tuple(classes)
        read = partial(_item_sample, classes=names)
        return from_function(name, source, read, gives="(image, target[, id])", class_names=names)
    path = folder / Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, classes)
    if not path.is_file():
        raise SoupError(f"{path}: no such file or folder. {_EXPECTED}")
    if path.suffix == ".json":
        return read_coco(path, None, classes=classes, max_bytes=max_bytes)
    root = path.parents[2] if path.parent.parent.name == "ImageSets" else None
    if root is None or path.suffix != ".txt":
        raise SoupError(f"{path}: is no known kind of data. {_EXPECTED}")
    return read_voc(root / "Annotations", _voc_images(root), split=path, classes=classes)


def _from_folder(path: Path, classes: Sequence[str] | None) -> BoxSource:
    if (path / "Annotations").is_dir():
        return read_voc(path / "Annotations", _voc_images(path), split=None, classes=classes)
    if (path / "images").is_dir() and (path / "labels").is_dir():
        return read_yolo(path / "images", path / "labels", split=None, classes=classes)
    if "images" in path.parts:
        place = len(path.parts) - 1 - path.parts[::-1].index("images")
        labels = Path(*path.parts[:place], "labels", *path.parts[place + 1 :])
        if labels.is_dir():
            return read_yolo(path, labels, split=None, classes=classes)
        raise SoupError(f"{path}: no folder {labels} with its labels. {_EXPECTED}")
    if next(path.glob("*.xml"), None):
        return read_voc(path, path, split=None, classes=classes)
    found = sorted(entry.name for entry in path.iterdir())[:10]
    raise SoupError(f"{path}: is no known kind of data, it holds {', '.join(found) or 'nothing'}. {_EXPECTED}")


def _voc_images(root: Path) -> Path:
    """JPEGImages, or the one folder beside Annotations that holds images."""
    if (root / "JPEGImages").is_dir():
        return root / "JPEGImages"
    others = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith((".", "Seg"))]
    found = [entry for entry in others if by_key(entry)]
    if len(found) != 1:
        told = f"several folders of images: {', '.join(entry.name for entry in found)}" if found else "no images"
        raise SoupError(f"{root}: no folder JPEGImages, and {told}. Say where: {{images: …, annotations: …}}.")
    return found[0]


def _from_parts(
    where: str, parts: Parts, *, folder: Path, classes: Sequence[str] | None, max_bytes: float
) -> BoxSource:
    given = {key: folder / Path(text).expanduser() for key, text in parts.items() if text is not None}
    if not {"images", "annotations"} <= given.keys() <= {"images", "annotations", "list"}:
        raise SoupError(f"{where}: has {', '.join(given) or 'nothing'}, expected images, annotations[, list].")
    images, annotations, split = given["images"], given["annotations"], given.get("list")
    for path, there, kind in (
        (images, images.is_dir(), "folder"),
        (annotations, annotations.exists(), "file or folder"),
        (split, split is None or split.is_file(), "file"),
    ):
        if not there:
            raise SoupError(f"{path}: no such {kind}. {_EXPECTED}")
    if annotations.is_file():
        if annotations.suffix != ".json" or split is not None:
            raise SoupError(
                f"{annotations}: a file of annotations is COCO's .json, and lists its images itself. {_EXPECTED}"
            )
        return read_coco(annotations, images, classes=classes, max_bytes=max_bytes)
    if by_key(annotations, (".xml",)):
        return read_voc(annotations, images, split=split, classes=classes)
    if by_key(annotations, (".txt",)):
        return read_yolo(images, annotations, split=split, classes=classes)
    raise SoupError(f"{annotations}: holds no .xml and no .txt, expected one for each image. {_EXPECTED}")


def _item_sample(item: object, index: int, where: str, *, classes: tuple[str, ...] | None) -> BoxSample:
    if isinstance(item, SoupError):
        return unusable(str(index), item, f"{where}: {str(item).rstrip('.')}")
    if not isinstance(item, (tuple, list)) or len(item) not in (2, 3) or not isinstance(item[1], Mapping):
        raise SoupError(f'{where} is {type(item).__name__}, expected (image, {{"boxes": …, "labels": …}}[, id]).')
    image = item[0].detach().cpu() if hasattr(item[0], "detach") else item[0]
    key = str(item[2]) if len(item) == 3 else str(index)
    try:
        size = _size(image)
    except SoupError as error:
        return unusable(key, error, f"{where}: {image}: {str(error).rstrip('.')}")
    objects, problems = _objects(item[1], where, classes)
    truth, bad = checked(objects, where=where, size=size)
    return BoxSample(key, image, truth, size, (*problems, *bad))


def _objects(
    target: Mapping[object, object], where: str, classes: tuple[str, ...] | None
) -> tuple[list[Marked], list[str]]:
    if missing := [key for key in ("boxes", "labels") if key not in target]:
        raise SoupError(f"{where}: its target has no {' and '.join(missing)}, only {', '.join(map(str, target))}.")
    kept = [key for key in ("boxes", "labels", "iscrowd", "area") if key in target]
    arrays = {key: _array(target[key], f"{where}: '{key}'") for key in kept}
    if arrays["boxes"].size == 0:
        arrays["boxes"] = arrays["boxes"].reshape(-1, 4)
    form = getattr(target["boxes"], "format", None)
    if getattr(form, "name", "XYXY") != "XYXY":
        raise SoupError(f"{where}: its boxes are {form}, expected x1 y1 x2 y2.")
    count = len(arrays["boxes"]) if arrays["boxes"].ndim else 0
    for key, array in arrays.items():
        shape = (count, 4) if key == "boxes" else (count,)
        if array.shape != shape or (key == "labels" and count and array.dtype.kind not in "iu"):
            kind = "integers" if key == "labels" else "numbers"
            raise SoupError(f"{where}: '{key}' is {array.dtype} {array.shape}, expected {kind} {shape}.")
    crowd = arrays.get("iscrowd", np.zeros(count, bool)).astype(bool)
    area = arrays["area"].tolist() if "area" in arrays else [None] * count
    limit = MAX_CLASS if classes is None else len(classes)
    rows = zip(arrays["boxes"].tolist(), arrays["labels"].tolist(), crowd.tolist(), area, strict=True)
    objects, problems = [], []
    for row, (box, label, is_crowd, own) in enumerate(rows):
        if not 0 <= label < limit:
            problems.append(f"{where}: object {row}: the class {label} is none of the numbers 0 to {limit - 1}")
        else:
            objects.append(Marked(f"object {row}", tuple(box), label, crowd=is_crowd, area=own))
    return objects, problems


def _array(value: object, where: str) -> np.ndarray:
    value = value.detach().cpu() if hasattr(value, "detach") else value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise SoupError(f"{where} is {type(value).__name__} that makes no array.") from error
    if array.size and array.dtype.kind not in "biuf":
        raise SoupError(f"{where} is {array.dtype}, expected numbers.")
    return array


def _size(image: object) -> Size | None:
    """Of floats [c, h, w], bytes [h, w] or [h, w, 1 | 3 | 4], a PIL image or a file; None for what no decoder takes."""
    if isinstance(image, Path):
        return measured(image, None)
    if hasattr(image, "convert"):
        picture = cast("PIL.Image.Image", image)
        return picture.height, picture.width
    shape = tuple(int(side) for side in getattr(image, "shape", ()))
    if len(shape) == 3 and "float" in str(getattr(image, "dtype", "")):
        return shape[1], shape[2]
    return (shape[0], shape[1]) if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4)) else None
