from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from soup.average import cook
from soup.checkpoint import Checkpoint, read_checkpoint
from soup.geometry import measure_geometry
from soup.stock import stock_ratio, stock_weights
from soup.tensors import StateDict
from soup.weights import Weights, weight_of


def saved(folder: Path, states: list[StateDict]) -> dict[str, Checkpoint]:
    found = {}
    for index, state in enumerate(states):
        save_file(state, folder / f"{index}.safetensors")
        checkpoint = read_checkpoint(folder / f"{index}.safetensors")
        found[checkpoint.sha256] = checkpoint
    return found


# ---- the ratio


@given(st.floats(0.001, 1))
def test_for_two_fine_tunes_it_is_the_papers_2cos_over_1_plus_cos(cosine: float) -> None:
    assert stock_ratio(cosine, 2) == pytest.approx(2 * cosine / (1 + cosine), rel=1e-15)


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("cosine", [0.05, 0.5, 0.95])
def test_it_reaches_the_point_nearest_to_the_centre_of_a_regular_simplex(count: int, cosine: float) -> None:
    """Found by trying: fine-tunes of unit length around base 0, their centre m with |m|² = cos, own parts at 90°."""
    axes = np.eye(count + 1)
    centre = math.sqrt(cosine) * axes[0]
    tuned = centre + math.sqrt(1 - cosine) * axes[1:]
    pairs = [one @ two for one, two in itertools.combinations(tuned, 2)]
    np.testing.assert_allclose(pairs, cosine, atol=1e-15)
    grid = np.linspace(0, 1, 100001)
    distances = np.linalg.norm(grid[:, None] * tuned.mean(axis=0) - centre, axis=1)
    assert stock_ratio(cosine, count) == pytest.approx(grid[distances.argmin()], abs=1e-5)


def test_it_goes_from_the_base_to_the_average() -> None:
    assert stock_ratio(1.0, 4) == 1.0
    assert stock_ratio(1.0 + 1e-9, 4) == 1.0
    assert [stock_ratio(cosine, 3) for cosine in (0.0, -0.2, -0.5, -0.9, math.nan)] == [0.0] * 5  # -0.5 is the pole
    assert stock_ratio(0.1, 100) > stock_ratio(0.1, 3) > stock_ratio(0.1, 2)


# ---- tensor by tensor


def around(base: torch.Tensor, cosine: float, count: int) -> list[torch.Tensor]:
    """`count` fine-tunes whose offsets have the same length and pairwise this cosine."""
    axes = torch.linalg.qr(torch.randn(base.numel(), count + 1, generator=torch.manual_seed(7)).double())[0].T
    offsets = math.sqrt(cosine) * axes[0] + math.sqrt(1 - cosine) * axes[1:]
    return [(base.double().reshape(-1) + offset).reshape(base.shape) for offset in offsets]


def test_each_tensor_gets_the_ratio_of_its_own_angle(tmp_path: Path) -> None:
    base = {"head.w": torch.randn(8, 5).double(), "stem.w": torch.randn(30).double()}
    heads, stems = around(base["head.w"], 0.9, 3), around(base["stem.w"], 0.2, 3)
    tuned: list[StateDict] = [{"head.w": head, "stem.w": stem} for head, stem in zip(heads, stems, strict=True)]
    ingredients = saved(tmp_path, [base, *tuned])
    first = next(iter(ingredients))
    weights = stock_weights(measure_geometry(ingredients, list(base)), first)
    for name, cosine in (("head.w", 0.9), ("stem.w", 0.2)):
        ratio = 3 * cosine / (1 + 2 * cosine)
        given = [weight_of(weights[sha], name) for sha in ingredients]
        assert given == pytest.approx([1 - ratio, *[ratio / 3] * 3], rel=1e-9)
        expected = ratio * sum(one[name] for one in tuned) / 3 + (1 - ratio) * base[name]
        torch.testing.assert_close(cook(weights, ingredients)[name], expected)


def test_the_angle_is_the_mean_cosine_of_all_pairs(tmp_path: Path) -> None:
    states: list[StateDict] = [{"w": torch.randn(50, generator=torch.manual_seed(3)) * 0.1}]
    states += [
        {"w": states[0]["w"] + 1 + torch.randn(50, generator=torch.manual_seed(seed)) * seed} for seed in (1, 2, 3)
    ]
    ingredients = saved(tmp_path, states)
    offsets = [(one["w"].double() - states[0]["w"].double()).numpy() for one in states[1:]]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(offsets, 2)]
    weights = stock_weights(measure_geometry(ingredients, ["w"]), base := next(iter(ingredients)))
    cosine = float(np.mean(cosines))
    assert 0.05 < cosine < 0.95
    assert 1 - weight_of(weights[base], "w") == pytest.approx(3 * cosine / (1 + 2 * cosine), rel=1e-9)


@pytest.mark.parametrize("base_at", [0, 1, 2])
def test_a_tensor_that_no_fine_tune_changed_keeps_the_bits_of_the_base(tmp_path: Path, base_at: int) -> None:
    """Wherever the base lies in the order of the SHA-256, and whatever the reference of the measurement is."""
    states: list[StateDict] = [{"frozen": torch.randn(100), "w": torch.randn(100)} for _ in range(4)]
    for state in states[:3]:
        state["frozen"] = states[0]["frozen"]
    ingredients = saved(tmp_path, states[:3])
    base = sorted(ingredients)[base_at]
    weights = stock_weights(measure_geometry(ingredients, ["frozen", "w"]), base)
    assert weight_of(weights[base], "frozen") == 1.0
    assert torch.equal(cook(weights, ingredients)["frozen"], states[0]["frozen"])


def test_what_was_not_measured_follows_the_whole_network_and_tied_names_their_tensor(tmp_path: Path) -> None:
    states: list[StateDict] = []
    for seed in range(3):
        shared = torch.randn(40, generator=torch.manual_seed(seed)) + seed
        states.append({"a": shared, "b": shared, "w": torch.randn(9) + seed, "bn.running_mean": torch.ones(3) * seed})
    for index, state in enumerate(states):
        torch.save(state, tmp_path / f"{index}.pt")
    ingredients = {one.sha256: one for one in (read_checkpoint(tmp_path / f"{index}.pt") for index in range(3))}
    base, *tuned = ingredients
    geometry = measure_geometry(ingredients, ["a", "w"])
    weights: Weights = stock_weights(geometry, base)
    assert weight_of(weights[base], "b") == weight_of(weights[base], "a")
    whole = stock_ratio(geometry.cosine(*tuned, origin={base: 1.0}), 2)
    assert weight_of(weights[base], "bn.running_mean") == pytest.approx(1 - whole, rel=1e-12)
    assert set(cook(weights, ingredients)) == set(states[0])


def test_a_base_and_two_fine_tunes_are_the_least(tmp_path: Path) -> None:
    ingredients = saved(tmp_path, [{"w": torch.randn(5)} for _ in range(3)])
    geometry = measure_geometry(ingredients, ["w"])
    with pytest.raises(ValueError, match="takes a base and two or more"):
        stock_weights(geometry, "0" * 64)
    two = dict(list(ingredients.items())[:2])
    with pytest.raises(ValueError, match="takes a base and two or more"):
        stock_weights(measure_geometry(two, ["w"]), min(two))
