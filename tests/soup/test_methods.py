"""Each method on scores with a planted best, against its published formula, and with and without early stops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup.evaluate import Evaluation
from soup.greedy import greedy
from soup.methods import ema, greedy_repeated, last_k, model_stock, pruned, uniform, wise_ft
from soup.singles import Singles
from soup.trials import Bar, Rule, Score, Trial
from soup.weights import Weights, weight_of

HIGHER, LOWER = Rule(True), Rule(False)


def shares(weights: Weights, tensor: str = "w") -> dict[str, float]:
    """Each ingredient's part of the average of one tensor, without those of no part."""
    raw = {name: weight_of(weight, tensor) for name, weight in weights.items()}
    return {name: amount / math.fsum(raw.values()) for name, amount in raw.items() if amount}


def score_of(value: Callable[[dict[str, float]], float]) -> Score:
    def score(weights: Weights, bar: Bar | None) -> Evaluation:
        return Evaluation(1, np.ones(1, bool), {}, value(shares(weights)), None)

    return score


def near(target: Mapping[str, float]) -> Score:
    """Highest, at 0, where the shares are those planted."""
    return score_of(lambda one: -sum((one.get(name, 0) - target.get(name, 0)) ** 2 for name in {*one, *target}))


@dataclass
class Toy:
    """A linear two-class model whose weights are averaged for real; stops as soon as the bar is out of reach, or not.

    The accuracy of a higher_is_better rule, or the error rate. `images` counts what was looked at, once per mixture.
    """

    seed: int
    names: str
    stops: bool
    higher: bool = True
    size: int = 40
    looked_at: set[object] = field(default_factory=set)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        truth = random.normal(size=6)
        self.inputs = random.normal(size=(self.size, 6))
        self.right = self.inputs @ truth > 0
        self.parts = {name: truth + random.normal(size=6) * random.uniform(0.5, 3) for name in self.names}

    @property
    def images(self) -> int:
        return len(self.looked_at)

    def __call__(self, weights: Weights, bar: Bar | None) -> Evaluation:
        theta = sum(share * self.parts[name] for name, share in sorted(shares(weights).items()))
        correct = (self.inputs @ theta > 0) == self.right
        order = range(self.size) if bar is None else np.argsort(bar.holder.per_sample["correct"], kind="stable")
        seen = np.zeros(self.size, bool)
        for index in order:
            seen[index] = True
            self.looked_at.add((str(sorted(shares(weights).items())), int(index)))
            best = np.mean(correct | ~seen) if self.higher else np.mean(~correct & seen)
            within = bar is None or (best >= bar.value if self.higher else best <= bar.value)
            if self.stops and not within and not seen.all():
                return Evaluation(self.size, seen, {"correct": correct & seen}, None, float(best))
        value = float(np.mean(correct) if self.higher else np.mean(~correct))
        return Evaluation(self.size, seen, {"correct": correct}, value, None)


Method = Callable[[Score, Rule, str], tuple[list[Trial], Trial]]
METHODS: dict[str, Method] = {
    "uniform": lambda score, rule, names: uniform(names, score, rule),
    "greedy_repeated": lambda score, rule, names: greedy_repeated(Singles(names, score, rule), score, rule),
    "pruned": lambda score, rule, names: pruned(names, score, rule),
    "last_k": lambda score, rule, names: last_k(names, score, rule),
    "ema": lambda score, rule, names: ema(names, score, rule),
    "wise_ft": lambda score, rule, names: wise_ft(names[0], dict.fromkeys(names[1:] or "z", 1.0), score, rule),
    "model_stock": lambda score, rule, names: model_stock({name: {"": 1.0, "w": 2.0} for name in names}, score, rule),
}
METHOD = pytest.mark.parametrize("method", METHODS)


# One planted optimum, and one published formula, per method.


def test_uniform_is_the_plain_mean_of_all() -> None:
    trials, answer = uniform("abcd", near(dict.fromkeys("abcd", 0.25)), HIGHER)
    assert shares(answer.weights) == dict.fromkeys("abcd", 0.25)
    assert trials == [answer]
    assert (answer.value, answer.method, answer.reason, answer.kept) == (0, "uniform", "first", True)


