"""Masks that are missing, misshapen or hold what no class is, as `soup build` meets them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soup.build_folder import read_build
from tests.soup.segmentation_project import IGNORED, write_project, write_val

from .conftest import Accepted, Refused

SKIP = ("--set", "data.on_bad_sample=skip")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of tests/soup/segmentation_project.py. Read only."""
    folder = tmp_path_factory.mktemp("scenes") / "project"
    write_project(folder)
    return folder


@pytest.fixture
def folder(scenes: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(scenes, tmp_path / "project"))


def other(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def beyond(mask: np.ndarray) -> np.ndarray:
    mask[:2, :3] = 7
    mask[3, 3] = 9
    return mask


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "another size": (
        lambda mask: other(mask, lambda ids: ids[:20]),
        "03: {mask}: has 32×20 pixels, expected 32×24 as its image",
    ),
    "values beyond the classes": (
        lambda mask: other(mask, beyond),
        "03: {mask}: 7 pixels have the class 7, 9, expected 0 to 2, or 255 to ignore",
    ),
    "missing": (
        lambda mask: mask.unlink(),
        "03: {mask}: no such file, the mask of {image}",
    ),
    "without an image": (
        lambda mask: (mask.parents[1] / "images" / mask.name).unlink(),
        "03: {mask}: a mask without an image, expected one of this name in {images}",
    ),
    "colours": (
        lambda mask: Image.open(mask).convert("RGB").save(mask),
        "03: {mask}: is an image of mode RGB, expected one class number per pixel (mode P, L or 16 bits). "
        "Colours need a palette that says which class each stands for",
    ),
    "a JPEG": (
        lambda mask: Image.open(mask).save(mask, format="JPEG"),
        "03: {mask}: is JPEG, expected PNG: other formats may change values",
    ),
    "cut off": (
        lambda mask: mask.write_bytes(mask.read_bytes()[:60]),
        "03: {mask}: image file is truncated",
    ),
    "text": (lambda mask: mask.write_text("classes"), "03: {mask}: no image format that PIL knows"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_mask_is_refused_by_its_name_or_skipped_with_its_image_and_counted(
    folder: Path, refused: Refused, accepted: Accepted, name: str
) -> None:
    spoil, reason = BAD[name]
    mask = Path("val/masks/03.png")
    spoil(folder / mask)
    told = refused(folder, "build")
    wanted = reason.format(mask=mask, image="val/images/03.png", images="val/images")
    assert told.startswith(f"val/images: 1 problem: {wanted}"), told
    assert "set data.on_bad_sample: skip" in told
    assert "\n" not in told
    assert f"note         data.val: 1 skipped: {wanted}" in accepted(folder, "build", *SKIP)
    split = read_build(folder / "soup-out").record.splits["val"]
    assert (split.n, [image for image, _ in split.skipped]) == (15, ["03"])


def test_all_that_is_wrong_is_told_at_once(folder: Path, refused: Refused) -> None:
    (folder / "val/masks/03.png").unlink()
    other(folder / "val/masks/05.png", beyond)
    told = refused(folder, "build")
    assert told.startswith("val/images: 2 problems: 03: val/masks/03.png: no such file")
    assert "; 05: val/masks/05.png: 7 pixels have the class 7, 9" in told


def test_an_empty_folder_is_refused(folder: Path, refused: Refused) -> None:
    for kind, told in (
        ("images", "val/images: no images, expected one or more with a mask of the same name in val/masks."),
        ("masks", "val/masks: no masks, expected .png files named as the images."),
    ):
        aside = (folder / "val" / kind).rename(folder / "aside")
        (folder / "val" / kind).mkdir()
        assert refused(folder, "build") == told
        (folder / "val" / kind).rmdir()
        aside.rename(folder / "val" / kind)


def test_a_folder_of_another_kind_is_refused_with_what_is_expected(folder: Path, refused: Refused) -> None:
    (folder / "val/masks").rename(folder / "val/annotations")
    told = refused(folder, "build")
    assert told.startswith("val: is no known kind of data. Give a folder with images/ and masks/")


def test_where_all_pixels_are_ignored_nothing_can_be_judged(folder: Path, refused: Refused) -> None:
    for path in (folder / "val/masks").iterdir():
        other(path, lambda ids: np.full_like(ids, IGNORED))
    told = refused(folder, "build", *SKIP)
    assert told == "val/images: all pixels of 16 masks are 255: nothing can be judged."


def test_no_mask_that_can_be_used_is_refused_even_where_bad_ones_are_skipped(folder: Path, refused: Refused) -> None:
    for path in (folder / "val/masks").iterdir():
        other(path, beyond)
    told = refused(folder, "build", *SKIP)
    assert told.startswith("val/images: none of 16 images can be used: 00: val/masks/00.png: ")
    assert told.endswith("and 6 more.")


def test_classes_that_the_network_does_not_score_are_refused(folder: Path, refused: Refused) -> None:
    write_val(folder, segmentation={"classes": ["ground", "bar", "disc", "sky"]})
    told = refused(folder, "build")
    assert told == (
        "model './models.py:build': scores 3 classes, expected 4 as the data have (ground, bar, disc, sky). Check "
        "model_args, segmentation.classes and the adapter's arguments."
    )


def test_an_output_that_the_network_does_not_have_is_refused(folder: Path, refused: Refused) -> None:
    write_val(folder, segmentation={"output": "logits"})
    told = refused(folder, "build")
    assert "the network returned a dict of 'out', 'aux', expected 'logits' in it." in told


def test_without_class_names_the_network_tells_how_many_there_are(folder: Path, refused: Refused) -> None:
    write_val(folder, segmentation={})
    other(folder / "val/masks/03.png", beyond)
    told = refused(folder, "build")
    assert "masks with a class beyond 2, the network's last: 03" in told
