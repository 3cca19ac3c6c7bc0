"""Whether FP16 can hold the numbers of a tensor, by its magnitudes on real data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_LARGEST = 65504.0  # of FP16
_SMALLEST_NORMAL = 2.0**-14
_ROUNDING = 2.0**-11  # the largest relative error of a normal number
_HEADROOM = 2.0  # an activation may grow by this over what was measured


@dataclass(frozen=True, slots=True)
class Span:
    """The finite magnitudes of one tensor on real data: the largest, and the smallest that is not zero (else inf).

    `rms` is the root of the mean square of all elements, `lost` that of the errors which rounding to FP16 makes in the
    elements below its normal range. `largest` is NaN where the tensor held a NaN.
    """

    largest: float
    smallest: float = math.inf
    rms: float = math.inf
    lost: float = 0.0


def span_of(array: np.ndarray) -> Span:
    """The span of one float32 array."""
    tally = Tally()
    tally.add(array)
    return tally.span


def unfit(span: Span, *, constant: bool, steep: bool, beside: float) -> str:
    """Why FP16 cannot hold a tensor of this span, as the end of a sentence about it; "" where it can.

    `steep` is for one whose smallest elements count as much as its largest. `beside` is the rms of what its errors are
    small or large against: its own, or that of the sum that it goes into.
    """
    limit = _LARGEST if constant else _LARGEST / _HEADROOM
    if not span.largest <= limit:
        return f"reaches {span.largest:.3g}, expected at most {limit:g} in FP16"
    if not span.lost <= _ROUNDING * beside:
        return f"loses {span.lost:.1e} of {beside:.1e} (rms) to FP16, which has few digits below {_SMALLEST_NORMAL:.1e}"
    if steep and span.smallest < _SMALLEST_NORMAL:
        return f"goes down to {span.smallest:.1e}, where {_SMALLEST_NORMAL:.1e} is the least that FP16 holds in full"
    return ""


class Tally:
    """What is kept of a tensor while batches pass; sums are in float64."""

    def __init__(self) -> None:
        self._largest, self._smallest, self._count, self._energy, self._lost = 0.0, math.inf, 0, 0.0, 0.0

    def add(self, array: np.ndarray) -> None:
        """Take in one more float32 array of the tensor."""
        magnitudes = np.abs(array).ravel()
        if np.isposinf(magnitudes.max(initial=0)):  # FP16 has infinity too, as a mask for example
            magnitudes = magnitudes[~np.isposinf(magnitudes)]
        self._largest = float(np.maximum(self._largest, magnitudes.max(initial=0)))
        self._count += magnitudes.size
        self._energy += float(np.einsum("i,i->", magnitudes, magnitudes, dtype=np.float64))
        low = magnitudes[(magnitudes > 0) & (magnitudes < _SMALLEST_NORMAL)]
        if low.size:
            self._smallest = min(self._smallest, float(low.min()))
            errors = low.astype(np.float64) - low.astype(np.float16)
            self._lost += float(errors @ errors)
        elif self._smallest >= _SMALLEST_NORMAL:
            self._smallest = min(self._smallest, float(magnitudes.min(where=magnitudes > 0, initial=math.inf)))

    @property
    def span(self) -> Span:
        """Of all that was added."""
        count = max(1, self._count)
        return Span(self._largest, self._smallest, math.sqrt(self._energy / count), math.sqrt(self._lost / count))