def test_replacement_finds_proportions_that_greedy_cannot() -> None:
    score = near({"a": 0.6, "b": 0.2, "c": 0.2})
    once, _ = greedy_repeated(Singles("cba", score, HIGHER), score, HIGHER, passes=1)
    trials, answer = greedy_repeated(Singles("cba", score, HIGHER), score, HIGHER)
    assert answer.weights == {"a": 3.0, "b": 1.0, "c": 1.0}
    assert math.isclose(answer.value, 0, abs_tol=1e-12)
    assert once == trials[: len(once)]
    assert once[-1].weights == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_one_pass_of_greedy_repeated_is_greedy_under_another_name() -> None:
    toy = Toy(3, "abcdef", stops=False)
    trials, answer = greedy_repeated(Singles("abcdef", toy, HIGHER), toy, HIGHER, passes=1)
    same, best = greedy(Singles("abcdef", toy, HIGHER), toy, HIGHER)
    assert [(one.weights, one.kept, one.reason, one.value) for one in trials] == [
        (one.weights, one.kept, one.reason, one.value) for one in same
    ]
    assert answer.weights == best.weights
    assert {one.method for one in trials} == {"greedy_repeated"}


def selected_with_replacement(toy: Toy, names: str, passes: int) -> list[dict[str, float]]:
    """Caruana's bag of models in passes, written down a second time: the accepted bags, one after the other."""
    value = {name: toy({name: 1.0}, None).value for name in names}
    order = sorted(names, key=lambda name: (-value[name], name))
    bag, accepted = [order[0]], [{order[0]: 1.0}]

    def of(members: list[str]) -> float:
        return toy({name: float(members.count(name)) for name in members}, None).value or 0.0

    for number in range(passes):
        for name in order if number else order[1:]:
            better = of([*bag, name]) >= of(bag) if number == 0 else of([*bag, name]) > of(bag)
            if better:
                bag.append(name)
                accepted.append({name: float(bag.count(name)) for name in sorted(bag)})
    return accepted


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_greedy_repeated_accepts_what_selection_with_replacement_does(seed: int, count: int, passes: int) -> None:
    names = "abcdef"[:count]
    toy = Toy(seed, names, stops=True)
    trials, answer = greedy_repeated(Singles(names, toy, HIGHER), toy, HIGHER, passes=passes)
    expected = selected_with_replacement(Toy(seed, names, stops=False), names, passes)
    assert [dict(sorted(trial.weights.items())) for trial in trials if trial.kept] == expected
    assert dict(sorted(answer.weights.items())) == expected[-1]


def test_greedy_repeated_never_tries_the_same_mixture_twice() -> None:
    toy = Toy(5, "abc", stops=False)
    trials, _ = greedy_repeated(Singles("abc", toy, HIGHER), toy, HIGHER, passes=50)
    mixtures = [str(sorted((name, round(share, 12)) for name, share in shares(one.weights).items())) for one in trials]
    assert len(set(mixtures)) == len(mixtures)


def test_pruning_drops_exactly_what_harms() -> None:
    score = score_of(lambda one: -sum({"a": 0, "b": 5, "c": 0.1, "d": 3, "e": 0.1}[name] for name in one))
    trials, answer = pruned("abcde", score, HIGHER)
    assert set(answer.weights) == {"a", "c"} or set(answer.weights) == {"a", "e"}
    assert [trial.added for trial in trials[:6]] == [None, "e", "d", "c", "b", "a"]  # the expected worst first
    assert len(trials) == 1 + 5 + 4 + 3


def eliminated(toy: Toy, names: str) -> tuple[str, ...]:
    """Backward elimination, written down a second time."""
    left = tuple(sorted(names))
    while len(left) > 2:
        smaller = {name: tuple(other for other in left if other != name) for name in left}
        values = {name: toy(dict.fromkeys(soup, 1.0), None).value for name, soup in smaller.items()}
        now = toy(dict.fromkeys(left, 1.0), None).value
        out = min(values, key=lambda name: (-(values[name] or 0), name))
        if not (values[out] or 0) > (now or 0):
            break
        left = smaller[out]
    return left


