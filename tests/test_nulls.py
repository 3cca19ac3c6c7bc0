"""Correctness 32: nothing useless is called better more often than stated; the script that measures it can tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks import nulls


@pytest.fixture(scope="module")
def rows():
    return nulls.run(quick=True)["rows"]


def ceiling(level: float, runs: int) -> float:
    return level + 3 * math.sqrt(level * (1 - level) / runs)


def test_useless_soups_are_called_better_no_more_often_than_stated(rows):
    assert {(row["samples"], row["rule"]) for row in rows} == {
        (samples, rule) for samples in ("independent", "clips") for rule in ("as in the paper", "confidence 0.95")
    }
    for row in rows:
        assert row["false better"] <= ceiling(nulls.LEVEL, 300)
        assert row["low"] <= row["false better"] <= row["high"]


def test_with_a_confidence_a_step_accepts_a_useless_ingredient_no_more_often_than_it_leaves(rows):
    for row in rows:
        limit = ceiling(1 - nulls.CONFIDENCE, 300)
        sure = row["rule"] != "as in the paper"
        assert (row["first step from any single"] <= limit) == sure
        assert (row["useless accepted per step"] <= limit) == sure


def test_the_simulation_shows_a_verdict_that_counts_frames_one_by_one():
    cell, generator = nulls.Cell(6, 300, True, None, 1), np.random.default_rng(0)
    said = 0
    for _ in range(100):
        clip = nulls.Noise.draw(cell, generator)
        frames = nulls.Noise(clip.hardness[clip.groups], clip.own[:, clip.groups], None)
        said += nulls.said_better({"00": 1.0, "01": 1.0}, {"02": 1.0}, frames)
    assert said / 100 > ceiling(nulls.LEVEL, 100)


def test_every_average_is_as_accurate_as_every_ingredient_and_more_like_its_own():
    cell, generator = nulls.Cell(6, 50_000, False, None, 1), np.random.default_rng(0)
    noise = nulls.Noise.draw(cell, generator)
    soup, member, stranger = (
        noise.right(dict.fromkeys(names, 1.0)) for names in (("00", "01", "02"), ("00",), ("05",))
    )
    for right in (soup, member, stranger):
        assert right.mean() == pytest.approx(nulls.ACCURACY, abs=0.006)
    assert (soup == member).mean() > (soup == stranger).mean() + 0.02


def test_clips_cover_every_sample_and_have_unequal_lengths():
    groups = nulls.clips(100)
    assert len(groups) == 100
    assert set(np.bincount(groups)[:-1]) == set(nulls.CLIP_LENGTHS)


@pytest.mark.parametrize(("hits", "total"), [(0, 300), (7, 300), (300, 300)])
def test_the_intervals_of_rates_are_scipys(hits, total):
    expected = binomtest(hits, total).proportion_ci(method="wilson")
    assert nulls.wilson(hits, total) == pytest.approx((expected.low, expected.high))
