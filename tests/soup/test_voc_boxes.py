"""Pascal VOC folders: which images, which classes, which corners; and a real one."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from soup import SoupError
from soup.box_sources import open_boxes
from tests.soup.box_writers import image_file, voc_xml, write_voc

TWO = {"a": [("dog", (1, 2, 10, 20))], "b": [("cat", (0, 0, 60, 40)), ("ant", (5, 5, 6, 7))]}
BCCD = Path(os.environ.get("SOUP_BCCD", Path(__file__).parents[2] / "../shared/data/bccd"))


def opened(folder: Path, source: object = ".", **options):
    found = open_boxes("val", source, folder=folder, max_bytes=1e9, **options)
    return found, {sample.id: sample for sample in found.samples}


def listed(root: Path, text: str) -> str:
    path = root / "ImageSets/Main/val.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path.relative_to(root))


def test_corners_are_the_edges_as_they_are_written(tmp_path):
    write_voc(tmp_path, TWO)
    (tmp_path / "Annotations/a.xml").write_text(voc_xml([("dog", (1, 2.5, 10, 20)), ("dog", (3, 3, 4, 4))], None, (1,)))
    _, samples = opened(tmp_path)
    assert samples["a.png"].truth.boxes.tolist() == [[1, 2.5, 10, 20], [3, 3, 4, 4]]
    assert samples["a.png"].truth.area.tolist() == [9 * 17.5, 1]
    assert samples["a.png"].truth.crowd.tolist() == [False, True]
    assert samples["a.png"].size == (40, 60)
    assert samples["b.png"].truth.boxes.tolist() == [[0, 0, 60, 40], [5, 5, 6, 7]]


def test_classes_are_all_names_of_the_folder_whatever_the_list(tmp_path):
    write_voc(tmp_path, TWO)
    found, samples = opened(tmp_path, listed(tmp_path, "\ufeffa\n\n"))
    assert list(samples) == ["a.png"]
    assert found.class_names == ("ant", "cat", "dog")
    assert samples["a.png"].truth.labels.tolist() == [2]
    assert found.origin == str(tmp_path / "ImageSets/Main/val.txt")


def test_given_classes_set_the_order_and_others_are_told(tmp_path):
    write_voc(tmp_path, TWO)
    found, samples = opened(tmp_path, classes=["dog", "cat"])
    assert found.class_names == ("dog", "cat")
    assert samples["a.png"].truth.labels.tolist() == [0]
    assert samples["b.png"].truth.labels.tolist() == [1]
    told = f"{tmp_path}/Annotations/b.xml: object 2: 'ant' is no known class, expected one of dog, cat"
    assert samples["b.png"].problems == (told,)


def test_images_lie_in_another_folder_or_beside_their_annotations(tmp_path):
    write_voc(tmp_path / "one", TWO)
    (tmp_path / "one/JPEGImages").rename(tmp_path / "one/Photos")
    (tmp_path / "one/ImageSets").mkdir()
    assert opened(tmp_path, "one")[1]["a.png"].image == tmp_path / "one/Photos/a.png"
    image_file(tmp_path / "one/More/x.png")
    with pytest.raises(SoupError, match="no folder JPEGImages, and several folders of images: More, Photos"):
        opened(tmp_path, "one")
    (tmp_path / "flat").mkdir()
    image_file(tmp_path / "flat/a.jpg")
    (tmp_path / "flat/a.xml").write_text(voc_xml(TWO["a"]))
    assert list(opened(tmp_path, "flat")[1]) == ["a.jpg"]


def test_subfolders_are_part_of_the_name_and_hidden_files_none(tmp_path):
    write_voc(tmp_path, {"x/a": TWO["a"], "y/a": TWO["b"]})
    (tmp_path / "Annotations/._a.xml").write_text("\0")
    assert list(opened(tmp_path)[1]) == ["x/a.png", "y/a.png"]
    assert list(opened(tmp_path, listed(tmp_path, "y/a\n"))[1]) == ["y/a.png"]
    assert list(opened(tmp_path, listed(tmp_path, "../../JPEGImages/y/a.png\n"))[1]) == ["y/a.png"]


def test_a_person_s_parts_are_no_objects(tmp_path):
    write_voc(tmp_path, {"a": TWO["a"]})
    xml = (tmp_path / "Annotations/a.xml").read_text()
    part = "<part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    (tmp_path / "Annotations/a.xml").write_text(xml.replace("</object>", f"{part}</object>"))
    found, samples = opened(tmp_path)
    assert found.class_names == ("dog",)
    assert samples["a.png"].truth.boxes.tolist() == [[1, 2, 10, 20]]


def test_what_is_passed_over_is_noted(tmp_path):
    write_voc(tmp_path, TWO)
    image_file(tmp_path / "JPEGImages/c.png")
    (tmp_path / "Annotations/b.xml").write_text("<")
    found, _ = opened(tmp_path, classes=["dog"])
    assert found.notes == (
        f"{tmp_path}/Annotations: read as Pascal VOC: 2 images from {tmp_path}/JPEGImages with 1 boxes",
        f"{tmp_path}/Annotations: 1 images have no .xml and are left out: c",
    )
    found, _ = opened(tmp_path, listed(tmp_path, "a\n"))
    assert found.notes[1:] == (
        f"{tmp_path}/Annotations: 1 files outside of the list cannot be read, and add no classes: b",
    )


@pytest.mark.parametrize(
    "size", ["", "<size><width>0</width><height>0</height></size>", "<size><width></width><height>40</height></size>"]
)
def test_a_size_that_the_annotation_does_not_tell_is_the_file_s(tmp_path, size):
    write_voc(tmp_path, {"a": TWO["a"]})
    (tmp_path / "Annotations/a.xml").write_text(voc_xml(TWO["a"], None).replace("<object>", f"{size}<object>", 1))
    assert opened(tmp_path)[1]["a.png"].size == (40, 60)


def test_a_turned_image_has_the_size_before_or_after_the_turn(tmp_path):
    write_voc(tmp_path, {"a": TWO["a"]})
    for orientation, size, usable in ((6, (60, 40), True), (6, (40, 60), True), (3, (60, 40), False)):
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0\0\0\0\0"
        image_file(tmp_path / "JPEGImages/a.png", exif=exif)
        (tmp_path / "Annotations/a.xml").write_text(voc_xml(TWO["a"], size))
        if usable:
            assert opened(tmp_path)[1]["a.png"].size == size
        else:
            with pytest.raises(SoupError, match="has 60×40 pixels, but its annotation says 40×60"):
                opened(tmp_path)


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"the blood cells of BCCD are not at {BCCD} (SOUP_BCCD)")
class TestBccd:
    def test_all_its_boxes_are_read_but_two_without_area(self):
        found, samples = opened(BCCD)
        counts = Counter(found.class_names[label] for one in samples.values() for label in one.truth.labels)
        assert len(samples) == 364
        assert counts == {"RBC": 4153, "WBC": 372, "Platelets": 361}
        assert [problem for sample in samples.values() for problem in sample.problems] == [
            f"{BCCD}/Annotations/BloodImage_00338.xml: object 13 'RBC': the box (504 337 504 337) has zero area",
            f"{BCCD}/Annotations/BloodImage_00343.xml: object 4 'RBC': the box (181 329 181 329) has zero area",
        ]
        assert found.problems == ()
        assert {sample.size for sample in samples.values()} == {(480, 640)}

    def test_its_splits_share_all_images_among_them_and_number_alike(self):
        splits = {name: opened(BCCD, f"ImageSets/Main/{name}.txt") for name in ("train", "val", "test")}
        assert {name: len(samples) for name, (_, samples) in splits.items()} == {"train": 205, "val": 87, "test": 72}
        assert len({key for _, samples in splits.values() for key in samples}) == 364
        assert {found.class_names for found, _ in splits.values()} == {("Platelets", "RBC", "WBC")}