@given(st.integers(0, 10_000), st.integers(1, 6), st.permutations("abcdef"))
@settings(max_examples=60, deadline=None)
def test_pruning_is_backward_elimination_in_whatever_order_it_tries(seed: int, count: int, order: list[str]) -> None:
    names = "abcdef"[:count]
    toy = Toy(seed, names, stops=True, size=15)
    trials, answer = pruned([name for name in order if name in names], toy, HIGHER)
    assert tuple(sorted(answer.weights)) == eliminated(Toy(seed, names, stops=False, size=15), names)
    assert answer.evaluation.value is not None
    assert len(trials) <= max(1, count * (count + 1) // 2 - 2)


def test_pruning_needs_the_gain_that_is_asked_for() -> None:
    score = score_of(lambda one: 0.5 - 0.01 * len(one))
    assert len(pruned("abcd", score, Rule(True, min_gain=0.02))[1].weights) == 4
    assert len(pruned("abcd", score, Rule(True, min_gain=0.005))[1].weights) == 2


def test_pruning_keeps_what_only_costs_nothing() -> None:
    assert len(pruned("abcd", score_of(lambda one: 0.5), HIGHER)[1].weights) == 4


def test_pruning_within_noise_of_the_whole_is_not_kept() -> None:
    score = score_of(lambda one: 0.5 - 0.01 * len(one))
    trials, answer = pruned("abc", score, Rule(True, confidence=0.95, p_value=lambda better, worse: 0.06))
    assert len(answer.weights) == 3
    assert [trial.reason for trial in trials] == ["first", "within_noise", "within_noise", "within_noise"]


def test_last_k_finds_the_tail_that_was_planted_by_its_plain_mean() -> None:
    trials, answer = last_k("abcde", near({"c": 1 / 3, "d": 1 / 3, "e": 1 / 3}), HIGHER)
    assert shares(answer.weights) == {"c": 1 / 3, "d": 1 / 3, "e": 1 / 3}
    assert [set(trial.weights) for trial in trials] == [set("de"), set("cde"), set("bcde"), set("abcde")]
    assert [trial.reason for trial in trials] == ["first", "kept", "worse", "worse"]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.floats(0.01, 0.99))
@settings(max_examples=80, deadline=None)
def test_ema_weights_are_those_of_the_recursion_from_zero_corrected_for_its_start(
    xs: list[float], decay: float
) -> None:
    theta = 0.0
    for x in xs:
        theta = decay * theta + (1 - decay) * x
    names = [chr(97 + place) for place in range(len(xs))]
    _, answer = ema(names, score_of(lambda one: 0.0), HIGHER, decays=[decay])
    mine = sum(share * xs[names.index(name)] for name, share in shares(answer.weights).items())
    assert math.isclose(mine, theta / (1 - decay ** len(xs)), abs_tol=1e-9)


def test_ema_finds_the_length_that_was_planted() -> None:
    total = 1 + 0.7 + 0.49
    trials, answer = ema("abc", near({"a": 0.49 / total, "b": 0.7 / total, "c": 1 / total}), HIGHER)
    assert len(trials) == 5
    assert answer.weights == {"a": 0.7**2, "b": 0.7, "c": 1.0}


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=5), st.integers(0, 1000), st.floats(0, 1), st.booleans())
@settings(max_examples=80, deadline=None)
def test_wise_ft_weights_are_the_published_line(xs: list[float], seed: int, alpha: float, among: bool) -> None:
    random = np.random.default_rng(seed)
    base, *others = "abcde"[: len(xs)]
    towards: dict[str, float | dict[str, float]] = {}
    for name in [base, *others] if among else others:
        plain = {"": random.uniform(0.1, 9), "net": random.uniform(0.1, 9), "net.fc": random.uniform(0.1, 9)}
        chosen = [plain[""], plain, {"": 2.0, "net.fc": 0.5}][random.integers(3)]
        towards[name] = chosen if isinstance(chosen, dict) else float(chosen)
    _, answer = wise_ft(base, towards, score_of(lambda one: 0.0), HIGHER, alphas=[alpha])
    for tensor in ("w", "net.conv", "net.fc", "net.fc.bias", "network"):
        value = dict(zip("abcde", xs, strict=False))
        soup = sum(share * value[name] for name, share in shares(towards, tensor).items())
        mine = sum(share * value[name] for name, share in shares(answer.weights, tensor).items())
        assert math.isclose(mine, (1 - alpha) * value[base] + alpha * soup, abs_tol=1e-9)


