"""Detection data as nobody wants it, through the commands: records, files, classes, and a library that is missing."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.soup.commands import run
from tests.soup.detection_project import built_detector, detector, edit_json, released_detector

from .conftest import Accepted, Refused

Change = Callable[[dict[str, Any]], object]
SKIP = ("--set", "data.on_bad_sample=skip")
QUICK = ("--set", "explain.ensemble=false", "--set", "checkpoints.files=[runs/step-300.pt]")
REPAIR = (
    " Repair them, or set data.on_bad_sample: skip, which leaves out what is bad: a box, or an image whose annotation "
    "cannot be read."
)


@pytest.fixture
def boxed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the detection project that a test may change."""
    return Path(shutil.copytree(detector(tmp_path_factory.getbasetemp()), tmp_path / "boxed"))


@pytest.fixture
def built_boxed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it with a finished build in soup-out/."""
    return Path(shutil.copytree(built_detector(tmp_path_factory.getbasetemp()), tmp_path / "built-boxed"))


def more(**values: object) -> Change:
    """One more annotation of val's first image."""
    box = {"id": 99, "image_id": 0, "category_id": 1, "bbox": [1, 1, 8, 8]}
    return lambda document: document["annotations"].append({**box, **values})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (more(bbox=[28, 28, 8, 8]), "annotation 99: the box (28 28 36 36) reaches outside of the image (32×32)"),
        (more(bbox=[40, 40, 8, 8]), "annotation 99: the box (40 40 48 48) reaches outside of the image (32×32)"),
        (more(bbox=[-9, 1, 12, 8]), "annotation 99: the box (-9 1 3 9) reaches outside of the image (32×32)"),
        (more(bbox=[1, 1, 0, 8]), "annotation 99: the box (1 1 1 9) has zero area"),
        (more(bbox=[9, 9, -8, 8]), "annotation 99: the box (9 9 1 17) has a negative width or height"),
        (more(area=-5), "annotation 99: its area is -5, expected a finite number from 0"),
        (more(bbox=[1, 1, 8]), "annotation 99: its bbox is [1, 1, 8], expected four numbers x y width height"),
        (more(category_id=7), "annotation 99: its category_id 7 is not among the file's categories"),
        (more(image_id=77), "annotation 99: for no image, its image_id 77 is none that is used"),
        (
            lambda document: document["categories"].append({"id": 3, "name": "green"})
            or more(category_id=3)(document),
            "annotation 99: 'green' is no known class, expected one of blue, red",
        ),
        (
            lambda document: document["images"].append({"id": 50, "file_name": "val/gone.png"}),
            "val/gone.png: No such file or directory",
        ),
        (
            lambda document: document["images"].append({"id": 50, "file_name": "val/00.png"}),
            "images[16]: 'val/00.png' again, as of id 0; this entry is not used",
        ),
        (
            lambda document: document["images"][0].update(height=31),
            "data/val/00.png: has 32×32 pixels, but its annotation says 32×31",
        ),
    ],
    ids=[
        "over an edge", "outside", "left of it", "zero", "negative", "negative area", "no box", "unknown category",
        "no image", "unknown class", "missing", "twice", "other size",
    ],
)  # fmt: skip
def test_a_bad_record_is_named_with_its_file_or_left_out(
    boxed: Path, refused: Refused, accepted: Accepted, change: Change, reason: str
) -> None:
    edit_json(boxed / "data/val.json", change)
    told = refused(boxed, "build")
    assert re.match(r"data/val\.json: 1 problems?: .*data/val\.json: ", told)
    assert reason in told
    assert told.endswith(REPAIR)
    assert told.count("\n") == 0
    assert reason in refused_check(boxed, accepted)
    result = json.loads(accepted(boxed, "build", *SKIP, *QUICK, "--json"))["result"]
    skipped = result["record"]["splits"]["val"]["skipped"]
    assert len(skipped) == 1
    assert reason in skipped[0][1]
    assert result["record"]["splits"]["val"]["n"] == (15 if "31" in reason else 16)


def refused_check(folder: Path, accepted: Accepted) -> str:
    """What `soup check` says that a build would refuse."""
    result = json.loads(accepted(folder, "check", "--json", code=2))["result"]
    return "\n".join(result["refused"])


def test_all_that_is_wrong_with_two_files_is_told_by_a_check_at_once(boxed: Path, accepted: Accepted) -> None:
    edit_json(boxed / "data/val.json", more(bbox=[1, 1, 0, 8]))
    edit_json(boxed / "data/val.json", more(id=100, category_id=9))
    edit_json(boxed / "data/test.json", more(image_id=77))
    told = refused_check(boxed, accepted)
    for part in ("annotation 99: the box (1 1 1 9)", "annotation 100: its category_id 9", "test.json: annotation 99"):
        assert part in told


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_split_that_judges_without_any_box_is_refused(boxed: Path, refused: Refused, name: str) -> None:
    edit_json(boxed / f"data/{name}.json", lambda document: document.update(annotations=[]))
    told = refused(boxed, "build")
    assert told == (
        f"data/{name}.json: no box to judge by in 16 images, expected one or more that are neither crowd nor "
        "difficult. Repair the annotations, or point at others."
    )


