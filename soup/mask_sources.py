"""Where the images and masks of a split come from: two folders, COCO's files, or the user's function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from soup import SoupError
from soup.box_files import by_key, listed
from soup.coco_masks import read_instances, read_panoptic
from soup.masks import (
    MaskSample,
    MaskSource,
    Palette,
    by_color,
    checked,
    fit_mask,
    identity_of,
    read_mask,
    stacked,
    unusable,
)  # fmt: skip
from soup.sources import Source, from_function, several

__all__ = ["MaskSample", "MaskSource", "checked", "fit_mask", "open_masks", "read_mask", "stacked"]

Parts = Mapping[str, str | None]  # images, masks[, list], or images, annotations[, panoptic]
_FOLDERS = (("images", "masks"), ("JPEGImages", "SegmentationClass"))
_EXPECTED = (
    "Give a folder with images/ and masks/ (or JPEGImages/ and SegmentationClass/), a VOC folder's "
    "ImageSets/Segmentation/LIST.txt, {images: …, masks: …[, list: …]}, or {images: …, annotations: FILE.json"
    "[, panoptic: …]}."
)


def open_masks(
    name: str,
    source: str | Parts | Callable[[], object],
    *,
    folder: Path,
    ignore_index: int,
    classes: Sequence[str] | None = None,
    palette: Palette | None = None,
    max_bytes: float,
) -> MaskSource:
    """List the images of the split `name` with their masks; paths are relative to `folder`. No mask is read yet.

    Two folders: the mask of DIR/x.jpg is DIR/x.png in the other, a PNG of class numbers (palette, grey or 16 bits), or
    of colours where `palette` ("#rrggbb" → class) says what each stands for. `list` is a file that names some of the
    images, one on each line. COCO's files: see `coco_masks`; with `panoptic`, the folder of PNGs, they are panoptic.
    Function: called without arguments, gives a dataset (len and index) or an iterable of (image, mask[, id]); what is
    wrong with a mask is told as it is read.

    `classes`: the order of the class names; without it, COCO's categories by ascending id, and none for folders.
    Raises SoupError where nothing sane can follow; what is wrong with single images is in `MaskSample.problems`, with
    records of no image in `MaskSource.problems`. `checked` tells of what is inside the masks.
    """
    if isinstance(source, Mapping):
        given = {key: folder / Path(text).expanduser() for key, text in source.items() if text is not None}
        return _from_parts(
            f"data.{name}", given, ignore=ignore_index, classes=classes, palette=palette, max_bytes=max_bytes
        )
    if not isinstance(source, str):
        names = None if classes is None else tuple(classes)
        read = partial(_item, ignore=ignore_index, classes=None if names is None else len(names))
        return from_function(name, source, read, gives="(image, mask[, id])", class_names=names)
    path = folder / Path(source).expanduser()
    is_list = path.suffix == ".txt" and path.is_file() and path.parent.parent.name == "ImageSets"
    root = path.parents[2] if is_list else path
    for images, masks in _FOLDERS:
        if (root / images).is_dir() and (root / masks).is_dir():
            split = path if is_list else None
            return _from_folders(root / images, root / masks, split, ignore_index, classes=classes, palette=palette)
    if not path.exists():
        raise SoupError(f"{path}: no such file or folder. {_EXPECTED}")
    raise SoupError(f"{path}: is no known kind of data. {_EXPECTED}")


def _from_parts(
    where: str, given: Mapping[str, Path], *, ignore: int, classes: Sequence[str] | None, palette: Palette | None,
    max_bytes: float,
) -> MaskSource:  # fmt: skip
    kinds = {"images", "masks"}, {"images", "annotations"}
    optional = {"list"}, {"panoptic"}
    if not any(must <= given.keys() <= must | may for must, may in zip(kinds, optional, strict=True)):
        raise SoupError(f"{where}: has {', '.join(given) or 'nothing'}. {_EXPECTED}")
    for key, path in given.items():
        is_file = key in ("annotations", "list")
        if not (path.is_file() if is_file else path.is_dir()):
            raise SoupError(f"{path}: no such {'file' if is_file else 'folder'}. {_EXPECTED}")
    if "masks" in given:
        return _from_folders(
            given["images"], given["masks"], given.get("list"), ignore, classes=classes, palette=palette
        )
    if "panoptic" in given:
        return read_panoptic(
            given["annotations"], given["images"], given["panoptic"], ignore_index=ignore, classes=classes,
            max_bytes=max_bytes,
        )  # fmt: skip
    return read_instances(
        given["annotations"], given["images"], ignore_index=ignore, classes=classes, max_bytes=max_bytes
    )


def _from_folders(
    images: Path, masks: Path, split: Path | None, ignore: int, *, classes: Sequence[str] | None,
    palette: Palette | None,
) -> MaskSource:  # fmt: skip
    pictures, truths = by_key(images), by_key(masks, (".png",))
    if not pictures:
        raise SoupError(f"{images}: no images, expected one or more with a mask of the same name in {masks}.")
    if not truths:
        others = "; its files have other endings" if by_key(masks) else ""
        raise SoupError(f"{masks}: no masks, expected .png files named as the images{others}.")
    keys, problems = sorted({*pictures, *truths}), list[str]()
    if split is not None:
        lines, problems = listed(split, {**truths, **pictures}, images)
        keys = list(lines)
    samples = [
        _pair(key, pictures.get(key, []), truths.get(key, []), images / key, masks / f"{key}.png", palette)
        for key in keys
    ]
    if not any(sample.usable for sample in samples):
        wrong = several([problem for sample in samples for problem in sample.problems])
        raise SoupError(
            f"{images}: none of {len(samples)} images has its mask in {masks}: {wrong}. Name each mask as its image."
        )
    names = None if classes is None else tuple(classes)
    return Source(str(images), samples, len(samples), names, identity_of(samples), problems=tuple(problems))


def _pair(
    key: str, pictures: Sequence[Path], truths: Sequence[Path], image: Path, mask: Path, palette: Palette | None
) -> MaskSample:  # fmt: skip
    if not truths:
        return unusable(key, str(mask), f"no such file, the mask of {pictures[0] if pictures else image}")
    if len(pictures) != 1 or len(truths) != 1:
        told = ", ".join(path.name for path in (pictures if len(pictures) > 1 else truths))
        wrong = "a mask without an image, expected" if not pictures else f"not one but several ({told}), expected"
        return unusable(key, str(truths[0]), f"{wrong} one of this name in {image.parent}")
    (found,), (picture,) = truths, pictures
    return MaskSample(key, picture, found if palette is None else partial(by_color, found, palette), str(found))


def _item(item: object, index: int, where: str, *, ignore: int, classes: int | None) -> MaskSample:
    if isinstance(item, SoupError):
        return unusable(str(index), where, str(item).rstrip("."))
    if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
        raise SoupError(f"{where} is {type(item).__name__}, expected (image, mask) or (image, mask, id).")
    image = item[0].detach().cpu() if hasattr(item[0], "detach") else item[0]
    sample = MaskSample(str(item[2]) if len(item) == 3 else str(index), image, item[1], f"{where}: its mask")
    try:
        ids = read_mask(sample, classes=classes, ignore_index=ignore)
    except SoupError as error:
        return MaskSample(sample.id, error, error, sample.where, (str(error),))
    return MaskSample(sample.id, image, ids, sample.where)
