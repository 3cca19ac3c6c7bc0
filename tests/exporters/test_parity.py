from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cosine as cosine_distance

from exporters import ExportError
from exporters.parity import compare_outputs, within

VALUES = st.floats(-1e6, 1e6, width=32)


def logits(*rows: list[float], dtype: str = "float32") -> dict[str, np.ndarray]:
    return {"output": np.array(rows, dtype)}


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, (4, 3), elements=VALUES), arrays(np.float32, (4, 3), elements=VALUES))
def test_the_numbers_equal_direct_formulas_in_float64(a: np.ndarray, b: np.ndarray) -> None:
    (found,) = compare_outputs({"output": a}, {"output": b})
    off = np.abs(a.astype(np.float64) - b.astype(np.float64))
    assert found.max_abs == off.max()
    assert found.mean_abs == pytest.approx(off.mean())
    assert found.worst_sample == off.max(axis=1).argmax()
    assert found.scale == np.abs(a).max()
    if a.any() and b.any():
        assert found.cosine == pytest.approx(
            1 - cosine_distance(a.ravel().astype(float), b.ravel().astype(float)), abs=1e-9
        )


def test_differences_come_in_the_order_of_the_reference_and_say_which_sample_is_worst() -> None:
    reference = {"scores": np.zeros((3, 2)), "boxes": np.ones((3, 4, 5))}
    candidate = {"boxes": np.ones((3, 4, 5)), "scores": np.array([[0, 0], [0, 2.0], [1, 0]])}
    scores, boxes = compare_outputs(reference, candidate)
    assert (scores.name, scores.worst_sample, scores.max_abs) == ("scores", 1, 2.0)
    assert (boxes.name, boxes.max_abs, boxes.cosine) == ("boxes", 0.0, pytest.approx(1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_passes_no_tolerance_on_either_side(bad: float) -> None:
    """Correctness 34 with style 17: NaN must fail a check."""
    good, broken = logits([1.0, 2.0], [3.0, 4.0]), logits([1.0, 2.0], [bad, 4.0])
    for reference, candidate in ((good, broken), (broken, good), (broken, broken)):
        found = compare_outputs(reference, candidate)
        assert not found[0].finite
        assert not within(found, atol=math.inf, rtol=math.inf)


@pytest.mark.parametrize(
    ("scale", "off", "passes"), [(0.5, 0.9e-3, True), (0.5, 1.1e-3, False), (100, 0.09, True), (100, 0.11, False)]
)
def test_the_default_tolerance_grows_with_the_outputs_but_not_below_one(scale: float, off: float, passes: bool) -> None:
    found = compare_outputs(logits([scale, 0.0], dtype="float64"), logits([scale + off, 0.0], dtype="float64"))
    assert within(found) is passes


def test_one_output_beyond_the_tolerance_fails_all_and_nothing_compared_is_no_pass() -> None:
    same = {"a": np.ones((2, 2)), "b": np.ones((2, 2))}
    assert within(compare_outputs(same, same), atol=0, rtol=0)
    assert not within(compare_outputs(same, {**same, "b": np.zeros((2, 2))}))
    assert not within(())


def test_integers_and_bools_and_empty_rows_compare() -> None:
    reference = {
        "classes": np.array([[1], [255]], np.uint8),
        "kept": np.array([True, False]),
        "boxes": np.zeros((2, 0, 4)),
    }
    candidate = {**reference, "classes": np.array([[2], [0]], np.uint8)}
    classes, kept, boxes = compare_outputs(reference, candidate)
    assert (classes.max_abs, kept.max_abs, boxes.max_abs, boxes.cosine) == (255.0, 0.0, 0.0, 1.0)


def test_zero_against_something_has_no_cosine() -> None:
    (found,) = compare_outputs(logits([0.0, 0.0]), logits([0.0, 1e-6]))
    assert found.cosine == 0.0


def test_other_names_or_shapes_are_refused_by_name() -> None:
    with pytest.raises(ExportError, match=r"the outputs are \['logits'\], expected \['output'\]"):
        compare_outputs(logits([1.0]), {"logits": np.ones((1, 1))})
    with pytest.raises(ExportError, match=r"output 'output' has shape \(2, 1\), expected \(1, 2\)"):
        compare_outputs(logits([1.0, 2.0]), logits([1.0], [2.0]))


def test_no_samples_are_no_comparison() -> None:
    empty = {"output": np.zeros((0, 5))}
    with pytest.raises(ExportError, match="no samples") as caught:
        compare_outputs(empty, empty)
    assert caught.value.kind == "input"
