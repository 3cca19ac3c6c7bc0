"""Whether two runtimes say the same, output by output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exporters import ExportError
from exporters.runtimes import Arrays

# FP32 in another order of summation: 1e-7 to 3e-4 was measured between torch and ONNX Runtime on models with logits of
# ordinary size. A wrong graph (an epsilon, a padding mode, a transposed axis) is off by 1e-2 and more.
FP32_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """Candidate against reference over all samples; `cosine` is of the flattened outputs, in float64.

    `scale` is the reference's largest magnitude, `worst_sample` the index with the largest difference. Where `finite`
    is False one of the two held NaN or Inf, `max_abs` may be NaN, and no tolerance accepts it.
    """

    name: str
    max_abs: float
    mean_abs: float
    cosine: float
    scale: float
    worst_sample: int
    finite: bool


def compare_outputs(reference: Arrays, candidate: Arrays) -> tuple[OutputDifference, ...]:
    """The difference of each output, in the reference's order; arrays have shape [samples, ...].

    Raises:
        ExportError: "build" where names or shapes differ, "input" where there are no samples to compare.
    """
    if set(reference) != set(candidate):
        raise ExportError(f"the outputs are {sorted(candidate)}, expected {sorted(reference)}.")
    for name, array in reference.items():
        if candidate[name].shape != array.shape:
            raise ExportError(f"output '{name}' has shape {candidate[name].shape}, expected {array.shape}.")
        if not array.shape or not array.shape[0]:
            message = f"output '{name}' has shape {array.shape}: no samples to compare, expected at least one."
            raise ExportError(message, kind="input")
    return tuple(_difference(name, array, candidate[name]) for name, array in reference.items())


def within(
    differences: Sequence[OutputDifference], *, atol: float = FP32_TOLERANCE, rtol: float = FP32_TOLERANCE
) -> bool:
    """Whether every output is finite and off by at most max(atol, rtol · the reference's largest magnitude).

    The defaults are the policy for FP32: 1e-3 · max(1, largest magnitude). Nothing compared is not within.
    """
    return bool(differences) and all(
        item.finite and item.max_abs <= max(atol, rtol * item.scale) for item in differences
    )


def quantile_abs(reference: np.ndarray, candidate: np.ndarray, share: float) -> float:
    """The absolute difference that `share` of all values keep to; NaN where one is no number."""
    off = np.abs(reference.astype(np.float64) - candidate.astype(np.float64)).reshape(-1)
    if not off.size or np.isnan(off).any():
        return math.nan if off.size else 0.0
    kept = max(1, math.ceil(share * off.size - 1e-9))
    return float(np.partition(off, kept - 1)[kept - 1])


def _difference(name: str, reference: np.ndarray, candidate: np.ndarray) -> OutputDifference:
    a = reference.reshape(len(reference), -1).astype(np.float64)
    b = candidate.reshape(len(candidate), -1).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(a - b)
        worst = off.max(axis=1, initial=0.0)  # NaN goes through max, so it reaches max_abs
        return OutputDifference(
            name=name,
            max_abs=float(worst.max()),
            mean_abs=float(off.mean()) if off.size else 0.0,
            cosine=_cosine(a, b),
            scale=float(np.abs(a).max(initial=0.0)),
            worst_sample=int(worst.argmax()),
            finite=bool(np.isfinite(a).all() and np.isfinite(b).all()),
        )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """1 where both are zero, 0 where one is."""
    lengths = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if 0.0 in lengths:
        return float(lengths[0] == lengths[1])
    return float(np.vdot(a / lengths[0], b / lengths[1]))
