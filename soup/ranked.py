"""Which subsets to score on a budget: those whose averaged logits, which cost no forward pass, do best."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from soup.methods import Tried, best_of, rising
from soup.trials import Rule, Score
from soup.weights import Weights

STARTS = 3  # the best singles, from each of which a subset is grown
RANDOM = 256  # subsets drawn at random; where there are no more than these in all, all are taken
Members = tuple[int, ...]  # places in the order of the singles, best first, ascending


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent on scoring: a number of evaluations, or minutes, in which the ranking counts too.

    Raises ValueError unless one of them is given, and it is at least one evaluation or more than no time.
    """

    evaluations: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.evaluations is None) == (self.minutes is None):
            raise ValueError("expected a budget of either evaluations or minutes")
        if not (self.minutes is None or self.minutes > 0) or not (self.evaluations is None or self.evaluations >= 1):
            raise ValueError(f"{self}, expected one evaluation or more, or more than 0 minutes")

    def allows(self, evaluations: int, seconds: float) -> bool:
        """Whether one more may be begun after this many, and so long."""
        if self.minutes is not None:
            return seconds < 60 * self.minutes
        return self.evaluations is None or evaluations < self.evaluations


def ranked(
    logits: Mapping[str, np.ndarray],
    reduce: Callable[[np.ndarray], float],
    score: Score,
    rule: Rule,
    *,
    budget: Budget,
    clock: Callable[[], float] = time.monotonic,
    seed: int = 0,
) -> Tried:
    """Score the subsets that look best by the metric of their averaged logits, until the budget is spent.

    As RADIN does (Menes and Risser-Maroix 2024, arXiv 2401.17790): near their common start the logits of a soup and the
    mean of its ingredients' logits agree to first order, so the second ranks the first. `logits` is, by SHA-256, each
    ingredient's output on val, a float array [n, classes]; `reduce` is the metric of such an array, which it must not
    keep: the next mean is written over it.

    The subsets, of two and more, are those of `_candidates`. Equal values: fewer members first, then the better singles
    (ties of singles by SHA-256). Of equal soups the one ranked first is the answer. At least one is scored, and each
    counts as one evaluation, also where the score is known and costs no forward pass. With a budget of evaluations
    all is determined by the arguments; `seed` is that of the random subsets. Time is looked at before each one.
    """
    started = clock()

    order, subsets = subsets_by_logits(logits, reduce, rule, seed=seed)

    def affordable() -> Iterator[Weights]:
        for count, members in enumerate(subsets):
            if count and not budget.allows(count, clock() - started):
                return
            yield dict.fromkeys(sorted(order[place] for place in members), 1.0)

    return best_of("ranked", affordable(), score, rising(rule))


def subsets_by_logits(
    logits: Mapping[str, np.ndarray], reduce: Callable[[np.ndarray], float], rule: Rule, *, seed: int = 0
) -> tuple[tuple[str, ...], list[Members]]:
    """(singles by their own logits, best first; subsets of them by averaged logits, best first).

    A lone ingredient is its own only subset. It holds two float64 arrays as large as one ingredient's logits.
    """
    alone = {name: reduce(logits[name]) for name in logits}
    order = tuple(sorted(alone, key=lambda name: (rule.rank(alone[name]), name)))
    if len(order) == 1:
        return order, [(0,)]
    means = _Means([logits[name] for name in order], reduce)
    with np.errstate(invalid="ignore", over="ignore"):  # logits of Inf; what the metric makes of NaN is its own affair
        _measure_candidates(means, rule, seed=seed)
    return order, sorted(means.known, key=lambda members: (rule.rank(means.known[members]), len(members), members))


def _measure_candidates(means: _Means, rule: Rule, *, seed: int) -> None:
    """All of them where they are few; else pairs, the best so many singles, what grows from a few, and random ones."""
    count = len(means.logits)
    if 2**count - count - 1 <= RANDOM:
        for size in range(2, count + 1):
            for members in itertools.combinations(range(count), size):
                means.measure(members)
        return
    for members in itertools.combinations(range(count), 2):
        means.measure(members)
    for size in range(2, count + 1):
        means.measure(tuple(range(size)))
    for start in range(STARTS):
        _grow(means, start, rule)
    random = np.random.default_rng(seed)
    for _ in range(RANDOM):
        chosen = random.choice(count, size=random.integers(2, count + 1), replace=False)
        means.measure(tuple(sorted(chosen.tolist())))


def _grow(means: _Means, start: int, rule: Rule) -> None:
    """Forward selection: from one ingredient on, the one that helps most or harms least, until all are in."""
    members: Members = (start,)
    while left := [place for place in range(len(means.logits)) if place not in members]:
        means.hold(members)
        grown = [tuple(sorted((*members, place))) for place in left]
        values = [means.measure_held(larger, place) for larger, place in zip(grown, left, strict=True)]
        members = min(zip(values, grown, strict=True), key=lambda pair: (rule.rank(pair[0]), pair[1]))[1]


@dataclass(slots=True)
class _Means:
    """The metric of averaged logits, by members, each measured once; a subset's sum is held while it grows."""

    logits: Sequence[np.ndarray]  # [n, classes] each
    reduce: Callable[[np.ndarray], float]
    known: dict[Members, float] = field(default_factory=dict)
    total: np.ndarray = field(init=False)
    mean: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.empty(self.logits[0].shape)
        self.mean = np.empty(self.logits[0].shape)

    def hold(self, members: Members) -> None:
        """Sum these logits, in the order of the members, in float64."""
        np.copyto(self.total, self.logits[members[0]])
        for place in members[1:]:
            np.add(self.total, self.logits[place], out=self.total)

    def measure(self, members: Members) -> float:
        """The metric of their mean."""
        if members not in self.known:
            self.hold(members[:-1])
            self.measure_held(members, members[-1])
        return self.known[members]

    def measure_held(self, members: Members, place: int) -> float:
        """The metric of the mean of those held and one more, which together are `members`."""
        if members not in self.known:
            np.add(self.total, self.logits[place], out=self.mean)
            np.divide(self.mean, len(members), out=self.mean)
            self.known[members] = self.reduce(self.mean)
        return self.known[members]
