"""The greedy search that stops early: the textbook's result for fewer images (section 1 of its docstring's promise)."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from soup.greedy import CAP, greedy
from soup.singles import Singles
from soup.trials import Rule
from tests.soup.score_tables import Table, random_margins, textbook

NOISE = st.sampled_from([0.02, 0.2, 0.6, 2.0])
TABLES = st.tuples(st.integers(2, 9), st.integers(3, 60), st.integers(0, 10_000), NOISE)
HIGHER = Rule(True)


def run(table, names, *, rule=HIGHER, pilot=None):
    singles = Singles(names, table.score, rule, pilot=pilot)
    trials, answer = greedy(singles, table.score, rule)
    return singles, trials, answer


@given(TABLES, st.sampled_from([None, 8]), st.sampled_from([0.0, 0.02, 0.05]), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_accepted_sets_kept_scores_and_winner_are_the_textbooks_whatever_order_is_expected(
    drawn, pilot, min_gain, random
) -> None:
    count, n, seed, noise = drawn
    names = [str(index) for index in range(count)]
    margins, rule = random_margins(names, n, seed=seed, noise=noise), Rule(True, min_gain)
    expected = textbook(names, margins, rule)
    random.shuffle(names)
    singles, trials, answer = run(Table(margins, n), names, rule=rule, pilot=pilot)
    assert [(frozenset(trial.weights), trial.value) for trial in trials if trial.kept] == expected
    assert (frozenset(answer.weights), answer.value) == expected[-1]
    assert {trial.added for trial in trials} == set(names)
    assert singles.best.value == expected[0][1]


@given(TABLES, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_a_rejected_candidate_tells_the_bound_at_which_it_stopped(drawn, random) -> None:
    """The bound is below what had to be reached, and the true score no higher than the bound."""
    count, n, seed, noise = drawn
    names = [str(index) for index in range(count)]
    random.shuffle(names)
    margins = random_margins(names, n, seed=seed, noise=noise)
    _, trials, _ = run(Table(margins, n), names)
    for trial in trials:
        if trial.evaluation.value is None:
            assert not trial.kept
            assert trial.bar is not None
            assert trial.evaluation.bound is not None
            true = int((margins(frozenset(trial.weights)) > 0).sum()) / n
            assert true <= trial.evaluation.bound < trial.bar.value
            assert not trial.evaluation.seen.all()


@given(st.integers(0, 10_000), st.sampled_from([6, 12, 20]), st.sampled_from([0.1, 0.3]))
@settings(max_examples=25, deadline=None)
def test_the_worst_order_costs_little_more_than_the_textbook(seed: int, count: int, noise: float) -> None:
    names, n = [str(index) for index in range(count)], 120
    margins = random_margins(names, n, seed=seed, noise=noise)
    worst_first = sorted(names, key=lambda name: int((margins(frozenset({name})) > 0).sum()))
    table = Table(margins, n)
    run(table, worst_first)
    assert table.images <= CAP * (2 * count - 1) * n


def test_a_candidate_tried_twice_and_a_single_taken_up_again_cost_no_image_twice() -> None:
    names, n = [str(index) for index in range(12)], 400
    table = Table(random_margins(names, n, seed=3, noise=0.1), n)
    run(table, names, pilot=16)
    assert max(int(memory.seen.sum()) for memory in table.memories.values()) <= n
    assert table.images == sum(int(memory.seen.sum()) for memory in table.memories.values())
    assert table.images < 23 * n


def test_hard_samples_are_asked_first() -> None:
    """A candidate that loses the soup's ten hardest samples and the next ten falls within three batches of five."""
    n = 100
    hard = np.linspace(1, -1, n)  # the last ten are wrong in the soup
    table = {frozenset("a"): hard + 0.8, frozenset("b"): hard - 0.5, frozenset("ab"): hard + 0.6}
    run(searched := Table(lambda chosen: table[chosen], n, batch=5), ["a", "b"])
    assert searched.known[frozenset("ab")].value is None
    assert list(np.flatnonzero(searched.known[frozenset("ab")].seen)) == list(range(85, 100))
