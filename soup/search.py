"""Which checkpoints to average: methods over one Score, each a function with its paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from soup import SoupError
from soup.evaluate import Evaluation

Weights = Mapping[str, float]  # SHA-256 of an ingredient → its raw positive weight; equal weights are 1.0 each
Score = Callable[[Weights, "float | None"], Evaluation]
"""(weights, value that must be reached or None) → evaluation on val of what would ship with these weights."""

Reason = str
SINGLE, FIRST, KEPT, WORSE, UNSCORED, UNIFORM = "single", "first", "kept", "worse", "not_a_number", "uniform"


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate and what became of it; `added` is the ingredient under trial, where there is one."""

    method: str
    weights: Weights
    evaluation: Evaluation
    kept: bool
    reason: Reason
    added: str | None = None

    @property
    def value(self) -> float:
        """The score, NaN where it could not be computed."""
        return math.nan if self.evaluation.value is None else self.evaluation.value


@dataclass(frozen=True, slots=True)
class Found:
    """What a search saw: the singles best first, every trial in order, each method's answer, and the best of them."""

    singles: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    answers: tuple[Trial, ...]
    winner: Trial


@dataclass(frozen=True, slots=True)
class Rule:
    """When one value beats another: the direction of the metric, and the least gain that counts."""

    higher_is_better: bool
    min_gain: float = 0.0

    def rank(self, value: float) -> float:
        """A number that sorts best first; NaN sorts last."""
        return math.inf if math.isnan(value) else -value if self.higher_is_better else value

    def accepts(self, value: float, current: float) -> bool:
        """The score does not fall, or rises by `min_gain` where that is set. NaN is never accepted."""
        gain = value - current if self.higher_is_better else current - value
        return gain >= self.min_gain


def search(ingredients: Sequence[str], score: Score, *, methods: Sequence[str], rule: Rule) -> Found:
    """Score each ingredient alone, run the methods, and name the best on val.

    Equal values: the soup of more ingredients wins (a soup that costs nothing is kept, as in the greedy rule), then the
    method named first; singles of equal value are ordered by SHA-256.
    Raises SoupError where no single has a score, or none answers a single image with finite numbers.
    """
    singles = score_singles(ingredients, score, rule=rule)
    _refuse_no_numbers(singles)
    trials: list[Trial] = []
    answers = [singles[0]]
    for name in methods if len(singles) > 1 else ():
        tried, answer = METHODS[name](singles, score, rule)
        trials += tried
        answers.append(answer)
    winner = min(answers, key=lambda trial: (rule.rank(trial.value), -len(trial.weights)))
    return Found(singles, tuple(trials), tuple(answers), winner)


def evaluations_needed(count: int, methods: Sequence[str]) -> int:
    """How many different candidates a search of `count` ingredients scores: each alone, and each method's own."""
    if count == 1:
        return 1
    sets = {"uniform": 1, "greedy": count - 1}
    both = count == 2 and len(methods) == 2  # the only pair is both methods' candidate
    return count + sum(sets[name] for name in dict.fromkeys(methods)) - both


def score_singles(ingredients: Sequence[str], score: Score, *, rule: Rule) -> tuple[Trial, ...]:
    """Every ingredient alone, with its own statistics, best first; ties by SHA-256, NaN last."""
    trials = [Trial(SINGLE, {sha: 1.0}, score({sha: 1.0}, None), True, SINGLE, sha) for sha in sorted(ingredients)]
    return tuple(sorted(trials, key=lambda trial: rule.rank(trial.value)))


def uniform(singles: Sequence[Trial], score: Score, rule: Rule) -> tuple[list[Trial], Trial]:
    """The average of all (Wortsman et al. 2022, arXiv 2203.05482, section 2, uniform soup)."""
    weights = {sha: 1.0 for trial in singles for sha in trial.weights}
    evaluation = score(weights, None)
    scored = evaluation.value is not None and not math.isnan(evaluation.value)
    trial = Trial("uniform", weights, evaluation, scored, UNIFORM if scored else UNSCORED)
    return [trial], trial


def greedy(singles: Sequence[Trial], score: Score, rule: Rule) -> tuple[list[Trial], Trial]:
    """From the best single down, an ingredient stays if the soup's score does not fall (arXiv 2203.05482, recipe 1)."""
    best = singles[0]
    current = Trial("greedy", best.weights, best.evaluation, True, FIRST, best.added)
    trials = [current]
    for single in singles[1:]:
        weights = {**current.weights, **single.weights}
        evaluation = score(weights, None)
        value = math.nan if evaluation.value is None else evaluation.value
        kept = rule.accepts(value, current.value)
        reason = KEPT if kept else UNSCORED if math.isnan(value) else WORSE
        trials.append(Trial("greedy", weights, evaluation, kept, reason, single.added))
        if kept:
            current = trials[-1]
    return trials, current


def _refuse_no_numbers(singles: Sequence[Trial]) -> None:
    """Where NaN counts as a wrong answer, all would tie at nothing right."""
    evaluations = [trial.evaluation for trial in singles]
    if all(math.isnan(trial.value) for trial in singles) or all(one.not_finite == one.n_total for one in evaluations):
        fewest = min(evaluations, key=lambda one: one.not_finite)
        raise SoupError(
            f"model: whichever checkpoint it has, its outputs hold NaN or Inf for {fewest.not_finite} or more of "
            f"{fewest.n_total} images of data.val. Check preprocess.mean and std, and weights that overflow."
        )


METHODS: Mapping[str, Callable[[Sequence[Trial], Score, Rule], tuple[list[Trial], Trial]]] = {
    "uniform": uniform,
    "greedy": greedy,
}
