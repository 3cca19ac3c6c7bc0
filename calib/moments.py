"""Mean and squared deviations per channel in float64, and how those of disjoint parts make those of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Elements converted to float64 at a time. 2 MB stay in a CPU's cache, where both passes cost less than BatchNorm's own
# forward; whole activations cost four to ten times as much. A GPU is slowed by small kernels instead.
_CPU_BLOCK = 1 << 18
_GPU_BLOCK = 1 << 26


@dataclass(frozen=True, slots=True)
class Moments:
    """Values per channel, their mean, and the sum of their squared deviations from it (float64[channels])."""

    count: int
    mean: np.ndarray
    squares: np.ndarray


def moments(values: torch.Tensor) -> Moments:
    """Moments of each channel (axis 1) over all other axes, as if every value had been converted to float64 first."""
    axes = [axis for axis in range(values.ndim) if axis != 1]
    block = _CPU_BLOCK if values.device.type == "cpu" else _GPU_BLOCK
    rows = max(1, block // max(1, math.prod(values.shape[1:])))
    parts = []
    for part in torch.split(values, rows):
        wide = part.to(torch.float64, copy=True)
        mean = wide.mean(axes, keepdim=True)
        squares = wide.sub_(mean).square_().sum(axes)
        parts.append(
            Moments(math.prod(part.shape) // values.shape[1], mean.flatten().cpu().numpy(), squares.cpu().numpy())
        )
    return pool(parts)


def pool(parts: Sequence[Moments]) -> Moments:
    """Moments of the union of disjoint parts; NaN or Inf in a part gives NaN.

    For many parts, after Chan, Golub and LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances.
    """
    if len(parts) == 1:
        return parts[0]
    count = sum(part.count for part in parts)
    weights = np.array([part.count for part in parts], dtype=np.float64)[:, None]
    means = np.stack([part.mean for part in parts])
    with np.errstate(invalid="ignore", over="ignore"):
        mean = (weights * means).sum(axis=0) / count
        between = (weights * (means - mean) ** 2).sum(axis=0)
        return Moments(count, mean, np.stack([part.squares for part in parts]).sum(axis=0) + between)


def distance(part: Moments, whole: Moments) -> float:
    """The larger of √(Σ Δmean² / Σ var) and Σ |Δvar| / Σ var, summed over channels; var is that of `whole`."""
    variance = whole.squares.sum() / whole.count
    if variance == 0:
        return 0.0
    by_mean = math.sqrt(((part.mean - whole.mean) ** 2).sum() / variance)
    by_variance = np.abs(part.squares / part.count - whole.squares / whole.count).sum() / variance
    return max(by_mean, float(by_variance))


def rounded_once(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """A float64 array as the nearest values of `dtype`, ties to even.

    torch goes to float16 and bfloat16 by way of float32, hence rounds twice. Rounding to odd on the way makes the
    second rounding the right one (Boldo and Melquiond 2008, Emulation of FMA and Correctly Rounded Sums).
    """
    exact = torch.from_numpy(values)
    if dtype.itemsize > 2:
        return exact.to(dtype)
    single = exact.to(torch.float32)
    error = exact - single
    even = single.view(torch.int32) % 2 == 0
    odd = torch.nextafter(single, torch.copysign(torch.tensor(math.inf), error).to(torch.float32))
    return torch.where(even & (error != 0), odd, single).to(dtype)
