from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import soup.average
import soup.geometry
from soup import SoupError
from soup.average import cook
from soup.checkpoint import Checkpoint, read_checkpoint
from soup.geometry import Geometry, measure_geometry
from soup.tensors import StateDict
from soup.weights import Weight, Weights

few = settings(max_examples=30, deadline=None)
NAMES = ("conv.weight", "embed", "half", "head", "scale", "t")  # of the parameters, `head` tied to `embed`


def network(seed: int, *, spread: float = 0.01) -> StateDict:
    """Tensors in many layouts around one set of values, as fine-tunes of one base are."""
    base, own = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)

    def around(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=base) + spread * torch.randn(shape, generator=own)

    shared = around(30, 20)
    return {
        "conv.weight": around(8, 6, 3, 3).contiguous(memory_format=torch.channels_last),
        "embed": shared, "head": shared, "half": around(999).half(), "scale": around().double(), "t": around(9, 7).T,
        "index": torch.arange(5), "bn.running_mean": around(33), "bn.num_batches_tracked": torch.tensor(seed),
    }  # fmt: skip


def saved(folder: Path, states: list[StateDict]) -> dict[str, Checkpoint]:
    found = {}
    for index, state in enumerate(states):
        torch.save(state, folder / f"{index}.pt")
        checkpoint = read_checkpoint(folder / f"{index}.pt")
        found[checkpoint.sha256] = checkpoint
    return found


def vector(state: StateDict, *names: str) -> np.ndarray:
    """The tensors one after the other, tied ones once."""
    chosen = names or tuple(name for name in NAMES if name != "head")
    return np.concatenate([state[name].double().numpy().reshape(-1) for name in chosen])


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Checkpoint], dict[str, StateDict], Geometry]:
    """Five ingredients, their tensors, and their geometry."""
    states = [network(seed) for seed in range(5)]
    ingredients = saved(tmp_path_factory.mktemp("ingredients"), states)
    return ingredients, dict(zip(ingredients, states, strict=True)), measure_geometry(ingredients, NAMES)


Kitchen = tuple[dict[str, Checkpoint], dict[str, StateDict], Geometry]


def test_the_gram_matrix_is_that_of_the_differences_in_each_tensor(kitchen: Kitchen) -> None:
    ingredients, states, geometry = kitchen
    assert geometry.ingredients == tuple(sorted(ingredients))
    assert geometry.tensors == ("conv.weight", "embed", "half", "scale", "t")
    assert geometry.tied == {"head": "embed"}
    assert geometry.sizes.tolist() == [432, 600, 999, 1, 63]
    for index, name in enumerate(geometry.tensors):
        vectors = np.stack([vector(states[sha], name) for sha in geometry.ingredients])
        steps = vectors - vectors[0]
        np.testing.assert_allclose(geometry.gram[index], steps @ steps.T, rtol=1e-12, atol=1e-15)
        assert geometry.norms[index] == pytest.approx(vectors[0] @ vectors[0], rel=1e-14)


