"""Ranking by averaged logits against an oracle that averages every subset, and the budget that is spent on it."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup import ranked as module
from soup.evaluate import Evaluation
from soup.ranked import Budget, ranked, subsets_by_logits
from soup.trials import Bar, Rule, Score
from soup.weights import Weights

HIGHER, LOWER = Rule(True), Rule(False)
Reduce = Callable[[np.ndarray], float]


def cached(seed: int, count: int, *, samples: int = 30, classes: int = 3) -> tuple[dict[str, np.ndarray], Reduce]:
    """Noisy logits of `count` ingredients around the right answer, and their accuracy."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, samples)
    logits = {
        f"{place:02}": np.eye(classes)[labels] + random.normal(size=(samples, classes)) * random.uniform(0.5, 2)
        for place in range(count)
    }
    logits = {name: values.astype(np.float32) for name, values in logits.items()}
    return logits, lambda values: float((values.argmax(axis=1) == labels).mean())


def ensembles(logits: dict[str, np.ndarray], reduce: Reduce) -> Score:
    """Soups that do exactly as their averaged logits."""

    def score(weights: Weights, bar: Bar | None) -> Evaluation:
        value = reduce(np.mean([logits[name].astype(np.float64) for name in sorted(weights)], axis=0))
        return Evaluation(1, np.ones(1, bool), {}, value, None)

    return score


def stopping(score: Score, rule: Rule, counts: list[int]) -> Score:
    """The same score, known after 100 images, or after 10 where the bar is out of reach."""

    def stopped(weights: Weights, bar: Bar | None) -> Evaluation:
        whole = score(weights, None)
        assert whole.value is not None
        reached = bar is None or (whole.value >= bar.value if rule.higher_is_better else whole.value <= bar.value)
        counts.append(100 if reached else 10)
        return whole if reached else replace(whole, value=None, bound=whole.value)

    return stopped


@given(st.integers(0, 10_000), st.integers(2, 6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_few_ingredients_are_ranked_by_every_subset_there_is(seed: int, count: int, higher: bool) -> None:
    logits, accuracy = cached(seed, count)
    sign = 1 if higher else -1

    def reduce(values: np.ndarray) -> float:
        return sign * accuracy(values)

    order, subsets = subsets_by_logits(logits, reduce, Rule(higher))
    assert order == tuple(sorted(logits, key=lambda name: (-accuracy(logits[name]), name)))
    every = [
        members for size in range(2, count + 1) for members in itertools.combinations(range(count), size)
    ]  # fmt: skip
    averaged = {
        members: accuracy(np.mean([logits[order[place]].astype(np.float64) for place in members], axis=0))
        for members in every
    }
    assert subsets == sorted(every, key=lambda members: (-averaged[members], len(members), members))


def test_the_planted_subset_is_the_answer_of_a_single_evaluation() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 40)
    right, error = np.eye(3)[labels], 5 * random.normal(size=(40, 3))
    logits = {name: -right + 0.1 * place for place, name in enumerate("abcde")}
    logits |= {"x": right + error, "y": right - error}  # each makes up for the other's error, and no third does

    def reduce(values: np.ndarray) -> float:
        return float((values.argmax(axis=1) == labels).mean())

    trials, answer = ranked(logits, reduce, ensembles(logits, reduce), HIGHER, budget=Budget(evaluations=1))
    assert len(trials) == 1
    assert (answer.weights, answer.value) == ({"x": 1.0, "y": 1.0}, 1.0)


def test_many_ingredients_have_pairs_the_best_so_many_what_grows_and_random_subsets_each_once() -> None:
    logits, reduce = cached(2, 12)
    _, subsets = subsets_by_logits(logits, reduce, HIGHER)
    assert len(set(subsets)) == len(subsets)
    assert all(len(set(members)) == len(members) >= 2 and list(members) == sorted(members) for members in subsets)
    assert set(itertools.combinations(range(12), 2)) <= set(subsets)
    assert {tuple(range(size)) for size in range(2, 13)} <= set(subsets)
    assert len(subsets) > 66 + 10 + 200  # nearly all random ones are new


def grown(logits: list[np.ndarray], reduce: Reduce, start: int) -> Iterator[tuple[int, ...]]:
    """Forward selection, written down a second time."""
    members = (start,)
    while len(members) < len(logits):
        larger = [tuple(sorted((*members, place))) for place in range(len(logits)) if place not in members]
        members = min(larger, key=lambda one: (-reduce(np.mean([logits[place] for place in one], axis=0)), one))
        yield members


def test_forward_selection_from_the_best_singles_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANDOM", 0)
    logits, reduce = cached(11, 10)  # where the three paths part
    order, subsets = subsets_by_logits(logits, reduce, HIGHER)
    placed = [logits[name].astype(np.float64) for name in order]
    for start in range(3):
        path = list(grown(placed, reduce, start))
        assert len(path) == 9
        assert set(path) <= set(subsets)


def test_the_ranking_depends_on_neither_the_order_of_the_mapping_nor_the_run() -> None:
    logits, reduce = cached(4, 11)
    shuffled = {name: logits[name] for name in reversed(logits)}
    assert subsets_by_logits(logits, reduce, HIGHER) == subsets_by_logits(shuffled, reduce, HIGHER)
    first = ranked(logits, reduce, ensembles(logits, reduce), HIGHER, budget=Budget(evaluations=20))
    again = ranked(shuffled, reduce, ensembles(logits, reduce), HIGHER, budget=Budget(evaluations=20))
    assert [trial.weights for trial in first[0]] == [trial.weights for trial in again[0]]
    other = subsets_by_logits(logits, reduce, HIGHER, seed=1)
    assert other != subsets_by_logits(logits, reduce, HIGHER)


def test_equal_subsets_rank_by_fewer_members_then_by_the_better_singles() -> None:
    logits = {name: np.array([[1.0, 0.0]]) for name in "cab"}
    order, subsets = subsets_by_logits(logits, lambda values: 0.5, HIGHER)
    assert order == ("a", "b", "c")
    assert subsets == [(0, 1), (0, 2), (1, 2), (0, 1, 2)]
    trials, answer = ranked(
        logits, lambda values: 0.5, ensembles(logits, lambda values: 0.5), HIGHER, budget=Budget(evaluations=9)
    )
    assert answer is trials[0]
    assert [trial.reason for trial in trials] == ["first", "worse", "worse", "worse"]


def test_the_mean_handed_to_the_metric_is_that_of_the_logits() -> None:
    logits = {"a": np.array([[1.0, 3.0]], np.float16), "b": np.array([[2.0, 5.0]], np.float32)}
    handed = []
    subsets_by_logits(logits, lambda values: handed.append(values.copy()) or 0.0, HIGHER)  # type: ignore[func-returns-value]
    assert handed[-1].tolist() == [[1.5, 4.0]]
    assert handed[-1].dtype == np.float64


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 30), st.booleans())
@settings(max_examples=40, deadline=None)
def test_stopping_early_changes_no_answer_and_the_budget_holds(
    seed: int, count: int, budget: int, higher: bool
) -> None:
    logits, reduce = cached(seed, count, samples=12)
    random = np.random.default_rng(seed)
    table: dict[frozenset[str], float] = {}
    rule = Rule(higher)

    def score(weights: Weights, bar: Bar | None) -> Evaluation:
        value = table.setdefault(frozenset(weights), float(random.integers(0, 8)) / 8)
        return Evaluation(1, np.ones(1, bool), {}, value, None)

    counts: list[int] = []
    full, expected = ranked(logits, reduce, score, rule, budget=Budget(evaluations=budget))
    trials, answer = ranked(logits, reduce, stopping(score, rule, counts), rule, budget=Budget(evaluations=budget))
    assert [(one.weights, one.kept, one.reason) for one in trials] == [
        (one.weights, one.kept, one.reason) for one in full
    ]
    assert (answer.weights, answer.evaluation.value) == (expected.weights, expected.evaluation.value)
    assert len(trials) == len(counts) == min(budget, max(1, 2**count - count - 1))
    values = [one.value if higher else -one.value for one in full]
    assert answer.weights == full[values.index(max(values))].weights


