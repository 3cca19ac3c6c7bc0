"""The greedy soup of the paper, at a fraction of its cost and with its very result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from soup.singles import Singles
from soup.trials import Rule, Score, Trial

CAP = 1.1  # of the textbook's 2K - 1 evaluations: what a wrong order may cost
MANY = 0.15  # accepted of those tested: from here on knowing the order is cheaper than tests out of turn


def greedy(singles: Singles, score: Score, rule: Rule) -> tuple[list[Trial], Trial]:
    """From the best single down, an ingredient stays if the soup's score does not fall (arXiv 2203.05482, recipe 1).

    The textbook sorts all ingredients by score first. Here they are tried in the order that is expected. A rejected one
    stops as soon as it cannot reach the soup's score. Only an accepted one needs its place in the textbook's order:
    it and the others are then measured alone, until it is known which come before it, and those are tried first. So
    the soup grows by the same ingredients in the same order, with the same scores. Where many are accepted, or where
    tests out of turn could make the search dearer than `CAP` times the textbook's, the true order is measured first.
    """
    best = singles.best
    steps = _Steps(singles, score, rule)
    current = Trial("greedy", best.weights, best.evaluation, True, "first", best.added)
    trials = [current]
    waiting = [name for name in singles.expected if name != best.added]
    while waiting and (grown := steps.next_accepted(current, waiting)):
        trials += [trial for name, trial in steps.tested.items() if singles.is_ahead(name, grown)]
        current = steps.tested[grown]
        trials.append(current)
        waiting = [name for name in waiting if singles.is_ahead(grown, name)]
    return [*trials, *(steps.tested.values() if waiting else ())], current


@dataclass(slots=True)
class _Steps:
    """Grows a soup by one ingredient at a time; knows what its tests have cost, and how they ended."""

    singles: Singles
    score: Score
    rule: Rule
    tested: dict[str, Trial] = field(default_factory=dict)  # with the soup at hand, by what was added
    images: int = 0  # of all tests
    tests: int = 0
    accepted: int = 0

    def next_accepted(self, current: Trial, waiting: Sequence[str]) -> str | None:
        """The first of `waiting` in the textbook's order that `current` accepts; all before it are then tested."""
        self.tested = {}
        front: str | None = None
        left = self.singles.likely(waiting)
        while left:
            name = self._next_of(left)
            left.remove(name)
            if front is None or self.singles.tell_apart(name, front):
                self.tested[name] = self._test(current, name)
                if self.tested[name].kept:
                    self.singles.finished(name)
                    front = name
        if front is not None:
            for name in self.tested:
                if name != front:
                    self.singles.tell_apart(name, front)
        return front

    def _next_of(self, left: Sequence[str]) -> str:
        """The likeliest to come first, or the one that does."""
        total, count = self.singles.best.evaluation.n_total, len(self.singles.expected)
        again = sum(int(trial.evaluation.seen.sum()) for trial in self.tested.values())  # with a later soup
        costly = self.images + again + (count + len(left) + 1) * total > CAP * (2 * count - 1) * total
        if not costly and self.accepted <= MANY * self.tests:
            return left[0]
        return next(name for name in self.singles.ordered_names() if name in left)

    def _test(self, current: Trial, name: str) -> Trial:
        bar = self.rule.bar(current.evaluation)
        weights = {**current.weights, name: 1.0}
        evaluation = self.score(weights, bar)
        reason = self.rule.verdict(evaluation, current.evaluation)
        self.images += int(evaluation.seen.sum())
        self.tests, self.accepted = self.tests + 1, self.accepted + (reason == "kept")
        return Trial("greedy", weights, evaluation, reason == "kept", reason, name, bar)
