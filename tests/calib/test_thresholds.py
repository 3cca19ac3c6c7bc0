"""Thresholds against plain loops over the definitions, against numpy, and against onnxruntime's own calibrators."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector

from calib.histograms import BINS, Histogram
from calib.thresholds import entropy_threshold, mse_threshold, percentile_threshold, squared_errors


def samples(kind: str) -> np.ndarray:
    random = np.random.default_rng(5)
    drawn = {
        "normal": random.normal(size=60_000),
        "relu": np.maximum(random.normal(size=60_000), 0),
        "laplace": random.laplace(size=60_000),
        "uniform": random.uniform(-3, 1, size=60_000),
        "outlier": np.append(random.normal(size=60_000), 25),
        "three values": random.choice([0.0, 1.0, 2.5], size=60_000),
    }[kind]
    return np.asarray(drawn, np.float32)


KINDS = ("normal", "relu", "laplace", "uniform", "outlier", "three values")


def of(array: np.ndarray) -> Histogram:
    made = Histogram()
    made.add(array)
    return made


def plain_divergence(counts: np.ndarray, bins: int) -> float:
    """KL(P||Q) for a threshold at `bins` bins, as one would write it down from the slides."""
    p = counts[:bins].astype(np.float64)
    p[-1] += counts[bins:].sum()
    q = np.zeros(bins)
    if not counts[:bins].sum():
        return float("inf")
    for level in range(128):
        inside = list(range(level * bins // 128, (level + 1) * bins // 128))
        filled = [index for index in inside if p[index]]
        for index in filled:
            q[index] = counts[inside].sum() / len(filled)
    p, q = p / p.sum(), q / q.sum()
    if (q[p > 0] == 0).any():
        return float("inf")
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a))


@pytest.mark.parametrize("kind", KINDS)
def test_entropys_threshold_has_the_least_divergence_of_a_plain_computation(kind: str) -> None:
    histogram = of(samples(kind))
    counts = histogram.counts[: np.flatnonzero(histogram.counts)[-1] + 1].copy()
    counts[0] = counts[1]
    tried = np.unique(np.linspace(128, len(counts), 25).astype(int))
    plain = [plain_divergence(counts, int(bins)) for bins in tried]
    threshold = entropy_threshold(histogram)
    chosen = len(counts) if threshold == histogram.largest else round(threshold * BINS / histogram.top)
    assert plain_divergence(counts, chosen) <= min(plain) + 1e-12


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(130, 400), st.floats(0.1, 1))
def test_entropys_choice_among_all_candidates_is_that_of_a_plain_computation(seed: int, used: int, fill: float) -> None:
    """Sparse histograms: empty levels, empty last bins, and ties, of which the last wins."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 50, used) * (random.random(used) < fill)
    counts[-1] = 1
    histogram = Histogram(np.concatenate([counts, np.zeros(BINS - used, np.int64)]), 1.0, used / BINS)
    counts[0] = counts[1]
    plain = np.array([plain_divergence(counts, bins) for bins in range(128, used + 1)])
    errors = squared_errors(histogram, np.arange(128, used + 1) / BINS)
    plain[errors > errors[-1]] = np.inf  # those lose more by clipping than they win
    chosen = round(entropy_threshold(histogram) * BINS)
    assert plain[chosen - 128] <= plain.min() + 1e-12
    assert not (plain[chosen - 127 :] < plain.min() - 1e-12).any()


