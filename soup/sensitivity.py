"""Which layers to keep in a higher precision: what each one costs, and the smallest set found that passes.

Two measurements are taken of each layer, as in the analysis of Wu et al. 2020 (arXiv 2004.09602, section 5.1): it alone
in the lower precision, and all but it. Then sets are judged on all of val, from the most sensitive layer on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from soup import Progress, silent
from soup.attempts import Raised, Sensitivity, Step
from soup.files import finite

_PHASE = "finding the layers to keep higher"
_PRUNING = 4  # judgements held back for leaving single layers out again


class Graphs(Protocol):
    """Makes the graph with `keep` in the higher precision, or with nothing but `only` in the lower one."""

    def __call__(self, *, keep: Collection[str] = (), only: Collection[str] | None = None) -> bytes:
        """The graph's bytes."""


@dataclass(frozen=True, slots=True)
class Loss:
    """How much worse a graph is than the reference: of the metric, and the outputs' mean square over its own."""

    metric: float
    error: float


@dataclass(frozen=True, slots=True)
class Judged:
    """The gates' word on a graph, on all of val, and its loss there."""

    verdict: str
    loss: float


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked: the layers in the lower precision with their multiply-adds, and how graphs are made and judged.

    `measure` takes `samples` samples of val, `judge` all `total` of them. `all_macs` counts the layers that are higher
    anyway, too.
    """

    macs: Mapping[str, int]
    all_macs: int
    make: Graphs
    measure: Callable[[bytes], Loss]
    judge: Callable[[bytes], Judged]
    samples: int
    total: int


def raise_layers(problem: Problem, *, budget: int, progress: Progress = silent) -> Raised:
    """Look for the fewest layers that must stay higher, with at most `budget` calls of `measure` and `judge`.

    Layers are ranked by what they cost the metric (alone, and how much is won by raising it), ties by the outputs'
    error; then the shortest beginning of that list that passes is found by doubling and halving, and single layers,
    the most expensive first, are left out of it again where it still passes. With a budget that cannot measure every
    layer twice, each is measured alone first, those with the fewest multiply-adds (the cheapest to raise) first.
    """
    spent = _Spent(problem, budget, progress)
    reserve = min(budget, 2 * math.ceil(math.log2(len(problem.macs) + 1)) + _PRUNING)
    found = _measured(problem, spent, allowed=budget - reserve)
    ranked = sorted(problem.macs, key=lambda layer: found.rank(layer, problem.macs[layer]), reverse=True)
    kept = _pruned(_shortest(ranked, spent), problem, spent)
    return Raised(
        passed=kept is not None, layers=tuple(sorted(kept or ())), evaluations=spent.evaluations, budget=budget,
        samples=problem.samples, sensitivities=tuple(map(found.record, problem.macs)), steps=tuple(spent.steps),
    )  # fmt: skip


@dataclass(slots=True)
class _Spent:
    """What was asked so far; None is the answer to what the budget no longer bears."""

    problem: Problem
    budget: int
    progress: Progress
    evaluations: int = 0
    steps: list[Step] = field(default_factory=list)

    def measure(self, graph: bytes) -> Loss | None:
        return self.problem.measure(graph) if self._take() else None

    def passes(self, kept: Collection[str]) -> bool | None:
        """Whether the gates pass with these layers kept higher."""
        if not self._take():
            return None
        found = self.problem.judge(self.problem.make(keep=kept))
        lower = sum(macs for layer, macs in self.problem.macs.items() if layer not in set(kept))
        share = lower / self.problem.all_macs if self.problem.all_macs else 0.0
        self.steps.append(Step(len(kept), share, finite(found.loss), found.verdict, self.problem.total))
        return found.verdict == "pass"

    def _take(self) -> bool:
        if self.evaluations >= self.budget:
            return False
        self.evaluations += 1
        self.progress(_PHASE, self.evaluations, self.budget)
        return True


@dataclass(slots=True)
class _Measured:
    """What the layers were found to cost."""

    alone: dict[str, Loss] = field(default_factory=dict)
    won: dict[str, float] = field(default_factory=dict)  # by raising a layer, of what all of them lose together

    def rank(self, layer: str, macs: int) -> tuple[float, float, float]:
        """Higher is raised earlier: by the metric, by the outputs, the cheaper layer first; NaN is the worst."""
        if layer not in self.alone:
            return (-math.inf, -math.inf, -float(macs))
        metric = [self.alone[layer].metric, *([self.won[layer]] if layer in self.won else [])]
        return (_worst_if_nan(sum(metric) / len(metric)), _worst_if_nan(self.alone[layer].error), -float(macs))

    def record(self, layer: str) -> Sensitivity:
        """As a report has it."""
        alone = self.alone.get(layer)
        if alone is None:
            return Sensitivity(layer)
        return Sensitivity(layer, finite(alone.metric), finite(self.won.get(layer, math.nan)), finite(alone.error))


def _measured(problem: Problem, spent: _Spent, *, allowed: int) -> _Measured:
    """Every layer alone while `allowed` lasts, then all but it for the worst of them."""
    found, macs = _Measured(), problem.macs
    everything = spent.measure(problem.make()) if allowed > 1 else None
    if everything is None:
        return found
    cheapest = sorted(macs, key=lambda layer: macs[layer])[: allowed - 1]
    for layer in cheapest:
        if (loss := spent.measure(problem.make(only=[layer]))) is not None:
            found.alone[layer] = loss
    worst = sorted(cheapest, key=lambda layer: found.rank(layer, macs[layer]), reverse=True)
    for layer in worst[: allowed - 1 - len(cheapest)]:
        if (loss := spent.measure(problem.make(keep=[layer]))) is not None:
            found.won[layer] = everything.metric - loss.metric
    return found


def _shortest(ranked: Sequence[str], spent: _Spent) -> list[str] | None:
    """The shortest beginning of the list that passes, as far as the budget shows."""
    fails, passes = 0, None
    count = 1
    while passes is None:
        count = min(count, len(ranked))
        verdict = spent.passes(ranked[:count]) if count else None
        if verdict:
            passes = count
        elif verdict is None or count == len(ranked):
            return None
        else:
            fails, count = count, count * 2
    while passes - fails > 1:
        middle = (fails + passes) // 2
        verdict = spent.passes(ranked[:middle])
        if verdict is None:
            break
        fails, passes = (fails, middle) if verdict else (middle, passes)
    return list(ranked[:passes])


def _pruned(kept: list[str] | None, problem: Problem, spent: _Spent) -> list[str] | None:
    """Without the layers that it passes without; the last that was added is needed, as the halving has shown."""
    if kept is None:
        return None
    for layer in sorted(kept[:-1], key=lambda one: problem.macs[one], reverse=True):
        fewer = [one for one in kept if one != layer]
        verdict = spent.passes(fewer)
        if verdict is None:
            break
        kept = fewer if verdict else kept
    return kept


def _worst_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value
