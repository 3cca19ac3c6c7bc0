"""A precision that was tried, and what came of it: ships, failed, or waits behind the one that ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from exporters.audit import LayerAudit
from exporters.precision import Precision
from soup.gates import Check

Outcome = Literal["ships", "fallback", "failed"]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one layer costs the metric, on `Raised.samples` of val; positive is worse, None was not measured or is NaN.

    `alone` is the loss with it alone in the lower precision, `all_but` how much less is lost with all but it.
    """

    layer: str
    alone: float | None = None
    all_but: float | None = None
    error: float | None = None  # of the outputs, with it alone: mean square over the reference's


@dataclass(frozen=True, slots=True)
class Step:
    """One set of layers kept higher that was judged: how many, the share left lower, the loss, and its verdict."""

    kept: int
    share: float  # of the multiply-adds in the lower precision
    loss: float | None
    verdict: str
    samples: int


@dataclass(frozen=True, slots=True)
class Raised:
    """How the layers to keep higher were looked for, and what it cost; `budget` is what it was allowed.

    `layers` let the gates pass where `passed`; else they are empty, and nothing within the budget did.
    """

    passed: bool
    layers: tuple[str, ...]
    evaluations: int
    budget: int
    samples: int  # of val, for the sensitivities
    sensitivities: tuple[Sensitivity, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One precision of `export.precision`: its graph, which layers stayed higher and why, and the gates' word.

    `file` is None where no graph could be made; `share` is of the multiply-adds that compute in it. A fallback passed
    and waits for a device on which the one before it does not build.
    """

    precision: Precision
    file: str | None
    outcome: Outcome
    reason: str
    value: float | None = None
    kept: Mapping[str, str] = field(default_factory=dict)
    share: float | None = None
    checks: tuple[Check, ...] = ()
    raised: Raised | None = None
    layers: tuple[LayerAudit, ...] = ()  # of its graph: what each computes in
