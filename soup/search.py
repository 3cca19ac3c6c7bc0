"""Which checkpoints to average, with which weights: methods over one Score, each a function with its paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from soup import SoupError
from soup.evaluate import Evaluation
from soup.greedy import greedy
from soup.methods import ALPHAS, DECAYS, ema, greedy_repeated, last_k, model_stock, pruned, uniform, wise_ft
from soup.ranked import Budget, ranked
from soup.singles import Singles
from soup.trials import Rule, Score, Trial
from soup.weights import Weights

Answer = tuple[list[Trial], Trial]
FITTED = ("learned", "learned_layers")  # by gradient, on a part of val


@dataclass(frozen=True, slots=True)
class Aids:
    """What some methods need beside the score; absent where the user's files do not give it.

    `learn(per_layer)`, `stock()` and `logits()` are called only by the methods that need them. `competing` reads an
    answer's value on the part of val that no fit has seen.
    """

    trajectory: tuple[str, ...] | None = None  # oldest first
    base: str | None = None
    stock: Callable[[], Weights] | None = None
    learn: Callable[[bool], Weights] | None = None
    logits: Callable[[], Mapping[str, np.ndarray]] | None = None
    value_of_logits: Callable[[np.ndarray], float] | None = None
    budget: Budget | None = None
    pilot: int | None = None  # images of each ingredient, where nothing else tells which is likely the best
    competing: Callable[[Evaluation], float] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a search saw: the singles best first, every trial in order, each method's answer, and the best of them.

    `values` are what the answers competed with: their scores on val, or on the part of it that no fit has seen.
    """

    singles: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    answers: tuple[Trial, ...]
    values: tuple[float, ...]
    winner: Trial


@dataclass(frozen=True, slots=True)
class _Run:
    singles: Singles
    score: Score
    rule: Rule
    aids: Aids
    answers: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> Trial:
        """Of the answers so far; at equal value the soup of more ingredients, then the earlier one."""
        return min(self.answers, key=lambda trial: (self.rule.rank(trial.value), -len(trial.weights)))


def search(
    expected: Sequence[str], score: Score, *, methods: Sequence[str], rule: Rule, aids: Aids | None = None
) -> Found:
    """Find the best single, run the methods, and name the best on val.

    `expected` are the ingredients, the likeliest best first: a guess that saves images and changes no answer. Equal
    values: the soup of more ingredients wins (a soup that costs nothing is kept, as in the greedy rule), then the
    method named first. Where a method fits on val, all answers compete on the part of it that no fit has seen.
    Raises SoupError where no single has a score, or none answers a single image with finite numbers.
    """
    aids = aids or Aids()
    singles = Singles(expected, score, rule, pilot=aids.pilot)
    run = _Run(singles, score, rule, aids, [singles.best])
    trials: list[Trial] = []
    for name in dict.fromkeys(methods):
        if len(singles.expected) > 1 or name == "wise_ft":
            tried, answer = METHODS[name](run)
            trials += tried
            run.answers.append(answer)
    fitted = aids.competing if set(methods) & set(FITTED) else None
    values = [
        answer.value if fitted is None or math.isnan(answer.value) else fitted(answer.evaluation)
        for answer in run.answers
    ]
    places = range(len(values))
    winner = min(places, key=lambda place: (rule.rank(values[place]), -len(run.answers[place].weights)))
    return Found(singles.listed(), tuple(trials), tuple(run.answers), tuple(values), run.answers[winner])


def evaluations_needed(count: int, methods: Sequence[str], *, budget: int | None = None) -> int:
    """How many different candidates a search of `count` ingredients scores at most: each alone, and each method's."""
    if count == 1:
        return 1 + ("wise_ft" in methods) * len(ALPHAS)
    sets = {
        "uniform": 1, "greedy": count - 1, "greedy_repeated": 3 * count - 1, "pruned": count * (count + 1) // 2 - 1,
        "last_k": count - 1, "ema": len(DECAYS), "wise_ft": len(ALPHAS), "model_stock": 1, "ranked": budget or 0,
        "learned": 1, "learned_layers": 1,
    }  # fmt: skip
    both = count == 2 and {"uniform", "greedy"} <= set(methods)  # the only pair is both methods' candidate
    return count + sum(sets[name] for name in dict.fromkeys(methods)) - both


def _along(method: Callable[..., Answer], name: str) -> Callable[[_Run], Answer]:
    def answer(run: _Run) -> Answer:
        path = run.aids.trajectory
        if path is None:
            raise SoupError(
                f"search.methods: '{name}' orders checkpoints by epoch, which not all of these recorded, or not with "
                "different values. Leave it out, or save 'epoch' beside the weights."
            )
        return method(path, run.score, run.rule)

    return answer


def _wise_ft(run: _Run) -> Answer:
    assert run.aids.base is not None  # the configuration sees to it
    return wise_ft(run.aids.base, run.best.weights, run.score, run.rule)


def _model_stock(run: _Run) -> Answer:
    assert run.aids.stock is not None  # the configuration sees to it
    return model_stock(run.aids.stock(), run.score, run.rule)


def _ranked(run: _Run) -> Answer:
    aids = run.aids
    assert aids.logits is not None
    assert aids.value_of_logits is not None
    assert aids.budget is not None  # the configuration sees to it
    run.singles.ordered()
    return ranked(aids.logits(), aids.value_of_logits, run.score, run.rule, budget=aids.budget)


def _learned(run: _Run, *, name: str) -> Answer:
    assert run.aids.learn is not None
    weights = run.aids.learn(name == "learned_layers")
    evaluation = run.score(weights, None)
    trial = Trial(name, weights, evaluation, True, "kept")
    return [trial], trial


METHODS: Mapping[str, Callable[[_Run], Answer]] = {
    "uniform": lambda run: uniform(run.singles.expected, run.score, run.rule),
    "greedy": lambda run: greedy(run.singles, run.score, run.rule),
    "greedy_repeated": lambda run: greedy_repeated(run.singles, run.score, run.rule),
    "pruned": lambda run: pruned(run.singles.expected, run.score, run.rule),
    "last_k": _along(last_k, "last_k"),
    "ema": _along(ema, "ema"),
    "wise_ft": _wise_ft,
    "model_stock": _model_stock,
    "ranked": _ranked,
    "learned": lambda run: _learned(run, name="learned"),
    "learned_layers": lambda run: _learned(run, name="learned_layers"),
}
