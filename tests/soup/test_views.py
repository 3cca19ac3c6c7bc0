"""Views of each image: seen and taken back, averaged as probabilities, and counted in forward passes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import interpolate

from soup.build_folder import read_build
from soup.models import build_model
from soup.search_records import Reference
from soup.views import boxes_back, seen_as
from tests.soup.commands import run

SIDES = st.integers(4, 40)


def painted(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """float32 [1, 1, h, w]: 1 inside x1 y1 x2 y2."""
    image = np.zeros((1, 1, height, width), np.float32)
    x1, y1, x2, y2 = box
    image[..., y1:y2, x1:x2] = 1
    return image


def extent(image: np.ndarray) -> list[int]:
    """x1 y1 x2 y2 of what is not 0."""
    rows, columns = np.nonzero(image[0, 0])
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@settings(max_examples=50, deadline=None)
@given(SIDES, SIDES, st.data())
def test_a_box_found_on_the_mirrored_image_comes_back_to_where_it_is(height: int, width: int, data: Any) -> None:
    x1, y1 = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    mirrored = seen_as(painted(height, width, (x1, y1, x2, y2)), "flip")
    found = np.array([[extent(mirrored)]], np.float32)
    back = boxes_back(found, "flip", shape=(height, width), seen=(height, width))
    assert back.tolist() == [[[x1, y1, x2, y2]]]
    assert back.dtype == np.float32


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_box_found_on_a_resized_image_comes_back_by_each_side_s_own_factor(scale: float) -> None:
    image = painted(24, 40, (8, 4, 16, 20))
    seen = seen_as(image, scale)
    assert seen.shape == (1, 1, 24 * scale, 40 * scale)
    boxes = np.array([[[8, 4, 16, 20]]], np.float32) * np.float32(scale)
    back = boxes_back(boxes, scale, shape=image.shape[2:], seen=seen.shape[2:])
    assert back.tolist() == [[[8, 4, 16, 20]]]
    uneven = boxes_back(boxes, scale, shape=(24, 40), seen=(48, 40))
    assert uneven.tolist() == [[[8 * scale, 2 * scale, 16 * scale, 10 * scale]]]


def test_a_resized_view_keeps_to_multiples_of_32_only_where_the_image_has_them() -> None:
    assert seen_as(np.zeros((1, 1, 128, 160), np.float32), 0.8).shape == (1, 1, 96, 128)
    assert seen_as(np.zeros((1, 1, 20, 96), np.float32), 0.8).shape == (1, 1, 16, 76)
    assert seen_as(np.zeros((1, 1, 32, 32), np.float32), 0.1).shape == (1, 1, 8, 8)


def test_seeing_twice_mirrored_is_seeing_the_image() -> None:
    image = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    assert (seen_as(seen_as(image, "flip"), "flip") == image).all()
    assert (seen_as(image, "flip")[..., 0] == image[..., -1]).all()


@pytest.fixture(scope="module")
def viewed(slim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build with `explain.views`. Read only."""
    folder = Path(shutil.copytree(slim, tmp_path_factory.mktemp("viewed") / "project"))
    views = ("--set", "explain.views=[flip, 1.25, 0.75]", "--set", "explain.line=0")
    run("build", "--val", folder / "val.yaml", "-o", folder / "soup-out", *views)
    return folder


def reference_of(folder: Path) -> Reference:
    explanation = read_build(folder / "soup-out").record.explanation
    assert explanation is not None
    (one,) = (one for one in explanation.references if "views" in one.label)
    return one


def test_classification_views_are_the_mean_of_their_softmax(viewed: Path) -> None:
    network = build_model("./models.py:build", {}, folder=viewed)
    network.load_state_dict(load_file(viewed / "soup-out/soup.safetensors"))
    network.eval()
    with np.load(viewed / "val.npz") as arrays:
        images, labels = arrays["images"], torch.from_numpy(arrays["labels"])
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.3) / 0.35
    views = [pixels, pixels.flip(-1)]
    views += [interpolate(pixels, (side, side), mode="bilinear", align_corners=False) for side in (10, 6)]
    with torch.no_grad():
        mean = torch.stack([network(one).double().softmax(1) for one in views]).mean(0)
        alone = float((network(pixels).argmax(1) == labels).double().mean())
    expected = float((mean.argmax(1) == labels).double().mean())
    assert reference_of(viewed).value == pytest.approx(expected, abs=1e-12)
    assert alone == read_build(viewed / "soup-out").record.winner.val
    assert expected != alone  # a mirrored digit is another one: what averages nothing would show


def test_the_cost_is_in_forward_passes_and_a_scaled_one_s_by_its_area(viewed: Path) -> None:
    found = reference_of(viewed)
    assert found.label == "4 views (the image, mirrored, × 1.25, × 0.75)"
    assert found.cost == pytest.approx(1 + 1 + 1.25**2 + 0.75**2)
    report = (viewed / "soup-out/report.md").read_text()
    (row,) = (line for line in report.splitlines() if "4 views" in line)
    assert f"{found.cost:g} ×" in row
    assert f"{(found.value or 0) * 100:.2f} %" in row
    record = read_build(viewed / "soup-out").record
    assert record.cost.forwarded["explaining"] >= 4 * record.splits["val"].n
