"""The search against an oracle on score functions with a known best subset (correctness 17, 18, 28, 29)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from soup.evaluate import Evaluation
from soup.search import Rule, Score, search


def score_of(value: Callable[[frozenset[str]], float]) -> Score:
    def score(weights: Mapping[str, float], must_beat: float | None) -> Evaluation:
        return Evaluation(1, np.ones(1, bool), {}, value(frozenset(weights)), None)

    return score


def planted(optimum: set[str]) -> Score:
    return score_of(lambda chosen: len(chosen & optimum) - len(chosen - optimum))


def run(ingredients, score, *, methods=("uniform", "greedy"), higher=True, min_gain=0.0):
    return search(ingredients, score, methods=methods, rule=Rule(higher, min_gain))


def oracle(ingredients: list[str], value: Callable[[frozenset[str]], float]) -> list[frozenset[str]]:
    """The textbook's greedy soup, written down a second time: the accepted set after each step."""
    order = sorted(ingredients, key=lambda one: (-value(frozenset({one})), one))
    accepted = frozenset(order[:1])
    trace = [accepted]
    for one in order[1:]:
        if value(accepted | {one}) >= value(accepted):
            accepted |= {one}
        trace.append(accepted)
    return trace


def test_greedy_finds_the_planted_optimum() -> None:
    found = run(list("abcdefg"), planted({"b", "c", "f"}))
    assert set(found.winner.weights) == {"b", "c", "f"}
    assert found.winner.method == "greedy"
    assert {trial.added: trial.reason for trial in found.trials if trial.method == "greedy"}["a"] == "worse"


@given(st.integers(1, 7), st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_trace_equals_the_oracles_on_random_scores_with_ties(count: int, seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    table: dict[frozenset[str], float] = {}

    def value(chosen: frozenset[str]) -> float:
        return table.setdefault(chosen, float(random.integers(0, levels)))

    names = [f"{index}" for index in range(count)]
    expected = oracle(names, value)
    found = run(list(reversed(names)), score_of(value), methods=("greedy",))
    trace, accepted = [], frozenset[str]()
    for trial in found.trials:
        accepted = frozenset(trial.weights) if trial.kept else accepted
        trace.append(accepted)
    assert trace == (expected if count > 1 else [])
    assert found.winner.value >= found.singles[0].value


def test_the_order_in_which_ingredients_are_given_changes_nothing() -> None:
    score = score_of(lambda chosen: 1.0)
    first, second = run(["b", "a", "c"], score), run(["c", "b", "a"], score)
    assert [trial.added for trial in first.singles] == ["a", "b", "c"] == [trial.added for trial in second.singles]
    assert first.trials == second.trials


def test_one_ingredient_is_the_winner_and_nothing_was_averaged() -> None:
    found = run(["a"], planted({"a"}))
    assert (found.winner.method, found.trials) == ("single", ())


def test_when_every_partner_hurts_the_best_single_wins() -> None:
    found = run(["a", "b", "c"], score_of(lambda chosen: 1.0 / len(chosen)))
    assert dict(found.winner.weights) == {"a": 1.0}
    assert [trial.reason for trial in found.trials if trial.method == "greedy"] == ["first", "worse", "worse"]


def test_all_equal_is_a_soup_of_all_since_the_score_does_not_fall() -> None:
    found = run(["a", "b", "c"], score_of(lambda chosen: 0.5))
    assert set(found.winner.weights) == {"a", "b", "c"}


def test_lower_is_better_metrics_turn_the_comparison() -> None:
    found = run(
        ["a", "b", "c"],
        score_of(lambda chosen: {"a": 3.0, "b": 1.0, "c": 2.0}.get("".join(sorted(chosen)), 0.5)),
        higher=False,
    )
    assert [trial.added for trial in found.singles] == ["b", "c", "a"]
    assert found.winner.value == 0.5


def test_a_score_that_is_not_a_number_never_disturbs_the_order_and_is_never_kept() -> None:
    def value(chosen: frozenset[str]) -> float:
        return math.nan if "x" in chosen else {"a": 0.2, "b": 0.9, "ab": 0.95}["".join(sorted(chosen))]

    found = run(["a", "x", "b"], score_of(value))
    assert [trial.added for trial in found.singles] == ["b", "a", "x"]
    assert set(found.winner.weights) == {"a", "b"}
    assert [trial.reason for trial in found.trials if not trial.kept] == ["not_a_number", "not_a_number"]


def test_min_gain_makes_acceptance_stricter() -> None:
    score = score_of(lambda chosen: 0.5 + 0.01 * len(chosen))
    assert len(run(["a", "b"], score, methods=("greedy",), min_gain=0.02).winner.weights) == 1
    assert len(run(["a", "b"], score, methods=("greedy",), min_gain=0.005).winner.weights) == 2
