"""Bytes of any floating dtype as numbers that numpy can add in float64, and back again with one rounding."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import numpy as np
import torch

# What a sum reads each dtype as; a complex number is two reals, since the weights are real. numpy has no bfloat16.
REALS: Mapping[torch.dtype, type[np.floating]] = {
    torch.float16: np.float16, torch.bfloat16: np.float32, torch.float32: np.float32, torch.float64: np.float64,
    torch.complex32: np.float16, torch.complex64: np.float32, torch.complex128: np.float64,
}  # fmt: skip


def cooked_dtype(dtypes: Iterable[torch.dtype], policy: str) -> torch.dtype:
    """What tensors of these dtypes average to: the widest or, for floating ones, `policy` if it is not "same"."""
    widest = functools.reduce(torch.promote_types, dtypes)
    return getattr(torch, policy) if widest.is_floating_point and policy != "same" else widest


def reals(data: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Bytes of a floating or complex dtype as an array that numpy can add."""
    if dtype == torch.bfloat16:  # the upper half of a float32
        return np.left_shift(data.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    return data.view(REALS[dtype])


def rounded(mean: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """float64[n] → bytes of `dtype`, rounded to nearest even once (torch rounds to float32 on the way to 16 bits)."""
    if dtype != torch.bfloat16:
        return mean.astype(REALS[dtype]).view(np.uint8)
    # Rounding to odd first lets the second rounding see what the first one dropped (Boldo and Melquiond 2008).
    near = mean.astype(np.float32)
    bits = near.view(np.uint32)
    inexact = (near != mean) & (bits & 1 == 0)
    bits = np.where(inexact, np.where(np.abs(mean) > np.abs(near), bits + 1, bits - 1), bits)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8)