def test_entropy_never_clips_where_that_costs_more_than_it_wins():
    """Levels of a plain background, each met often: the divergence alone would clip what is rarer than they are."""
    random = np.random.default_rng(0)
    background = np.repeat(np.linspace(0.1, 0.53, 12), 5000) + np.repeat(random.normal(0, 4e-4, 600), 100)
    array = np.concatenate([background, random.exponential(0.6, 9000)]).astype(np.float32)
    histogram = of(array[array < 4])
    counts = histogram.counts[: np.flatnonzero(histogram.counts)[-1] + 1].astype(float)
    counts[0] = counts[1]
    alone = 128 + int(np.argmin([plain_divergence(counts, bins) for bins in range(128, len(counts) + 1, 4)])) * 4
    assert alone * histogram.top / BINS < 0.7
    threshold = entropy_threshold(histogram)
    chosen, unclipped, spoilt = squared_errors(histogram, np.array([threshold, histogram.largest, 0.7]))
    assert chosen <= unclipped * (1 + 1e-9) < spoilt


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_squared_error_is_that_of_real_rounding_of_the_real_values(kind: str) -> None:
    array = samples(kind)

    def true_error(threshold: float) -> float:
        scale = np.float64(threshold) / 127
        return float(((np.clip(np.rint(array / scale), -127, 127) * scale - array.astype(np.float64)) ** 2).sum())

    chosen = mse_threshold(of(array))
    grid = np.linspace(np.abs(array).max() / 50, np.abs(array).max(), 300)
    assert true_error(chosen) <= 1.02 * min(map(true_error, grid)) + (
        1e-3 * len(array) if kind == "three values" else 0
    )


@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform", "outlier"])
def test_expected_errors_are_those_of_values_spread_evenly_over_their_bins(kind: str) -> None:
    histogram = of(samples(kind))
    width = histogram.top / BINS
    spread = ((np.arange(BINS)[:, None] + (np.arange(64) + 0.5) / 64) * width)[1:]
    weights = histogram.counts[1:, None] / 64
    for threshold in (histogram.largest, histogram.largest / 3, histogram.largest / 40):
        scale = threshold / 127
        rounded = np.minimum(np.rint(spread / scale), 127) * scale
        expected = float((weights * (rounded - spread) ** 2).sum())
        [found] = squared_errors(histogram, np.array([threshold]))
        assert found == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "uniform", "outlier"])
@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9, 99.99, 100.0])
def test_percentiles_are_numpys_within_a_bin(kind: str, percentile: float) -> None:
    """Between the values that numpy finds just below and above that place, or within a bin of them."""
    array = np.abs(samples(kind))
    histogram = of(array)
    low, high = (np.percentile(array, percentile, method=method) for method in ("lower", "higher"))
    width = histogram.top / BINS
    if high < width:  # the place is among the zeros of the ReLU
        low, high = histogram.largest, histogram.largest
    assert low - width <= percentile_threshold(histogram, percentile) <= high + width


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "outlier"])
def test_thresholds_are_near_those_of_onnxruntimes_calibrators(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    array = samples(kind)
    percentile = HistogramCollector("percentile", True, 4096, 128, 99.9, "same")
    percentile.collect({"x": array})
    [low, high, *_] = percentile.compute_collection_result()["x"]
    histogram = of(array)
    assert percentile_threshold(histogram, 99.9) == pytest.approx(max(abs(low), abs(high)), rel=0.01)
    if kind in ("relu", "outlier"):  # theirs lets the zeros of the ReLU decide, and drops the rest of a division
        return
    entropy = HistogramCollector("entropy", True, 2049, 255, 99.9, "same")
    entropy.collect({"x": array})
    [low, high, *_] = entropy.compute_collection_result()["x"]
    assert entropy_threshold(histogram) == pytest.approx(max(abs(low), abs(high)), rel=0.25)


@pytest.mark.parametrize("array", [np.zeros(9, np.float32), np.zeros(0, np.float32)])
def test_nothing_but_zeros_gives_no_range(array: np.ndarray) -> None:
    histogram = of(array)
    assert entropy_threshold(histogram) == mse_threshold(histogram) == percentile_threshold(histogram, 99.99) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=30))
def test_no_threshold_exceeds_the_largest_value_nor_is_it_zero_without_need(numbers: list[float]) -> None:
    array = np.array(numbers, np.float32)
    histogram = of(array)
    for threshold in (entropy_threshold(histogram), mse_threshold(histogram), percentile_threshold(histogram, 100)):
        assert 0 <= threshold <= histogram.largest
        assert (threshold > 0) == (histogram.largest > 0)
