"""Which layers stay higher, on problems whose answer is known: each layer costs so much, and the gate bears so much."""

from __future__ import annotations

import json
import math
from collections.abc import Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup.attempts import Raised
from soup.sensitivity import Judged, Loss, Problem, raise_layers


def problem(costs: dict[str, float], *, limit: float, macs: dict[str, int] | None = None) -> Problem:
    """A graph is the JSON list of its lower layers; it loses the sum of their costs."""
    macs = macs or dict.fromkeys(costs, 10)

    def make(*, keep: Collection[str] = (), only: Collection[str] | None = None) -> bytes:
        lower = [layer for layer in costs if layer not in keep and (only is None or layer in only)]
        return json.dumps(lower).encode()

    def loss(graph: bytes) -> float:
        return sum(costs[layer] for layer in json.loads(graph))

    return Problem(
        macs=macs, all_macs=sum(macs.values()), make=make,
        measure=lambda graph: Loss(loss(graph), loss(graph) ** 2),
        judge=lambda graph: Judged("pass" if loss(graph) <= limit else "fail", loss(graph)), samples=8, total=100,
    )  # fmt: skip


def fewest(costs: dict[str, float], limit: float) -> int:
    """How many of the most expensive layers must go, one by one."""
    left, count = sorted(costs.values()), 0
    while sum(left) > limit:
        left.pop()
        count += 1
    return count


def test_the_one_layer_that_loses_is_found_and_nothing_else_is_raised() -> None:
    costs = {f"conv{index}": 0.001 for index in range(12)} | {"head": 0.2}
    found = raise_layers(problem(costs, limit=0.05), budget=100)
    assert (found.passed, found.layers) == (True, ("head",))
    by_layer = {one.layer: one for one in found.sensitivities}
    assert by_layer["head"].alone == pytest.approx(0.2)
    assert by_layer["head"].all_but == pytest.approx(0.2)  # the same, since costs add up here
    assert [step.verdict for step in found.steps] == ["pass"]
    assert found.steps[0].share == pytest.approx(120 / 130)


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=20), st.integers(0, 300))
def test_with_costs_that_add_up_no_smaller_set_would_pass(costs_list: list[int], limit: int) -> None:
    costs = {f"layer{index}": cost / 1 for index, cost in enumerate(costs_list)}
    found = raise_layers(problem(costs, limit=limit), budget=200)
    assert found.passed
    assert len(found.layers) == max(1, fewest(costs, limit)) or (sum(costs.values()) <= limit and found.layers)
    assert sum(cost for layer, cost in costs.items() if layer not in found.layers) <= limit


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 10_000))
def test_the_budget_is_kept_whatever_it_is(budget: int, layers: int, seed: int) -> None:
    costs = {f"layer{index}": float((seed * (index + 3)) % 17) for index in range(layers)}
    asked = []
    one = problem(costs, limit=3.0)
    counted = Problem(
        macs=one.macs, all_macs=one.all_macs, make=one.make, samples=8, total=100,
        measure=lambda graph: (asked.append(graph), one.measure(graph))[1],
        judge=lambda graph: (asked.append(graph), one.judge(graph))[1],
    )  # fmt: skip
    found = raise_layers(counted, budget=budget)
    assert len(asked) == found.evaluations <= budget == found.budget
    left = sum(cost for layer, cost in costs.items() if layer not in found.layers)
    assert not found.passed or left <= 3.0


def test_where_nothing_passes_nothing_is_raised_and_every_try_is_told() -> None:
    found = raise_layers(problem({"a": 1.0, "b": 1.0, "c": 1.0}, limit=-1), budget=100)
    assert (found.passed, found.layers) == (False, ())
    assert [step.kept for step in found.steps] == [1, 2, 3]
    assert {step.verdict for step in found.steps} == {"fail"}


def test_a_layer_that_the_others_make_harmless_is_left_out_again() -> None:
    """`b` alone looks worst, but raising `a` and `c` is enough, and `b` is the expensive one."""
    macs = {"a": 1, "b": 1000, "c": 1}

    def make(*, keep: Collection[str] = (), only: Collection[str] | None = None) -> bytes:
        return json.dumps([one for one in "abc" if one not in keep and (only is None or one in only)]).encode()

    def measure(graph: bytes) -> Loss:
        lower = json.loads(graph)
        return Loss({"b": 3.0, "a": 2.0, "c": 1.0}[lower[0]] if len(lower) == 1 else 3.0, 0.0)

    def judge(graph: bytes) -> Judged:
        return Judged("fail" if {"a", "c"} & set(json.loads(graph)) else "pass", 1.0)

    found = raise_layers(Problem(macs, 1002, make, measure, judge, 8, 100), budget=50)
    assert (found.passed, found.layers) == (True, ("a", "c"))


def test_equal_losses_are_ordered_by_the_error_of_the_outputs() -> None:
    errors = {"a": 0.1, "b": 0.3, "c": 0.2}

    def make(*, keep: Collection[str] = (), only: Collection[str] | None = None) -> bytes:
        return json.dumps([one for one in "abc" if one not in keep and (only is None or one in only)]).encode()

    def judge(graph: bytes) -> Judged:
        return Judged("pass" if "b" not in json.loads(graph) else "fail", 0.0)

    def measure(graph: bytes) -> Loss:
        return Loss(0.0, sum(errors[layer] for layer in json.loads(graph)))

    one = Problem(dict.fromkeys("abc", 1), 3, make, measure, judge, 8, 9)
    assert raise_layers(one, budget=30).layers == ("b",)


def test_a_loss_that_is_no_number_counts_as_the_worst_and_is_told_as_none() -> None:
    costs = {"a": 0.1, "b": math.nan, "c": 0.2}
    found = raise_layers(problem(costs, limit=0.5), budget=50)
    assert (found.passed, found.layers) == (True, ("b",))
    assert {one.layer: one.alone for one in found.sensitivities}["b"] is None


def test_a_budget_too_small_to_measure_all_takes_the_cheapest_to_raise() -> None:
    costs = {f"layer{index}": 1.0 for index in range(30)}
    macs = {layer: 1000 - index for index, layer in enumerate(costs)}
    found = raise_layers(problem(costs, limit=100.0, macs=macs), budget=24)
    measured = {one.layer for one in found.sensitivities if one.alone is not None}
    assert measured == set(sorted(costs, key=lambda layer: macs[layer])[: len(measured)])
    assert 0 < len(measured) < 30
    assert all(one.all_but is None for one in found.sensitivities)


def test_no_budget_asks_nothing() -> None:
    found = raise_layers(problem({"a": 1.0}, limit=0.0), budget=0)
    assert found == Raised(False, (), 0, 0, 8, found.sensitivities, ())
    assert [(one.layer, one.alone, one.all_but, one.error) for one in found.sensitivities] == [("a", None, None, None)]
