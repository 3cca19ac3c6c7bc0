"""Sums and means over bootstrap resamples that are given as counts: sample i is in resample b counts[b, i] times."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ROUNDING = 1e-12  # more than sums of the same numbers in another order differ by
_BLOCK = 1 << 21  # counts turned into float64 at a time: bounds the memory


def once(n: int) -> np.ndarray:
    """int64 [1, n]: the one resample that holds each sample once, so that `reduce` and `resampled` share their code."""
    return np.ones((1, n), np.int64)


def blocks(counts: np.ndarray) -> Iterator[np.ndarray]:
    """`counts` [B, n] as float64, some resamples at a time."""
    step = max(1, _BLOCK // max(1, counts.shape[1]))
    for start in range(0, len(counts), step):
        yield counts[start : start + step].astype(np.float64)


def means(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64 [B]: the mean of `values` [n] over each resample; NaN for none, and where a value that counts is NaN."""
    values = values.astype(np.float64)
    odd = ~np.isfinite(values)
    sums = np.einsum("bn,n->b", counts, np.where(odd, 0.0, values))  # not by BLAS, whose bits depend on its threads
    sums += np.where(counts[:, odd] > 0, values[odd], 0.0).sum(axis=1)
    return ratio(sums, counts.sum(axis=1))


def sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64 [B, C]: the sums of whole numbers [n, C] over each resample, exact below 2^53."""
    table = values.astype(np.float64)
    return np.concatenate([np.empty((0, table.shape[1])), *(block @ table for block in blocks(counts))])


def sums_by(keys: np.ndarray, counts: np.ndarray, size: int, values: np.ndarray | None = None) -> np.ndarray:
    """float64 [B, size]: the sums of `values` [n] (else of ones) by key, int [n] from 0 to size - 1."""
    drawn = np.empty((len(counts), size))
    for row, count in enumerate(counts):
        drawn[row] = np.bincount(keys, weights=count if values is None else count * values, minlength=size)
    return drawn


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above` / `below`, NaN where `below` is 0."""
    result: np.ndarray = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
    return result


def mean_of_classes(values: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """float64 [B]: the weighted mean of [B, C] over the classes that have a value; NaN where none has."""
    present = ~np.isnan(values)
    return ratio(np.where(present, values * weights, 0.0).sum(axis=1), (present * weights).sum(axis=1))
