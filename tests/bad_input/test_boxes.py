"""Detection data as nobody wants it: every box, image and file that is wrong is named, and the rest stays usable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soup import SoupError
from tests.bad_input.opened_boxes import kept, opened, told
from tests.soup.box_writers import image_file, voc_xml, write_coco, write_voc, write_yolo

CATEGORIES = {1: "cat", 2: "dog"}
GOOD = [("cat", (1, 1, 9, 9)), ("dog", (5, 5, 30, 30))]
IMAGES = {"a": GOOD, "b": GOOD[:1]}


def number(**values: object) -> str:
    """A VOC object whose tags are replaced."""
    tags = {"name": "cat", "difficult": "0"} | {
        key: value for key, value in values.items() if key[1:] not in ("min", "max")
    }
    box = {"xmin": 1, "ymin": 1, "xmax": 9, "ymax": 9} | values
    corners = "".join(f"<{key}>{box[key]}</{key}>" for key in ("xmin", "ymin", "xmax", "ymax"))
    return "".join(f"<{key}>{value}</{key}>" for key, value in tags.items()) + f"<bndbox>{corners}</bndbox>"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (number(xmax=1), "object 3 'cat': the box (1 1 1 9) has zero area"),
        (number(ymax=0), "object 3 'cat': the box (1 1 9 0) has a negative width or height"),
        (number(xmax=62), "object 3 'cat': the box (1 1 62 9) reaches outside of the image (60×40)"),
        (number(xmin=-1.5), "object 3 'cat': the box (-1.5 1 9 9) reaches outside of the image (60×40)"),
        (number(xmin="nan"), "object 3 'cat': the box (nan 1 9 9) holds NaN or Inf"),
        (number(xmin="abc"), "object 3 'cat': xmin 'abc' ymin '1' xmax '9' ymax '9', expected four numbers"),
        (number(xmin=""), "object 3 'cat': xmin '' ymin '1' xmax '9' ymax '9', expected four numbers"),
        (number(difficult="maybe"), "object 3 'cat': <difficult> is 'maybe', expected 0 or 1"),
        (number(name=" "), "object 3: no <name>"),
        ("<name>cat</name>", "object 3: no <bndbox>"),
        (number(name="cow"), "object 3: 'cow' is no known class, expected one of cat, dog"),
    ],
)
def test_a_bad_object_of_voc_is_left_out_with_its_place(tmp_path, record, reason):
    write_voc(tmp_path, IMAGES)
    path = tmp_path / "Annotations/a.xml"
    path.write_text(path.read_text().replace("</annotation>", f"<object>{record}</object></annotation>"))
    found = opened(tmp_path, classes=["cat", "dog"])
    assert told(found, tmp_path) == [f"Annotations/a.xml: {reason}"]
    assert kept(found) == {"a.png": 2, "b.png": 1}


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be read as XML: no element found: line 1, column 0"),
        (b"<annotation><object>", "cannot be read as XML: no element found: line 1, column 20"),
        (b"\xff\xd8\xff", "cannot be read as XML: not well-formed"),
        (b"<?xml version='1.0' encoding='klingon'?><annotation/>", "cannot be read as XML: unknown encoding"),
        (b"<html/>", "is <html>, expected an <annotation>"),
        (BOMB.encode(), "holds a DOCTYPE, expected plain XML"),
        (BOMB.encode("utf-16"), "holds a DOCTYPE, expected plain XML"),
        (voc_xml(GOOD, (41, 60)).encode(), "JPEGImages/a.png: has 60×40 pixels, but its annotation says 60×41"),
        (b"<annotation><size><width>x</width><height>4</height></size></annotation>", "<size> is 4 and x, expected"),
    ],
)
def test_an_annotation_that_cannot_be_used_takes_its_image_with_it(tmp_path, data, reason):
    write_voc(tmp_path, IMAGES)
    (tmp_path / "Annotations/a.xml").write_bytes(data)
    found = opened(tmp_path)
    assert len(told(found, tmp_path)) == 1
    assert told(found, tmp_path)[0].startswith(f"Annotations/a.xml: {reason}")
    assert list(kept(found).values()) == [None, 1]


def voc(folder: Path) -> str:
    write_voc(folder, IMAGES)
    (folder / "JPEGImages").rename(folder / "images")
    return "."


def coco(folder: Path) -> str:
    (folder / "images").mkdir()
    write_coco(folder / "images/val.json", IMAGES, CATEGORIES)
    return "images/val.json"


def yolo(folder: Path) -> str:
    write_yolo(folder, IMAGES, ["cat", "dog"])
    return "."


@pytest.mark.parametrize("write", [voc, coco, yolo])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"no image"), "no image format that PIL knows"),
        (lambda path: path.write_bytes(b""), "no image format that PIL knows"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), ""),
        (lambda path: (path.unlink(), path.symlink_to("gone.png")), "No such file or directory"),
        (lambda path: (path.unlink(), path.mkdir()), ""),
    ],
)
def test_an_image_that_cannot_be_read_is_left_out(tmp_path, write: Callable[[Path], str], spoil, reason):
    source = write(tmp_path)
    spoil(tmp_path / "images/a.png")
    found = opened(tmp_path, source)
    problems = [one for one in told(found, tmp_path) if "labels/a.txt: for no image" not in one]
    assert all("a.png" in problem or "a.*" in problem for problem in problems)
    assert reason in problems[0] if problems else write is yolo
    assert kept(found).get("a.png") is None
    assert kept(found)["b.png"] == 1


def test_images_and_annotations_without_each_other_are_told(tmp_path):
    write_voc(tmp_path, IMAGES | {"c": GOOD})
    (tmp_path / "JPEGImages/a.png").unlink()
    image_file(tmp_path / "JPEGImages/b.jpg")
    found = opened(tmp_path)
    assert told(found, tmp_path) == [
        "Annotations/a.xml: no image a.* in JPEGImages, expected one",
        "Annotations/b.xml: 2 images of its name in JPEGImages, expected one",
    ]
    assert kept(found) == {"a": None, "b": None, "c.png": 2}
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/val.txt").write_text("c\ngone\nc\n\nc.png\n")
    found = opened(tmp_path, "ImageSets/Main/val.txt")
    assert told(found, tmp_path) == [
        "ImageSets/Main/val.txt: line 3 'c': the same image as in line 1 'c'",
        "ImageSets/Main/val.txt: line 5 'c.png': the same image as in line 1 'c'",
        "ImageSets/Main/val.txt: line 2 'gone': no gone.xml in Annotations",
    ]
    assert kept(found) == {"c.png": 2, "gone": None}


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xff\xfe\x00\xd8"])
def test_a_list_that_names_nothing_is_refused(tmp_path, data):
    write_voc(tmp_path, IMAGES)
    (tmp_path / "list.txt").write_bytes(data)
    parts = {"images": "JPEGImages", "annotations": "Annotations", "list": "list.txt"}
    with pytest.raises(SoupError, match=r"list.txt: (names no image|cannot be read as a list)"):
        opened(tmp_path, parts)


def test_labels_and_listed_images_without_an_image_are_told(tmp_path):
    write_yolo(tmp_path, IMAGES, ["cat", "dog"])
    (tmp_path / "labels/x.txt").write_text("0 .5 .5 1 1")
    found = opened(tmp_path)
    assert told(found, tmp_path) == ["labels/x.txt: for no image, no x.* in images"]
    (tmp_path / "some.txt").write_text("a\nx\n")
    found = opened(tmp_path, {"images": "images", "annotations": "labels", "list": "some.txt"})
    assert told(found, tmp_path) == ["some.txt: line 2 'x': no x.* in images"]
    assert kept(found) == {"a.png": 2, "x": None}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 .5 .5 0 .5", "the box (0.5 0.25 0.5 0.75) has zero area"),
        ("0 .5 .5 -.5 .5", "the box (0.75 0.25 0.25 0.75) has a negative width or height"),
        ("0 30 20 10 10", "the box (25 15 35 25) reaches outside of the image (0 to 1)"),
        ("0 nan .5 .5 .5", "the box (nan 0.25 nan 0.75) holds NaN or Inf"),
        ("0 .1 .1 .9 nan .5 .5", "the box (nan nan nan nan) holds NaN or Inf"),
        ("0 .5 .5 .5", "4 numbers, expected 5"),
        ("0 .5 .5 .5 .5 .9", "6 numbers, expected 5"),
        ("0 .1 .1 .2 .2 .3 .3 .4", "8 numbers, expected 5"),
        ("cat .5 .5 .5 .5", "'cat .5 .5 .5 .5' is not of numbers only"),
        ("2 .5 .5 .5 .5", "the class 2 is none of the numbers 0 to 1"),
        ("-1 .5 .5 .5 .5", "the class -1 is none of the numbers 0 to 1"),
        ("0.5 .5 .5 .5 .5", "the class 0.5 is none of the numbers 0 to 1"),
        ("nan .5 .5 .5 .5", "the class nan is none of the numbers 0 to 1"),
        ("inf .5 .5 .5 .5", "the class inf is none of the numbers 0 to 1"),
    ],
)
def test_a_bad_line_of_yolo_is_left_out_with_its_number(tmp_path, line, reason):
    write_yolo(tmp_path, IMAGES, ["cat", "dog"])
    (tmp_path / "labels/a.txt").write_text(f"0 .5 .5 1 1\n\n{line}\n1 .5 .5 1 1\n")
    found = opened(tmp_path, classes=["cat", "dog"])
    assert len(told(found, tmp_path)) == 1
    assert told(found, tmp_path)[0].startswith(f"labels/a.txt: line 3: {reason}")
    assert kept(found) == {"a.png": 2, "b.png": 1}


def test_labels_that_are_no_text_take_their_image_with_them(tmp_path):
    write_yolo(tmp_path, IMAGES, ["cat", "dog"])
    (tmp_path / "labels/a.txt").write_bytes(b"\xff\xfe\x00\xd8")
    found = opened(tmp_path)
    assert told(found, tmp_path)[0].startswith("labels/a.txt: cannot be read: 'utf-8' codec")
    assert kept(found) == {"a.png": None, "b.png": 1}


def bad_voc(folder: Path) -> str:
    write_voc(folder, {f"im{row:02}": [("cat", (5, 5, 5, 9))] for row in range(12)})
    return "."


def empty_voc(folder: Path) -> str:
    write_voc(folder, {"a": [], "b": []})
    return "."


def difficult_voc(folder: Path) -> str:
    write_voc(folder, {"a": []})
    (folder / "Annotations/a.xml").write_text(voc_xml(GOOD, difficult=(0, 1)))
    return "."


def unlabelled_yolo(folder: Path) -> str:
    image_file(folder / "images/a.png")
    (folder / "labels").mkdir()
    return "."


def bare_coco(folder: Path) -> str:
    write_coco(folder / "val.json", {"a": []}, CATEGORIES)
    return "val.json"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (empty_voc, "Annotations: no box to judge by in 2 images, expected one or more that are neither crowd nor"),
        (difficult_voc, "Annotations: no box to judge by in 1 images, expected one or more that are neither crowd nor"),
        (bad_voc, r"no box to judge by in 12 images, .*im00.xml: object 1 'cat': .* has zero area; .*; and 2 more"),
        (unlabelled_yolo, "images: no box to judge by in 1 images"),
        (bare_coco, "val.json: no box to judge by in 1 images"),
    ],
)
def test_a_split_without_anything_to_find_is_refused(tmp_path, write, message):
    with pytest.raises(SoupError, match=message) as raised:
        opened(tmp_path, write(tmp_path))
    assert str(raised.value).endswith("Repair the annotations, or point at others.")


def test_folders_without_what_they_should_hold_are_refused(tmp_path):
    (tmp_path / "voc/Annotations").mkdir(parents=True)
    (tmp_path / "voc/JPEGImages").mkdir()
    with pytest.raises(SoupError, match=r"Annotations: holds no \.xml files"):
        opened(tmp_path, "voc")
    (tmp_path / "voc/JPEGImages").rmdir()
    with pytest.raises(SoupError, match=r"voc: no folder JPEGImages, and no images. Say where: \{images: …"):
        opened(tmp_path, "voc")
    (tmp_path / "yolo/images").mkdir(parents=True)
    (tmp_path / "yolo/labels").mkdir()
    with pytest.raises(SoupError, match="yolo/images: holds no images"):
        opened(tmp_path, "yolo")
    (tmp_path / "yolo/images/again").symlink_to(tmp_path / "yolo", target_is_directory=True)
    with pytest.raises(SoupError, match="again: is a link to a folder that it lies in"):
        opened(tmp_path, "yolo")


def test_an_image_whose_pixels_are_cut_off_is_left_to_the_decoder(tmp_path):
    write_voc(tmp_path, IMAGES)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "JPEGImages/a.png")
    data = (tmp_path / "JPEGImages/a.png").read_bytes()
    (tmp_path / "JPEGImages/a.png").write_bytes(data[:-200])
    assert kept(opened(tmp_path)) == {"a.png": 2, "b.png": 1}