def test_wise_ft_finds_the_alpha_that_was_planted_whatever_the_weights_sum_to() -> None:
    trials, answer = wise_ft("a", {"b": 5.0, "c": 15.0}, near({"a": 0.7, "b": 0.075, "c": 0.225}), HIGHER)
    assert shares(answer.weights) == pytest.approx({"a": 0.7, "b": 0.075, "c": 0.225})
    assert [shares(trial.weights)["a"] for trial in trials] == pytest.approx([0.1 * step for step in range(9, 0, -1)])
    assert wise_ft("a", {"b": 1.0}, near({"a": 0.9, "b": 0.1}), HIGHER)[1].weights == {"a": 0.9, "b": 0.1}


def test_wise_ft_towards_weights_without_a_rest_leaves_the_base_without_one() -> None:
    towards = {"b": {"net": 1.0, "head": 3.0}, "c": {"net": 1.0, "head": 1.0}}
    _, answer = wise_ft("a", towards, score_of_tensor("head"), HIGHER, alphas=[0.5])
    assert shares(answer.weights, "head.bias") == {"a": 0.5, "b": 0.375, "c": 0.125}
    assert shares(answer.weights, "net.0") == {"a": 0.5, "b": 0.25, "c": 0.25}
    assert isinstance(answer.weights["a"], dict)
    assert answer.weights["a"].keys() == {"net", "head"}


def score_of_tensor(tensor: str) -> Score:
    def score(weights: Weights, bar: Bar | None) -> Evaluation:
        return Evaluation(1, np.ones(1, bool), {}, shares(weights, tensor)["a"], None)

    return score


def test_model_stock_scores_the_one_soup_it_is_given() -> None:
    weights = {"a": {"": 0.2, "net": 0.4}, "b": {"": 0.8, "net": 0.6}}
    trials, answer = model_stock(weights, near({"a": 0.2, "b": 0.8}), HIGHER)
    assert trials == [answer]
    assert answer.weights == weights
    assert (answer.reason, answer.kept) == ("first", True)
    assert math.isclose(answer.value, 0, abs_tol=1e-12)


# What holds for all of them.


@METHOD
@pytest.mark.parametrize("higher", [True, False])
@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_stopping_early_changes_no_decision_and_costs_no_more(method: str, higher: bool, seed: int, count: int) -> None:
    names = "abcdef"[:count]
    runs = []
    for stops in (False, True):
        toy = Toy(seed, names + "z", stops=stops, higher=higher, size=20)
        runs.append((*METHODS[method](toy, Rule(higher), names), toy.images))
    (full, expected, cost), (trials, answer, less) = runs
    said = [[(sorted(one.weights.items()), one.kept, one.reason, one.added) for one in run] for run in (trials, full)]
    if method == "greedy_repeated":  # greedy tests some out of turn, at a cost that its own tests bound
        said, less = [sorted(run, key=str) for run in said], 0
    assert said[0] == said[1]
    assert [(one.weights, one.value) for one in trials if one.kept] == [
        (one.weights, one.value) for one in full if one.kept
    ]
    assert (answer.weights, answer.evaluation.value) == (expected.weights, expected.evaluation.value)
    assert less <= cost


@METHOD
@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_ingredients_have_an_answer_that_was_measured_to_the_end(method: str, count: int) -> None:
    trials, answer = METHODS[method](Toy(1, "abz", stops=True), HIGHER, "ab"[:count])
    assert answer.evaluation.value is not None
    assert answer in trials
    assert {trial.method for trial in trials} == {method}
    assert trials[0].reason == "first"
    assert len({str(sorted(shares(trial.weights).items())) for trial in trials}) == len(trials)


@pytest.mark.parametrize(
    "method", sorted(METHODS.keys() - {"greedy_repeated"})
)  # singles without any score are refused before
def test_without_any_score_nothing_is_kept_but_there_is_an_answer(method: str) -> None:
    trials, answer = METHODS[method](score_of(lambda one: math.nan), HIGHER, "abc")
    assert math.isnan(answer.value)
    assert not any(trial.kept for trial in trials)
    assert {trial.reason for trial in trials} == {"not_a_number"}


