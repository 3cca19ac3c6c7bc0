from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from soup import SoupError
from soup.adapters import centernet, detr, yolo

IMAGES = torch.zeros(2, 3, 32, 48)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_a_centre_is_a_peak_of_the_heat_map_with_its_box_in_pixels() -> None:
    """Objects as Points, section 3, written out for one object: cell (5, 2) of stride 4."""
    heat = torch.full((2, 3, 8, 12), -9.0)
    heat[0, 1, 2, 5], heat[0, 1, 2, 6] = 2.0, 1.0  # the second is beside the first: no peak
    size, offset = torch.zeros(2, 2, 8, 12), torch.zeros(2, 2, 8, 12)
    size[0, :, 2, 5] = torch.tensor([3.0, 2.0])  # width, height, in cells
    offset[0, :, 2, 5] = torch.tensor([0.25, 0.5])
    boxes, scores = centernet.decode((heat, size, offset), IMAGES)
    assert boxes.shape == (2, 96, 4)
    assert scores.shape == (2, 96, 3)
    cell = 2 * 12 + 5
    x, y, width, height = 5.25 * 4, 2.5 * 4, 12, 8
    assert boxes[0, cell].tolist() == [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    assert scores[0, cell].tolist() == pytest.approx([sigmoid(-9), sigmoid(2), sigmoid(-9)])
    assert scores[0, cell + 1, 1] == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), height=st.integers(1, 6), width=st.integers(1, 6))
