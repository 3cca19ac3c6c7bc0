from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup.preprocess import Letterbox, Preprocess
from soup.suspects import Attempt, advice, ranked, renumbered, suspects, verdict_of, within

GIVEN = Preprocess(
    resize=256, crop=224, interpolation="bilinear", backend="pil", color="rgb", letterbox=None,
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3)).astype(np.uint8)


def changes(given: Preprocess, images: np.ndarray = IMAGES) -> list[str]:
    return [one.change for one in suspects(given, images)]


def attempt(value: float | None, verdict: str = "no", change: str = "color: bgr") -> Attempt:
    return Attempt(change, "val.yaml's colour order is probably not the trainer's", value, verdict)  # type: ignore[arg-type]


def test_each_change_is_told_as_val_yaml_would_have_it() -> None:
    assert changes(GIVEN) == [
        "color: bgr",
        "mean: [0.5], std: [0.5] (pixels from -1 to 1)",
        "mean: [0], std: [1] (pixels from 0 to 1)",
        "mean: [0], std: [0.00392157] (pixels from 0 to 255)",
        "mean: [0.485, 0.456, 0.406], std: [0.00392157] (pixels from 0 to 255 less ImageNet's mean)",
        changes(GIVEN)[5],
        "backend: cv2",
        "interpolation: bicubic",
        "interpolation: area",
        "interpolation: nearest",
        "resize: 224, crop: 224",
        "resize: [224, 224], crop: null",
    ]
    assert changes(GIVEN)[5].endswith("(data.val's own)")


def test_no_suspect_leaves_everything_as_it_is() -> None:
    for color in ("rgb", "bgr"):
        for resize, crop in ((256, 224), (224, 224), ((224, 224), None), (None, None), (None, 28)):
            case = replace(GIVEN, color=color, resize=resize, crop=crop, mean=(0.5, 0.5, 0.5), std=(0.5,))
            assert case not in [one.preprocess for one in suspects(case, IMAGES)]
            assert not any("(pixels from -1 to 1)" in change for change in changes(case))


def test_only_a_change_of_geometry_or_reader_needs_the_images_anew() -> None:
    kinds = {one.change.partition(":")[0]: one.pixels for one in suspects(GIVEN, IMAGES)}
    assert kinds == {
        "color": "swapped", "mean": "same", "backend": "anew", "interpolation": "anew", "resize": "anew",
    }  # fmt: skip


def test_images_that_are_not_resized_have_no_filter_to_suspect() -> None:
    plain = replace(GIVEN, resize=None, crop=None)
    assert [one for one in changes(plain) if not one.startswith(("mean", "color"))] == ["backend: cv2"]


def test_a_letterbox_has_other_paddings_and_places() -> None:
    boxed = replace(GIVEN, resize=None, crop=None, letterbox=Letterbox((32, 48), 114, centered=True))
    assert [one for one in changes(boxed) if "letterbox" in one] == [
        "letterbox: {pad: 114, centered: false}",
        "letterbox: {pad: 0, centered: true}",
        "letterbox: {pad: 128, centered: true}",
        "resize: [32, 48] instead of letterbox",
    ]


def test_gray_images_have_no_colour_order_and_mnists_statistics() -> None:
    gray = replace(GIVEN, color="gray", mean=(0.0,), std=(1.0,))
    told = changes(gray, IMAGES[..., :1])
    assert "mean: [0.1307], std: [0.3081] (MNIST's)" in told
    assert not any("color" in one or "ImageNet" in one or "RGB" in one for one in told)


def test_bgr_images_may_have_been_normalised_in_either_order_of_the_channels() -> None:
    told = changes(replace(GIVEN, color="bgr", mean=(0.5,), std=(0.5,)))
    assert "mean: [0.406, 0.456, 0.485], std: [0.225, 0.224, 0.229] (ImageNet's)" in told
    assert "mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] (ImageNet's in RGB order)" in told


def test_vals_own_statistics_are_those_of_its_pixels() -> None:
    (own,) = [one.preprocess for one in suspects(GIVEN, IMAGES) if "own" in one.change]
    pixels = IMAGES.reshape(-1, 3) / 255
    assert own.mean == pytest.approx(pixels.mean(axis=0), abs=5e-5)
    assert own.std == pytest.approx(pixels.std(axis=0), abs=5e-5)
    assert all(one.preprocess.std for one in suspects(GIVEN, np.zeros_like(IMAGES)))  # a flat image has no scale


def test_a_difference_on_paper_is_within_its_tolerance_and_nan_never_is() -> None:
    assert 0.886 - 0.883 > 0.003
    assert within(0.886, 0.883, 0.003)
    assert not within(0.8861, 0.883, 0.003)
    assert not within(math.nan, 0.883, 1.0)


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.882, "explains"), (0.85, "nearer"), (0.92, "nearer"), (0.84, "no"), (math.nan, "no")]
)
def test_a_change_explains_the_figure_or_closes_half_of_the_gap_or_neither(value: float, verdict: str) -> None:
    assert verdict_of(value, measured=0.803, expected=0.883, tolerance=0.003) == verdict


def test_attempts_are_ranked_by_nearness_and_those_without_a_value_come_last() -> None:
    order = ranked([attempt(None), attempt(0.2), attempt(0.99), attempt(0.85)], expected=0.883)
    assert [one.value for one in order] == [0.85, 0.99, 0.2, None]


def test_advice_names_what_explains_else_the_nearest_else_where_to_look() -> None:
    both = [attempt(0.883, "explains"), attempt(0.881, "explains", "backend: cv2"), attempt(0.87, "nearer")]
    assert advice("a.pt", both) == (
        "a.pt scores 0.8830 with color: bgr: val.yaml's colour order is probably not the trainer's.",
        "a.pt scores 0.8810 with backend: cv2: val.yaml's colour order is probably not the trainer's.",
    )
    (nearer,) = advice("a.pt", [attempt(0.87, "nearer"), attempt(0.86, "nearer"), attempt(0.1)])
    assert nearer.startswith("a.pt comes nearer, to 0.8700, with color: bgr: ")
    assert advice("a.pt", [attempt(0.1)])[0].startswith("none of these changes explains the figure.")


@given(st.permutations(range(6)), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_another_numbering_of_the_classes_is_found_however_they_are_permuted(order: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(6), random.integers(0, 6, 60)])
    logits = np.eye(6)[np.array(order)[labels]] + random.normal(0, 0.05, (66, 6))
    found = renumbered({"output": logits}, labels)
    if order == sorted(order):
        assert found is None
    else:
        assert found is not None
        assert np.array_equal(found, np.array(order)[labels])


def test_two_classes_taken_for_one_are_no_numbering_nor_are_logits_of_nan() -> None:
    labels = np.array([0, 1, 2])
    assert renumbered({"output": np.eye(3)[[1, 1, 2]]}, labels) is None
    assert renumbered({"output": np.diag([np.nan, 1, 1])}, labels) is None