@pytest.mark.parametrize("higher", [True, False])
def test_a_soup_without_a_score_gives_way_to_one_that_has_one_and_never_replaces_it(higher: bool) -> None:
    def value(one: dict[str, float]) -> float:
        return math.nan if one.keys() & {"x", "y"} else 0.5

    trials, answer = pruned("axby", score_of(value), Rule(higher))
    assert answer.reason == "not_a_number"  # one of two is not enough, and no search looks two steps ahead
    trials, answer = pruned("axbc", score_of(value), Rule(higher))
    assert set(answer.weights) == set("abc")
    assert [trial.reason for trial in trials] == ["not_a_number"] * 3 + ["kept", "not_a_number"] + ["worse"] * 3

    gain = 0.1 if higher else -0.1
    whole = score_of(lambda one: math.nan if len(one) > 2 else 0.5 + gain * ("abc".index(*set("abc") - one.keys())))
    trials, answer = pruned("abc", whole, Rule(higher))
    assert [trial.reason for trial in trials] == ["not_a_number", "kept", "worse", "worse"]
    reasons = [trial.reason for trial in pruned("cba", whole, Rule(higher))[0]]
    assert reasons == ["not_a_number", "worse", "worse", "kept"]  # of a round its winner alone, whatever the order
    assert set(answer.weights) == set("ab")

    trials, answer = last_k("yabx", score_of(lambda one: value(one) if len(one) != 3 else 0.5), Rule(higher))
    assert [trial.reason for trial in trials] == ["not_a_number", "kept", "not_a_number"]
    assert set(answer.weights) == set("abx")


def test_nan_that_stops_an_evaluation_is_named_as_such() -> None:
    def score(weights: Weights, bar: Bar | None) -> Evaluation:
        if len(weights) == 2 or bar is None:
            return Evaluation(1, np.ones(1, bool), {}, 0.5, None)
        return Evaluation(2, np.array([True, False]), {}, None, math.nan)

    assert [trial.reason for trial in last_k("abc", score, HIGHER)[0]] == ["first", "not_a_number"]
    assert [trial.reason for trial in pruned("abcd", score, HIGHER)[0]] == ["first"] + ["not_a_number"] * 4

    def without_c(weights: Weights, bar: Bar | None) -> Evaluation:
        whole = Evaluation(1, np.ones(1, bool), {}, 0.6 if "c" not in weights else 0.5, None)
        return (
            whole if bar is None or "c" not in weights else Evaluation(2, np.array([True, False]), {}, None, math.nan)
        )

    reasons = [trial.reason for trial in pruned("abc", without_c, HIGHER)[0]]
    assert reasons == ["first", "kept", "not_a_number", "not_a_number"]


@METHOD
def test_every_bar_is_the_best_so_far_and_what_starts_has_none(method: str) -> None:
    trials, _ = METHODS[method](Toy(7, "abcdez", stops=True), HIGHER, "abcde")
    best = [trials[0].value, *itertools.accumulate((one.value for one in trials if one.kept), max)]
    assert trials[0].bar is None
    assert all(trial.bar is not None and trial.bar.value <= max(best) for trial in trials[1:])
    assert all(trial.bar.holder.value is not None for trial in trials if trial.bar)


def test_of_equal_scores_sweeps_keep_the_last_and_pruning_the_whole() -> None:
    flat = score_of(lambda one: 0.5)
    assert len(last_k("abcd", flat, HIGHER)[1].weights) == 4
    assert ema("ab", flat, LOWER, decays=[0.3, 0.6])[1].weights == {"a": 0.6, "b": 1.0}
    assert shares(wise_ft("a", {"b": 1.0}, flat, HIGHER)[1].weights)["b"] == pytest.approx(0.9)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5, math.nan])
def test_a_decay_that_is_no_share_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        ema("ab", score_of(lambda one: 0.0), HIGHER, decays=[0.5, decay])


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_an_alpha_off_the_line_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        wise_ft("a", {"b": 1.0}, score_of(lambda one: 0.0), HIGHER, alphas=[alpha])


def test_a_sweep_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        ema("ab", score_of(lambda one: 0.0), HIGHER, decays=[])


def test_candidates_of_a_sweep_are_told_apart_by_name() -> None:
    score = score_of(lambda one: 0.5)
    assert [trial.label for trial in last_k("abc", score, HIGHER)[0]] == ["last 2", "last 3"]
    assert [trial.label for trial in ema("abc", score, HIGHER, decays=(0.5, 0.9))[0]] == ["decay 0.5", "decay 0.9"]
    assert [trial.label for trial in wise_ft("z", {"a": 1.0}, score, HIGHER, alphas=(0.2, 0.4))[0]] == [
        "α 0.2",
        "α 0.4",
    ]
