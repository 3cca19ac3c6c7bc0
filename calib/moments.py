"""Mean and squared deviations per channel in float64, and how those of disjoint parts make those of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Elements converted to float64 at a time, in three buffers. Smaller blocks keep threads waiting for each other, whole
# activations leave a CPU's cache and cost several times as much. A GPU is slowed by small kernels instead.
_CPU_BLOCK = 1 << 19
_GPU_BLOCK = 1 << 26

# Largest mean²/variance: Σx² - (Σx)²/n loses about its logarithm in bits of float64's 53, and 10 of these leave 18 more
# than float32 has, for the rounding of the sums themselves.
_LARGEST_CANCELLATION = 1 << 10


@dataclass(frozen=True, slots=True)
class Moments:
    """Values per channel, their mean, and the sum of their squared deviations from it (float64[channels])."""

    count: int
    mean: np.ndarray
    squares: np.ndarray


def moments(values: torch.Tensor) -> Moments:
    """Moments of each channel (axis 1) over all other axes, as if every value had been converted to float64 first.

    One reading of `values` gives both sums. Channels whose mean is too large beside their spread for that, and float64
    itself, are read again for their deviations from the mean of each block.
    """
    if values.dtype == torch.float64:
        return _from_deviations(values)
    found = _from_sums(values)
    with np.errstate(invalid="ignore", over="ignore"):
        enough = found.count * found.mean**2 <= _LARGEST_CANCELLATION * found.squares
    if enough.all():
        return found
    again = np.flatnonzero(~enough)  # NaN too
    exact = _from_deviations(values.index_select(1, torch.from_numpy(again).to(values.device)))
    found.mean[again], found.squares[again] = exact.mean, exact.squares
    return found


def _from_sums(values: torch.Tensor) -> Moments:
    """Adds blocks to one another before any reduction, which costs a third fewer passes than reducing each block."""
    first, *others = _blocks(values)
    sums = first.to(torch.float64)
    powers = sums.square()
    wide = torch.empty_like(sums)
    for block in others:
        corner = tuple(slice(size) for size in block.shape)  # the last blocks may be smaller
        part = wide[corner].copy_(block)
        sums[corner].add_(part)
        powers[corner].addcmul_(part, part)
    axes = _all_but_channels(values)
    count = values.numel() // values.shape[1]
    total = sums.sum(axes).cpu().numpy()
    with np.errstate(invalid="ignore"):
        mean = total / count
        return Moments(count, mean, powers.sum(axes).cpu().numpy() - total * mean)


def _from_deviations(values: torch.Tensor) -> Moments:
    axes = _all_but_channels(values)
    parts = []
    for block in _blocks(values):
        wide = block.to(torch.float64, copy=True)
        mean = wide.mean(axes, keepdim=True)
        squares = wide.sub_(mean).square_().sum(axes)
        parts.append(Moments(block.numel() // block.shape[1], mean.flatten().cpu().numpy(), squares.cpu().numpy()))
    return pool(parts)


def _all_but_channels(values: torch.Tensor) -> list[int]:
    return [axis for axis in range(values.ndim) if axis != 1]


def _blocks(values: torch.Tensor) -> list[torch.Tensor]:
    """Whole samples, or pieces of one along axis 2 where a sample alone is larger than a block."""
    block = _CPU_BLOCK if values.device.type == "cpu" else _GPU_BLOCK
    sample = math.prod(values.shape[1:])
    samples = torch.split(values, max(1, block // max(1, sample)))
    if sample <= block or values.ndim < 3:
        return list(samples)
    rows = max(1, block * values.shape[2] // sample)
    return [piece for part in samples for piece in torch.split(part, rows, dim=2)]


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
