"""Each ingredient alone, measured only as far as its place among the others matters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from soup import SoupError
from soup.evaluate import Evaluation
from soup.trials import Bar, Rule, Score, Trial, reachable, value_of


class Singles:
    """The ingredients by themselves, in the order of their scores (ties by SHA-256, NaN last), as far as it is asked.

    `expected` is the order in which they are tried: a guess that may save images, and changes no answer. With `pilot`
    it is made here, from about so many images of each. An evaluation that stopped still says between which values its
    score lies; it is taken up again where that does not tell two ingredients apart. None is ever asked for the same
    image twice.
    """

    def __init__(self, names: Sequence[str], score: Score, rule: Rule, *, pilot: int | None = None) -> None:
        self._score, self._rule = score, rule
        self._known: dict[str, Evaluation] = {}
        expected = tuple(names)
        if pilot is not None and len(expected) > 2:
            first = {name: score({name: 1.0}, Bar(None, None, limit=pilot)) for name in sorted(expected)}
            expected = tuple(sorted(first, key=lambda name: (rule.rank(reachable(first[name])), name)))
        self.expected = expected
        self._best = self._find_best(expected)

    @property
    def best(self) -> Trial:
        """The first of all, measured to the end."""
        return self.trial(self._best)

    def trial(self, name: str) -> Trial:
        """An ingredient alone, as far as it is known."""
        return Trial("single", {name: 1.0}, self._known[name], True, "single", name)

    def finished(self, name: str) -> Trial:
        """An ingredient alone, measured to the end."""
        if self._known[name].value is None:
            self._known[name] = self._score({name: 1.0}, None)
        return self.trial(name)

    def ordered(self) -> tuple[Trial, ...]:
        """All of them, measured to the end, best first."""
        return tuple(self.trial(name) for name in self.ordered_names())

    def ordered_names(self) -> tuple[str, ...]:
        """Their SHA-256, best first; all are measured to the end."""
        finished = {name: self.finished(name).value for name in self.expected}
        return tuple(sorted(finished, key=lambda name: (self._rule.rank(finished[name]), name)))

    def listed(self) -> tuple[Trial, ...]:
        """All of them, as far as they are known: by score or, where that was not needed, by what was out of reach."""
        return tuple(self.trial(name) for name in sorted(self._known, key=lambda name: (self._best_rank(name), name)))

    def likely(self, names: Sequence[str]) -> list[str]:
        """These, best first as far as that can be guessed now; ties as they were expected.

        What an ingredient has not answered yet is taken to be as the others answered it, on the average.
        """
        evaluations = [self._known[name] for name in self.expected]
        if any(len(one.per_sample) != 1 for one in evaluations):
            return sorted(names, key=self.expected.index)
        scores = np.stack([next(iter(one.per_sample.values())) for one in evaluations]).astype(np.float64)
        seen = np.stack([one.seen for one in evaluations])
        if scores.ndim != 2:
            return sorted(names, key=self.expected.index)
        usual = np.where(seen, scores, 0.0).sum(axis=0) / seen.sum(axis=0)
        guesses = np.where(seen, scores, usual).mean(axis=1)
        rank = {name: self._rule.rank(float(guess)) for name, guess in zip(self.expected, guesses, strict=True)}
        return sorted(names, key=lambda name: (rank[name], self.expected.index(name)))

    def is_ahead(self, name: str, other: str) -> bool | None:
        """Whether `name` comes before `other`; None where what is known of them does not tell."""
        if (self._worst_rank(name), name) < (self._best_rank(other), other):
            return True
        return False if (self._worst_rank(other), other) < (self._best_rank(name), name) else None

    def tell_apart(self, name: str, finished: str) -> bool:
        """Whether `name` comes before `finished`; measures it until that is known."""
        if (ahead := self.is_ahead(name, finished)) is None:
            self._known[name] = self._score({name: 1.0}, self._bar(self._known[finished]))
            ahead = self.is_ahead(name, finished)
        assert ahead is not None
        return ahead

    def _find_best(self, expected: Sequence[str]) -> str:
        """Measured to the end are those that were the best so far, and the others until they cannot be."""
        best = expected[0]
        for name in expected:
            self._known[name] = self._score({name: 1.0}, self._bar(self._known.get(best)))
            if self.is_ahead(name, best):
                best = name
        self._refuse_no_numbers()
        return best

    def _bar(self, holder: Evaluation | None) -> Bar | None:
        """The score of `holder` itself; none where it has no score."""
        return None if holder is None or math.isnan(value_of(holder)) else Bar(value_of(holder), holder)

    def _best_rank(self, name: str) -> float:
        evaluation = self._known[name]
        return self._rule.rank(reachable(evaluation))

    def _worst_rank(self, name: str) -> float:
        evaluation = self._known[name]
        return self._rule.rank(evaluation.worst if evaluation.value is None else evaluation.value)

    def _refuse_no_numbers(self) -> None:
        """Where NaN counts as a wrong answer, all would tie at nothing right."""
        known = list(self._known.values())
        if all(math.isnan(value_of(one)) for one in known) or all(one.not_finite == one.seen.sum() for one in known):
            fewest = min(known, key=lambda one: one.not_finite)
            if not fewest.not_finite:
                raise SoupError(
                    "data.val: the metric is no number for any checkpoint, whose outputs are finite: it has nothing to "
                    "judge there. Check that val holds what it counts (objects of that size, labels), or the metric."
                )
            raise SoupError(
                f"model: whichever checkpoint it has, its outputs hold NaN or Inf for {fewest.not_finite} or more of "
                f"{fewest.n_total} images of data.val. Check preprocess.mean and std, and weights that overflow."
            )
