"""Ways to a soup besides greedy, each one function with its paper, all over the same Score."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from soup import SoupError
from soup.evaluate import Evaluation
from soup.greedy import greedy
from soup.singles import Singles
from soup.trials import Bar, Reason, Rule, Score, Trial, reachable
from soup.weights import Weight, Weights, weight_of

Tried = tuple[list[Trial], Trial]  # every trial in order, and the answer, which was measured to the end

ALPHAS = tuple(step / 10 for step in range(1, 10))
DECAYS = (0.5, 0.7, 0.8, 0.9, 0.95)  # averages over about 2, 3.3, 5, 10 and 20 checkpoints: 1 / (1 - decay)


def uniform(names: Sequence[str], score: Score, rule: Rule) -> Tried:
    """The average of all (Wortsman et al. 2022, arXiv 2203.05482, section 2, uniform soup)."""
    return best_of("uniform", [dict.fromkeys(names, 1.0)], score, rule)


def greedy_repeated(singles: Singles, score: Score, rule: Rule, *, passes: int = 3) -> Tried:
    """Greedy, then more passes over all ingredients, best first, each of which may be added again, to weigh 1 more.

    The first of at most `passes` is the greedy soup itself. The later ones accept what makes the score rise: by
    anything or, where that is set, by `min_gain`. A soup that was tried before, in whatever multiple of its weights, is
    not tried again; so the search ends where a whole pass would accept nothing. Selection with replacement is that of
    ensembles (Caruana et al. 2004, Ensemble selection from libraries of models, section 2.1), applied to weights.
    """
    first, current = greedy(singles, score, rule)
    trials = [replace(trial, method="greedy_repeated") for trial in first]
    current = replace(current, method="greedy_repeated")
    strict = rising(rule)
    known = {_proportions(trial.weights) for trial in trials}
    for _ in range(passes - 1):
        before = current
        for name in (single.added or "" for single in singles.ordered()):
            weights = {**current.weights, name: _plain(current.weights.get(name, 0.0)) + 1.0}
            if _proportions(weights) not in known:
                known.add(_proportions(weights))
                trials.append(_tried("greedy_repeated", weights, current.evaluation, score, strict, added=name))
                current = trials[-1] if trials[-1].kept else current
        if current is before:
            break
    return trials, current


def pruned(names: Sequence[str], score: Score, rule: Rule) -> Tried:
    """From the soup of all, as long as it makes the score rise, leave out that ingredient without which it is highest.

    Every soup is averaged anew from the files; nothing is subtracted. It ends at two ingredients. Of equal scores the
    one without the lower SHA-256 counts. `names` come with what is expected best first: the last is left out first,
    which may save images and changes no answer. `Trial.added` is the ingredient that was left out.
    A pruned soup (Dansereau et al. 2023, arXiv 2301.10092) as backward elimination: K(K + 1)/2 - 2 evaluations at most.
    """
    strict = rising(rule)
    trials, current = uniform(names, score, rule)
    current = replace(current, method="pruned")
    trials = [current]
    while len(current.weights) > 2:
        best, tried = current, len(trials)
        for name in reversed([name for name in names if name in current.weights]):
            weights = {other: 1.0 for other in current.weights if other != name}
            if best is current:
                trial = _tried("pruned", weights, current.evaluation, score, strict, added=name)
            else:
                trial = _left_out(weights, name, best, current, score, strict)
            trials.append(trial)
            best = trial if trial.kept else best
        if best is current:
            break
        # Which one was the best in passing depends on the order: of a round, only its winner is kept.
        passing = [one for one in trials[tried:] if one.kept and one is not best]
        for one in passing:
            trials[trials.index(one)] = replace(one, kept=False, reason="worse")
        current = best
    return trials, current


def last_k(trajectory: Sequence[str], score: Score, rule: Rule) -> Tried:
    """The averages of the last 2, 3, … and all checkpoints of one run; of equal scores that of the most.

    `trajectory` is ordered by epoch, oldest first. The tail of a run, averaged evenly, is what stochastic weight
    averaging starts from (SWA, Izmailov et al. 2018, arXiv 1803.05407) and what LAWA keeps up during training, the
    latest k checkpoints (Kaddour 2022, arXiv 2209.14981); here k is chosen afterwards.
    """
    sizes = range(min(2, len(trajectory)), len(trajectory) + 1)
    labels = [f"last {size}" for size in sizes]
    return best_of("last_k", [dict.fromkeys(trajectory[-size:], 1.0) for size in sizes], score, rule, labels=labels)


def ema(trajectory: Sequence[str], score: Score, rule: Rule, *, decays: Sequence[float] = DECAYS) -> Tried:
    """Exponential averages of a run's checkpoints, of several lengths; of equal scores that of the last-named decay.

    `trajectory` is ordered by epoch, oldest first; the weight of each is decay ** (checkpoints after it). That is the
    average θ ← d·θ + (1 - d)·x, begun at zero and divided by 1 - d**K, as Adam corrects its moments (arXiv 1412.6980,
    section 3): the oldest checkpoint stands for itself only, not for all that may have been before it.
    That the length is chosen after training is the idea of Karras et al. 2023 (arXiv 2312.02696, section 3); their
    power-function profiles, and snapshots that are averages themselves, are not what this computes.
    Raises ValueError for a decay that is not above 0 and at most 1.
    """
    if not all(0 < decay <= 1 for decay in decays):
        raise ValueError(f"decays {tuple(decays)}, expected each above 0 and at most 1")
    ages = range(len(trajectory) - 1, -1, -1)
    soups = [{name: decay**age for name, age in zip(trajectory, ages, strict=True)} for decay in decays]
    return best_of("ema", soups, score, rule, labels=[f"decay {decay:g}" for decay in decays])


def wise_ft(base: str, towards: Weights, score: Score, rule: Rule, *, alphas: Sequence[float] = ALPHAS) -> Tried:
    """(1 - α)·base + α·towards for each α; of equal scores that of the last-named.

    WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903, section 3). `towards` is an ingredient or itself a soup, with
    weights of any sum, for each tensor if they are given so; `base` is the model it was fine-tuned from, and may be
    among its parts. Raises ValueError for an α outside of 0 to 1.
    """
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"alphas {tuple(alphas)}, expected each from 0 to 1")
    labels = [f"α {alpha:g}" for alpha in alphas]
    return best_of("wise_ft", [_interpolated(base, towards, one) for one in alphas], score, rule, labels=labels)


def model_stock(weights: Weights, score: Score, rule: Rule) -> Tried:
    """The one soup whose weights of each layer follow from angles between the ingredients; they come worked out.

    Model Stock (Jang et al. 2024, arXiv 2403.19522).
    """
    return best_of("model_stock", [weights], score, rule)


def best_of(
    method: str, candidates: Iterable[Weights], score: Score, rule: Rule, *, labels: Sequence[str] = ()
) -> Tried:
    """Score one after the other, and keep what `rule` accepts in the place of the best so far; copies are left out.

    The first is measured to the end, and what starts without a score gives way to whatever has one. A candidate is
    asked for once the one before it is scored. Raises ValueError where there is none.
    """
    trials: list[Trial] = []
    current: Trial | None = None
    for place, weights in enumerate(candidates):
        if any(weights == trial.weights for trial in trials):
            continue
        incumbent = None if current is None else current.evaluation
        trial = _tried(method, weights, incumbent, score, rule)
        trials.append(replace(trial, label=labels[place]) if labels else trial)
        current = trials[-1] if current is None or trials[-1].kept else current
    if current is None:
        raise ValueError(f"{method}: there is no candidate to score")
    return trials, current


def rising(rule: Rule) -> Rule:
    """The rule for which an equal score is not enough: every difference of two floats is at least this small."""
    return replace(rule, min_gain=rule.min_gain or math.ulp(0.0))


def _tried(
    method: str, weights: Weights, incumbent: Evaluation | None, score: Score, rule: Rule, *, added: str | None = None
) -> Trial:
    """One candidate against the incumbent; any score is better than none."""
    if incumbent is None or _is_nan(incumbent):
        evaluation = score(weights, None)
        scored: Reason = "first" if incumbent is None else "kept"
        reason = "not_a_number" if _is_nan(evaluation) else scored
        return Trial(method, weights, evaluation, reason == scored, reason, added)
    bar = rule.bar(incumbent)
    evaluation = score(weights, bar)
    reason = rule.verdict(evaluation, incumbent)
    return Trial(method, weights, evaluation, reason == "kept", reason, added, bar)


def _left_out(weights: Weights, name: str, best: Trial, current: Trial, score: Score, rule: Rule) -> Trial:
    """Against the best of its round, by score and then by the name left out, and only then against the soup at hand."""
    bar = Bar(best.value, best.evaluation)
    evaluation = score(weights, bar)
    trial = Trial("pruned", weights, evaluation, False, "worse", name, bar)
    if _is_nan(evaluation) or (rule.rank(trial.value), name) < (rule.rank(best.value), best.added or ""):
        unscored = _is_nan(current.evaluation) and not _is_nan(evaluation)
        reason: Reason = "kept" if unscored else rule.verdict(evaluation, current.evaluation)
        return replace(trial, kept=reason == "kept", reason=reason)
    return trial


def _interpolated(base: str, towards: Weights, alpha: float) -> Weights:
    """As (1 - α)·Σw for the base and α·w for the others, for every prefix that any of them tells apart."""
    prefixes = {"", *(prefix for weight in towards.values() if isinstance(weight, Mapping) for prefix in weight)}
    bases: dict[str, float] = {}
    for prefix in sorted(prefixes):
        # A part without a weight for a prefix is refused when it is cooked, if any tensor needs it.
        with contextlib.suppress(SoupError):
            total = math.fsum(weight_of(weight, prefix) for weight in towards.values())
            own = weight_of(towards[base], prefix) if base in towards else 0.0
            bases[prefix] = (1 - alpha) * total + alpha * own
    others = {name: _times(weight, alpha) for name, weight in towards.items() if name != base}
    return {base: bases[""] if bases.keys() == {""} else bases, **others}


def _times(weight: Weight, factor: float) -> Weight:
    if isinstance(weight, Mapping):
        return {prefix: factor * amount for prefix, amount in weight.items()}
    return factor * weight


def _proportions(weights: Weights) -> frozenset[tuple[str, int]]:
    """Whole weights with what they have in common taken out: equal where the soups are."""
    counts = {name: int(_plain(weight)) for name, weight in weights.items()}
    common = math.gcd(*counts.values())
    return frozenset((name, count // common) for name, count in counts.items())


def _plain(weight: Weight) -> float:
    assert not isinstance(weight, Mapping)  # a greedy soup weighs its ingredients as a whole
    return weight


def _is_nan(evaluation: Evaluation) -> bool:
    """Without a score at the end of its images, or already where it stopped."""
    value = reachable(evaluation)
    return value is not None and math.isnan(value)
