"""What a split may come from, and how each kind says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soup import SoupError
from soup.sources import drawn, open_source, several


def image_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


def opened(source, folder: Path, max_bytes: float = 1e9):
    found = open_source("val", source, folder=folder, max_bytes=max_bytes)
    return found, list(found.samples)


def listed(source, folder: Path) -> list[tuple]:
    return [(sample.id, sample.label, sample.group) for sample in opened(source, folder)[1]]


def test_a_folder_numbers_its_classes_in_sorted_order(tmp_path):
    for name in (
        "dog/b.png",
        "dog/a.JPG",
        "cat/deep/c.png",
        "dog/notes.txt",
        ".hidden/x.png",
        "loose.png",
        "dog/.y.png",
        "dog/.ipynb_checkpoints/b.png",
    ):
        image_file(tmp_path / "val" / name) if not name.endswith(".txt") else (tmp_path / "val" / name).touch()
    (tmp_path / "val" / "ant").mkdir()
    found, _ = opened("val", tmp_path)
    assert found.class_names == ("ant", "cat", "dog")
    assert listed("val", tmp_path) == [("cat/deep/c.png", 1, None), ("dog/a.JPG", 2, None), ("dog/b.png", 2, None)]


def test_a_csv_names_paths_beside_itself_with_labels_and_groups(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/val.csv").write_text(
        "\ufeffpath, label, group, note\nb.png, 7, g1, x\nsub/a.png, 0, g2, y\n", "utf-8"
    )
    assert listed("lists/val.csv", tmp_path) == [("b.png", 7, "g1"), ("sub/a.png", 0, "g2")]
    found, samples = opened("lists/val.csv", tmp_path)
    assert found.class_names is None
    assert samples[1].image == tmp_path / "lists/sub/a.png"


def test_names_in_a_csv_are_numbered_in_sorted_order(tmp_path):
    (tmp_path / "val.csv").write_text("path,label\na.png,zebra\nb.png,ant\nc.png,zebra\n")
    assert listed("val.csv", tmp_path) == [("a.png", 1, None), ("b.png", 0, None), ("c.png", 1, None)]
    assert opened("val.csv", tmp_path)[0].class_names == ("ant", "zebra")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column path and label"),
        ("file,label\na.png,1\n", r"no column path, expected path,label\[,group\] but found \['file', 'label'\]"),
        ("path,label\n", "no rows"),
        ("path,label\na.png,1\nb.png,\n,3\n", "without path or label: line 3; line 4"),
        ("path,label\na.png,1\nb.png,nan\nc.png,-1\nd.png,1.5\n", "line 3 'nan'; line 4 '-1'; line 5 '1.5'"),
        ("path,label\na.png,1\nb.png,1O\n", "line 3 '1O'"),
        ("path,label\na.png,99999999999999999999\n", "line 2 '9999"),
        ("path,label,group\na.png,0,\n", "without path or label or group: line 2"),
        ("path,label\n\na.png,0\nb,1.png,0\n", "more than 2 cells: line 4"),
        ("path,label\n" + "a.png,\n" * 12, "and 2 more"),
    ],
)
def test_a_bad_csv_is_told_with_its_lines(tmp_path, text, message):
    (tmp_path / "val.csv").write_text(text)
    with pytest.raises(SoupError, match=message) as raised:
        opened("val.csv", tmp_path)
    assert str(raised.value).startswith(str(tmp_path / "val.csv"))


def test_a_binary_csv_is_refused(tmp_path):
    (tmp_path / "val.csv").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(SoupError, match="cannot be read as a CSV"):
        opened("val.csv", tmp_path)


def test_an_npz_holds_images_labels_ids_and_groups(tmp_path):
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(tmp_path / "val.npz", images=images, labels=np.array([5, 0], np.uint8), ids=["x", "y"], groups=[3, 4])
    assert listed("val.npz", tmp_path) == [("x", 5, "3"), ("y", 0, "4")]
    assert np.array_equal(opened("val.npz", tmp_path)[1][1].image, images[1])
    np.savez(tmp_path / "val.npz", images=images, labels=np.array([5, 0]))
    assert listed("val.npz", tmp_path) == [("0", 5, None), ("1", 0, None)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4), np.uint8)}, "no array labels"),
        (
            {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)},
            r"'labels' has shape \(3,\), expected \(2,\)",
        ),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, np.nan])}, "expected integers"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, -1])}, "number no class: row 1: -1"),
        ({"images": np.zeros((0, 4, 4), np.uint8), "labels": np.zeros(0, int)}, "n from 1"),
        ({"images": np.uint8(3), "labels": np.zeros(1, int)}, r"shape \(\)"),
        ({"images": np.zeros((1, 4, 4), np.uint8), "labels": np.array([None])}, "cannot be read as an .npz"),
        ({"images": np.zeros((99, 99, 99), np.uint8), "labels": np.zeros(99, int)}, "more than data.cache.max_gb"),
    ],
)
def test_a_bad_npz_is_told(tmp_path, arrays, message):
    np.savez(tmp_path / "val.npz", **arrays)
    with pytest.raises(SoupError, match=message):
        opened("val.npz", tmp_path, max_bytes=1e5)


def test_a_damaged_npz_is_refused(tmp_path):
    np.savez(tmp_path / "val.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.zeros(2, int))
    content = bytearray((tmp_path / "val.npz").read_bytes())
    content[200] ^= 1  # inside the first array
    for damaged in (bytes(content), bytes(content[:150]), b""):
        (tmp_path / "val.npz").write_bytes(damaged)
        with pytest.raises(SoupError, match=r"cannot be read as an \.npz"):
            opened("val.npz", tmp_path)


class Dataset:
    """Has a length and an index that, like torch's, does not end by itself."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return np.full((2, 2), index % 3, np.uint8), index % 3, f"id{index}"


