"""A histogram of magnitudes that grows with its data, so that one pass over the batches is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

BINS = 4096
_BLOCK = 1 << 16  # elements at a time: their indices stay in the processor's cache


@dataclass(slots=True)
class Histogram:
    """Counts of |x| in `BINS` equal bins from 0 to `top`, a power of two above all that was added.

    Doubling `top` adds neighbouring bins, and scaling by a power of two is exact in float32: the counts do not depend
    on how the values were split into batches, nor on their order. At least half of the bins are within the largest.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    top: float = 0.0
    largest: float = 0.0

    def add(self, values: np.ndarray) -> None:
        """Count float32 values of any shape. NaN or Inf changes nothing and raises ValueError."""
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        largest = float(max(flat.max(), -flat.min())) if flat.size else 0.0
        if not math.isfinite(largest):
            raise ValueError("NaN or Inf")
        self.largest = max(self.largest, largest)
        self._widen(largest)
        if not self.top:  # nothing but zeros so far
            self.counts[0] += flat.size
            return
        scaled, bins = np.empty(_BLOCK, dtype=np.float32), np.empty(_BLOCK, dtype=np.intp)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            magnitudes, indices = scaled[: block.size], bins[: block.size]
            np.multiply(block, np.float32(BINS / self.top), out=magnitudes)
            np.abs(magnitudes, out=magnitudes)
            np.copyto(indices, magnitudes, casting="unsafe")
            self.counts += np.bincount(indices, minlength=BINS)

    def _widen(self, largest: float) -> None:
        if largest < self.top or not largest:
            return
        # Below this, BINS / top would leave float32; such values are as good as 0.
        top = max(math.ldexp(1.0, math.frexp(largest)[1]), 2.0**-100)
        for _ in range(round(math.log2(top / self.top)) if self.top else 0):
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros_like(pairs)])
        self.top = top
