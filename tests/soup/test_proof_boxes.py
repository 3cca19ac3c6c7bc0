"""Parity where a graph decides: a few values may turn, a wrong graph is still found, and boxes are counted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from soup.gates import Subject
from soup.proof import BOXES_TOLERANCE, boxes_check, outputs_check
from soup.tasks import Moves
from soup.tasks.box_moves import box_moves
from soup.tasks.detection import Boxes
from soup.tasks.suppression import Suppression

SUBJECT = Subject("model.onnx", "torch → ONNX")
SHARE = Boxes(Suppression()).turned
VALUES = 40_000  # of which 4 may turn


def outputs() -> dict[str, np.ndarray]:
    """Boxes of a scale of 100 pixels and scores below one, as a detector's."""
    random = np.random.default_rng(0)
    boxes = random.uniform(0, 100, (10, VALUES // 40, 4)).astype(np.float32)
    return {"boxes": boxes, "scores": random.uniform(0, 1, (10, VALUES // 20, 2)).astype(np.float32)}


def turned(count: int, *, name: str = "scores", by: float = 0.6) -> dict[str, np.ndarray]:
    """The same with so many values of one output off."""
    after = outputs()
    after[name].reshape(-1)[:count] += np.float32(by)
    return after


@pytest.mark.parametrize("name", ["boxes", "scores"])
@pytest.mark.parametrize(("count", "verdict"), [(0, "pass"), (1, "pass"), (4, "pass"), (9, "fail"), (400, "fail")])
def test_a_turned_peak_is_let_pass_and_one_percent_of_wrong_values_is_not(name: str, count: int, verdict: str) -> None:
    after = turned(count, name=name, by=0.6 if name == "scores" else 60)
    check = outputs_check(outputs(), after, SUBJECT, turned=SHARE)
    assert check.verdict == verdict
    assert ("but for 0.01% of the values, whose largest is 6.0" in check.message) == (count > 0)


def test_without_outliers_a_single_value_fails() -> None:
    assert outputs_check(outputs(), turned(1), SUBJECT).verdict == "fail"


@pytest.mark.parametrize("name", ["boxes", "scores"])
@pytest.mark.parametrize("factor", [0.0, 0.98, 1.02])
def test_a_graph_that_is_wrong_everywhere_fails(name: str, factor: float) -> None:
    after = outputs()
    after[name] = after[name] * np.float32(factor)
    check = outputs_check(outputs(), after, SUBJECT, turned=SHARE)
    assert check.verdict == "fail"
    assert check.measured is not None
    assert check.measured > 1e-3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_value_that_is_no_number_is_no_outlier(value: float) -> None:
    check = outputs_check(outputs(), turned(1, by=value), SUBJECT, turned=SHARE)
    assert (check.verdict, check.measured) == ("fail", None)


@pytest.mark.parametrize("count", [1, 2])
def test_few_values_have_no_share_to_spare(count: int) -> None:
    """One of 100 is a hundred times the share that may turn."""
    before = {"scores": np.zeros((1, 50, 2), np.float32)}
    after = {"scores": before["scores"].copy()}
    after["scores"].reshape(-1)[:count] = 0.6
    assert outputs_check(before, after, SUBJECT, turned=SHARE).verdict == "fail"


def answers(count: int, *, shift: float = 0.0, drop: int = 0) -> dict[str, np.ndarray]:
    """One image with a row of boxes that touch no other."""
    left = np.arange(count, dtype=np.float32) * 20 + np.float32(shift)
    boxes = np.stack([left, np.zeros_like(left), left + 10, np.full_like(left, 10)], axis=1)[None]
    labels, scores = np.zeros((1, count), np.int32), np.full((1, count), 0.9, np.float32)
    labels[0, count - drop :], scores[0, count - drop :] = -1, -1
    boxes[0, count - drop :] = 0
    return {"boxes": boxes, "scores": scores, "labels": labels}


@pytest.mark.parametrize(
    ("shift", "drop", "verdict", "share"),
    [(0.0, 0, "pass", 0.0), (0.0, 1, "pass", 0.01), (0.0, 2, "fail", 0.02), (2.0, 0, "fail", 1.0), (0.2, 0, "pass", 0)],
)
def test_boxes_that_are_lost_or_moved_count_against_one_in_a_hundred(
    shift: float, drop: int, verdict: str, share: float
) -> None:
    moves = box_moves(answers(100), answers(100, shift=shift, drop=drop))
    check = boxes_check(moves, SUBJECT, limit=BOXES_TOLERANCE)
    assert (check.kind, check.verdict) == ("outputs", verdict)
    assert check.measured == pytest.approx(share)
    assert f"{share:.2%} of the boxes are others" in check.message
    assert check.limit == BOXES_TOLERANCE


def test_new_boxes_count_too_where_there_were_none() -> None:
    moves = box_moves(answers(100, drop=100), answers(100))
    assert boxes_check(moves, SUBJECT, limit=BOXES_TOLERANCE).verdict == "fail"


def test_nothing_on_both_sides_is_the_same() -> None:
    nothing = answers(3, drop=3)
    assert boxes_check(box_moves(nothing, nothing), SUBJECT, limit=0.0).verdict == "pass"


def test_no_limit_lets_all_move_as_another_precision_does() -> None:
    moves = Moves(np.ones(1, bool), {"boxes": 1.0, "lost": 1.0, "new": 5.0, "moved": 0.0}, "all of them")
    check = boxes_check(moves, SUBJECT, limit=math.inf)
    assert (check.verdict, check.measured) == ("pass", 6.0)
