"""Which of the measured test resolutions is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from soup.search_records import ResolutionPoint


def best_of(points: Sequence[ResolutionPoint], *, higher_is_better: bool) -> ResolutionPoint | None:
    """The best value on val; of equal ones the quickest, and then the first."""
    sign = -1.0 if higher_is_better else 1.0
    told = [one for one in points if one.val is not None]
    return min(told, key=lambda one: (sign * (one.val or 0.0), one.p50_ms or math.inf), default=None)
