"""How often is a soup of useless checkpoints called better: the real search and verdict on simulated noise.

No candidate is better than another: each ingredient and each average has the same true accuracy. Whether a sample is
hard is shared by all models, and a soup is as like its ingredients as their mean. So every verdict "better" on test is
false, and each ingredient that the greedy search accepts on val is useless. Grouped samples are clips of identical
frames, of 5 to 15 each. A verdict's level is 2.5 %: its 95 % interval may miss on either side.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import NormalDist

import numpy as np

from soup.evaluate import Evaluation
from soup.gates import compare
from soup.judge import paired
from soup.search import search
from soup.significance import p_value
from soup.tasks import metric_named
from soup.trials import Bar, Rule, Trial
from soup.weights import Weights

METRIC = metric_named("classification", "accuracy")
ACCURACY = 0.85  # of every candidate, on fresh samples
SHARED = 0.7  # of the variance that decides whether an answer is right: how hard the sample is, for every model
LEVEL, CONFIDENCE = 0.025, 0.95  # of a false "better"; of `search.confidence`
CLIP_LENGTHS = (5, 10, 15)


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting: `samples` in val, and as many in test."""

    ingredients: int
    samples: int
    grouped: bool
    confidence: float | None
    simulations: int


@dataclass(frozen=True, slots=True)
class Noise:
    """What decides, on one split, who is right: float32 [units], [ingredients, units], and the unit of each sample."""

    hardness: np.ndarray
    own: np.ndarray
    groups: np.ndarray | None

    @staticmethod
    def draw(cell: Cell, generator: np.random.Generator) -> Noise:
        groups = clips(cell.samples) if cell.grouped else None
        units = cell.samples if groups is None else int(groups[-1]) + 1
        noise = generator.standard_normal((cell.ingredients + 1, units), np.float32)
        return Noise(noise[0], noise[1:], groups)

    def evaluated(self, weights: Weights) -> Evaluation:
        """As `soup.evaluate` gives it; never stopped early, which changes no decision."""
        right = {"correct": self.right(weights)}
        n = len(right["correct"])
        return Evaluation(n, np.ones(n, bool), right, METRIC.reduce(right), None)

    def right(self, weights: Weights) -> np.ndarray:
        """bool [samples] for an average; its own part keeps a variance of 1, so that its accuracy is that of all."""
        mixture = np.zeros(len(self.own), np.float32)
        for name, weight in weights.items():
            assert isinstance(weight, (int, float))  # methods that weigh layers apart are not run here
            mixture[int(name)] = weight
        mixture /= np.linalg.norm(mixture)
        latent = math.sqrt(SHARED) * self.hardness + math.sqrt(1 - SHARED) * (mixture @ self.own)
        right: np.ndarray = latent < NormalDist().inv_cdf(ACCURACY)
        return right if self.groups is None else right[self.groups]


def run(*, quick: bool = False) -> dict[str, object]:
    """{"setting": facts, "rows": one per cell, with rates and their 95 % intervals}."""
    if quick:
        grid = [Cell(6, 100, grouped, rule, 300) for grouped in (False, True) for rule in (None, CONFIDENCE)]
        rows = [simulate(cell, seed=seed) for seed, cell in enumerate(grid)]
    else:
        choices = itertools.product((None, CONFIDENCE), (False, True), (6, 12, 24), (100, 300, 1000))
        grid = [Cell(count, samples, grouped, rule, 2000) for rule, grouped, count, samples in choices]
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            rows = list(pool.map(simulate, grid, range(len(grid))))
    facts = {"simulations per row": grid[0].simulations, "true accuracy": ACCURACY, "level": LEVEL}
    return {"setting": facts, "rows": rows}


