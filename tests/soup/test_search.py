"""The search against an oracle on score functions with a known best subset (correctness 17, 18, 28, 29)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup import SoupError
from soup.evaluate import Evaluation
from soup.search import Aids, search
from soup.trials import Rule, Score


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


def test_where_a_method_fits_on_val_all_compete_on_what_no_fit_has_seen() -> None:
    """The fitted soup looks best on all of val, the uniform one on the part that was kept apart."""
    values = {frozenset("a"): 0.5, frozenset("b"): 0.4, frozenset("ab"): 0.6}

    def score(weights: Mapping[str, object], bar: object) -> Evaluation:
        fitted = any(weight != 1.0 for weight in weights.values())
        whole, apart = (0.9, 0.1) if fitted else (values[frozenset(weights)], 0.5 + len(weights) / 100)
        return Evaluation(1, np.ones(1, bool), {"apart": np.array([apart])}, whole, None)

    aids = Aids(
        learn=lambda per_layer: {"a": 0.75, "b": 0.25},
        competing=lambda evaluation: float(evaluation.per_sample["apart"][0]),
    )
    found = search(list("ab"), score, methods=("uniform", "learned"), rule=Rule(True), aids=aids)
    assert found.winner.method == "uniform"
    assert found.values == (0.51, 0.52, 0.1)
    assert search(list("ab"), score, methods=("uniform",), rule=Rule(True), aids=aids).values == (0.5, 0.6)


def test_a_method_that_orders_by_epoch_says_so_where_none_is_recorded() -> None:
    with pytest.raises(SoupError, match="'last_k' orders checkpoints by epoch, which not all of these recorded"):
        run(["a", "b"], planted({"a"}), methods=("last_k",))


def test_a_method_named_twice_runs_once() -> None:
    found = run(["a", "b"], planted({"a"}), methods=("uniform", "uniform"))
    assert [answer.method for answer in found.answers] == ["single", "uniform"]
