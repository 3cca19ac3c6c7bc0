"""Model Stock: how far to go from a base towards the average of its fine-tunes, told from the angles between them."""

from __future__ import annotations

import numpy as np

from soup.geometry import Geometry
from soup.weights import Weights


def stock_ratio(cosine: float, count: int) -> float:
    """The fine-tunes' part t in 0..1: the soup is t·average + (1 - t)·base (Jang et al. 2024, arXiv 2403.19522).

    With `count` fine-tunes at equal distances from the base and the same angle between any two, that is the point on
    the line that lies nearest to the centre they scatter around: N·cos / (1 + (N - 1)·cos). The paper has no word on
    angles of 90° and more, which point to no common centre: they give 0, the base, and so does NaN, which is no angle.
    """
    if not cosine > 0:
        return 0.0
    return min(1.0, count * cosine / (1 + (count - 1) * cosine))


def stock_weights(geometry: Geometry, base: str) -> Weights:
    """Model Stock tensor by tensor: t/N of each fine-tune and 1 - t of the base, each ingredient's {tensor: weight}.

    The angle is the mean cosine over all pairs; a fine-tune that left a tensor as it was has none, and counts 0. What
    was not measured (statistics, counters) gets, under "", the part that the angle over all tensors gives.
    Raises ValueError where `base` is not among the ingredients, or fewer than two others are.
    """
    tuned = [sha for sha in geometry.ingredients if sha != base]
    if base not in geometry.ingredients or len(tuned) < 2:
        raise ValueError(f"Model Stock takes a base and two or more fine-tunes of it, given {geometry.ingredients}")
    at = [geometry.ingredients.index(sha) for sha in tuned]
    offsets = geometry.offsets({base: 1.0})[:, at][:, :, at]
    ratios = [stock_ratio(_mean_cosine(inner), len(tuned)) for inner in (*offsets, offsets.sum(axis=0))]
    by_name = dict(zip((*geometry.tensors, ""), ratios, strict=True))
    by_name |= {name: by_name[first] for name, first in geometry.tied.items()}
    share = {name: ratio / len(tuned) for name, ratio in by_name.items()}
    return {base: {name: 1 - ratio for name, ratio in by_name.items()}, **dict.fromkeys(tuned, share)}


def _mean_cosine(inner: np.ndarray) -> float:
    """Over all pairs of the vectors with inner products float64[N, N]; where one of a pair is zero, or NaN, it is 0."""
    lengths = np.sqrt(np.diagonal(inner))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = inner / lengths[:, None] / lengths
    return float(np.nan_to_num(cosines, posinf=0, neginf=0)[np.triu_indices(len(inner), 1)].mean())
