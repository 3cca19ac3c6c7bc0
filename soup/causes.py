"""Why no soup beat the best single: likely causes from measured facts, each a sentence with its figure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from calib.batchnorm import batchnorm_layers
from soup.alike import Resemblance, agreement_of, resemblance
from soup.config import Config
from soup.evaluate import Evaluation, value_on
from soup.gates import compare
from soup.judge import paired
from soup.larder import Larder
from soup.preflight import INDEPENDENT
from soup.report import value_text
from soup.score import Kitchen, Policy
from soup.search import Found
from soup.sources import several
from soup.statistics import Interval, difference_text, interval_text, samples_needed
from soup.trials import Bar, Trial, reachable, value_of
from soup.weights import Weights

EQUAL = 1e-4  # distance relative to the weights' norm: an average of such checkpoints is either of them
HEAD_APART = 0.8  # of the heads' relative distance: 1.41 where they have nothing in common, under 0.5 where one began
HEAD_TO_BODY = 3.0  # and so many times the body's: else the whole networks are apart, and not their heads
RELABELLED = 0.1  # share of val that agrees only once classes are renumbered: a model's own mistakes give next to none


@dataclass(frozen=True, slots=True)
class Pair:
    """The best single and the checkpoint it is compared with, and the line between them, where that was measured."""

    first: str
    second: str
    line: tuple[tuple[float, Evaluation], ...]  # (share of the second, evaluation), both ends included

    @property
    def halfway(self) -> tuple[float, Evaluation] | None:
        """The point nearest to the middle; the earlier one of two."""
        inner = self.line[1:-1]
        return min(inner, key=lambda point: abs(point[0] - 0.5)) if inner else None


@dataclass(frozen=True, slots=True)
class _Case:
    """All that a cause may be read from."""

    config: Config
    kitchen: Kitchen
    pair: Pair
    labels: Mapping[str, str]
    best: Evaluation
    soup: Trial  # the best of those that were tried, as far as that was known
    finished: Evaluation  # of this soup
    interval: Interval  # its difference from the best single
    agreement: tuple[float, float]
    alike: Resemblance

    @property
    def names(self) -> tuple[str, str]:
        return f"'{self.labels[self.pair.first]}'", f"'{self.labels[self.pair.second]}'"

    def value(self, evaluation: Evaluation) -> str:
        """On the samples that were seen."""
        metric = self.kitchen.metric
        return value_text(value_on(evaluation, evaluation.seen, metric), unit=metric.unit)

    def is_better(self, one: Evaluation, other: Evaluation) -> bool:
        """Beyond the noise of the samples that both have seen."""
        rows, groups = one.seen & other.seen, self.kitchen.val.groups
        kept = [{name: array[rows] for name, array in each.per_sample.items()} for each in (one, other)]
        interval = paired(self.kitchen.metric, *kept, groups=None if groups is None else groups[rows])
        return compare(interval, higher_is_better=self.kitchen.metric.higher_is_better) == "better"


def likely_causes(
    config: Config, larder: Larder, kitchen: Kitchen, found: Found, pair: Pair, labels: Mapping[str, str]
) -> tuple[str, ...]:
    """Sentences, the likeliest first, where soups were tried and none became the model; never empty then.

    Compares the two checkpoints of `pair`; asks the network only for what their predictions and the best soup's score
    still lack.
    """
    tried = [trial for trial in found.trials if len(trial.weights) > 1]
    if not tried or len(found.singles) < 2:
        return ()
    soup = min(tried, key=lambda trial: kitchen.rule.rank(reachable(trial.evaluation)))
    best = found.singles[0].evaluation
    finished = kitchen.measure(soup.weights, kitchen.policy_for(soup.weights), kitchen.val, phase="explaining")
    *agreed, classes = _agreement(config, kitchen, pair)
    case = _Case(
        config, kitchen, pair, labels, best, soup, finished,
        paired(kitchen.metric, finished.per_sample, best.per_sample, groups=kitchen.val.groups),
        (agreed[0], agreed[1]), resemblance(larder, kitchen, pair.first, pair.second, classes=classes),
    )  # fmt: skip
    told = tuple(itertools.chain.from_iterable(cause(case) for cause in _CAUSES))
    return told or (_none_found(case),)


def _agreement(config: Config, kitchen: Kitchen, pair: Pair) -> tuple[float, float, int]:
    """Of classes, where every image has one; boxes and pixels are not renumbered."""
    if "label" in kitchen.val.targets:
        return agreement_of(kitchen, pair.first, pair.second)
    classes = kitchen.settings.get("classes")
    return 1.0, 1.0, classes if isinstance(classes, int) else 0


def on_line(first: str, second: str, *, step: int, steps: int) -> Weights:
    """`step` of `steps` on the way from the first to the second, in whole numbers with nothing in common.

    The middle is so the pair that the search knows already.
    """
    common = math.gcd(steps, step)
    weights = {first: float((steps - step) // common), second: float(step // common)}
    return {sha: weight for sha, weight in weights.items() if weight}


def _strict_rule(case: _Case) -> Iterator[str]:
    rule, search = case.kitchen.rule, case.config.search
    gain = -(rule.rank(value_of(case.finished)) - rule.rank(value_of(case.best)))
    if not gain >= 0:
        return
    unit = case.kitchen.metric.unit
    soup = f"the best soup ({_soup(case)}) gained {difference_text(gain, unit=unit)}"
    if not gain >= search.min_gain:
        yield f"The rule is strict: {soup}, and search.min_gain asks for {difference_text(search.min_gain, unit=unit)}."
    elif search.confidence is not None:
        sure = f"{search.confidence * 100:g} %"
        yield f"The rule is strict: {soup}, which may be chance, and search.confidence asks to be {sure} sure."


def _equal(case: _Case) -> Iterator[str]:
    if case.alike.whole < EQUAL:
        one, other = case.names
        yield (
            f"The checkpoints hardly differ: {one} and {other} are {case.alike.whole:.1e} of their norm apart, so that "
            "their average is the same model."
        )


def _too_small(case: _Case) -> Iterator[str]:
    if not case.interval.low <= 0 <= case.interval.high or case.alike.whole < EQUAL:
        return
    needed = samples_needed(case.interval, 0.0)
    more = "" if needed is None else f"; about {float(f'{needed:.2g}'):,.0f} would decide"
    shown = interval_text(case.interval, unit=case.kitchen.metric.unit)
    samples = f"{case.interval.n:,} samples{more}"
    yield f"val is too small to tell: the best soup ({_soup(case)}) differs by {shown}, on {samples}."


def _no_numbers(case: _Case) -> Iterator[str]:
    if bad := case.finished.not_finite:
        yield f"The best soup ({_soup(case)}) gives NaN or Inf for {bad:,} of {case.finished.n_total:,} images of val."


def _batchnorm_policy(case: _Case) -> Iterator[str]:
    """The same soup with the other statistics, where those can be measured."""
    kitchen, halfway = case.kitchen, case.pair.halfway
    if not kitchen.batchnorm or kitchen.calibration is None or halfway is None:
        return
    used = halfway[1]
    policy: Policy = "averaged" if kitchen.policy == "recalibrated" else "recalibrated"
    bar = Bar(None, None, limit=int(used.seen.sum()))
    steps = len(case.pair.line) - 1
    middle = on_line(case.pair.first, case.pair.second, step=round(halfway[0] * steps), steps=steps)
    other = kitchen.measure(middle, policy, kitchen.val, phase="explaining", bar=bar)
    if not case.is_better(other, used):
        return
    if policy == "recalibrated":
        advice = "set search.bn_policy to recalibrated"
    else:
        advice = f"recalibration on {len(kitchen.calibration.order):,} images of data.train does harm"
    yield (
        f"BatchNorm: halfway between {' and '.join(case.names)} the soup scores {case.value(used)} with "
        f"{kitchen.policy} statistics and {case.value(other)} with {policy} ones; {advice}."
    )


def _independent(case: _Case) -> Iterator[str]:
    if case.alike.cosine < INDEPENDENT:
        yield (
            f"Independent initialisation: {' and '.join(case.names)} share no starting point, the cosine of their "
            f"weights is {case.alike.cosine:.2f}, and fine-tunes of one model lie above 0.9."
        )


def _permuted_labels(case: _Case) -> Iterator[str]:
    before, after = case.agreement
    if after - before >= RELABELLED and 1 - after <= (1 - before) / 2:
        one, other = case.names
        yield (
            f"Permuted labels: {one} and {other} agree on {before * 100:.0f} % of val, and on {after * 100:.0f} % once "
            "the classes of one are renumbered; compare the class lists they were trained with."
        )


def _separate_heads(case: _Case) -> Iterator[str]:
    head, body = case.alike.head, case.alike.body
    if head is not None and head >= HEAD_APART and head >= HEAD_TO_BODY * body:
        yield (
            f"Separately trained heads: the last layers of {' and '.join(case.names)} are {head:.2f} of their norm "
            f"apart, the layers before them {body:.2f}; fine-tune from one head."
        )


def _no_train_images(case: _Case) -> Iterator[str]:
    if case.kitchen.batchnorm and case.kitchen.calibration is None and _is_barrier(case):
        layers = len(batchnorm_layers(case.kitchen.model))
        yield (
            f"BatchNorm: without data.train the statistics of {layers} layers are averaged, and not measured again for "
            "the soup; a soup's are others."
        )


def _barrier(case: _Case) -> Iterator[str]:
    if _is_barrier(case) and case.pair.halfway is not None:
        _, soup = case.pair.halfway
        ends = " and ".join(case.value(end) for end in (case.pair.line[0][1], case.pair.line[-1][1]))
        yield (
            f"A barrier: halfway between {' and '.join(case.names)} the soup scores {case.value(soup)}, worse than "
            f"both ends ({ends} on the same {int(soup.seen.sum()):,} images)."
        )


def _is_barrier(case: _Case) -> bool:
    """The middle is worse than both ends by more than noise."""
    if case.pair.halfway is None:
        return False
    _, soup = case.pair.halfway
    return all(case.is_better(end, soup) for end in (case.pair.line[0][1], case.pair.line[-1][1]))


def _none_found(case: _Case) -> str:
    shown = interval_text(case.interval, unit=case.kitchen.metric.unit)
    return (
        f"No known cause was found: the best soup ({_soup(case)}) differs by {shown}, and the cosine of the weights of "
        f"{' and '.join(case.names)} is {case.alike.cosine:.2f}."
    )


# The likeliest first: what turned the decision itself, then what was seen to undo it, then what weights and
# predictions say; a barrier is what any of these looks like.
_CAUSES: tuple[Callable[[_Case], Iterator[str]], ...] = (
    _strict_rule, _equal, _too_small, _no_numbers, _batchnorm_policy, _independent, _permuted_labels, _separate_heads,
    _no_train_images, _barrier,
)  # fmt: skip


def _soup(case: _Case) -> str:
    return several([f"'{case.labels[sha]}'" for sha in sorted(case.soup.weights, key=lambda sha: case.labels[sha])])
