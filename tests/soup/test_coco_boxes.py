"""COCO's JSON: numbering, boxes, crowd and area, and where its images lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from soup import SoupError
from soup.box_sources import open_boxes
from tests.soup.box_writers import coco_document, image_file, write_coco

CATEGORIES = {90: "zebra", 3: "cat", 7: "dog"}
TWO = {"a": [("zebra", (1, 2, 10, 20)), ("cat", (5, 5, 6, 7))], "b": []}


def opened(path: Path, source: object = None, **options):
    found = open_boxes("val", source or str(path), folder=path.parent, max_bytes=1e9, **options)
    return found, {sample.id: sample for sample in found.samples}


def test_categories_are_numbered_by_ascending_id_used_or_not(tmp_path):
    write_coco(tmp_path / "val.json", TWO, CATEGORIES)
    found, samples = opened(tmp_path / "val.json")
    assert found.class_names == ("cat", "dog", "zebra")
    assert samples["a.png"].truth.labels.tolist() == [2, 0]
    assert samples["b.png"].truth.labels.shape == (0,)
    assert samples["b.png"].usable


def test_given_classes_are_found_by_name(tmp_path):
    write_coco(tmp_path / "val.json", TWO, CATEGORIES)
    found, samples = opened(tmp_path / "val.json", classes=["zebra", "ant"])
    assert found.class_names == ("zebra", "ant")
    assert samples["a.png"].truth.labels.tolist() == [0]
    told = f"{tmp_path}/val.json: annotation 1: 'cat' is no known class, expected one of zebra, ant"
    assert samples["a.png"].problems == (told,)


def test_crowd_and_area_are_the_file_s(tmp_path):
    write_coco(tmp_path / "val.json", TWO, CATEGORIES)
    document = json.loads((tmp_path / "val.json").read_text())
    document["annotations"][0] |= {"iscrowd": 1, "area": 7.5}
    (tmp_path / "val.json").write_text(json.dumps(document))
    truth = opened(tmp_path / "val.json")[1]["a.png"].truth
    assert truth.crowd.tolist() == [True, False]
    assert truth.area.tolist() == [7.5, 2]


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("val.json", "."),
        ("val.json", "images"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
        ("annotations/val.json", "images"),
    ],
)
def test_images_are_looked_for_where_they_use_to_lie(tmp_path, file, images):
    for stem in TWO:
        image_file(tmp_path / images / f"{stem}.png")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(json.dumps(coco_document(TWO, CATEGORIES)))
    assert opened(tmp_path / file)[1]["a.png"].image == tmp_path / images / "a.png"


def test_the_folder_that_holds_most_images_is_taken(tmp_path):
    write_coco(tmp_path / "val.json", TWO, CATEGORIES)
    image_file(tmp_path / "images/a.png")
    assert opened(tmp_path / "val.json")[1]["a.png"].image == tmp_path / "a.png"
    (tmp_path / "b.png").rename(tmp_path / "images/b.png")
    found, samples = opened(tmp_path / "val.json")
    assert samples["b.png"].image == tmp_path / "images/b.png"
    assert f"2 images from {tmp_path / 'images'}" in found.notes[0]


def test_images_that_are_nowhere_are_told_with_the_places(tmp_path):
    (tmp_path / "val.json").write_text(json.dumps(coco_document(TWO, CATEGORIES)))
    with pytest.raises(SoupError, match=r"val.json: 'a.png' and its other images are in none of .*Say where they are"):
        opened(tmp_path / "val.json")


def test_names_may_hold_folders_of_either_slash(tmp_path):
    images = {"x/a": TWO["a"], "y\\b": []}
    for stem in ("x/a", "y/b"):
        image_file(tmp_path / f"{stem}.png")
    (tmp_path / "val.json").write_text(json.dumps(coco_document(images, CATEGORIES)))
    assert list(opened(tmp_path / "val.json")[1]) == ["x/a.png", "y/b.png"]


def test_ids_may_be_text_and_sizes_absent(tmp_path):
    document = coco_document({"a": TWO["a"]}, CATEGORIES)
    document["images"] = [{"id": "first", "file_name": "./a.png"}]
    for annotation in document["annotations"]:
        annotation["image_id"] = "first"
    image_file(tmp_path / "a.png")
    (tmp_path / "val.json").write_text(json.dumps(document))
    _, samples = opened(tmp_path / "val.json")
    assert samples["a.png"].size == (40, 60)
    assert len(samples["a.png"].truth.boxes) == 2


def test_classes_of_the_same_name_are_noted(tmp_path):
    write_coco(tmp_path / "val.json", TWO, CATEGORIES | {1: "cat"})
    document = json.loads((tmp_path / "val.json").read_text())
    found, _ = opened(tmp_path / "val.json")
    assert found.class_names == ("cat", "cat", "dog", "zebra")
    assert found.notes[1:] == (f"{tmp_path}/val.json: several classes have the same name: cat",)
    assert len(document["categories"]) == 4


NUMBER = st.floats(0, 20, width=32)
ANNOTATIONS = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from([90, 3, 7]), NUMBER, NUMBER, st.floats(1, 20, width=32), st.booleans()
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(ANNOTATIONS)
def test_it_reads_what_pycocotools_reads(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder / "val.json", {"a": [], "b": [], "c": []}, CATEGORIES)
    document = json.loads((folder / "val.json").read_text())
    document["annotations"] = [
        {"id": number + 1, "image_id": image, "category_id": category, "bbox": [x, y, side, side / 2],
         "area": side * side / 3, "iscrowd": int(crowd)}
        for number, (image, category, x, y, side, crowd) in enumerate([*rows, (0, 3, 1, 1, 1, False)])
    ]  # fmt: skip
    (folder / "val.json").write_text(json.dumps(document))
    _, samples = opened(folder / "val.json")
    reference = COCO(str(folder / "val.json"))
    numbers = sorted(reference.getCatIds())
    for image, sample in enumerate(samples.values()):
        theirs = reference.loadAnns(reference.getAnnIds(imgIds=[image]))
        corners = np.array([one["bbox"] for one in theirs], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        truth = sample.truth
        assert np.array_equal(truth.boxes, corners.astype(np.float32))
        assert truth.labels.tolist() == [numbers.index(one["category_id"]) for one in theirs]
        assert truth.crowd.tolist() == [bool(one["iscrowd"]) for one in theirs]
        assert np.array_equal(truth.area, np.array([one["area"] for one in theirs], np.float32))
