"""How much of each ingredient: one weight, or one for each part of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping

from soup import SoupError

Weight = float | Mapping[str, float]  # raw, not negative; of the prefixes of a tensor's name the longest, "" of any
Weights = Mapping[str, Weight]  # SHA-256 of an ingredient → its weight; each tensor becomes Σ w·x / Σ w


def weight_of(weight: Weight, tensor: str) -> float:
    """An ingredient's weight for one tensor: that of its name, or else of the longest part of it that ends at a dot.

    Raises SoupError where a mapping has neither, nor "", and for a weight that is no number from 0 up.
    """
    prefix = tensor
    if not isinstance(weight, float | int):
        while prefix not in weight:
            if not prefix:
                raise SoupError(f"tensor {tensor!r} has no weight, expected one for its name, a prefix of it, or ''.")
            prefix = prefix.rpartition(".")[0]
        weight = weight[prefix]
    if not 0 <= weight < math.inf:
        raise SoupError(f"tensor {tensor!r} has the weight {weight}, expected 0 or a positive number.")
    return weight


def weights_key(weights: Weights) -> tuple[object, ...]:
    """Equal for equal weights, in whatever order they come."""
    return tuple(
        (sha, tuple(sorted(weight.items())) if isinstance(weight, Mapping) else float(weight))
        for sha, weight in sorted(weights.items())
    )