def test_a_score_is_kept_exactly_where_no_neighbour_is_higher(seed: int, height: int, width: int) -> None:
    heat = torch.from_numpy(np.random.default_rng(seed).integers(0, 5, (1, 2, height, width)) / 5).float()
    _, scores = centernet.decode(
        {"hm": heat, "wh": torch.zeros(1, 2, height, width)},
        torch.zeros(1, 3, 4 * height, 4 * width), heatmap="hm", size="wh", offset=None, scores="probabilities",
    )  # fmt: skip
    for channel in range(2):
        for row in range(height):
            for column in range(width):
                around = heat[0, channel, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
                value = float(heat[0, channel, row, column])
                kept = value if value == float(around.max()) else 0.0
                assert float(scores[0, row * width + column, channel]) == kept


def test_rounding_on_a_flat_area_does_not_decide_what_is_a_peak() -> None:
    heat = torch.full((1, 1, 4, 4), 0.2)
    heat[0, 0, 1, 1] += 1e-7
    raw = (heat, torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
    _, scores = centernet.decode(raw, torch.zeros(1, 3, 16, 16), scores="probabilities")
    assert (scores > 0.19).all()


def test_sizes_in_pixels_are_not_scaled_and_a_stride_may_be_given() -> None:
    raw = (random(2, 1, 8, 12), torch.full((2, 2, 8, 12), 6.0), torch.zeros(2, 2, 8, 12))
    boxes, _ = centernet.decode(raw, IMAGES, sizes_in="pixels", stride=2)
    assert boxes[1, 13].tolist() == [2 * 1 - 3, 2 * 1 - 3, 2 * 1 + 3, 2 * 1 + 3]


def test_ultralytics_rows_are_centre_size_and_probabilities() -> None:
    raw = random(2, 4 + 3, 50)
    boxes, scores = yolo.decode((raw, ["feature maps"]), IMAGES, layout="v8")
    assert boxes.shape == (2, 50, 4)
    x, y, width, height = raw[1, :4, 7].tolist()
    assert boxes[1, 7].tolist() == pytest.approx([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    assert scores[1, 7].tolist() == raw[1, 4:, 7].tolist()


def test_yolox_multiplies_classes_by_objectness() -> None:
    raw = random(2, 50, 5 + 3)
    boxes, scores = yolo.decode(raw, IMAGES, layout="yolox")
    x, y, width, height, there = raw[1, 7, :5].tolist()
    assert boxes[1, 7].tolist() == pytest.approx([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    assert scores[1, 7].tolist() == pytest.approx([there * share for share in raw[1, 7, 5:].tolist()])


@pytest.mark.parametrize("nested", [False, True])
def test_distributed_distances_are_means_of_a_softmax_from_the_cells_centre(nested: bool) -> None:
    """Generalized Focal Loss, section 3.2, written out for one cell."""
    maps = [random(2, 4 * 5 + 2, 4, 6, seed=1), random(2, 4 * 5 + 2, 2, 3, seed=2)]
    raw = ("decoded", maps) if nested else maps
    boxes, scores = yolo.decode(raw, IMAGES, layout="dfl", output=1, strides=[8, 16], reg_max=5)
    assert boxes.shape == (2, 24 + 6, 4)
    row, column = 1, 2
    channels = maps[1][1, :, row, column].tolist()
    distances = []
    for side in range(4):
        weights = [math.exp(value) for value in channels[5 * side : 5 * side + 5]]
        distances.append(sum(step * weight for step, weight in enumerate(weights)) / sum(weights))
    left, top, right, below = distances
    x, y = column + 0.5, row + 0.5
    expected = [16 * (x - left), 16 * (y - top), 16 * (x + right), 16 * (y + below)]
    assert boxes[1, 24 + row * 3 + column].tolist() == pytest.approx(expected, rel=1e-5)
    assert scores[1, 24 + row * 3 + column].tolist() == pytest.approx([sigmoid(value) for value in channels[20:]])


@pytest.mark.parametrize(
    ("options", "columns"),
    [({}, [0, 1, 2]), ({"scores": "sigmoid"}, [0, 1, 2, 3]), ({"scores": "sigmoid", "background": "first"}, [1, 2, 3])],
)
def test_detr_leaves_out_no_object_and_scales_its_boxes(options: Mapping[str, str], columns: list[int]) -> None:
    logits, places = random(2, 10, 4), random(2, 10, 4, seed=1).sigmoid()
    raw = {"pred_logits": logits, "pred_boxes": places, "aux_outputs": []}
    boxes, scores = detr.decode(raw, IMAGES, **options)
    x, y, width, height = places[1, 3].tolist()
    expected = [48 * (x - width / 2), 32 * (y - height / 2), 48 * (x + width / 2), 32 * (y + height / 2)]
    assert boxes[1, 3].tolist() == pytest.approx(expected, rel=1e-5)
    values = logits[1, 3].tolist()
    whole = sum(math.exp(value) for value in values)
    shares = [sigmoid(value) if options else math.exp(value) / whole for value in values]
    assert scores[1, 3].tolist() == pytest.approx([shares[column] for column in columns], rel=1e-5)


def test_outputs_are_found_as_attributes_too() -> None:
    raw = SimpleNamespace(logits=random(1, 5, 3), pred_boxes=random(1, 5, 4))
    boxes, scores = detr.decode(raw, IMAGES, logits="logits")
    assert boxes.shape == (1, 5, 4)
    assert scores.shape == (1, 5, 2)


MAPS = (torch.zeros(2, 3, 8, 12), torch.zeros(2, 2, 8, 12), torch.zeros(2, 2, 8, 12))


@pytest.mark.parametrize(
    ("decoder", "raw", "options", "message"),
    [
        (centernet, MAPS[:2], {}, r"'centernet': the network returned tuple of 2, expected 2 in it\. Name the output"),
        (centernet, {"hm": MAPS[0]}, {"heatmap": "heat"}, "returned a dict of 'hm', expected 'heat' in it"),
        (centernet, (MAPS[0], MAPS[0], MAPS[1]), {}, r"the size is \(n, 3, 8, 12\), expected \(n, 2, 8, 12\)"),
        (centernet, MAPS, {"scores": "sigmoid"}, "scores is 'sigmoid', expected logits or probabilities"),
        (centernet, tuple(one[:, :, :, :6] for one in MAPS), {}, "expected one stride, not 4 and 8. Give `stride`"),
        (centernet, (MAPS[0][0], *MAPS[1:]), {}, r"the heat map is \(n, 8, 12\), expected \(n, classes, h, w\)"),
        (yolo, torch.zeros(2, 50, 7), {"layout": "v8"}, "is 7 boxes of 50 columns, expected 5 columns or"),
        (yolo, torch.zeros(2, 50, 5), {"layout": "yolox"}, "is 50 boxes of 5 columns, expected 6 columns or more"),
        (yolo, torch.zeros(2, 50, 7), {"layout": "v5"}, "layout is 'v5', expected v8 or yolox or dfl"),
        (yolo, torch.zeros(2, 50, 7), {"layout": "dfl"}, "layout 'dfl' needs a list of feature maps, found Tensor"),
        (yolo, [MAPS[0]], {"layout": "dfl"}, r"1 feature maps, expected 3, one per stride \[8, 16, 32\]"),
        (yolo, [MAPS[0]], {"layout": "dfl", "strides": [4]}, r"has 3 channels, expected more than 4 · 16"),
        (yolo, [MAPS[0]], {"layout": "dfl", "strides": [8]}, r"stride 8 is \(n, 3, 8, 12\), expected \(n, 4 · "),
        (yolo, [["no"]], {"layout": "yolox"}, "'0' of the raw outputs is list, expected a tensor"),
        (detr, {"pred_logits": torch.zeros(1, 5, 3)}, {}, "a dict of 'pred_logits', expected 'pred_boxes' in it"),
        (detr, [torch.zeros(1, 5, 3), torch.zeros(1, 4, 4)], {"logits": 0, "boxes": 1}, r"\(n, 4, 4\), expected \(n"),
        (detr, torch.zeros(1, 5, 3), {}, "the network returned Tensor, expected 'pred_logits' in it"),
    ],
)  # fmt: skip
def test_outputs_that_do_not_fit_are_told_in_one_sentence(
    decoder: object, raw: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(SoupError, match=message):
        decoder.decode(raw, IMAGES, **options)  # type: ignore[attr-defined]
