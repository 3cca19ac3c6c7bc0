"""Boxes: overlaps against torchvision, the way to the network's input and back, padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_area, box_iou

from soup.tasks.boxes import Detections, area, clip, iou, padded, to_input, to_original, unpadded


def some_boxes(rng, count, *, side=40):
    """Integers, so that overlaps often tie; some without area."""
    corners = rng.integers(0, side, (count, 2))
    return np.hstack([corners, corners + rng.integers(0, side // 2, (count, 2))]).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ka=st.integers(0, 12), kb=st.integers(0, 12))
def test_overlaps_are_torchvisions_but_for_boxes_without_area(seed, ka, kb):
    rng = np.random.default_rng(seed)
    a, b = some_boxes(rng, ka), some_boxes(rng, kb)
    theirs = box_iou(torch.from_numpy(a).double(), torch.from_numpy(b).double()).numpy()
    np.testing.assert_array_equal(iou(a, b), np.nan_to_num(theirs))
    np.testing.assert_array_equal(area(a), box_area(torch.from_numpy(a).double()).numpy())
    np.testing.assert_array_equal(iou(a, b), iou(b, a).T)


def test_overlap_of_known_boxes():
    found = iou(np.float32([[0, 0, 10, 10]]), np.float32([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10]]))
    np.testing.assert_allclose(found, [[1, 50 / 150, 0]], rtol=1e-15)


def test_an_overlap_is_never_nan():
    """Zero over zero, corners in the wrong order, NaN and Inf: none of them overlaps anything, nor itself."""
    sane = [0, 0, 4, 4]
    odd = np.float32([[1, 1, 1, 3], [3, 3, 1, 1], [1, np.nan, 3, 3], [0, 0, np.inf, np.inf], [-np.inf, 0, 3, 3], sane])
    expected = np.zeros((6, 6))
    expected[5, 5] = 1
    np.testing.assert_array_equal(iou(odd, odd), expected)
    assert iou(odd, odd).dtype == np.float64


def test_a_box_with_its_corners_the_wrong_way_round_has_no_area():
    assert area(np.float32([[1, 2, 4, 4], [4, 4, 1, 2], [1, 4, 4, 2], [4, 2, 1, 4]])).tolist() == [6, 0, 0, 0]


def test_large_boxes_do_not_overflow():
    assert iou(np.float32([[0, 0, 3e38, 3e38]]), np.float32([[0, 0, 3e38, 1.5e38]]))[0, 0] == pytest.approx(0.5)


def test_clipping_knows_height_from_width():
    boxes = np.float32([[-3, -4, 700, 500], [10, 20, 30, 40], [650, -9, 660, -1]])
    assert clip(boxes, 480, 640).tolist() == [[0, 0, 640, 480], [10, 20, 30, 40], [640, 0, 640, 0]]
    assert clip(boxes, 480, 640).dtype == np.float32


def test_boxes_go_to_the_input_and_back_by_the_formula():
    """A 640 × 480 image, halved in width and kept in height, 8 pixels from the left and 16 from the top."""
    placement, size = np.array([0.5, 1.0, 8.0, 16.0]), np.array([480, 640])
    assert to_input(np.float32([[10, 20, 110, 220]]), placement).tolist() == [[13, 36, 63, 236]]
    assert to_original(np.float32([[13, 36, 63, 236]]), placement, size).tolist() == [[10, 20, 110, 220]]
    beyond = to_original(np.float32([[0, 0, 400, 600]]), placement, size)
    assert beyond.tolist() == [[0, 0, 640, 480]]
    assert beyond.dtype == np.float32


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)),
    offset=st.tuples(st.floats(-300, 300), st.floats(-300, 300)),
)
def test_the_way_back_undoes_the_way_there(seed, scale, offset):
    boxes = some_boxes(np.random.default_rng(seed), 5, side=200)
    placement = np.array([*scale, *offset])
    back = to_original(to_input(boxes, placement), placement, np.array([300, 300]))
    np.testing.assert_allclose(back, boxes, atol=1e-2)  # float32 in between: 300 / 2^24 / the least scale


def test_padding_comes_off_as_it_went_on():
    one = Detections(np.float32([[1, 2, 3, 4], [5, 6, 7, 8]]), np.float32([0.9, 0.0]), np.int32([0, 7]))
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    answers = padded([one, none], 3)
    assert {name: (array.dtype.name, array.shape) for name, array in answers.items()} == {
        "boxes": ("float32", (2, 3, 4)), "scores": ("float32", (2, 3)), "labels": ("int32", (2, 3)),
    }  # fmt: skip
    assert answers["labels"].tolist() == [[0, 7, -1], [-1, -1, -1]]
    assert answers["scores"][:, 2].tolist() == [-1, -1]
    assert not answers["boxes"][1].any()
    for row, before in enumerate((one, none)):
        after = unpadded(answers, row)
        assert len(after) == len(before)
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_more_detections_than_there_is_room_for_are_not_cut_silently():
    one = Detections(np.zeros((3, 4), np.float32), np.float32([0.9, 0.8, 0.7]), np.int32([0, 0, 0]))
    with pytest.raises(ValueError, match="3 detections in an image, expected at most 2"):
        padded([one], 2)


def test_no_images_make_empty_answers():
    assert padded([], 5)["boxes"].shape == (0, 5, 4)


def test_some_of_the_detections_are_taken_in_the_order_asked_for():
    one = Detections(np.float32([[1, 2, 3, 4], [5, 6, 7, 8]]), np.float32([0.9, 0.5]), np.int32([0, 7]))
    assert one.taken(np.array([1])).boxes.tolist() == [[5, 6, 7, 8]]
    assert one.taken(np.array([True, False])).labels.tolist() == [0]
