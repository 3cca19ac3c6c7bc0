"""Answers of whole batches, out of a network's outputs in either form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup import SoupError
from soup.tasks.boxes import to_original, unpadded
from soup.tasks.suppression import Suppression, detections, suppress

METHODS = ["nms", "soft_linear", "soft_gaussian", "weighted_fusion", "none"]


def batch(seed, images=4, anchors=30, classes=3):
    """Outputs in the undecided form, three boxes for each thing, and targets with a placement of its own for each."""
    rng = np.random.default_rng(seed)
    corners = np.repeat(rng.uniform(0, 64, (images, anchors // 3, 2)), 3, axis=1) + rng.normal(
        0, 2, (images, anchors, 2)
    )
    boxes = np.concatenate([corners, corners + rng.uniform(15, 20, (images, anchors, 2))], axis=2)
    scores = rng.random((images, anchors, classes))
    targets = {
        "placement": np.stack([[*rng.uniform(0.5, 2, 2), *rng.uniform(0, 9, 2)] for _ in range(images)]),
        "size": rng.integers(30, 60, (images, 2)).astype(np.int32),
    }
    return {"a": boxes.astype(np.float32), "b": scores.astype(np.float32)}, targets


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(METHODS))
def test_a_batch_is_its_images_one_by_one_mapped_to_the_originals(seed, method):
    outputs, targets = batch(seed)
    rules = Suppression(method=method, max_detections=15)
    answers = detections(outputs, targets, rules)
    assert answers["boxes"].shape == (4, 15, 4)
    for row in range(4):
        alone = suppress(outputs["a"][row], outputs["b"][row], rules)
        boxes = to_original(alone.boxes, targets["placement"][row], targets["size"][row])
        found = unpadded(answers, row)
        np.testing.assert_array_equal(found.boxes, boxes)
        np.testing.assert_array_equal(found.scores, alone.scores)
        np.testing.assert_array_equal(found.labels, alone.labels)
        rest = answers["labels"][row] == -1
        assert (answers["scores"][row][rest] == -1).all()
        assert not answers["boxes"][row][rest].any()


def test_nms_inside_the_graph_is_only_sorted_cut_and_mapped_back():
    boxes = np.float32([[[10, 10, 30, 30], [0, 0, 8, 8], [10, 10, 30, 30], [1, 1, 1, np.nan], [7, 7, 9, 9]]])
    outputs = {
        "output_0": boxes,
        "output_1": np.float32([[0.01, 0.8, 0.9, 0.99, 0.8]]),
        "output_2": np.array([[1, -1, 1, 0, 2]]),
    }
    targets = {"placement": np.array([[2.0, 1, 2, 0]]), "size": np.array([[20, 100]])}
    answers = detections(outputs, targets, Suppression(max_detections=4))
    assert answers["labels"].tolist() == [[1, 2, 1, -1]]
    assert answers["boxes"][0, :3].tolist() == [[4, 10, 14, 20], [2.5, 7, 3.5, 9], [4, 10, 14, 20]]
    np.testing.assert_array_equal(answers["scores"], np.float32([[0.9, 0.8, 0.01, -1]]))
    assert detections(outputs, targets, Suppression(max_detections=1))["labels"].tolist() == [[1]]
    nothing = {name: np.full_like(array, np.nan, np.float32) for name, array in outputs.items()}
    assert (detections(nothing, targets, Suppression())["labels"] == -1).all()


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ([], "its outputs are none, expected boxes"),
        ([(2, 10, 4)], r"its outputs are 'o0' \(2, 10, 4\), expected"),
        ([(2, 10, 5), (2, 10, 3)], r"'o0' \(2, 10, 5\), 'o1' \(2, 10, 3\)"),
        ([(2, 10, 4), (2, 11, 3)], r"'o1' \(2, 11, 3\)"),
        ([(2, 10, 4), (2, 10)], r"'o1' \(2, 10\)"),
        ([(2, 10, 4), (2, 10), (2, 9)], r"'o2' \(2, 9\)"),
    ],
)
def test_outputs_of_another_form_are_told_with_their_shapes(shapes, told):
    outputs = {f"o{index}": np.zeros(shape, np.float32) for index, shape in enumerate(shapes)}
    targets = {"placement": np.ones((2, 4)), "size": np.ones((2, 2))}
    with pytest.raises(SoupError, match=told):
        detections(outputs, targets, Suppression())


@pytest.mark.parametrize("beyond", [-0.2, 1.2, 7.0])
def test_scores_that_are_no_probabilities_are_refused_and_told(beyond):
    outputs, targets = batch(5)
    names = list(outputs)
    detections({**outputs, names[1]: np.where(outputs[names[1]] > 0.5, 1.01, np.nan)}, targets, Suppression())
    outputs[names[1]][0, 0, 0] = beyond
    with pytest.raises(
        SoupError, match=rf"output '{names[1]}', are .*{beyond:g}.*, expected probabilities from 0 to 1"
    ):
        detections(outputs, targets, Suppression())


def test_half_precision_outputs_are_read_as_float32():
    outputs, targets = batch(5)
    half = {name: array.astype(np.float16) for name, array in outputs.items()}
    whole = {name: array.astype(np.float32) for name, array in half.items()}
    found, expected = detections(half, targets, Suppression()), detections(whole, targets, Suppression())
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
