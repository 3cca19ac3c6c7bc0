"""The same boxes as the files of each format, written here from their descriptions and not by the readers' code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
Objects = Sequence[tuple[str, Box]]  # class name, x1 y1 x2 y2 in pixels
SIZE = (40, 60)  # height, width


def image_file(path: Path, size: tuple[int, int] = SIZE, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(size, np.uint8)).save(path, **options)


def voc_xml(objects: Objects, size: tuple[int, int] | None = SIZE, difficult: Sequence[int] = ()) -> str:
    told = "" if size is None else f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    parts = [
        f"<object><name>{name}</name><difficult>{int(place in difficult)}</difficult><bndbox>"
        f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for place, (name, box) in enumerate(objects)
    ]
    return f"<annotation><filename>other.jpg</filename>{told}{''.join(parts)}</annotation>"


def write_voc(root: Path, images: Mapping[str, Objects]) -> None:
    for stem, objects in images.items():
        image_file(root / "JPEGImages" / f"{stem}.png")
        path = root / "Annotations" / f"{stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(voc_xml(objects))


def coco_document(images: Mapping[str, Objects], categories: Mapping[int, str]) -> dict[str, list[dict[str, object]]]:
    ids = {name: number for number, name in categories.items()}
    annotations = [
        {
            "image_id": place,
            "category_id": ids[name],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "segmentation": [[1, 2, 3, 4, 5, 6]],
        }
        for place, objects in enumerate(images.values())
        for name, box in objects
    ]
    return {
        "images": [
            {"id": place, "file_name": f"{stem}.png", "height": SIZE[0], "width": SIZE[1]}
            for place, stem in enumerate(images)
        ],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations)],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }


def write_coco(path: Path, images: Mapping[str, Objects], categories: Mapping[int, str]) -> None:
    for stem in images:
        image_file(path.parent / f"{stem}.png")
    path.write_text(json.dumps(coco_document(images, categories)))


def yolo_line(number: int, box: Box, size: tuple[int, int] = SIZE) -> str:
    height, width = size
    center = (box[0] + box[2]) / 2 / width, (box[1] + box[3]) / 2 / height
    return f"{number} {center[0]!r} {center[1]!r} {(box[2] - box[0]) / width!r} {(box[3] - box[1]) / height!r}\n"


def write_yolo(root: Path, images: Mapping[str, Objects], names: Sequence[str], split: str = "") -> None:
    for stem, objects in images.items():
        image_file(root / "images" / split / f"{stem}.png")
        path = root / "labels" / split / f"{stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(yolo_line(names.index(name), box) for name, box in objects))
