"""What is the same for boxes from every kind of file: the check of a box, pixels, parts, functions, and identity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from soup import SoupError
from soup.box_records import Marked, checked
from soup.box_sources import Truth, in_pixels, open_boxes, refuse_empty
from tests.soup.box_writers import SIZE, image_file, write_coco, write_voc, write_yolo

CATEGORIES = {3: "cat", 7: "dog"}
TWO = {"a": [("dog", (1, 2, 10, 20)), ("cat", (5, 5, 6, 7))], "b": [("cat", (0, 0, 60, 40))]}
EDGE = st.floats(-5, 65, width=32) | st.sampled_from([0, -1, 1, 60, 61, float("nan"), float("inf")])


def opened(source, folder: Path, **options):
    return open_boxes("val", source, folder=folder, max_bytes=1e9, **options)


def told(found) -> list[str]:
    return [*found.problems, *(problem for sample in found.samples for problem in sample.problems)]


def boxes_of(found) -> dict[str, list[tuple[str, list[float]]]]:
    """Stem → class name and corners, whatever the format."""
    return {
        Path(sample.id).stem: [
            (found.class_names[label], [round(value, 3) for value in box])
            for box, label in zip(
                in_pixels(sample.truth, SIZE).boxes.tolist(), sample.truth.labels.tolist(), strict=True
            )
        ]
        for sample in found.samples
    }


@given(st.lists(st.tuples(EDGE, EDGE, EDGE, EDGE), max_size=6), st.floats(0, 3, width=32))
def test_a_box_is_kept_inside_of_the_image_or_told_and_never_both(corners, margin):
    objects = [Marked(f"object {row}", box, row) for row, box in enumerate(corners)]
    truth, problems = checked(objects, where="file", size=SIZE, margin=margin)
    kept = set(truth.labels.tolist())
    assert [problem.split(": ")[1] for problem in problems] == [
        f"object {r}" for r in range(len(corners)) if r not in kept
    ]
    for row, (left, top, right, bottom) in enumerate(corners):
        inside = -margin <= left < 60 and -margin <= top < 40 and 0 < right <= 60 + margin and 0 < bottom <= 40 + margin
        assert (row in kept) == bool(inside and left < right and top < bottom)
    expected = [(max(c[0], 0), max(c[1], 0), min(c[2], 60), min(c[3], 40)) for r, c in enumerate(corners) if r in kept]
    assert truth.boxes.tolist() == [list(box) for box in expected]
    assert np.allclose(truth.area, [(box[2] - box[0]) * (box[3] - box[1]) for box in expected])
    assert (truth.boxes.dtype, truth.labels.dtype, truth.crowd.dtype, truth.area.dtype) == ("f4", "i4", "?", "f4")
    assert truth.boxes.shape == (len(kept), 4)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((1, 2, 1, 9), "object 0: the box (1 2 1 9) has zero area"),
        ((1, 2, 5, 2), "object 0: the box (1 2 5 2) has zero area"),
        ((5, 2, 1, 9), "object 0: the box (5 2 1 9) has a negative width or height"),
        ((1, float("nan"), 5, 9), "object 0: the box (1 nan 5 9) holds NaN or Inf"),
        ((1, 2, 1e300, 9), "object 0: the box (1 2 inf 9) holds NaN or Inf"),
        ((1, 2, 61.5, 9), "object 0: the box (1 2 61.5 9) reaches outside of the image (60×40)"),
        ((-1, 2, 0, 9), "object 0: the box (-1 2 0 9) reaches outside of the image (60×40)"),
    ],
)
def test_what_is_wrong_with_a_box_is_told_with_its_record(box, reason):
    truth, problems = checked([Marked("object 0", box, 0)], where="a.xml", size=SIZE)
    assert problems == [f"a.xml: {reason}"]
    assert len(truth.boxes) == 0


@pytest.mark.parametrize("area", [-1.0, float("nan"), float("inf"), 1e300])
def test_an_area_that_is_none_is_told(area):
    truth, problems = checked([Marked("object 0", (0, 0, 2, 2), 0, area=area)], where="a.json", size=None)
    assert problems == [f"a.json: object 0: its area is {area:g}, expected a finite number from 0"]
    assert len(truth.area) == 0


def test_normalised_boxes_become_pixels_once():
    boxes = np.array([[0, 0.25, 0.5, 1]], np.float32)
    truth = Truth(boxes, np.zeros(1, np.int32), np.zeros(1, bool), np.array([0.375], np.float32), normalized=True)
    pixels = in_pixels(truth, (40, 60))
    assert pixels.boxes.tolist() == [[0, 10, 30, 40]]
    assert pixels.area.tolist() == [900]
    assert not pixels.normalized
    assert in_pixels(pixels, (1, 1)) is pixels


BOX = st.tuples(st.integers(0, 59), st.integers(0, 39), st.integers(1, 60), st.integers(1, 40))
ROUND = st.lists(st.lists(st.tuples(st.sampled_from(["cat", "dog"]), BOX), max_size=4), min_size=1, max_size=3)


@settings(max_examples=20, deadline=None)
@given(ROUND)
def test_every_format_reads_back_the_boxes_that_were_written(tmp_path_factory, objects):
    images = {
        f"im{place}": [(name, (a, b, min(a + w, 60), min(b + h, 40))) for name, (a, b, w, h) in boxes]
        for place, boxes in enumerate(objects)
    }
    assume(any(images.values()))
    root = tmp_path_factory.mktemp("round")
    write_voc(root / "voc", images)
    (root / "coco").mkdir()
    write_coco(root / "coco" / "val.json", images, CATEGORIES)
    write_yolo(root / "yolo", images, ["cat", "dog"])
    (root / "yolo/classes.txt").write_text("cat\ndog\n")
    expected = {stem: [(name, list(map(float, box))) for name, box in boxes] for stem, boxes in images.items()}
    for source in ("voc", "coco/val.json", "yolo"):
        found = opened(source, root, classes=["dog", "cat"])
        assert found.class_names == ("dog", "cat")
        assert boxes_of(found) == expected
        assert told(found) == []
        assert all(sample.usable for sample in found.samples)


def test_parts_say_where_each_lies(tmp_path):
    write_voc(tmp_path / "voc", TWO)
    (tmp_path / "some.txt").write_text("b\n")
    write_yolo(tmp_path / "yolo", TWO, ["cat", "dog"])
    (tmp_path / "coco").mkdir()
    write_coco(tmp_path / "coco/x.json", TWO, CATEGORIES)
    for images, truth, kind in (
        ("voc/JPEGImages", "voc/Annotations", "Pascal VOC"),
        ("voc/JPEGImages", "yolo/labels", "YOLO"),
        ("voc/JPEGImages", "coco/x.json", "COCO"),
    ):
        found = opened({"images": images, "annotations": truth, "list": None}, tmp_path)
        assert f"read as {kind}: 2 images from {tmp_path / images} with 3 boxes" in found.notes[0]
        assert [sample.image for sample in found.samples] == [tmp_path / images / "a.png", tmp_path / images / "b.png"]
    for truth in ("voc/Annotations", "yolo/labels"):
        parts = {"images": "voc/JPEGImages", "annotations": truth, "list": "some.txt"}
        assert [sample.id for sample in opened(parts, tmp_path).samples] == ["b.png"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone", r"gone: no such file or folder\. Give a Pascal VOC folder"),
        ("empty", "empty: is no known kind of data, it holds nothing"),
        ("some.csv", "some.csv: is no known kind of data"),
        ("images/val", "images/val: no folder .*labels/val with its labels"),
        ({"images": "images"}, "data.val: has images, expected images, annotations"),
        ({"images": "images", "annotations": "x", "lists": "y"}, "data.val: has images, annotations, lists, expected"),
        ({"images": "gone", "annotations": "empty"}, "gone: no such folder"),
        ({"images": "images", "annotations": "gone"}, "gone: no such file or folder"),
        ({"images": "images", "annotations": "empty"}, "empty: holds no .xml and no .txt"),
        ({"images": "images", "annotations": "empty", "list": "gone.txt"}, "gone.txt: no such file"),
        ({"images": "images", "annotations": "some.csv"}, "some.csv: a file of annotations is COCO's .json"),
    ],
)
def test_a_source_that_is_none_is_told_with_what_is_expected(tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    image_file(tmp_path / "images/val/a.png")
    (tmp_path / "some.csv").touch()
    with pytest.raises(SoupError, match=message):
        opened(source, tmp_path)


def test_the_identity_is_that_of_the_images_that_can_be_used(tmp_path):
    write_voc(tmp_path, TWO)
    before = opened(".", tmp_path).identity
    assert opened(".", tmp_path).identity == before
    assert json.loads(json.dumps(before)) == before
    xml = (tmp_path / "Annotations/a.xml").read_text()
    (tmp_path / "Annotations/a.xml").write_text(xml.replace("<xmin>1<", "<xmin>2<"))
    assert opened(".", tmp_path).identity == before
    (tmp_path / "Annotations/a.xml").write_text("<")
    less = opened(".", tmp_path).identity
    assert less != before
    (tmp_path / "Annotations/a.xml").write_text(xml)
    image_file(tmp_path / "JPEGImages/a.png", optimize=False, compress_level=0)
    assert opened(".", tmp_path).identity not in (before, less)


def target(boxes, labels, **others):
    return {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels), **others}


def function_samples(items, **options):
    found = opened(lambda: items, Path(), **options)
    return found, list(found.samples)


def test_a_function_gives_images_with_boxes_and_classes_from_0():
    crowd = {"iscrowd": torch.tensor([0, 1]), "area": torch.tensor([5.0, 6.0])}
    float_image = torch.zeros(3, 40, 60, requires_grad=True)
    items = [
        (Image.new("RGB", (60, 40)), target([[0, 1, 5, 6], [2, 2, 61, 4]], [1, 0], **crowd)),
        (np.zeros((40, 60, 3), np.uint8), {"boxes": [], "labels": []}, "second"),
        (float_image, target([[0, 0, 1, 1]], [0])),
    ]
    found, samples = function_samples(items, classes=["cat", "dog"])
    assert (found.origin, found.count, found.class_names, found.identity) == ("data.val", 3, ("cat", "dog"), None)
    assert [(sample.id, sample.size, sample.usable) for sample in samples] == [
        ("0", SIZE, True), ("second", SIZE, True), ("2", SIZE, True),
    ]  # fmt: skip
    assert samples[0].truth.boxes.tolist() == [[0, 1, 5, 6], [2, 2, 60, 4]]
    assert samples[0].truth.labels.tolist() == [1, 0]
    assert samples[0].truth.crowd.tolist() == [False, True]
    assert samples[0].truth.area.tolist() == [5, 6]
    assert samples[1].truth.boxes.shape == (0, 4)
    assert not samples[2].image.requires_grad
    assert function_samples(iter(items))[0].class_names is None
    assert len(function_samples(iter(items))[1]) == 3


def test_torchvisions_own_boxes_are_read_and_other_corners_refused():
    def boxes(form):
        return tv_tensors.BoundingBoxes([[1.0, 2, 5, 6]], format=form, canvas_size=SIZE)

    labels = torch.tensor([0])
    _, samples = function_samples([(torch.zeros(1, *SIZE), {"boxes": boxes("XYXY"), "labels": labels})])
    assert samples[0].truth.boxes.tolist() == [[1, 2, 5, 6]]
    with pytest.raises(SoupError, match=r"sample 0: its boxes are .*XYWH, expected x1 y1 x2 y2"):
        function_samples([(torch.zeros(1, *SIZE), {"boxes": boxes("XYWH"), "labels": labels})])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("image", "sample 0 is str, expected"),
        ((1, [3]), "sample 0 is tuple, expected"),
        ((1, {"labels": [0]}), "its target has no boxes, only labels"),
        ((1, {"boxes": [[1, 2, 3]], "labels": [0]}), r"'boxes' is int64 \(1, 3\), expected numbers \(1, 4\)"),
        ((1, {"boxes": [[1, 2, 3], [1]], "labels": [0]}), "'boxes' is list that makes no array"),
        ((1, {"boxes": 3, "labels": []}), r"'boxes' is int64 \(\), expected numbers \(0, 4\)"),
        ((1, {"boxes": [[1, 2, 3, 4]], "labels": [0, 1]}), r"'labels' is int64 \(2,\), expected integers \(1,\)"),
        ((1, {"boxes": [[1, 2, 3, 4]], "labels": [0.0]}), r"'labels' is float64 \(1,\), expected integers"),
        ((1, {"boxes": [[1, 2, 3, 4]], "labels": ["cat"]}), "'labels' is <U3, expected numbers"),
        (
            (1, {"boxes": [[1, 2, 3, 4]], "labels": [0], "area": []}),
            r"'area' is float64 \(0,\), expected numbers \(1,\)",
        ),
    ],
)
def test_a_functions_sample_of_another_form_is_refused(item, message):
    with pytest.raises(SoupError, match=message):
        function_samples([item])


def test_a_functions_bad_boxes_and_images_are_told_with_their_sample(tmp_path):
    class Broken(list):
        def __getitem__(self, index):
            if index == 1:
                raise OSError("bad sector")
            return super().__getitem__(index)

    image = torch.zeros(3, *SIZE)
    items = Broken([(image, target([[0, 0, 5, 5], [3, 3, 3, 9], [1, 1, 2, 2]], [0, 1, 2])), None])
    items.append((tmp_path / "gone.png", target([[0, 0, 5, 5]], [0]), "x"))
    _, samples = function_samples(items, classes=["cat", "dog"])
    assert samples[0].problems == (
        "data.val: sample 0: object 2: the class 2 is none of the numbers 0 to 1",
        "data.val: sample 0: object 1: the box (3 3 3 9) has zero area",
    )
    assert samples[0].truth.labels.tolist() == [0]
    assert "bad sector" in samples[1].problems[0]
    assert samples[2].problems == (f"data.val: sample 2: {tmp_path}/gone.png: No such file or directory",)
    assert [sample.usable for sample in samples] == [True, False, False]
    refuse_empty("data.val", samples)
    with pytest.raises(
        SoupError, match=r"data.val: no box to judge by in 1 images, expected one or more: .*bad sector"
    ):
        refuse_empty("data.val", samples[1:2])
    with pytest.raises(SoupError, match="gave int, expected a dataset"):
        opened(lambda: 3, Path())
