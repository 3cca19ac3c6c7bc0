"""Searches over tables of right and wrong answers: real evaluations that stop early, and no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from soup.evaluate import Evaluation, Memory, evaluate
from soup.tasks import metric_named
from soup.trials import Bar, Rule

METRIC = metric_named("classification", "accuracy")
Margins = Callable[[frozenset[str]], np.ndarray]


class Numbers:
    """Samples that are their own numbers."""

    def __init__(self, count: int) -> None:
        self.count = count

    @property
    def targets(self):
        return {"label": np.zeros(self.count, np.int64)}

    def __len__(self) -> int:
        return self.count

    def batches(self, batch: int, *, order: Sequence[int] | None = None):
        rows = np.arange(self.count) if order is None else np.asarray(order)
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            yield part, {"input": part}, {"label": np.zeros(len(part), np.int64)}


@dataclass
class Table:
    """Scores a set of ingredients by its margins float[n] (right where above 0), as the kitchen does; counts images."""

    margins: Margins
    count: int
    batch: int = 4
    early: bool = True
    memories: dict[frozenset[str], Memory] = field(default_factory=dict)
    known: dict[frozenset[str], Evaluation] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)

    def score(self, weights: Mapping[str, object], bar: Bar | None) -> Evaluation:
        chosen = frozenset(weights)
        margins = self.margins(chosen)
        earlier = self.known.get(chosen)
        if earlier is not None and earlier.value is not None:
            return earlier
        bar = bar if bar is not None and self.early else Bar(None, None)
        memory = self.memories.setdefault(chosen, Memory(np.zeros(self.count, bool)))
        before = int(memory.seen.sum())
        hard = None if bar.holder is None else bar.holder.difficulty
        self.known[chosen] = evaluate(
            lambda inputs: {"logits": np.stack([margins[inputs["input"]], np.zeros(len(inputs["input"]))], axis=1)},
            Numbers(self.count), METRIC, batch=self.batch,
            order=None if hard is None else np.argsort(-hard, kind="stable"),
            must_beat=bar.value, limit=bar.limit, start=None if earlier is None else earlier.seen, memory=memory,
        )  # fmt: skip
        self.asked.append(int(memory.seen.sum()) - before)
        return self.known[chosen]

    @property
    def images(self) -> int:
        return sum(self.asked)


def random_margins(names: Sequence[str], count: int, *, seed: int, noise: float) -> Margins:
    """A difficulty that all share, and what each set of ingredients makes of it; whole numbers, so that many tie."""
    hard = np.random.default_rng(seed).normal(size=count)
    sets: dict[frozenset[str], np.ndarray] = {}

    def margins(chosen: frozenset[str]) -> np.ndarray:
        if chosen not in sets:
            own = np.random.default_rng([seed, *sorted(map(int, chosen))]).normal(size=count)
            sets[chosen] = np.where(hard + noise * own > -0.5, 1.0, -1.0) * (0.1 + np.abs(hard))
        return sets[chosen]

    return margins


def textbook(names: Sequence[str], margins: Margins, rule: Rule) -> list[tuple[frozenset[str], float]]:
    """The plain loop, written down a second time: the soup and its score after each acceptance."""

    def value(chosen: frozenset[str]) -> float:
        right = margins(chosen) > 0
        return int(right.sum()) / len(right)

    order = sorted(names, key=lambda name: (-value(frozenset({name})), name))
    soup = frozenset(order[:1])
    trace = [(soup, value(soup))]
    for name in order[1:]:
        if rule.accepts(value(soup | {name}), value(soup)):
            soup |= {name}
            trace.append((soup, value(soup)))
    return trace
