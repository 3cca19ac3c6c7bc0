"""Samples that cannot be read, are missing, are too alike, or do not fit the network, as `soup build` meets them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soup.build_folder import read_build

from .conftest import Accepted, Refused

SKIP = ("--set", "data.on_bad_sample=skip")
DATASET = """
import numpy as np

class Digits:
    def __init__(self):
        with np.load("val.npz") as arrays:
            self.images, self.labels = arrays["images"], arrays["labels"]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if index == 3:
            raise OSError("bad sector")
        return self.images[index], self.labels[index]
"""


@pytest.fixture
def folders(project: Path) -> Path:
    """The project with image folders: 10 classes of 3 images in each split, no two alike."""
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        (project / f"{split}.npz").unlink()
        for name in range(10):
            (project / split / str(name)).mkdir(parents=True)
            for index in range(3):
                pixels = random.integers(0, 255, (8, 8), np.uint8)
                Image.fromarray(pixels).save(project / split / str(name) / f"{index}.png")
    config = (project / "val.yaml").read_text()
    (project / "val.yaml").write_text(config.replace(".npz", ""))
    return project


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"no image"), "no image format that PIL knows"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "image file is truncated"),
        (lambda path: (path.unlink(), path.symlink_to("gone.png")), "No such file or directory"),
        (lambda path: (path.unlink(), path.symlink_to(path.name)), "Too many levels of symbolic links"),
    ],
    ids=["text", "truncated", "link to nowhere", "link to itself"],
)
def test_an_unreadable_image_is_refused_or_skipped_and_counted(
    folders: Path, refused: Refused, accepted: Accepted, spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(folders / "val/3/1.png")
    told = refused(folders, "build")
    assert told.startswith(f"val: 1 of 30 images cannot be read: 3/1.png: {reason}")
    assert told.endswith(". Repair or remove them, or set data.on_bad_sample: skip.")
    assert f"note         data.val: 1 skipped: 3/1.png: {reason}" in accepted(folders, "build", *SKIP)
    split = read_build(folders / "soup-out").record.splits["val"]
    assert split.n == 29
    assert [image for image, _ in split.skipped] == ["3/1.png"]


def test_a_split_without_one_readable_image_is_refused_and_each_reason_told_once(
    folders: Path, refused: Refused
) -> None:
    for path in (folders / "val").rglob("*.png"):
        path.write_bytes(b"")
    told = refused(folders, "build", *SKIP)
    assert told == "val: none of 30 images can be read: 0/0.png: no image format that PIL knows."


def test_what_a_dataset_raises_for_a_sample_is_an_unreadable_image(
    project: Path, refused: Refused, accepted: Accepted
) -> None:
    (project / "data.py").write_text(DATASET)
    val = ("--set", "data.val=./data.py:Digits")
    told = refused(project, "build", *val)
    reason = f"3: __getitem__: raised OSError at {project}/data.py:14: bad sector"
    assert told.startswith(f"data.val: 1 of 400 images cannot be read: {reason}. Repair or remove them")
    assert f"note         data.val: 1 skipped: {reason}" in accepted(project, "build", *val, *SKIP)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "def val():\n    raise RuntimeError('no database')\n",
            "data.val: raised RuntimeError at {folder}/data.py:2: no database.",
        ),
        ("def val(): ...\n", "data.val: gave NoneType, expected a dataset or an iterable of (image, label[, id])."),
        ("def val():\n    return []\n", "data.val: holds no samples, expected one or more pairs of image and label."),
        (
            "def val():\n    return ['image']\n",
            "data.val: sample 0 is str, expected (image, label) or (image, label, id).",
        ),
        (
            "def val():\n    return iter([([[1, 2], [3]], 1)])\n",
            "data.val: none of 1 images can be read: 0: the image is list that makes no array.",
        ),
        (
            "def val():\n    yield 1, 2, 3\n    yield 1 / 0\n",
            "data.val: sample 1: raised ZeroDivisionError at {folder}/data.py:3: division by zero.",
        ),
        (
            "class val:\n    def __iter__(self):\n        raise ValueError('closed')\n",
            "data.val: raised ValueError at {folder}/data.py:3: closed.",
        ),
        (
            "class val:\n    def __len__(self):\n        return -1\n\n    def __getitem__(self, index): ...\n",
            "data.val: raised ValueError: __len__() should return >= 0.",
        ),
    ],
    ids=["raises", "None", "no samples", "no pairs", "no image", "raises late", "no iterator", "negative length"],
)
def test_a_function_that_gives_no_samples_is_told(project: Path, refused: Refused, source: str, message: str) -> None:
    (project / "data.py").write_text(source)
    assert refused(project, "build", "--set", "data.val=./data.py:val") == message.format(folder=project)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda val: val.unlink(),
            "val.npz: no such file or folder. Point data.val at an image folder, a .csv or an .npz.",
        ),
        (lambda val: val.write_text("text"), "val.npz: cannot be read as an .npz: File is not a zip file."),
        (lambda val: val.write_bytes(val.read_bytes()[:9000]), "val.npz: cannot be read as an .npz: File is not a zip"),
        (
            lambda val: np.savez(val, images=np.zeros((0, 8, 8), np.uint8), labels=np.zeros(0, int)),
            "val.npz: 'images' has shape (0, 8, 8), expected (n, height, width[, channels]), n from 1.",
        ),
        (
            lambda val: np.savez(val, images=np.zeros((3, 8, 8), np.uint8), labels=np.zeros(4, int)),
            "val.npz: 'labels' has shape (4,), expected (3,): one for each image.",
        ),
        (
            lambda val: np.savez(val, images=np.array([object()]), labels=np.zeros(1, int)),
            "val.npz: cannot be read as an .npz: Object arrays cannot be loaded when allow_pickle=False.",
        ),
    ],
    ids=["missing", "text", "truncated", "empty", "unequal", "pickled"],
)
def test_an_npz_that_is_no_split_is_refused(
    project: Path, refused: Refused, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(project / "val.npz")
    assert refused(project, "build").startswith(message)


def test_an_empty_split_is_refused(folders: Path, refused: Refused) -> None:
    shutil.rmtree(folders / "val")
    (folders / "val").mkdir()
    assert refused(folders, "build").startswith("val: no images in 0 class folders, expected CLASS/IMAGE with one of ")


def test_a_class_folder_that_one_split_lacks_is_refused(folders: Path, refused: Refused) -> None:
    shutil.rmtree(folders / "val/3")
    told = refused(folders, "build")
    assert told.startswith("data.val: has other classes than data.train ('3' is only in one of them)")


def test_more_classes_than_the_network_has_outputs_are_refused(folders: Path, refused: Refused) -> None:
    for split in ("train", "val", "test"):
        (folders / split / "9").rename(folders / split / "a")
        (folders / split / "9").mkdir()
    told = refused(folders, "build")
    assert told.startswith("data: label 10, expected 0 to 9, the outputs of the model. Check the classes of the split")


def test_shared_images_are_listed_and_refused_beyond_max_overlap(
    folders: Path, refused: Refused, accepted: Accepted
) -> None:
    shutil.copy(folders / "val/1/2.png", folders / "train/1/again.png")
    told = refused(folders, "build")
    line = "data.train and data.val share 1 images (3.33% of the smaller), as '1/again.png' = '1/2.png'"
    assert told == f"{line}, more than data.max_overlap = 0.001. Split them anew."
    accepted(folders, "build", "--set", "data.max_overlap=0.05")
    assert read_build(folders / "soup-out").record.overlaps == (line,)


def test_train_images_that_are_all_in_val_leave_nothing_to_recalibrate_on(project: Path, refused: Refused) -> None:
    """Correctness 23."""
    told = refused(project, "build", "--set", "data.train=val.npz", "--set", "data.max_overlap=1")
    assert told.startswith("data.train: nothing to recalibrate BatchNorm on: ")


def test_images_of_several_sizes_are_refused_by_name(folders: Path, refused: Refused) -> None:
    Image.new("L", (9, 8)).save(folders / "val/4/0.png")
    told = refused(folders, "build")
    assert told.startswith("val: 1 images differ in size, expected 8×8×1 as the first: 4/0.png is 8×9×1.")


def test_splits_of_different_sizes_are_refused(project: Path, refused: Refused) -> None:
    np.savez(project / "val.npz", images=np.zeros((9, 6, 6), np.uint8), labels=np.zeros(9, int))
    told = refused(project, "build")
    assert told.startswith("data.val: has images of shape (6, 6, 1), expected (8, 8, 1) as in data.train. Set ")


def test_bytes_without_a_preprocess_are_refused(project: Path, refused: Refused) -> None:
    told = refused(project, "build", "--set", "preprocess=null")
    assert told.startswith(
        "train.npz: none of 700 images can be read: 0: the image is uint8 (8, 8, 1), expected a float"
    )


def test_a_link_in_a_circle_does_not_list_images_twice(folders: Path, refused: Refused) -> None:
    """Correctness 31."""
    (folders / "val/3/all").symlink_to("..")
    assert refused(folders, "build") == "val/3/all: is a link to a folder that it lies in, expected images. Remove it."


def test_names_of_classes_and_images_need_not_be_utf8(folders: Path, accepted: Accepted) -> None:
    for split in ("train", "val", "test"):
        (folders / split / "9").rename(folders / split / os.fsdecode(b"\xff"))
    (folders / "val/1/1.png").rename(folders / "val/1" / os.fsdecode(b"\xfe\xff.png"))
    (folders / "val/1/0.png").rename(folders / "val/1/naïve 字.png")
    (folders / "val" / os.fsdecode(b"\xff") / "2.png").write_bytes(b"")
    accepted(folders, "build", *SKIP)
    record = read_build(folders / "soup-out").record
    assert record.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", r"\udcff")
    assert record.splits["val"].skipped[0][0] == r"\udcff/2.png"
    accepted(folders, "export", "--allow-inconclusive")
    assert "pass         8 files are as they were sealed" in accepted(
        folders, "verify", "soup-out/release", "--allow-inconclusive"
    )