def simulate(cell: Cell, seed: int) -> dict[str, object]:
    """One row: how often "better" was said, and how often a greedy step accepted, of the steps that were tried."""
    generator = np.random.default_rng(seed)
    better, fair, gains = 0, 0, []
    accepted, tried = np.zeros(cell.simulations), np.zeros(cell.simulations)
    for place in range(cell.simulations):
        val, test = Noise.draw(cell, generator), Noise.draw(cell, generator)
        single, winner, steps = searched(cell, val)
        fair += fair_step(cell, val)
        accepted[place], tried[place] = sum(trial.kept for trial in steps), len(steps)
        better += said_better(winner.weights, single.weights, test)
        gains.append(winner.value - single.value)
    low, high = wilson(better, cell.simulations)
    fair_low, fair_high = wilson(fair, cell.simulations)
    rate, error = ratio(accepted, tried)
    return {
        "ingredients": cell.ingredients,
        "val and test": cell.samples,
        "samples": "clips" if cell.grouped else "independent",
        "rule": "as in the paper" if cell.confidence is None else f"confidence {cell.confidence:g}",
        "false better": better / cell.simulations,
        "low": low,
        "high": high,
        "useless accepted per step": rate,
        "standard error": error,
        "first step from any single": fair / cell.simulations,
        "its low": fair_low,
        "its high": fair_high,
        "mean gain on val": float(np.mean(gains)),
    }


def searched(cell: Cell, val: Noise) -> tuple[Trial, Trial, Sequence[Trial]]:
    """The real search on fake bits: best single, winner, and the greedy steps (all but the first, which is a start)."""

    def score(weights: Weights, bar: Bar | None) -> Evaluation:
        return val.evaluated(weights)

    names = [f"{index:02}" for index in range(cell.ingredients)]
    methods = ("uniform", "greedy") if cell.confidence is None else ("greedy",)
    found = search(names, score, methods=methods, rule=rule_of(cell, val))
    steps = [trial for trial in found.trials if trial.method == "greedy" and trial.reason != "first"]
    return found.answers[0], found.winner, steps


def fair_step(cell: Cell, val: Noise) -> bool:
    """Whether a second ingredient is accepted beside one that was not chosen for its score, as the best single is."""
    one, two = (val.evaluated(dict.fromkeys(names, 1.0)) for names in (("00",), ("00", "01")))
    return rule_of(cell, val).verdict(two, one) == "kept"


def rule_of(cell: Cell, val: Noise) -> Rule:
    """The rule of val.yaml, with the p-value that stands behind `search.confidence`."""

    def chance(candidate: Evaluation, incumbent: Evaluation) -> float:
        return p_value(
            candidate.per_sample, incumbent.per_sample, METRIC.reduce,
            higher_is_better=METRIC.higher_is_better, groups=val.groups,
        )[0]  # fmt: skip

    return Rule(METRIC.higher_is_better, confidence=cell.confidence, p_value=chance)


def said_better(soup: Weights, single: Weights, test: Noise) -> bool:
    """The verdict of a build on test."""
    if soup == single:
        return False
    after, before = ({"correct": test.right(weights)} for weights in (soup, single))
    if METRIC.reduce(after) <= METRIC.reduce(before):
        return False  # no interval lies above its own estimate: this only saves the bootstrap
    interval = paired(METRIC, after, before, groups=test.groups)
    return compare(interval, higher_is_better=METRIC.higher_is_better) == "better"


def clips(samples: int) -> np.ndarray:
    """int [samples]: the clip of each frame; lengths take turns, the last may be cut short."""
    lengths = np.resize(CLIP_LENGTHS, samples // min(CLIP_LENGTHS) + 1)
    groups: np.ndarray = np.repeat(np.arange(len(lengths)), lengths)[:samples]
    return groups


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson, JASA 22, 1927)."""
    z = NormalDist().inv_cdf(0.975)
    centre = (hits + z * z / 2) / (total + z * z)
    arm = z / (total + z * z) * math.sqrt(hits * (total - hits) / total + z * z / 4)
    return (centre - arm if hits else 0.0), (centre + arm if hits < total else 1.0)


def ratio(hits: np.ndarray, totals: np.ndarray) -> tuple[float, float]:
    """Hits per trial and its standard error, where the trials of one simulation depend on each other."""
    rate = hits.sum() / totals.sum()
    return float(rate), float(math.sqrt(((hits - rate * totals) ** 2).sum()) / totals.sum())


def main() -> None:
    """Print setting and rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one size, few simulations")
    print(json.dumps(run(quick=parser.parse_args().quick), indent=1))


if __name__ == "__main__":
    main()
