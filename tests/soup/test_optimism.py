"""The optimism of a search: on simulated candidates whose true accuracy is known, and through any metric."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from soup.optimism import optimism


def accuracy(arrays):
    return float(next(iter(arrays.values())).mean())


def found(bits, *, higher=True, groups=None, **options):
    return optimism([{"correct": row} for row in bits], accuracy, higher_is_better=higher, groups=groups, **options)


def simulated(*, candidates: int, n: int, spread: float, runs: int = 60, copies: int = 1):
    """(true optimism of the winner, estimates, ceilings), means over fresh val sets; latent abilities spread apart."""
    generator = np.random.default_rng(0)
    truth = 0.8 + spread * np.linspace(-1, 0, candidates)
    groups = None if copies == 1 else np.repeat(np.arange(n), copies)
    biases, estimates, ceilings = [], [], []
    for _ in range(runs):
        bits = np.repeat(generator.random((candidates, n)) < truth[:, None], copies, axis=1)
        best = bits.mean(axis=1).argmax()
        biases.append(bits[best].mean() - truth[best])
        result = found(bits, groups=groups, resamples=100)
        estimates.append(result.value)
        ceilings.append(result.ceiling)
    return statistics.mean(biases), statistics.mean(estimates), statistics.mean(ceilings)


@pytest.mark.parametrize("copies", [1, 5])
@pytest.mark.parametrize("candidates", [6, 24])
def test_of_equal_candidates_it_finds_most_of_the_selection_bias_and_its_ceiling_all(candidates, copies):
    """0.7 = 1/√2 in theory: val's own noise has already set the candidates apart before they are resampled."""
    bias, estimate, ceiling = simulated(candidates=candidates, n=200, spread=0.0, copies=copies)
    assert estimate / bias == pytest.approx(1 / math.sqrt(2), abs=0.12)
    assert ceiling / bias == pytest.approx(1.0, abs=0.12)


def test_the_bias_of_candidates_of_mixed_strength_lies_between_the_estimate_and_its_ceiling():
    bias, estimate, ceiling = simulated(candidates=12, n=200, spread=0.06, runs=150)
    assert 0.5 * bias < estimate < bias < ceiling < 1.6 * bias


def test_frames_of_a_clip_are_drawn_together():
    bits = np.repeat(np.random.default_rng(1).random((8, 40)) < 0.7, 10, axis=1)
    apart, together = found(bits).value, found(bits, groups=np.repeat(np.arange(40), 10)).value
    assert together > 1.5 * apart


def test_one_candidate_or_one_that_dominates_has_no_optimism():
    generator = np.random.default_rng(2)
    assert found(generator.random((1, 100)) < 0.6).value == 0
    bits = np.vstack([np.ones(100, bool), generator.random((9, 100)) < 0.5])
    result = found(bits)
    assert (result.value, result.standard_error, result.candidates) == (0, 0, 10)


def test_the_same_candidate_many_times_is_one():
    bits = np.tile(np.random.default_rng(3).random(100) < 0.6, (20, 1))
    assert found(bits).value == 0


def test_a_loss_is_flattered_when_it_comes_out_low():
    losses = np.random.default_rng(4).gamma(2.0, size=(10, 80))
    down, up = found(losses, higher=False), found(-losses)
    assert down.value == pytest.approx(up.value)
    assert down.value > 2 * down.standard_error > 0


@pytest.mark.parametrize("groups", [None, np.arange(50) // 3])
def test_counting_gives_what_the_metric_itself_gives_on_every_resample(groups):
    bits = np.random.default_rng(5).random((6, 50)) < 0.7
    counted = found(bits, groups=groups)
    asked = optimism(
        [{"correct": row, "one": np.ones(50)} for row in bits],
        lambda s: s["correct"].sum() / s["one"].sum(),
        higher_is_better=True,
        groups=groups,
    )
    assert (counted.value, counted.ceiling) == pytest.approx((asked.value, asked.ceiling))


def test_a_single_statistic_that_is_not_averaged_is_read_by_its_metric():
    scores = np.random.default_rng(6).normal(size=(6, 51))
    median = optimism([{"s": row} for row in scores], lambda s: float(np.median(s["s"])), higher_is_better=True)
    assert median.value > 0
    assert median.value != pytest.approx(found(scores).value)


def test_candidates_without_a_score_are_left_out():
    bits = (np.random.default_rng(7).random((6, 50)) < 0.7).astype(float)
    holed = np.vstack([np.full(50, math.nan), bits])
    assert found(holed) == found(bits)
    nothing = found(holed[:1])
    assert math.isnan(nothing.value)
    assert nothing.candidates == 0


def test_a_metric_undefined_on_a_resample_has_no_optimism_to_tell():
    rare = {"s": np.array([1.0, 0, 0, 0])}
    result = optimism([rare, rare], lambda s: 1.0 if s["s"].any() else math.nan, higher_is_better=True)
    assert math.isnan(result.value)
    assert "undefined" in result.method


def test_the_blocks_that_bound_memory_change_no_draw(monkeypatch):
    bits = np.random.default_rng(8).random((6, 50)) < 0.7
    whole = found(bits)
    monkeypatch.setattr("soup.statistics._BLOCK", 120)
    assert found(bits) == whole
