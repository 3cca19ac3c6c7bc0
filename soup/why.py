"""Why a search ended as it did, measured after it: what each ingredient adds, and what lies between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from soup.bookkeeping import Settled
from soup.causes import Pair, likely_causes, on_line
from soup.config import Config
from soup.evaluate import Evaluation, value_on
from soup.files import finite
from soup.gates import compare
from soup.geometry import Geometry
from soup.judge import paired
from soup.larder import Larder
from soup.picture import shortest_names
from soup.references import ensemble, references
from soup.score import Kitchen
from soup.search import Found
from soup.search_records import Contribution, Explanation, Line, LinePoint, Place, difference_record
from soup.trials import Bar
from soup.weights import Weight, Weights, weight_of

MOST_SAMPLES = 2000  # of val for each point of the line: a dip of two points shows, and val may be much larger


def explain(
    config: Config, larder: Larder, kitchen: Kitchen, found: Found, settled: Settled, geometry: Geometry | None
) -> Explanation:
    """What the report tells beyond the search; all images forwarded for it count as "explaining".

    The ledger keeps every part, so that a second call gives the same without a forward pass. Without a `geometry`
    there is one checkpoint, and nothing to explain.
    """
    if geometry is None:
        return Explanation()
    recalibration = kitchen.images["recalibration"]
    wanted, soup = config.explain, len(settled.trial.weights) > 1
    pixels_or_classes = config.task != "detection"  # boxes have no mean
    labels = shortest_names({sha: one.path for sha, one in larder.cookable.items()})
    best = next(iter(found.singles[0].weights))
    second = _other_end(larder, found, settled.trial.weights, geometry, best=best)
    line = measure_line(kitchen, best, second, points=wanted.line) if wanted.line and second else ()
    pair = Pair(best, second, line) if second else None
    explanation = Explanation(
        _contributions(kitchen, settled) if wanted.contributions and soup else (),
        ensemble(kitchen, settled.trial.weights) if wanted.ensemble and soup and pixels_or_classes else None,
        _line(kitchen, pair) if pair and line else None,
        _plane(larder, found, settled, geometry, labels),
        tuple(references(config, kitchen, settled)),
        likely_causes(config, larder, kitchen, found, pair, labels) if pair and not soup else (),
    )
    _count_as_explaining(kitchen, recalibration)
    return explanation


def measure_line(kitchen: Kitchen, first: str, second: str, *, points: int) -> tuple[tuple[float, Evaluation], ...]:
    """(share of `second`, evaluation on the same samples) of both ends and of `points` soups between them."""
    bar = Bar(None, None, limit=MOST_SAMPLES)
    measured = []
    for step in range(points + 2):
        weights = on_line(first, second, step=step, steps=points + 1)
        policy = kitchen.policy_for(weights)
        evaluation = kitchen.measure(weights, policy, kitchen.val, phase="explaining", bar=bar)
        measured.append((step / (points + 1), evaluation))
    return tuple(measured)


def _contributions(kitchen: Kitchen, settled: Settled) -> tuple[Contribution, ...]:
    """Of each ingredient that can be left out: without it every tensor must have some weight still."""
    weights, metric, val = settled.trial.weights, kitchen.metric, kitchen.val
    names = next(iter(kitchen.ingredients.values())).tensors
    told = []
    for sha in sorted(weights):
        rest = {other: weight for other, weight in weights.items() if other != sha}
        if not _can_be_cooked(rest, names):
            continue
        policy = "own" if len(rest) == 1 else settled.policy
        without = kitchen.measure(_plain_single(rest), policy, val, phase="explaining")
        interval = paired(metric, settled.evaluation.per_sample, without.per_sample, groups=val.groups)
        verdict = compare(interval, higher_is_better=metric.higher_is_better)
        value = None if without.value is None else finite(without.value)
        told.append(Contribution(sha, value, difference_record(interval, verdict)))
    return tuple(told)


def _can_be_cooked(weights: Weights, tensors: Iterable[str]) -> bool:
    return all(any(_amount(weight, name) for weight in weights.values()) for name in tensors)


def _amount(weight: Weight, tensor: str) -> float:
    """0 where a mapping says nothing of the tensor."""
    if not isinstance(weight, Mapping):
        return weight
    return weight_of({"": 0.0, **weight}, tensor)


def _plain_single(weights: Weights) -> Weights:
    """One ingredient alone is itself, whatever its weight was."""
    return dict.fromkeys(weights, 1.0) if len(weights) == 1 else weights


def _other_end(larder: Larder, found: Found, weights: Weights, geometry: Geometry, *, best: str) -> str | None:
    """The line's other end: the model's ingredient farthest from the best single; where it is alone, the runner-up."""
    if accepted := sorted(weights.keys() - {best}):
        return max(accepted, key=lambda sha: geometry.distance({best: 1.0}, {sha: 1.0}))
    if len(found.singles) > 1:
        return next(iter(found.singles[1].weights))
    return larder.base.sha256 if larder.base else None


def _line(kitchen: Kitchen, pair: Pair) -> Line:
    points = [
        LinePoint(share, finite(value_on(one, one.seen, kitchen.metric)), int(one.seen.sum()))
        for share, one in pair.line
    ]
    return Line(pair.first, pair.second, tuple(points))


def _plane(
    larder: Larder, found: Found, settled: Settled, geometry: Geometry, labels: Mapping[str, str]
) -> tuple[Place, ...]:
    """All checkpoints, the model last."""
    rows: list[tuple[str, Weights, float | None, str]] = []
    for single in found.singles:
        (sha,) = single.weights
        kind = "ingredient" if sha in settled.trial.weights else "left out"
        rows.append((labels[sha], single.weights, finite(single.value), kind))
    if larder.base:
        rows.append((labels[larder.base.sha256], {larder.base.sha256: 1.0}, None, "base"))
    model = settled.evaluation.value
    rows.append(("model", settled.trial.weights, None if model is None else finite(model), "model"))
    return tuple(_places(rows, geometry))


def _places(rows: Sequence[tuple[str, Weights, float | None, str]], geometry: Geometry) -> Iterable[Place]:
    plane = geometry.plane([weights for _, weights, _, _ in rows])
    if not np.isfinite(plane).all():
        return
    for (label, _, value, kind), (x, y) in zip(rows, plane.tolist(), strict=True):
        yield Place(label, x, y, value, kind)


def _count_as_explaining(kitchen: Kitchen, recalibration: int) -> None:
    """What BatchNorm saw since then was no part of the search."""
    if more := kitchen.images["recalibration"] - recalibration:
        kitchen.images["recalibration"] = recalibration
        kitchen.images["explaining"] += more
