"""Boxes of two models, paired."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from soup import SoupError
from soup.tasks.box_moves import box_moves
from soup.tasks.boxes import iou
from tests.soup.box_sets import listed, scene

A, SHIFTED, FAR = (0, 0, 20, 20), (0, 0, 20, 17), (100, 100, 120, 120)


def answers(*images):
    return listed([[]] * len(images), images, places=4)[0]


def test_lost_new_and_moved_boxes_are_counted_and_named():
    before = answers([(A, 0.9, 0), (FAR, 0.5, 0)], [(A, 0.9, 1)], [(A, 0.75, 0)], [])
    after = answers([(A, 0.8, 0)], [(A, 0.9, 1)], [(SHIFTED, 0.5, 0)], [(FAR, 0.1, 2)])
    moves = box_moves(before, after)
    assert moves.changed.tolist() == [True, False, True, True]
    assert moves.figures == pytest.approx(
        {"boxes": 4, "lost": 1, "new": 1, "moved": 1, "mean_iou": (1 + 1 + 0.85) / 3,
         "score_drift": (0.1 + 0 + 0.25) / 3, "max_score_drift": 0.25}, abs=1e-6,
    )  # fmt: skip
    assert moves.text == (
        "of 4 boxes 1 lost, 1 new, 1 moved (IoU below 0.9) in 3 of 4 images; mean IoU 0.9500, scores differ by "
        "1.2e-01, at most 2.5e-01"
    )


def test_another_class_is_another_box():
    figures = box_moves(answers([(A, 0.9, 0)]), answers([(A, 0.9, 1)])).figures
    assert (figures["lost"], figures["new"]) == (1, 1)
    assert np.isnan(figures["mean_iou"])


def test_answers_without_boxes_have_not_changed():
    moves = box_moves(answers([], []), answers([], []))
    assert not moves.changed.any()
    assert moves.text == "of 0 boxes 0 lost, 0 new, 0 moved (IoU below 0.9) in 2 images"


def test_a_pair_of_highest_iou_goes_first_and_each_box_has_one_partner():
    wide = (0, 0, 20, 24)
    moves = box_moves(answers([(A, 0.9, 0), (wide, 0.8, 0)]), answers([(wide, 0.9, 0), ((0, 0, 20, 19), 0.8, 0)]))
    assert moves.figures["mean_iou"] == pytest.approx((1 + 0.95) / 2)


def test_of_equal_boxes_those_with_the_nearer_scores_are_a_pair():
    moves = box_moves(answers([(A, 0.9, 0), (A, 0.5, 0)]), answers([(A, 0.5, 0), (A, 0.25, 0)]))
    assert moves.figures["max_score_drift"] == pytest.approx(0.65)
    assert moves.figures["score_drift"] == pytest.approx(0.325)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_model_has_not_moved_from_itself_also_where_its_boxes_repeat(seed):
    found, _ = scene(seed, ties=False)
    found["boxes"][:, 1] = found["boxes"][:, 0]
    found["labels"][:, 1] = found["labels"][:, 0]
    sides = found["boxes"][..., 2:] - found["boxes"][..., :2]
    found["labels"][(sides <= 0).any(axis=2)] = -1
    moves = box_moves(found, found)
    assert not moves.changed.any()
    assert moves.figures["lost"] == moves.figures["new"] == moves.figures["moved"] == 0
    if moves.figures["boxes"]:
        assert moves.figures["mean_iou"] == pytest.approx(1)
        assert moves.figures["max_score_drift"] == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_is_lost_one_way_is_new_the_other_and_pairs_are_no_more_than_the_most(seed):
    before, after = scene(seed)[0], scene(seed + 1)[0]
    after["boxes"][::2] = before["boxes"][::2] + 1
    there, back = box_moves(before, after).figures, box_moves(after, before).figures
    assert (there["lost"], there["new"]) == (back["new"], back["lost"])
    most = 0
    for image in range(5):
        overlap = iou(before["boxes"][image], after["boxes"][image])
        same = (before["labels"][image][:, None] == after["labels"][image]) & (before["labels"][image] >= 0)[:, None]
        possible = (overlap >= 0.5) & same
        most += possible[linear_sum_assignment(~possible)].sum()
    assert 2 * (there["boxes"] - there["lost"]) >= most >= there["boxes"] - there["lost"]


def test_answers_to_other_images_are_refused():
    with pytest.raises(SoupError, match="2 images after, 1 before"):
        box_moves(answers([]), answers([], []))