def test_minutes_are_counted_from_the_ranking_on_and_one_soup_is_always_scored() -> None:
    logits, reduce = cached(5, 5)

    def run(*times: float) -> int:
        clock = iter(times)
        return len(
            ranked(
                logits, reduce, ensembles(logits, reduce), HIGHER, budget=Budget(minutes=2), clock=lambda: next(clock)
            )[0]
        )

    assert run(1000, 1119, 1119.5, 1120) == 3
    assert run(1000, 1500) == 1
    assert run(*[1000] * 100) == 26  # all there are


@pytest.mark.parametrize(
    "given", [{}, {"evaluations": 1, "minutes": 1}, {"evaluations": 0}, {"minutes": 0}, {"minutes": math.nan}]
)
def test_a_budget_is_one_of_two_amounts_and_more_than_nothing(given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Budget(**given)


def test_a_lone_ingredient_is_its_own_answer() -> None:
    logits, reduce = cached(6, 1)
    trials, answer = ranked(logits, reduce, ensembles(logits, reduce), HIGHER, budget=Budget(evaluations=5))
    assert trials == [answer]
    assert (answer.weights, answer.reason) == ({"00": 1.0}, "first")


def test_subsets_without_a_value_come_last_and_soups_without_one_are_never_kept() -> None:
    logits = {
        name: np.array([[number, 0.0]]) for name, number in (("a", 1.0), ("b", 2.0), ("x", math.inf), ("y", -math.inf))
    }

    def reduce(values: np.ndarray) -> float:
        return float(values[0, 0]) if np.isfinite(values).all() else math.nan

    order, subsets = subsets_by_logits(logits, reduce, LOWER)
    assert order == ("a", "b", "x", "y")
    assert subsets[0] == (0, 1)
    trials, answer = ranked(logits, reduce, ensembles(logits, reduce), LOWER, budget=Budget(evaluations=3))
    assert [trial.reason for trial in trials] == ["first", "not_a_number", "not_a_number"]
    assert answer.weights == {"a": 1.0, "b": 1.0}


def test_the_ranking_holds_no_more_than_a_few_arrays_however_many_ingredients_there_are() -> None:
    logits, reduce = cached(7, 9, samples=20_000, classes=10)
    one = logits["00"].size * 8
    tracemalloc.start()
    try:
        subsets_by_logits(logits, reduce, HIGHER)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * one