def test_a_function_gives_a_dataset_or_an_iterable(tmp_path):
    assert listed(Dataset, tmp_path) == [("id0", 0, None), ("id1", 1, None), ("id2", 2, None)]
    assert listed(lambda: iter([("image", 4), ["image", np.int32(2)]]), tmp_path) == [("0", 4, None), ("1", 2, None)]
    assert opened(Dataset, tmp_path)[0].count == 3
    assert opened(lambda: iter([]), tmp_path)[0].count is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: 1 / 0, "data.val: raised ZeroDivisionError"),
        (lambda: 3, "data.val: gave int, expected a dataset"),
        (lambda: [("image", 1), "image"], "data.val: sample 1 is str, expected .image, label."),
        (lambda: [("image", 1, "id", 4)], "sample 0 is tuple"),
        (lambda: [("image", np.array([1, 2]))], "Give samples, not batches"),
        (lambda: [("image", -1)], "label -1"),
        (lambda: [("image", 0.5)], "label 0.5"),
        (lambda: [("image", "cat")], "label 'cat'"),
        (lambda: (int(text) for text in "1x"), "data.val: sample 0 is int"),
        (lambda: (("image", int(text)) for text in "1x"), "data.val: sample 1: raised ValueError at .*test_sources.py"),
    ],
)
def test_a_function_that_gives_something_else_is_told_by_sample(tmp_path, function, message):
    with pytest.raises(SoupError, match=message):
        opened(function, tmp_path)


def test_what_a_dataset_raises_for_a_sample_is_kept_as_its_image(tmp_path):
    (sample,) = opened(lambda: {"train": 1}, tmp_path)[1]
    assert sample.id == "0"
    assert isinstance(sample.image, SoupError)
    assert "raised KeyError" in str(sample.image)


def test_a_link_in_a_circle_is_refused_instead_of_listing_every_image_again(tmp_path):
    image_file(tmp_path / "val" / "cat" / "a.png")
    (tmp_path / "val" / "cat" / "loop").symlink_to("..")
    with pytest.raises(SoupError, match=r"val/cat/loop: is a link to a folder that it lies in"):
        opened("val", tmp_path)


def test_a_source_that_is_not_there_or_of_no_known_kind_is_told(tmp_path):
    with pytest.raises(SoupError, match="no such file or folder"):
        opened("none", tmp_path)
    (tmp_path / "val.txt").touch()
    with pytest.raises(SoupError, match=r"'\.txt' is no known kind"):
        opened("val.txt", tmp_path)


def test_a_folder_without_images_is_told(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    image_file(tmp_path / "val" / "loose.png")
    with pytest.raises(SoupError, match="no images in 1 class folders, expected CLASS/IMAGE"):
        opened("val", tmp_path)


def test_long_lists_are_cut_and_counted():
    assert several(["a", "b"]) == "a; b"
    assert several([str(i) for i in range(12)]).endswith("9; and 2 more")


def test_a_draw_keeps_the_classes_in_proportion_and_is_the_same_each_time(tmp_path: Path) -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    np.savez(tmp_path / "train.npz", images=np.zeros((100, 4, 4, 1), np.uint8), labels=labels)
    source = open_source("train", "train.npz", folder=tmp_path, max_bytes=1e9)
    first, again = drawn(source, 20), drawn(source, 20)
    assert [sample.id for sample in first.samples] == [sample.id for sample in again.samples]
    assert np.bincount([sample.label for sample in first.samples]).tolist() == [12, 6, 2]
    assert first.count == 20
    assert first.identity != source.identity
    assert drawn(source, 100) is source
