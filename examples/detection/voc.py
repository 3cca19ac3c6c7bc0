"""Pascal VOC folders: digit scenes written as one, and any of them read (JPEGImages, Annotations, ImageSets/Main).

Corners are the edges of a box in pixels, as today's annotation tools write them and soup reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from scenes import SHARES, scenes

SUFFIXES = (".jpg", ".png", ".jpeg")


@dataclass(frozen=True, slots=True)
class Sample:
    """image uint8 (h, w, 3) at the network's size; boxes float32 (n, 4): x1 y1 x2 y2 in its pixels; labels int64."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def write_scenes(folder: Path, counts: Sequence[int], *, size: int, seed: int) -> None:
    """Write train, val and test scenes (`counts` of each) as a VOC folder."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for split, count in zip(SHARES, counts, strict=True):
        names = []
        for number, scene in enumerate(scenes(split, count, size=size, seed=seed)):
            name = f"{split}-{number:04}"
            names.append(name)
            Image.fromarray(scene.image).save(folder / "JPEGImages" / f"{name}.png")
            tree = _annotation(f"{name}.png", size, scene.boxes, [str(label) for label in scene.labels])
            tree.write(folder / "Annotations" / f"{name}.xml")
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def class_names(folder: Path) -> list[str]:
    """Every name that an object of the folder has, sorted: a class's place here is its number."""
    objects = (ElementTree.parse(path).iter("object") for path in (folder / "Annotations").glob("*.xml"))
    return sorted({item.findtext("name", "").strip() for found in objects for item in found})


def image_size(folder: Path, longest: int) -> tuple[int, int]:
    """The first training image's (height, width), shrunk to `longest` pixels and to multiples of 16."""
    name = (folder / "ImageSets/Main/train.txt").read_text().split()[0]
    with Image.open(_image(folder, name)) as image:
        scale = min(1, longest / max(image.size))
        width, height = (max(16, round(side * scale / 16) * 16) for side in image.size)
    return height, width


def read(folder: Path, split: str, *, classes: Sequence[str], size: tuple[int, int]) -> list[Sample]:
    """The split's images at `size` (height, width) with their boxes; boxes without an area are left out."""
    names = (folder / "ImageSets/Main" / f"{split}.txt").read_text().split()
    return [_sample(folder, name, classes, size) for name in names]


def _sample(folder: Path, name: str, classes: Sequence[str], size: tuple[int, int]) -> Sample:
    with Image.open(_image(folder, name)) as image:
        scale = np.array([size[1] / image.width, size[0] / image.height] * 2, np.float32)
        pixels = np.asarray(image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
    boxes, labels = [], []
    for item in ElementTree.parse(folder / "Annotations" / f"{name}.xml").iter("object"):
        x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{key}", "nan")) for key in ("xmin", "ymin", "xmax", "ymax"))
        if x2 > x1 and y2 > y1:
            boxes.append((x1, y1, x2, y2))
            labels.append(classes.index(item.findtext("name", "").strip()))
    return Sample(pixels, np.array(boxes, np.float32).reshape(-1, 4) * scale, np.array(labels, np.int64))


def _image(folder: Path, name: str) -> Path:
    return next(path for suffix in SUFFIXES if (path := folder / "JPEGImages" / (name + suffix)).exists())


def _annotation(filename: str, size: int, boxes: np.ndarray, names: Sequence[str]) -> ElementTree.ElementTree:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = filename
    _fields(ElementTree.SubElement(root, "size"), {"width": size, "height": size, "depth": 3})
    for (x1, y1, x2, y2), name in zip(boxes.tolist(), names, strict=True):
        item = ElementTree.SubElement(root, "object")
        _fields(item, {"name": name, "difficult": 0})
        _fields(ElementTree.SubElement(item, "bndbox"), {"xmin": x1, "ymin": y1, "xmax": x2, "ymax": y2})
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def _fields(parent: ElementTree.Element, values: dict[str, object]) -> None:
    for key, value in values.items():
        ElementTree.SubElement(parent, key).text = str(value)