def test_train_needs_no_boxes_since_only_its_images_are_looked_at(boxed: Path, accepted: Accepted) -> None:
    edit_json(boxed / "data/train.json", lambda document: document.update(annotations=[]))
    assert "data.train: data/train.json: read as COCO: 40 images from data with 0 boxes" in accepted(boxed, "build")


def without_area(document: dict[str, Any]) -> None:
    for one in document["annotations"]:
        one["bbox"] = [1, 1, 0, 0]


def test_a_split_whose_boxes_are_all_bad_is_refused_by_either_policy(boxed: Path, refused: Refused) -> None:
    edit_json(boxed / "data/val.json", without_area)
    for options in ((), SKIP):
        told = refused(boxed, "build", *options)
        assert told.startswith("data/val.json: no box to judge by in 16 images, expected one or more: ")
        assert "annotation 1: the box (1 1 1 1) has zero area" in told


def test_images_of_which_none_is_there_are_looked_for_in_every_place(boxed: Path, refused: Refused) -> None:
    (boxed / "data/val").rename(boxed / "elsewhere")
    told = refused(boxed, "build")
    assert told.startswith("data/val.json: 'val/00.png' and its other images are in none of data, ")
    assert told.endswith("Say where they are: {images: FOLDER, annotations: FILE}.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "data/val.json: cannot be read as JSON: "),
        ("[]", "data/val.json: expected an object with the lists images, annotations, categories as COCO has it"),
        (
            '{"images": [], "annotations": [], "categories": []}',
            "data/val.json: no categories. Without them no box has",
        ),
    ],
)
def test_a_file_that_is_not_cocos_is_refused(boxed: Path, refused: Refused, text: str, message: str) -> None:
    (boxed / "data/val.json").write_text(text)
    assert refused(boxed, "build").startswith(message)


def test_splits_of_other_classes_are_refused(boxed: Path, refused: Refused) -> None:
    edit_json(boxed / "data/test.json", lambda document: document["categories"].append({"id": 3, "name": "green"}))
    told = refused(boxed, "build", "--set", "detection.classes=null")
    assert told.startswith("data.test: has other classes than data.val ('green' is only in one of them), ")


def test_a_model_of_other_classes_than_the_data_is_refused(boxed: Path, refused: Refused) -> None:
    told = refused(boxed, "build", "--set", "detection.classes=[blue, red, green]")
    assert told == (
        "model './models.py:build': scores 2 classes, expected 3 as the data have (blue, red, green). "
        "Check model_args, detection.classes and the adapter's arguments."
    )
    told = refused(boxed, "build", "--set", "detection.classes=[blue]")
    assert "'red' is no known class, expected one of blue" in told


def test_an_image_that_exif_turns_is_told_where_annotations_are_of_the_other_size(
    boxed: Path, refused: Refused
) -> None:
    turned, plain = Image.Exif(), Image.new("RGB", (32, 24))
    turned[0x0112] = 6
    plain.save(boxed / "data/val/turned.jpg", exif=turned)
    entry = {"id": 50, "file_name": "val/turned.jpg", "height": 32, "width": 24}
    edit_json(boxed / "data/val.json", lambda document: document["images"].append(entry))
    told = refused(boxed, "build", "--set", "preprocess.resize=[32, 32]")
    assert told == (
        "data/val.json: annotations of another size than the image as it is read: val/turned.jpg is [24, 32], "
        "annotated as [32, 24]. The image may be turned by its EXIF orientation, which preprocess.backend cv2 follows "
        "and pil does not."
    )


def test_boxes_that_changed_since_the_build_are_refused(built_boxed: Path, refused: Refused) -> None:
    edit_json(built_boxed / "data/val.json", lambda document: document["annotations"][0].update(bbox=[1, 1, 9, 9]))
    told = refused(built_boxed, "export")
    assert told == "data.val: has other labels or groups than when the soup was built. Restore them, or build again."


@pytest.mark.parametrize("command", ["build", "export", "verify"])
def test_without_pycocotools_the_pip_line_is_told(
    built_boxed: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    release = released_detector(tmp_path_factory.getbasetemp())
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    arguments: list[object] = ["--val", built_boxed / "val.yaml", "-o", built_boxed / "new"]
    if command == "export":
        arguments = [built_boxed / "soup-out", "-o", built_boxed / "release"]
    elif command == "verify":
        arguments = [release]
    told = run(command, *arguments, code=6)
    assert "metric: average precision needs pycocotools. pip install 'edgesoup[detection]'\n" in told
    assert not (built_boxed / "release").exists()
    assert not (built_boxed / "new/recipe.json").exists()
