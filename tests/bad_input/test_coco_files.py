"""COCO files as nobody wants them: bad annotations and entries are named, and the rest stays usable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from soup import SoupError
from tests.bad_input.opened_boxes import kept, opened, told
from tests.soup.box_writers import coco_document, write_coco

CATEGORIES = {1: "cat", 2: "dog"}
IMAGES = {"a": [("cat", (1, 1, 9, 9)), ("dog", (5, 5, 30, 30))], "b": [("cat", (1, 1, 9, 9))]}


def spoilt(folder: Path, change: Callable[[dict], object]) -> Path:
    write_coco(folder / "val.json", IMAGES, CATEGORIES)
    document = coco_document(IMAGES, CATEGORIES)
    change(document)
    (folder / "val.json").write_text(json.dumps(document))
    return folder / "val.json"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"bbox": [1, 1, 0, 5]}, "annotation 1: the box (1 1 1 6) has zero area"),
        ({"bbox": [1, 1, -1, 5]}, "annotation 1: the box (1 1 0 6) has a negative width or height"),
        ({"bbox": [50, 1, 12, 5]}, "annotation 1: the box (50 1 62 6) reaches outside of the image (60×40)"),
        ({"bbox": [1, 1, float("nan"), 5]}, "annotation 1: the box (1 1 nan 6) holds NaN or Inf"),
        ({"bbox": [10**400, 1, 2, 5]}, "annotation 1: the box (inf 1 inf 6) holds NaN or Inf"),
        ({"bbox": [1, 1, 5]}, "annotation 1: its bbox is [1, 1, 5], expected four numbers"),
        ({"bbox": [1, 1, "5", 5]}, "annotation 1: its bbox is [1, 1, '5', 5], expected four numbers"),
        ({"bbox": [1, 1, True, 5]}, "annotation 1: its bbox is [1, 1, True, 5], expected four numbers"),
        ({"bbox": None}, "annotation 1: its bbox is None, expected four numbers"),
        ({"category_id": 99}, "annotation 1: its category_id 99 is not among the file's categories"),
        ({"category_id": "1"}, "annotation 1: its category_id '1' is not among the file's categories"),
        ({"category_id": None}, "annotation 1: its category_id None is not among"),
        ({"iscrowd": 2}, "annotation 1: its iscrowd is 2, expected 0 or 1"),
        ({"iscrowd": []}, "annotation 1: its iscrowd is [], expected 0 or 1"),
        ({"area": -1}, "annotation 1: its area is -1, expected a finite number from 0"),
        ({"area": float("inf")}, "annotation 1: its area is inf, expected a finite number from 0"),
        ({"area": "5"}, "annotation 1: its area is '5', expected a number"),
        ({"image_id": 7}, "annotation 1: for no image, its image_id 7 is none that is used"),
        ({"image_id": [0]}, "annotation 1: for no image, its image_id [0] is none that is used"),
        ({"id": None, "bbox": []}, "annotations[1]: its bbox is [], expected four numbers"),
    ],
)
def test_a_bad_annotation_of_coco_is_left_out_with_its_id(tmp_path, values, reason):
    path = spoilt(tmp_path, lambda document: document["annotations"][1].update(values))
    found = opened(tmp_path, str(path))
    assert len(told(found, tmp_path)) == 1
    assert told(found, tmp_path)[0].startswith(f"val.json: {reason}")
    assert kept(found) == {"a.png": 1, "b.png": 1}


@pytest.mark.parametrize(
    ("change", "problems", "boxes"),
    [
        (lambda all_: all_["annotations"].append(3), ["annotations[3]: for no image, its image_id None is"], [2, 1]),
        (
            lambda all_: all_["images"].append({"id": 0, "file_name": "c.png"}),
            ["images[2]: the id 0 again, as of a.png; this entry is not used"],
            [2, 1],
        ),
        (
            lambda all_: all_["images"].append({"id": 5, "file_name": "./x/../a.png"}),
            ["images[2]: 'a.png' again, as of id 0; this entry is not used"],
            [2, 1],
        ),
        (lambda all_: all_["images"].append("c.png"), ["images[2]: expected 'id' and 'file_name'"], [2, 1]),
        (lambda all_: all_["images"].append({"id": 3}), ["images[2]: expected 'id' and 'file_name'"], [2, 1]),
        (
            lambda all_: all_["images"].append({"id": 3, "file_name": "\0"}),
            ["{folder}/\0: embedded null"],
            [2, 1, None],
        ),
        (
            lambda all_: all_["images"].append({"id": 3, "file_name": "c.png"}),
            ["{folder}/c.png: No such"],
            [2, 1, None],
        ),
        (
            lambda all_: all_["images"].append({"id": 3, "file_name": "x" * 300}),
            ["{folder}/" + "x" * 300 + ": File name too long"],
            [2, 1, None],
        ),
        (
            lambda all_: all_["images"][0].update(height=99),
            ["{folder}/a.png: has 60×40 pixels, but its annotation says 60×99"],
            [None, 1],
        ),
    ],
)
def test_bad_entries_of_coco_are_told_and_the_rest_is_read(tmp_path, change, problems, boxes):
    found = opened(tmp_path, str(spoilt(tmp_path, change)))
    lines = told(found, tmp_path)
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith(f"val.json: {problem}".replace("{folder}/", ""))
    assert list(kept(found).values()) == boxes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON: Expecting value"),
        ('{"images": [', "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        (b"\xff\xfe\x00\xd8", "cannot be read as JSON"),
        ("9" * 5000, "cannot be read as JSON"),
        ("[]", "expected an object with the lists images, annotations, categories as COCO has it, found list"),
        ('{"images": [], "annotations": {}}', r"expected an object .* found \['annotations', 'images'\]"),
        ('{"images": [], "annotations": [], "categories": []}', "no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no images"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}, 3]}',
            r"categories\[1\]: the id 1 of 'a' again; categories\[2\]: expected a whole number 'id'",
        ),
        ('{"images": [3], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', r"no images: .*images\[0\]"),
    ],
)
def test_a_file_that_is_no_coco_is_refused(tmp_path, text, message):
    (tmp_path / "val.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SoupError, match=message) as raised:
        opened(tmp_path, "val.json")
    assert str(raised.value).startswith(f"{tmp_path}/val.json: ")


def test_a_file_beyond_the_limit_is_refused_before_it_is_read(tmp_path):
    write_coco(tmp_path / "val.json", IMAGES, CATEGORIES)
    with pytest.raises(SoupError, match=r"val.json: 0.0 GB, more than data.cache.max_gb = 1e-08"):
        opened(tmp_path, "val.json", max_bytes=10)


def test_classes_that_none_of_the_data_has_leave_nothing_to_judge(tmp_path):
    write_coco(tmp_path / "val.json", IMAGES, CATEGORIES)
    with pytest.raises(SoupError, match=r"annotation 0: 'cat' is no known class, expected one of cow; .*'dog' is no"):
        opened(tmp_path, "val.json", classes=["cow"])