def test_blocks_change_nothing_but_the_order_of_the_sum(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    ingredients, _, geometry = kitchen
    monkeypatch.setattr(soup.geometry, "_ELEMENTS", 50)
    monkeypatch.setattr(soup.average, "BLOCK_BYTES", 300)
    small = measure_geometry(ingredients, NAMES)
    np.testing.assert_allclose(small.gram, geometry.gram, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(small.norms, geometry.norms, rtol=1e-12)


def test_the_order_in_which_ingredients_and_names_are_given_changes_no_bit(kitchen: Kitchen) -> None:
    ingredients, _, geometry = kitchen
    again = measure_geometry(dict(reversed(ingredients.items())), list(reversed(NAMES)))
    assert (again.gram.tobytes(), again.norms.tobytes()) == (geometry.gram.tobytes(), geometry.norms.tobytes())
    assert (again.ingredients, again.tensors) == (geometry.ingredients, geometry.tensors)


def test_differences_of_the_last_digit_are_measured_exactly(tmp_path: Path) -> None:
    """Through |a|² - 2ab + |b|² they would drown: the weights are 10⁷ times as large."""
    base = torch.full((5000,), 1000.0)
    states = [{"w": base}, {"w": base + 2.0**-13}]
    geometry = measure_geometry(ingredients := saved(tmp_path, states), ["w"])
    assert geometry.distance(*({sha: 1.0} for sha in ingredients)) == pytest.approx(
        2.0**-13 * math.sqrt(5000), rel=1e-14
    )


weights = st.lists(
    st.one_of(
        st.floats(0.1, 9),
        st.fixed_dictionaries({"": st.floats(0.1, 9), "conv": st.floats(0, 9), "embed": st.floats(0, 9)}),
    ),
    min_size=5,
    max_size=5,
)


@few
@given(weights, weights)
def test_the_distance_of_two_soups_is_that_of_their_weights(
    kitchen: Kitchen, one: list[Weight], two: list[Weight]
) -> None:
    ingredients, states, geometry = kitchen
    plain: list[Weight] = [1.0, 1.0, 1.0, 1.0, 1.0]
    for a, b in ((one, two), (one, plain)):
        a, b = [*a[:-1], 1.0], [*b[:-1], 1.0]  # at least one positive weight per tensor
        first, second = (dict(zip(ingredients, side, strict=True)) for side in (a, b))
        doubled = [mean(states, side) for side in (first, second)]
        expected = float(np.linalg.norm(doubled[0] - doubled[1]))
        assert geometry.distance(first, second) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def mean(states: dict[str, StateDict], given: Weights) -> np.ndarray:
    """The soup in float64, not rounded."""
    parts = []
    for name in (name for name in NAMES if name != "head"):
        shares = []
        for weight in given.values():
            part = name.partition(".")[0]
            shares.append(weight if isinstance(weight, float) else weight.get(part, weight[""]))
        parts.append(np.average([vector(states[sha], name) for sha in given], axis=0, weights=shares))
    return np.concatenate(parts)


def test_a_cooked_soup_lies_where_the_geometry_says(kitchen: Kitchen, tmp_path: Path) -> None:
    ingredients, _, geometry = kitchen
    a, b = list(ingredients)[:2]
    given: Weights = {a: {"": 1.0, "conv": 0.0}, b: 2.0}
    cooked = saved(tmp_path, [cook(given, ingredients)])
    together = measure_geometry({b: ingredients[b], **cooked}, NAMES)
    assert geometry.distance(given, {b: 1.0}) == pytest.approx(
        together.distance({b: 1.0}, {next(iter(cooked)): 1.0}), rel=1e-3
    )


def test_angles_are_those_at_the_origin(kitchen: Kitchen) -> None:
    _, states, geometry = kitchen
    a, b, c, d, _ = states
    origin: Weights = {c: 1.0, d: {"": 3.0, "conv": 0.0}}
    start = mean(states, origin)
    for tensor in (None, "t", "embed", "head"):
        names = () if tensor is None else (tensor,)
        inside = slice(None) if tensor is None else slice(*extent(states[a], "embed" if tensor == "head" else tensor))
        one, two = (vector(states[sha], *names) - start[inside] for sha in (a, b))
        expected = float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
        assert geometry.cosine(a, b, origin=origin, tensor=tensor) == pytest.approx(expected, rel=1e-9)


def extent(state: StateDict, tensor: str) -> tuple[int, int]:
    ends = np.cumsum([0, *(state[name].numel() for name in NAMES if name != "head")])
    index = [name for name in NAMES if name != "head"].index(tensor)
    return int(ends[index]), int(ends[index + 1])


def test_there_is_no_angle_at_an_ingredient_that_is_the_origin(kitchen: Kitchen) -> None:
    _, states, geometry = kitchen
    for a in states:  # the reference, and others, where rounding alone is left
        others = [b for b in states if b != a]
        assert math.isnan(geometry.cosine(a, others[0], origin={a: 1.0}))
        assert geometry.distance({a: 1.0}, {a: 0.1, others[0]: 0.0}) == 0.0


def test_equal_ingredients_are_at_distance_0_wherever_the_reference_is(tmp_path: Path) -> None:
    far, near = torch.randn(4000), torch.randn(4000)
    states: list[StateDict] = [{"w": far, "count": torch.tensor(0)}]
    states += [{"w": near, "count": torch.tensor(count)} for count in range(1, 5)]
    ingredients = saved(tmp_path, states)
    geometry = measure_geometry(ingredients, ["w"])
    copies = list(ingredients)[1:]
    assert [geometry.distance({copies[0]: 1.0}, {copy: 1.0}) for copy in copies] == [0.0] * 4
    assert math.isnan(geometry.cosine(copies[1], copies[2], origin={copies[0]: 1.0}))


def test_what_rounding_leaves_between_equals_is_no_length_and_no_angle() -> None:
    """`b` and `c` are equal and far from the reference, but for the last digit of one sum."""
    far, off = 3.0, np.nextafter(3.0, 4.0)
    gram = np.array([[[0, 0, 0], [0, off, far], [0, far, far]]])
    geometry = Geometry(("a", "b", "c"), ("w",), np.array([3]), gram, np.ones(1), {})
    assert geometry.distance({"b": 1.0}, {"c": 1.0}) == 0.0
    assert math.isnan(geometry.cosine("a", "b", origin={"c": 1.0}))


def test_the_plane_keeps_the_distances_of_three_points(kitchen: Kitchen) -> None:
    _, states, geometry = kitchen
    points: list[Weights] = [{sha: 1.0} for sha in list(states)[:3]]
    place = geometry.plane(points)
    for i in range(3):
        for j in range(3):
            kept = np.linalg.norm(place[i] - place[j])
            assert kept == pytest.approx(geometry.distance(points[i], points[j]), rel=1e-9, abs=1e-12)


def test_the_plane_is_the_pca_of_the_points(kitchen: Kitchen) -> None:
    _, states, geometry = kitchen
    points: list[Weights] = [{sha: 1.0} for sha in states] + [dict.fromkeys(states, 1.0), {min(states): {"": 1.0}}]
    vectors = np.stack([mean(states, point) for point in points])
    u, s, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    place = geometry.plane(points)
    np.testing.assert_allclose(np.abs(place), np.abs(u[:, :2] * s[:2]), atol=1e-6)
    assert place.tobytes() == geometry.plane(points).tobytes()
    largest = np.abs(place).max(axis=0)
    assert all(column[np.abs(column) > 1e-3 * top][0] > 0 for column, top in zip(place.T, largest, strict=True))


def test_points_on_a_line_or_on_one_spot_have_no_second_axis(kitchen: Kitchen) -> None:
    _, states, geometry = kitchen
    a, b = sorted(states)[1:3]
    line = geometry.plane([{a: 1.0, b: w} for w in (0.0, 1.0, 3.0)])
    length = geometry.distance({a: 1.0}, {b: 1.0})
    np.testing.assert_allclose(line[:, 0], (np.array([0, 0.5, 0.75]) - 1.25 / 3) * -length, atol=1e-9)
    assert np.all(line[:, 1] == 0)
    assert np.all(geometry.plane([{a: 1.0}, {a: 2.0}]) == 0)
    assert geometry.plane([{a: 1.0}]).tolist() == [[0.0, 0.0]]


def test_nan_among_the_weights_is_nan_and_never_0(tmp_path: Path) -> None:
    states = [{"w": torch.ones(3)}, {"w": torch.tensor([1.0, math.nan, 1.0])}, {"w": torch.zeros(3)}]
    ingredients = saved(tmp_path, states)
    geometry = measure_geometry(ingredients, ["w"])
    good, bad, other = ingredients
    assert math.isnan(geometry.distance({good: 1.0}, {bad: 1.0}))
    assert math.isnan(geometry.cosine(bad, other, origin={good: 1.0}))
    assert np.isnan(geometry.plane([{good: 1.0}, {bad: 1.0}])).all()


def test_names_and_ingredients_that_were_not_measured_are_refused(kitchen: Kitchen) -> None:
    ingredients, _, geometry = kitchen
    with pytest.raises(ValueError, match=r"conv\.wait"):
        measure_geometry(ingredients, ["conv.wait"])
    with pytest.raises(ValueError, match="not among the measured"):
        geometry.distance({"0" * 64: 1.0}, {min(ingredients): 1.0})
    with pytest.raises(SoupError, match=r"tensor 'conv\.weight' has no positive weight"):
        geometry.distance({min(ingredients): {"": 1.0, "conv": 0.0}}, {min(ingredients): 1.0})


def test_integers_among_the_names_are_left_out_and_progress_is_told(kitchen: Kitchen) -> None:
    ingredients, _, _ = kitchen
    told: list[tuple[str, int, int]] = []
    geometry = measure_geometry(ingredients, ["index", "t", "scale"], progress=lambda *step: told.append(step))
    assert geometry.tensors == ("scale", "t")
    assert told == [("measuring distances", 1, 2), ("measuring distances", 2, 2)]
