"""YOLO's text labels: where they lie, what a line means, and where class names come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from soup import SoupError
from soup.box_sources import in_pixels, open_boxes
from tests.soup.box_writers import image_file, write_yolo

NAMES = ["cat", "dog"]
TWO = {"a": [("dog", (6, 4, 30, 20)), ("cat", (0, 0, 60, 40))], "b": []}


def opened(folder: Path, source: object = ".", **options):
    found = open_boxes("val", source, folder=folder, max_bytes=1e9, **options)
    return found, {sample.id: sample for sample in found.samples}


def test_boxes_stay_parts_of_the_sides_until_the_size_is_known(tmp_path):
    write_yolo(tmp_path, TWO, NAMES)
    sample = opened(tmp_path)[1]["a.png"]
    assert sample.size is None
    assert sample.truth.normalized
    assert np.allclose(sample.truth.boxes, [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]])
    assert np.allclose(in_pixels(sample.truth, (40, 60)).boxes, [[6, 4, 30, 20], [0, 0, 60, 40]])
    assert np.allclose(in_pixels(sample.truth, (40, 60)).area, [24 * 16, 2400])


def test_the_last_images_in_a_path_becomes_labels(tmp_path):
    write_yolo(tmp_path / "images", TWO, NAMES, split="val")
    write_yolo(tmp_path / "images", {"c": TWO["a"]}, NAMES, split="train")
    assert list(opened(tmp_path, "images/images/val")[1]) == ["a.png", "b.png"]
    assert list(opened(tmp_path, "images/images/train")[1]) == ["c.png"]
    assert list(opened(tmp_path, "images")[1]) == ["train/c.png", "val/a.png", "val/b.png"]


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (".", "classes.txt"),
        (".", "labels/classes.txt"),
        (".", "data.yaml"),
        ("images/val", "classes.txt"),
        ("images/val", "labels/classes.txt"),
        ("images/val", "labels/val/classes.txt"),
        ("images/val", "data.yaml"),
    ],
)
def test_names_are_found_beside_the_labels_and_above(tmp_path, source, place):
    write_yolo(tmp_path, TWO, NAMES, split="val")
    text = "names: [cat, dog]\nnc: 2\n" if place.endswith(".yaml") else "cat\ndog\n\n"
    (tmp_path / place).write_text(text)
    found, _ = opened(tmp_path, source)
    assert found.class_names == ("cat", "dog")
    assert f"{tmp_path / place}: names 2 classes" in found.notes
    assert found.problems == ()


@pytest.mark.parametrize("text", ["names: {0: cat, 1: dog}", "names: {1: dog, 0: cat}", "names: {'0': cat, '1': dog}"])
def test_a_map_of_names_is_ordered_by_its_numbers(tmp_path, text):
    write_yolo(tmp_path, TWO, NAMES)
    (tmp_path / "data.yaml").write_text(text)
    assert opened(tmp_path)[0].class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: {0: cat, 2: dog}", "names has the keys 0, 2, expected 0 to 1"),
        ("nc: 2", "expected 'names' as a list"),
        ("names: []", "expected 'names' as a list"),
        ("names: [", "cannot be read for the names of the classes: while parsing"),
        ("[1]", "expected 'names' as a list"),
        (b"\xff\xfe\x00\xd8", "cannot be read for the names"),
    ],
)
def test_names_that_cannot_be_read_are_refused(tmp_path, text, message):
    write_yolo(tmp_path, TWO, NAMES)
    (tmp_path / "data.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SoupError, match=message) as raised:
        opened(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}/data.yaml: ")


def test_without_names_a_class_is_its_number(tmp_path):
    write_yolo(tmp_path, TWO, NAMES)
    found, samples = opened(tmp_path)
    assert found.class_names is None
    assert samples["a.png"].truth.labels.tolist() == [1, 0]


def test_given_classes_name_the_numbers_or_number_the_names_anew(tmp_path):
    write_yolo(tmp_path, TWO, NAMES)
    assert opened(tmp_path, classes=["dog", "cat"])[1]["a.png"].truth.labels.tolist() == [1, 0]
    told = opened(tmp_path, classes=["dog"])[1]["a.png"].problems
    assert told == (f"{tmp_path}/labels/a.txt: line 1: the class 1 is none of the numbers 0 to 0",)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    found, samples = opened(tmp_path, classes=["dog", "ant", "cat"])
    assert found.class_names == ("dog", "ant", "cat")
    assert samples["a.png"].truth.labels.tolist() == [0, 2]
    told = opened(tmp_path, classes=["dog"])[1]["a.png"].problems
    assert told == (f"{tmp_path}/labels/a.txt: line 2: 'cat' is no known class, expected one of dog",)


def test_a_polygon_stands_for_the_box_around_it(tmp_path):
    write_yolo(tmp_path, TWO, NAMES)
    (tmp_path / "labels/a.txt").write_text("1 0.5 0.25 0.75 0.5 0.5 0.875 0.125 0.5\n\n0.0 .5 .5 1 1\n")
    truth = opened(tmp_path)[1]["a.png"].truth
    assert truth.boxes.tolist() == [[0.125, 0.25, 0.75, 0.875], [0, 0, 1, 1]]
    assert truth.labels.tolist() == [1, 0]
    assert np.allclose(truth.area, [0.625 * 0.625, 1])


def test_an_image_without_a_label_file_has_no_objects_and_is_counted(tmp_path):
    write_yolo(tmp_path, TWO, NAMES)
    image_file(tmp_path / "images/c.png")
    found, samples = opened(tmp_path)
    assert samples["c.png"].truth.boxes.shape == (0, 4)
    assert samples["c.png"].truth.normalized
    assert found.notes == (
        f"{tmp_path}/images: read as YOLO: 3 images from {tmp_path}/images with 2 boxes",
        f"{tmp_path}/labels: 1 images have no label file and count as without objects: c",
    )


def test_a_box_over_the_edge_by_a_pixel_is_clipped_and_by_more_told(tmp_path):
    write_yolo(tmp_path, {"a": [("cat", (-0.9, 0, 20, 40)), ("cat", (50, 1, 61.6, 9))], "b": TWO["a"]}, NAMES)
    sample = opened(tmp_path)[1]["a.png"]
    assert sample.truth.boxes[:, 0].tolist() == [0]
    assert sample.problems[0].startswith(f"{tmp_path}/labels/a.txt: line 2: the box (0.8333333 0.025 1.026")
    assert sample.problems[0].endswith("reaches outside of the image (0 to 1)")


def test_a_list_names_images_by_path_or_stem(tmp_path):
    write_yolo(tmp_path, TWO, NAMES, split="val")
    parts = {"images": "images", "annotations": "labels", "list": "val.txt"}
    for text in ("./images/val/a.png\n", "val/a\n", "val/a.txt\n", "images/val/a.png"):
        (tmp_path / "val.txt").write_text(text)
        assert list(opened(tmp_path, parts)[1]) == ["val/a.png"]
