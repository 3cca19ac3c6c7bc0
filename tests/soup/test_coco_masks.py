"""Masks from COCO's files: drawn as pycocotools has it, and every bad record told with its image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from soup import SoupError
from soup.coco_masks import run_lengths
from soup.mask_sources import checked, open_masks, read_mask

SIZE = (6, 8)


def image_file(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)


def mask_file(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def opened(source, folder: Path, **changed):
    return open_masks("val", source, folder=folder, **({"ignore_index": 255, "max_bytes": 1e9} | changed))


def read(source, classes: int | None = 3) -> list[np.ndarray]:
    return [read_mask(sample, classes=classes, ignore_index=255) for sample in source.samples]


def problems(source) -> list[str]:
    return [*source.problems, *(problem for sample in source.samples for problem in sample.problems)]


def coco_file(path: Path, items: list[dict], **changed: object) -> None:
    document = {
        "images": [{"id": 4, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"id": 10 + i, "image_id": 4, **item} for i, item in enumerate(items)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    path.write_text(json.dumps(document | changed))


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


INSTANCES = {"images": "images", "annotations": "coco.json"}
PANOPTIC = INSTANCES | {"panoptic": "pngs"}


def test_instances_are_drawn_over_a_background_of_class_zero(tmp_path):
    """Categories by ascending id; where a cat and a dog overlap nobody knows, where two cats do, it is a cat."""
    image_file(tmp_path / "images/a.jpg")
    image_file(tmp_path / "images/b.jpg")
    column = np.zeros(SIZE, np.uint8)
    column[:, 7] = column[0, 0] = 1
    runs = coco.encode(np.asfortranarray(column))
    crowd = {"size": list(SIZE), "counts": [0, 1, 41, 6]}
    objects = [
        {"category_id": 7, "segmentation": square(0, 0, 3)},
        {"category_id": 3, "segmentation": square(2, 2, 3)},
        {"category_id": 3, "segmentation": square(3, 3, 3), "iscrowd": 0},
        {"category_id": 7, "segmentation": crowd, "iscrowd": 1},
    ]
    images = [
        {"id": number, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for number, name in ((4, "a"), (5, "b"))
    ]
    coco_file(tmp_path / "coco.json", objects, images=images)
    found = opened(INSTANCES, tmp_path)
    assert found.class_names == ("background", "cat", "dog")
    assert [sample.id for sample in found.samples] == ["a.jpg", "b.jpg"]
    first, second = read(found)
    assert first.tolist() == [
        [2, 2, 2, 0, 0, 0, 0, 255],
        [2, 2, 2, 0, 0, 0, 0, 255],
        [2, 2, 255, 1, 1, 0, 0, 255],
        [0, 0, 1, 1, 1, 1, 0, 255],
        [0, 0, 1, 1, 1, 1, 0, 255],
        [0, 0, 0, 1, 1, 1, 0, 255],
    ]
    assert not second.any()
    objects.reverse()
    objects[0]["segmentation"] = {"size": list(SIZE), "counts": runs["counts"].decode()}
    coco_file(tmp_path / "coco.json", objects, images=images)
    assert np.array_equal(read(opened(INSTANCES, tmp_path))[0], first)
    named = opened(INSTANCES, tmp_path, classes=("nothing", "dog", "bird", "cat"))
    assert np.array_equal(read(named, 4)[0], np.array([0, 3, 1, *[0] * 252, 255])[first])
    assert checked(found, classes=3, ignore_index=255).identity == found.identity


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 40), width=st.integers(1, 40))
def test_compressed_runs_are_those_of_pycocotools(seed, height, width):
    rng = np.random.default_rng(seed)
    mask = np.asfortranarray((rng.random((height, width)) < rng.random()).astype(np.uint8))
    flat = mask.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    assert run_lengths(coco.encode(mask)["counts"].decode()) == ([0, *runs] if flat[0] else runs)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"category_id": 9}, "annotation 10: its category_id 9 is that of no class, expected one of 3; 7"),
        ({"category_id": "cat"}, "its category_id 'cat' is that of no class"),
        ({"segmentation": []}, r"its segmentation is \[\], expected polygons or run lengths"),
        ({"segmentation": [[0, 0, 4, 4]]}, "its polygon has 2 points, expected 3 or more"),
        ({"segmentation": [[0, 0, 4, 4, 1]]}, "expected numbers x, y"),
        ({"segmentation": [[0, 0, 4, 4, 1, "x"]]}, "expected numbers x, y"),
        ({"segmentation": [[0, 0, 4, 4, 1, float("nan")]]}, "its polygon reaches nan, far outside of the image 8×6"),
        ({"segmentation": square(0, 0, 1e9)}, r"its polygon reaches 1e\+09, far outside"),
        (
            {"segmentation": {"size": [8, 6], "counts": [48]}},
            r"run lengths are for the size \[8, 6\], expected \[6, 8\]",
        ),
        ({"segmentation": {"size": [6, 8], "counts": [40, 9]}}, "its run lengths add up to 49 pixels, expected 48"),
        ({"segmentation": {"size": [6, 8], "counts": [50, -2]}}, "expected run lengths"),
        ({"segmentation": {"size": [6, 8], "counts": "\x01"}}, "its counts are no compressed run lengths"),
        ({"segmentation": {"size": [6, 8], "counts": "o" * 99}}, "its counts are no compressed run lengths"),
        ({"segmentation": {"size": [6, 8], "counts": "o"}}, "its counts are cut off"),
        ({"iscrowd": 2}, "its iscrowd is 2, expected 0 or 1"),
    ],
)
def test_a_bad_annotation_is_told_and_its_image_left_out(tmp_path, item, message):
    image_file(tmp_path / "images/a.jpg")
    image_file(tmp_path / "images/b.jpg")
    images = [
        {"id": number, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for number, name in ((4, "a"), (5, "b"))
    ]
    coco_file(
        tmp_path / "coco.json", [{"category_id": 3, "segmentation": square(1, 1, 2)} | item], images=images
    )  # fmt: skip
    found = opened(INSTANCES, tmp_path)
    assert [sample.usable for sample in found.samples] == [False, True]
    with pytest.raises(SoupError, match=message) as raised:
        raise SoupError(problems(found)[0])
    assert str(raised.value).startswith(f"{tmp_path}/coco.json: image 'a.jpg': ")
    assert len(problems(found)) == 1


def test_images_listed_but_missing_or_of_another_size_and_annotations_for_no_image_are_told(tmp_path):
    image_file(tmp_path / "images/a.jpg")
    image_file(tmp_path / "images/c.jpg", (3, 3))
    images = [
        {"id": number, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for number, name in ((4, "a"), (5, "b"), (6, "c"))
    ]
    annotations = [{"category_id": 3, "segmentation": square(1, 1, 2)}]
    coco_file(tmp_path / "coco.json", annotations, images=images)
    document = json.loads((tmp_path / "coco.json").read_text())
    document["annotations"].append(document["annotations"][0] | {"id": 99, "image_id": 77})
    (tmp_path / "coco.json").write_text(json.dumps(document))
    found = opened(INSTANCES, tmp_path)
    where = tmp_path / "coco.json"
    assert problems(found) == [
        f"{where}: annotation 99: for no image, its image_id 77 is none that is used",
        f"{where}: image 'b.jpg': its file {tmp_path}/images/b.jpg: No such file or directory",
        f"{where}: image 'c.jpg': its file {tmp_path}/images/c.jpg: has 3×3 pixels, but its annotation says 8×6",
    ]
    (tmp_path / "images/a.jpg").unlink()
    with pytest.raises(SoupError, match=r"coco\.json: none of 3 images has a mask that can be used: .*annotation 99"):
        opened(INSTANCES, tmp_path)


def segment_file(path: Path, ids: np.ndarray) -> None:
    mask_file(path, np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2))


def panoptic_file(root: Path, ids: np.ndarray, infos: list[dict], **changed: object) -> None:
    image_file(root / "images/a.jpg")
    image_file(root / "images/b.jpg")
    segment_file(root / "pngs/a.png", ids)
    segment_file(root / "pngs/b.png", np.zeros(SIZE, int))
    images = [
        {"id": number, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for number, name in ((4, "a"), (5, "b"))
    ]
    annotations = [
        {"image_id": 4, "file_name": "a.png", "segments_info": infos} | changed,
        {"image_id": 5, "file_name": "b.png", "segments_info": []},
    ]
    coco_file(root / "coco.json", [], images=images, annotations=annotations)


IDS = np.repeat([[0, 5, 70000, 256 * 9, 5, 0, 12, 12]], 6, axis=0)
INFOS = [
    {"id": 5, "category_id": 7}, {"id": 70000, "category_id": 3, "iscrowd": 0}, {"id": 256 * 9, "category_id": 3},
    {"id": 12, "category_id": 7, "iscrowd": 1},
]  # fmt: skip


def test_panoptic_segments_become_classes_and_void_and_crowds_are_ignored(tmp_path):
    panoptic_file(tmp_path, IDS, INFOS)
    found = opened(PANOPTIC, tmp_path)
    assert found.class_names == ("cat", "dog")
    first, second = read(found, 2)
    assert first.tolist() == [[255, 1, 0, 0, 1, 255, 255, 255]] * 6
    assert (second == 255).all()
    assert problems(checked(found, classes=2, ignore_index=255)) == []


@pytest.mark.parametrize(
    ("infos", "changed", "message"),
    [
        ([{"id": 5, "category_id": 8}], {}, r"segments_info\[0\]: its category_id 8 is that of no class"),
        ([INFOS[0], INFOS[0]], {}, r"segments_info\[1\]: its id 5 again"),
        ([{"id": 0, "category_id": 3}], {}, "its id is 0, expected a whole number from 1 to 16777215"),
        ([3], {}, r"segments_info\[0\]: its id is None"),
        (INFOS, {"file_name": "none.png"}, r"no file .*pngs/none\.png, its mask"),
        (INFOS, {"file_name": 3}, "lacks file_name or segments_info"),
        (INFOS, {"image_id": 5}, "has 0 annotations, expected one"),
        (INFOS[:3], {}, r"a\.png: 12 pixels have the segment 12, which its segments_info does not name"),
        (INFOS, {"grey": True}, r"a\.png: is an image of mode L, expected RGB: segment ids"),
        (INFOS, {"small": True}, r"a\.png: has 2×3 pixels, expected 8×6 as its image"),
    ],
)
def test_bad_panoptic_records_are_told_with_their_image(tmp_path, infos, changed, message):
    panoptic_file(tmp_path, IDS, infos, **changed)
    if "grey" in changed:
        mask_file(tmp_path / "pngs/a.png", np.zeros(SIZE))
    if "small" in changed:
        segment_file(tmp_path / "pngs/a.png", np.zeros((3, 2), int))
    if "image_id" in changed:
        document = json.loads((tmp_path / "coco.json").read_text())
        image_file(tmp_path / "images/c.jpg")
        segment_file(tmp_path / "pngs/c.png", np.zeros(SIZE, int))
        document["images"].append(document["images"][0] | {"id": 6, "file_name": "c.jpg"})
        document["annotations"].append(document["annotations"][1] | {"image_id": 6, "file_name": "c.png"})
        (tmp_path / "coco.json").write_text(json.dumps(document))
    found = checked(opened(PANOPTIC, tmp_path), classes=2, ignore_index=255)
    assert not found.samples[0].usable
    with pytest.raises(SoupError, match=message):
        raise SoupError(problems(found)[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"categories": []}, "no categories"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "the id 1 of 'a' again"),
        ({"images": []}, "no images"),
        ({"annotations": {}}, "expected an object with the lists"),
    ],
)
def test_a_coco_file_that_says_nothing_sane_is_refused(tmp_path, changed, message):
    image_file(tmp_path / "images/a.jpg")
    coco_file(tmp_path / "coco.json", [], **changed)
    with pytest.raises(SoupError, match=message) as raised:
        opened(INSTANCES, tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}/coco.json: ")
