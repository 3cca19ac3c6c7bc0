"""Where an image lies in the network's input: against the trainers' own numbers, torchvision, and what `fit` drew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from soup.placement import fitted_size, geometry, placement
from soup.preprocess import Letterbox, Preprocess, fit
from soup.tasks.boxes import to_input, to_original

AS_IT_IS = Preprocess(
    resize=None, crop=None, interpolation="bilinear", backend="cv2", color="rgb", letterbox=None,
    mean=(0.0,), std=(1.0,),
)  # fmt: skip
TRAINERS = [  # numbers that their own functions gave, in an environment of their own
    pytest.param(group, id=f"{path.stem.removeprefix('letterbox_')}-{group['what']}")
    for path in sorted((Path(__file__).parent / "golden").glob("letterbox_*.json"))
    for group in json.loads(path.read_text(encoding="utf-8"))["groups"]
]


def boxed(**values: object) -> Preprocess:
    size = values.pop("size")
    whole = {"pad": 0, "centered": True, **values}
    return replace(AS_IT_IS, letterbox=Letterbox(size if isinstance(size, int) else tuple(size), **whole))


def pixels(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def test_the_golden_numbers_are_of_five_trainers_ways():
    assert len(TRAINERS) == 13
    assert sum(len(param.values[0]["cases"]) for param in TRAINERS) > 350


@pytest.mark.parametrize("group", TRAINERS)
def test_sizes_and_places_are_the_trainers_own(group):
    preprocess = boxed(**group["letterbox"])
    for case in group["cases"]:
        found = geometry(tuple(case["size"]), preprocess)
        assert [list(found.inner), list(found.outer), list(found.offset)] == [
            case["inner"], case["outer"], case["offset"],
        ], case["size"]  # fmt: skip


@pytest.mark.parametrize("group", TRAINERS)
def test_boxes_come_back_where_the_trainers_put_them(group):
    """YOLOX divides by the ratio that its sides were truncated from: up to a pixel of the input off at the far side."""
    preprocess, truncated = boxed(**group["letterbox"]), group["what"].startswith("preproc")
    for case in group["cases"]:
        where, size = placement(tuple(case["size"]), preprocess), np.array(case["size"])
        ours = to_original(np.array(case["boxes"], np.float32), where, size)
        allowed = 1 / np.tile(where[:2], 2) if truncated else 2e-6 * size.max() + 1e-3
        assert (np.abs(ours - np.array(case["original"])) <= allowed).all(), case["size"]


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(20, 400), st.integers(20, 400)),
    shorter=st.integers(32, 200),
    longer=st.integers(200, 400),
    stride=st.sampled_from([1, 16, 32]),
)
def test_torchvisions_detectors_put_it_there_too(size, shorter, longer, stride):
    """GeneralizedRCNNTransform and its postprocess: size, padding, and boxes forth and back."""
    theirs = GeneralizedRCNNTransform(shorter, longer, [0.0] * 3, [1.0] * 3, size_divisible=stride).eval()
    height, width = size
    drawn = torch.tensor([[0.0, 0.0, width, height], [0.1 * width, 0.2 * height, 0.6 * width, 0.9 * height]])
    images, targets = theirs([torch.zeros(3, *size)], [{"boxes": drawn}])
    back = theirs.postprocess([{"boxes": targets[0]["boxes"].clone()}], images.image_sizes, [size])[0]["boxes"]
    ours = boxed(size=longer, shorter=shorter, stride=stride, centered=False, rounding="floor")
    assert geometry(size, ours).inner == tuple(images.image_sizes[0])
    assert fitted_size(size, ours) == tuple(images.tensors.shape[-2:])
    where = placement(size, ours)
    assert np.allclose(to_input(drawn.numpy(), where), targets[0]["boxes"].numpy(), atol=1e-3)
    assert np.allclose(to_original(targets[0]["boxes"].numpy(), where, np.array(size)), back.numpy(), atol=1e-3)


SIDES = st.integers(8, 90)
LETTERBOXES = st.builds(
    Letterbox,
    size=SIDES | st.tuples(SIDES, SIDES),
    pad=st.just(0),
    centered=st.booleans(),
    stride=st.none() | st.integers(1, 40),
    margin=st.integers(0, 20),
    shorter=st.none() | SIDES,
    scale_up=st.booleans(),
    rounding=st.sampled_from(["nearest", "half_up", "floor", "ceil", "detr"]),
)
SETTINGS = LETTERBOXES.map(lambda box: replace(AS_IT_IS, letterbox=box)) | st.builds(
    lambda resize, crop: replace(AS_IT_IS, resize=resize, crop=crop),
    resize=st.none() | SIDES | st.tuples(SIDES, SIDES),
    crop=st.none() | SIDES | st.tuples(SIDES, SIDES),
)


@settings(max_examples=200, deadline=None)
@given(size=st.tuples(st.integers(1, 120), st.integers(1, 120)), preprocess=SETTINGS)
def test_an_image_has_the_size_that_was_told_and_all_of_it_is_there(size, preprocess):
    """A white image on black shows exactly where it is said to lie, whatever is cut off; a letterbox cuts nothing."""
    found = geometry(size, preprocess)
    expected = np.zeros((*found.outer, 3), np.uint8)
    (top, left), (height, width) = found.offset, found.inner
    expected[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = 255
    image = fit(np.full((*size, 3), 255, np.uint8), preprocess)
    assert image.shape[:2] == fitted_size(size, preprocess) == found.outer
    assert np.array_equal(image, expected)
    if preprocess.letterbox is not None:
        assert min(top, left, found.outer[0] - top - height, found.outer[1] - left - width) >= 0


@settings(max_examples=120, deadline=None)
@given(
    size=st.tuples(st.integers(60, 200), st.integers(60, 200)),
    preprocess=SETTINGS,
    backend=st.sampled_from(["pil", "cv2"]),
    corners=st.tuples(*[st.floats(0.1, 0.4), st.floats(0.6, 0.9)] * 2),
)
def test_a_rectangle_is_found_within_half_a_pixel_of_where_its_corners_map_to(size, preprocess, backend, corners):
    (height, width), (top, bottom, left, right) = size, corners
    drawn = np.array([[round(left * width), round(top * height), round(right * width), round(bottom * height)]])
    x1, y1, x2, y2 = drawn[0]
    image = pixels(*size)
    image[y1:y2, x1:x2] = 255
    mapped = to_input(drawn.astype(np.float32), placement(size, preprocess))[0]
    scale = np.divide(geometry(size, preprocess).inner, size)
    assume(min(mapped[2] - mapped[0], mapped[3] - mapped[1]) >= 5)
    assume((np.array([x1, y1, width - x2, height - y2]) * np.tile(scale[::-1], 2) >= 2).all())  # not at the border
    shown = fit(image, replace(preprocess, backend=backend))[..., 0] > 127
    outer_height, outer_width = shown.shape
    visible = np.clip(mapped, 0, [outer_width, outer_height] * 2)
    assume(min(visible[2] - visible[0], visible[3] - visible[1]) >= 1)
    columns, rows = np.flatnonzero(shown.any(0)), np.flatnonzero(shown.any(1))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert np.abs(found - visible).max() <= 0.5 + 1e-3


def test_a_crop_has_negative_margins_and_one_beyond_the_border_positive_ones():
    cropped = replace(AS_IT_IS, resize=(40, 80), crop=(20, 100))
    assert placement((20, 20), cropped).tolist() == [4.0, 2.0, 10.0, -10.0]
    assert fitted_size((20, 20), cropped) == (20, 100)


def test_an_image_that_is_fed_as_it_is_lies_at_the_origin():
    assert placement((7, 9), AS_IT_IS).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert placement((7, 9), AS_IT_IS).dtype == np.float64


@pytest.mark.parametrize(
    ("rounding", "sides"),
    [("nearest", (50, 100)), ("half_up", (51, 100)), ("floor", (50, 100)), ("ceil", (51, 100))],
)
def test_half_a_pixel_goes_where_each_trainer_sends_it(rounding, sides):
    assert geometry((101, 200), boxed(size=100, rounding=rounding)).inner == sides


def test_a_stride_leaves_no_more_padding_than_it_needs():
    assert fitted_size((480, 640), boxed(size=640, stride=32)) == (480, 640)
    assert fitted_size((427, 640), boxed(size=640, stride=32)) == (448, 640)
    assert fitted_size((480, 640), boxed(size=640, stride=32, margin=16)) == (512, 672)
