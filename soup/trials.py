"""A search in its own words: weights, what scores them, a trial, and when one value beats another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from soup.evaluate import Evaluation
from soup.weights import Weights

Reason = Literal["single", "first", "kept", "worse", "within_noise", "not_a_number"]
HAIR = 1e-12  # what a bar is lowered by, so that rounding never stops what the rule would accept


@dataclass(frozen=True, slots=True)
class Bar:
    """What a candidate has to reach, and the evaluation that set it: what was hard there is asked first.

    With `limit` no more samples than about that many are asked (mixed ones, where nothing says which are hard).
    """

    value: float | None
    holder: Evaluation | None
    limit: int | None = None


Score = Callable[[Weights, "Bar | None"], Evaluation]
"""(weights, bar or None) → evaluation on val of what would ship; it stops early only where the bar is out of reach."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate and what became of it; `added` is the ingredient under trial, `bar` what it had to reach."""

    method: str
    weights: Weights
    evaluation: Evaluation
    kept: bool
    reason: Reason
    added: str | None = None
    bar: Bar | None = None
    label: str = ""  # what tells it from the other candidates of its method: "α 0.4", "last 3"

    @property
    def value(self) -> float:
        """The score, NaN where it is none or was not measured to the end."""
        return value_of(self.evaluation)


@dataclass(frozen=True, slots=True)
class Rule:
    """When one value beats another: the metric's direction, the least gain that counts, and how sure one must be.

    `p_value(candidate, incumbent)` is one-sided: that the candidate is no better.
    """

    higher_is_better: bool
    min_gain: float = 0.0
    confidence: float | None = None
    p_value: Callable[[Evaluation, Evaluation], float] | None = None

    def rank(self, value: float | None) -> float:
        """A number that sorts best first; NaN, and what was not measured, last."""
        if value is None or math.isnan(value):
            return math.inf
        return -value if self.higher_is_better else value

    def accepts(self, value: float, current: float) -> bool:
        """The score does not fall, or rises by `min_gain` where that is set. NaN is never accepted."""
        gain = value - current if self.higher_is_better else current - value
        return gain >= self.min_gain

    def verdict(self, candidate: Evaluation, incumbent: Evaluation) -> Reason:
        """Kept, or why not: worse (also where it stopped short), within noise, or without a score."""
        if candidate.value is None:
            return "not_a_number" if candidate.bound is not None and math.isnan(candidate.bound) else "worse"
        assert incumbent.value is not None  # what holds a bar was measured to the end
        if math.isnan(candidate.value):
            return "not_a_number"
        if not self.accepts(candidate.value, incumbent.value):
            return "worse"
        if self.confidence is None or self.p_value is None:
            return "kept"
        return "kept" if self.p_value(candidate, incumbent) <= 1 - self.confidence else "within_noise"

    def bar(self, incumbent: Evaluation) -> Bar:
        """What a candidate has to reach to be kept in the place of `incumbent`."""
        assert incumbent.value is not None
        least = self.min_gain - HAIR if self.min_gain else 0.0
        return Bar(incumbent.value + least if self.higher_is_better else incumbent.value - least, incumbent)


def value_of(evaluation: Evaluation) -> float:
    """The score, NaN where there is none."""
    return math.nan if evaluation.value is None else evaluation.value


def reachable(evaluation: Evaluation) -> float | None:
    """The score, or the best that was still within reach where it stopped."""
    return evaluation.bound if evaluation.value is None else evaluation.value
