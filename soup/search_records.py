"""What a search tried, what it cost, and why it ended as it did, as the records that a build keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from soup.files import finite
from soup.statistics import Interval

Shares = Mapping[str, float | Mapping[str, float]]  # `soup.average.Weights`: by SHA-256, and by layer where they differ


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference in the metric's unit; as JSON has no Inf, an end is None where the samples decide nothing."""

    estimate: float | None
    low: float | None
    high: float | None
    confidence: float
    method: str
    n: int
    groups: int | None
    verdict: Literal["better", "worse", "undecided"]


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One candidate of the search; `difference` is against what it had to beat, in pairs on val.

    `fragile` says that one image more or less right would have turned the decision; `distance` is the ingredient's from
    the soup that it was to join, in weight space. `bound` is what was still in reach where it stopped after `images`.
    """

    method: str
    added: str | None
    ingredients: tuple[str, ...]
    val: float | None
    bound: float | None
    images: int
    kept: bool
    reason: str
    difference: Difference | None
    fragile: bool = False
    distance: float | None = None
    weights: Shares | None = None  # where they are not all equal
    label: str = ""  # what tells it from the other candidates of its method


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method came up with; `competing` is its value on what of val no fit has seen, where a method fitted."""

    method: str
    weights: Shares
    val: float | None
    competing: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """Images forwarded for each purpose, and answered by the ledger instead; the textbook's for the same greedy search.

    `textbook` counts evaluations of val and recalibrations apart: {"singles", "candidates", "recalibration"}.
    """

    forwarded: Mapping[str, int]
    reused: Mapping[str, int]
    textbook: Mapping[str, int]
    backend: str


@dataclass(frozen=True, slots=True)
class OptimismRecord:
    """How much too good the winner's val figure is, since it was the best of `candidates` there.

    `value` is rather too low; `ceiling` is what it would be if all candidates were equally good.
    """

    value: float | None
    standard_error: float | None
    ceiling: float | None
    candidates: int
    method: str


@dataclass(frozen=True, slots=True)
class Contribution:
    """The model without one of its ingredients, on val, and the difference that the ingredient makes."""

    sha256: str
    without: float | None
    difference: Difference


@dataclass(frozen=True, slots=True)
class ClassValue:
    """The metric of one class alone, on the split that judges; `images` hold something of it."""

    name: str
    images: int
    best_single: float | None
    model: float | None


@dataclass(frozen=True, slots=True)
class OtherValue:
    """Another metric of the same answers, on val; `unit` as `Metric.unit`."""

    metric: str
    unit: str
    best_single: float | None
    model: float | None


@dataclass(frozen=True, slots=True)
class Reference:
    """What more inference would give on val: `cost` is in forward passes of the model."""

    label: str
    value: float | None
    cost: float


@dataclass(frozen=True, slots=True)
class ResolutionPoint:
    """The model at another test resolution, on val; `note` says why there is no value, where there is none.

    `difference` is from the resolution that was trained for, in pairs. `p50_ms` is of one image in torch, on the
    machine of the build. The hashes are those of val as it is there.
    """

    scale: float
    crop_ratio: float | None
    preprocess: Mapping[str, object]
    size: tuple[int, int] | None = None  # (height, width) that the network takes
    val: float | None = None
    difference: Difference | None = None
    p50_ms: float | None = None
    list_sha256: str = ""
    targets_sha256: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class LinePoint:
    """A soup on the straight line from one ingredient (share 0) to another (share 1), on `images` images of val."""

    share: float
    value: float | None
    images: int


@dataclass(frozen=True, slots=True)
class Line:
    """The line between two ingredients; a value below both ends is a barrier."""

    first: str
    second: str
    points: tuple[LinePoint, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a checkpoint, the model or a base lies in the plane that shows most of their distances."""

    label: str
    x: float
    y: float
    value: float | None
    kind: str  # "ingredient", "left out", "model", "base"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why the search ended as it did, measured after it; each part is absent where it was not asked for."""

    contributions: tuple[Contribution, ...] = ()
    ensemble: float | None = None
    line: Line | None = None
    plane: tuple[Place, ...] = ()
    references: tuple[Reference, ...] = ()  # fusions of the ingredients' boxes, other ways to thin them out, views
    causes: tuple[str, ...] = ()  # why only one checkpoint survived, the likeliest first


def difference_record(interval: Interval, verdict: Literal["better", "worse", "undecided"]) -> Difference:
    """An Interval as JSON can hold it."""
    return Difference(
        finite(interval.estimate), finite(interval.low), finite(interval.high),
        interval.confidence, interval.method, interval.n, interval.groups, verdict,
    )  # fmt: skip
