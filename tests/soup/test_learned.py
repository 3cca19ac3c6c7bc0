"""Learned coefficients: planted optima, plain autograd through the mixing formula, and what a fit leaves behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calib.samples import sample_sha256
from soup import SoupError
from soup.average import cook
from soup.checkpoint import read_checkpoint
from soup.data import Split
from soup.learned import fit_part, layers, learn_coefficients
from soup.tensors import StateDict
from soup.weights import Weight, weight_of

States = dict[str, StateDict]
CPU = torch.device("cpu")
fit = partial(learn_coefficients, loss="cross_entropy", device=CPU)


class Odd(nn.Module):
    """A parameter of the root, BatchNorm without any, two layers that share one, and a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4) + 3)
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.norm = nn.BatchNorm2d(4)
        self.norm.weight.data.uniform_(0.5, 1.5)
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.idle = nn.Linear(2, 2)  # not used
        self.register_buffer("calls", torch.zeros(1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        seen = self.norm(self.plain(self.conv(images))).relu().mean((2, 3)) * self.scale
        scores: torch.Tensor = 3 * self.other(self.one(seen).tanh())
        return scores


def mlp() -> nn.Sequential:
    """Scores far enough apart that the loss of what labelled the data is low."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    for parameter in model.parameters():
        parameter.data *= 3
    return model


def made(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """With BatchNorm statistics of its own, too."""
    torch.manual_seed(seed)
    model = build()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.8, 1.2).sub_(1.0 if "mean" in name else 0.0)
    return model.eval()


def split_of(images: np.ndarray, labels: np.ndarray) -> Split:
    hashes = tuple(sample_sha256(image) for image in images)
    return Split("val", images, {"label": labels}, hashes, hashes, None, None, (), None)


def learnt_by(teacher: nn.Module, shape: tuple[int, ...], n: int = 96) -> Split:
    """Random inputs, each labelled by the teacher."""
    images = np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)
    with torch.no_grad():
        return split_of(images, teacher(torch.from_numpy(images)).argmax(1).numpy())


def odd_case() -> tuple[nn.Module, States, Split]:
    states = {name: made(Odd, seed).state_dict() for seed, name in enumerate("abc")}
    return made(Odd, 9), states, learnt_by(made(Odd, 0), (1, 6, 6))


def loss_of(model: nn.Module, split: Split) -> float:
    with torch.no_grad():
        scores = model(torch.from_numpy(split.images))
    return float(nn.functional.cross_entropy(scores, torch.from_numpy(split.targets["label"])))


def by_autograd(
    model: nn.Module, states: States, split: Split, rows_of: Mapping[str, int], *, steps: int, lr: float
) -> np.ndarray:
    """Adam on the logits with the whole graph Σ softmax(logits)·x kept, buffers held constant in each step."""
    logits = torch.zeros(max(rows_of.values()) + 1, len(states), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=lr)
    for _ in range(steps):
        shares = logits.softmax(1)
        mixed = {}
        for name in states["a"]:
            if name != "other.weight" and states["a"][name].is_floating_point():
                row = shares[rows_of.get(name.rpartition(".")[0], rows_of[""])]
                stacked = torch.stack([state[name].double() for state in states.values()])
                mixed[name] = torch.tensordot(row, stacked, dims=1).float()
                if name in dict(model.named_buffers()):
                    mixed[name] = mixed[name].detach()
        scores = torch.func.functional_call(model, mixed, (torch.from_numpy(split.images),))
        adam.zero_grad()
        nn.functional.cross_entropy(scores, torch.from_numpy(split.targets["label"])).backward()
        adam.step()
    return np.asarray(logits.detach().softmax(1))


def test_the_one_good_ingredient_gets_nearly_all_of_the_weight() -> None:
    states = {name: made(mlp, seed).state_dict() for seed, name in enumerate("abcd")}
    good = made(mlp, 2)
    split = learnt_by(good, (6,))
    learned = fit(mlp(), states, split, np.arange(96), per_layer=False, epochs=20, batch=32)
    assert learned.weights["c"] > 0.95
    assert learned.loss_after < learned.loss_before / 2
    assert sum(learned.weights.values()) == pytest.approx(1, abs=4e-6)
    assert learned.images <= 96 * 41


def test_layers_that_are_good_in_different_ingredients_are_each_found_which_no_weight_per_model_can_do() -> None:
    good, bad = made(mlp, 2).state_dict(), made(mlp, 5).state_dict()
    states = {"a": {name: (good if name < "2" else bad)[name] for name in good},
              "b": {name: (bad if name < "2" else good)[name] for name in good}}  # fmt: skip
    split = learnt_by(made(mlp, 2), (6,))
    per_layer, per_model = (
        fit(mlp(), states, split, np.arange(96), per_layer=choice, epochs=20, batch=32) for choice in (True, False)
    )
    assert per_layer.weights["a"]["0"] > 0.95
    assert per_layer.weights["b"]["2"] > 0.95
    assert per_layer.loss_before == per_model.loss_before
    assert per_layer.loss_after < per_model.loss_after / 2


@pytest.mark.parametrize("per_layer", [False, True])
def test_steps_are_those_of_autograd_through_the_whole_mixing_formula(per_layer: bool) -> None:
    """Root parameter, shared parameter, BatchNorm with and without weights; K = 3, five steps of Adam."""
    model, states, split = odd_case()
    owners = ("", "conv", "norm", "one", "other")
    numbers = {"": 0, "conv": 1, "norm": 2, "one": 3, "other": 3} if per_layer else dict.fromkeys(owners, 0)
    learned = fit(model.train(), states, split, np.arange(96), per_layer=per_layer, epochs=5, batch=96, lr=0.05)
    expected = by_autograd(model.eval(), states, split, numbers, steps=5, lr=0.05)
    for column, name in enumerate("abc"):
        for owner in owners:
            assert weight_of(learned.weights[name], owner) == pytest.approx(expected[numbers[owner], column], abs=3e-6)
    assert (np.abs(expected - 1 / 3).max(axis=1) > 0.02).all()
    if per_layer:
        assert learned.weights["a"]["one"] == learned.weights["a"]["other"]


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_losses_told_are_those_of_the_soups_as_they_are_cooked(per_layer: bool, tmp_path: Path) -> None:
    model, states, split = odd_case()
    for name, state in states.items():
        torch.save(state, tmp_path / f"{name}.pt")
    read = [read_checkpoint(tmp_path / f"{name}.pt") for name in states]
    ingredients = {one.sha256: one for one in read}
    named = dict(zip(ingredients, states.values(), strict=True))
    learned = fit(model, named, split, np.arange(96), per_layer=per_layer, batch=40)
    for weights, told in (dict.fromkeys(named, 1.0), learned.loss_before), (learned.weights, learned.loss_after):
        cooked = cook(weights, ingredients)
        assert torch.equal(cooked["one.weight"], cooked["other.weight"])
        model.load_state_dict(cooked)
        assert loss_of(model, split) == pytest.approx(told, rel=1e-5)
    assert learned.loss_after < learned.loss_before


def test_whatever_has_no_layer_takes_the_mean_over_all_parameters() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3))

    states = {name: made(build, seed).state_dict() for seed, name in enumerate("ab")}
    learned = fit(build(), states, learnt_by(made(build, 0), (6,)), np.arange(96), per_layer=True)
    for weight in learned.weights.values():
        assert set(weight) == {"", "0", "2"}
        assert weight_of(weight, "1.running_mean") == pytest.approx(
            (35 * weight["0"] + 18 * weight["2"]) / 53, abs=2e-6
        )


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "vit_b_16", "swin_t"])
def test_the_prefixes_give_each_parameter_of_a_known_network_to_the_module_that_owns_it(name: str) -> None:
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **({"init_weights": False} if "goo" in name else {}))
    numbers = layers(model)
    weight: Weight = {prefix: float(number) for prefix, number in numbers.items()}
    owned = 0
    for prefix, module in model.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            owned += 1
            assert weight_of(weight, f"{prefix}.{own}" if prefix else own) == numbers[prefix]
    assert owned == len(list(model.parameters()))
    assert len(set(numbers.values())) == len(numbers)


class Failing(Odd):
    """Does `what` from the call `at` on."""

    def __init__(self, at: int, what: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.at, self.what, self.count = at, what, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.what(super().forward(images)) if self.count >= self.at else super().forward(images)


def fail(scores: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("out of luck")


@pytest.mark.parametrize(("at", "how"), [(1, fail), (4, fail), (5, fail), (4, torch.Tensor.detach), (999, fail)])
def test_the_network_is_left_as_it_was_also_by_a_fit_that_fails(
    at: int, how: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    _, states, split = odd_case()
    model = Failing(at, how)
    model.train()
    model.plain.eval()
    model.conv.weight.requires_grad_(False)
    tensors = [*model.parameters(), *model.buffers()]
    copies = [tensor.clone() for tensor in tensors]
    flags = [module.training for module in model.modules()]
    with contextlib.nullcontext() if at == 999 else pytest.raises(SoupError, match=r"^model: "):
        fit(model, states, split, np.arange(96), per_layer=True, epochs=1, batch=40)
    assert all(now is then for now, then in zip([*model.parameters(), *model.buffers()], tensors, strict=True))
    assert all(torch.equal(now, then) for now, then in zip(tensors, copies, strict=True))
    assert [module.training for module in model.modules()] == flags
    assert not model.conv.weight.requires_grad
    assert all(tensor.grad is None for tensor in tensors)


def test_an_interrupt_leaves_the_network_as_it_was() -> None:
    model, states, split = odd_case()
    model.train()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def interrupt(done: int, total: int) -> None:
        assert total == 96 * 21
        if done > 96:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, states, split, np.arange(96), per_layer=True, progress=interrupt)
    assert model.training
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


def test_the_coefficients_depend_on_nothing_but_the_samples_and_the_ingredients() -> None:
    model, states, split = odd_case()
    known = fit(model, states, split, np.arange(20, 90), per_layer=True, epochs=3, batch=16)
    torch.manual_seed(3)
    backwards = split_of(split.images[::-1].copy(), split.targets["label"][::-1].copy())
    turned = dict(reversed(states.items()))
    with torch.no_grad():
        again = fit(made(Odd, 5), turned, backwards, 95 - np.arange(20, 90), per_layer=True, epochs=3, batch=16)
    assert again == known
    assert list(again.weights) == sorted(states)
    assert all(weight == round(weight, 6) for each in known.weights.values() for weight in each.values())
    assert fit(model, states, split, np.arange(20, 90), per_layer=True, epochs=3, batch=16, seed=1) != known


def test_only_the_rows_given_are_looked_at() -> None:
    model, states, split = odd_case()
    rows = np.arange(0, 96, 2)
    apart = split_of(split.images[rows], split.targets["label"][rows])
    assert fit(model, states, split, rows, per_layer=False) == fit(model, states, apart, np.arange(48), per_layer=False)


def test_a_loss_that_cannot_fall_ends_the_fit_after_two_epochs_with_equal_shares() -> None:
    model, states, split = odd_case()
    copies = dict.fromkeys("abc", states["a"])
    learned = fit(model, copies, split, np.arange(96), per_layer=False)
    assert learned.weights == dict.fromkeys("abc", 0.333333)
    assert learned.loss_after == learned.loss_before
    assert learned.images == 96 * (1 + 2 * 2)


def test_nan_from_the_start_gives_equal_shares_and_says_so() -> None:
    model, states, split = odd_case()
    states["b"] = {name: tensor * torch.nan if "conv" in name else tensor for name, tensor in states["b"].items()}
    learned = fit(model, states, split, np.arange(96), per_layer=False)
    assert learned.weights == dict.fromkeys("abc", 0.333333)
    assert np.isnan([learned.loss_before, learned.loss_after]).all()
    assert learned.images == 96


def test_nan_on_the_way_ends_the_fit_with_the_best_so_far() -> None:
    _, states, split = odd_case()
    good, astray = Failing(999, torch.clone), Failing(4, lambda scores: scores * torch.nan)
    rows, options = np.arange(96), {"per_layer": True, "batch": 96}
    once = fit(good, states, split, rows, epochs=1, **options)
    learned = fit(astray, states, split, rows, epochs=9, **options)
    assert once.loss_after < once.loss_before
    assert (learned.weights, learned.loss_after) == (once.weights, once.loss_after)
    assert learned.images == 5 * 96


def test_an_ingredient_without_any_share_is_left_out_and_a_lone_one_is_a_single() -> None:
    good = made(mlp, 2)
    states = {"a": made(mlp, 5).state_dict(), "b": good.state_dict()}
    for per_layer in (False, True):
        learned = fit(mlp(), states, learnt_by(good, (6,)), np.arange(96), per_layer=per_layer, lr=4, batch=8)
        assert learned.weights == {"b": 1.0}
    alone = fit(mlp(), {"b": good.state_dict()}, learnt_by(good, (6,)), np.arange(96), per_layer=True)
    assert alone.weights == {"b": 1.0}


def test_ingredients_in_half_precision_are_mixed_as_the_numbers_they_are() -> None:
    model, states, split = odd_case()
    halves = {name: {key: one.half() if one.is_floating_point() else one for key, one in state.items()}
              for name, state in states.items()}  # fmt: skip
    wide = {name: {key: one.float() if one.is_floating_point() else one for key, one in state.items()}
            for name, state in halves.items()}  # fmt: skip
    rows = np.arange(96)
    assert fit(model, halves, split, rows, per_layer=True) == fit(model, wide, split, rows, per_layer=True)


class Narrow(nn.Module):
    """Computes in bfloat16, whatever it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp().bfloat16()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.body(inputs.bfloat16())
        return scores


def test_a_network_of_another_dtype_than_its_checkpoints_is_fitted_in_its_own() -> None:
    states = {name: {f"body.{key}": one for key, one in made(mlp, seed).state_dict().items()}
              for seed, name in enumerate("ab")}  # fmt: skip
    learned = fit(Narrow(), states, learnt_by(made(mlp, 1), (6,)), np.arange(96), per_layer=True, batch=16)
    assert min(learned.weights["b"].values()) > 0.7
    assert learned.loss_after < learned.loss_before


def test_nothing_to_learn_from_is_refused() -> None:
    model, states, split = odd_case()
    with pytest.raises(ValueError, match="0 rows"):
        fit(model, states, split, np.arange(0), per_layer=True)
    with pytest.raises(ValueError, match="0 ingredients"):
        fit(model, {}, split, np.arange(96), per_layer=True)


def hashes_of(n: int) -> list[str]:
    return [sample_sha256(np.array([sample])) for sample in range(n)]


@given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=120), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_half_of_each_class_is_fitted_on_to_one_sample(labels: list[int], seed: int) -> None:
    part = fit_part(len(labels), labels=np.array(labels), groups=None, hashes=hashes_of(len(labels)), seed=seed)
    for label in set(labels):
        inside = part[np.array(labels) == label]
        assert abs(int(inside.sum()) * 2 - len(inside)) <= 1
    assert part.dtype == bool
    assert 0 < part.sum() < len(labels)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_groups_stay_whole_and_the_order_of_listing_does_not_matter(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 60))
    groups = np.array(["first", *data.draw(st.lists(st.sampled_from("abcdef"), min_size=n - 1, max_size=n - 1))])
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    order = np.array(data.draw(st.permutations(range(n))))
    hashes = np.array(hashes_of(n))
    part = fit_part(n, labels=labels, groups=groups, hashes=hashes.tolist())
    for group in set(groups.tolist()):
        assert len(set(part[groups == group].tolist())) == 1
    again = fit_part(n, labels=labels[order], groups=groups[order], hashes=hashes[order].tolist())
    np.testing.assert_array_equal(again, part[order])
    assert 0 < part.sum() < n


def test_many_groups_of_mixed_classes_are_halved_class_by_class() -> None:
    random = np.random.default_rng(1)
    groups = random.integers(0, 60, 1000).astype(str)
    labels = (groups.astype(int) % 3 + (random.random(1000) < 0.1)) % 3
    part = fit_part(1000, labels=labels, groups=groups)
    for label in range(3):
        assert 0.46 < part[labels == label].mean() < 0.54
    assert 0.48 < part.mean() < 0.52


def test_single_samples_even_out_what_a_large_group_upset() -> None:
    groups = np.array([str(max(0, sample - 39)) for sample in range(100)])
    assert fit_part(100, labels=None, groups=groups, hashes=hashes_of(100)).sum() == 50


def test_copies_of_one_image_are_on_one_side_and_join_the_groups_that_hold_them() -> None:
    hashes = [*hashes_of(20)[:10] * 2, *hashes_of(30)[20:]]
    part = fit_part(30, labels=np.arange(30) % 2, groups=None, hashes=hashes)
    np.testing.assert_array_equal(part[:10], part[10:20])
    groups = np.array([*"aaaaaaaaaa", *"bbbbbbbbbb", *"cccccccccc"])
    assert len(set(fit_part(30, labels=None, groups=groups, hashes=hashes)[:20].tolist())) == 1


def test_another_seed_is_another_part_and_the_same_seed_the_same() -> None:
    parts = [fit_part(40, labels=np.arange(40) % 4, groups=None, hashes=hashes_of(40), seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(parts[0], parts[1])
    assert (parts[0] != parts[2]).any()


def test_one_group_alone_cannot_be_parted() -> None:
    with pytest.raises(SoupError, match="val: its 8 samples are of 1 group, expected 2 or more"):
        fit_part(8, labels=np.arange(8), groups=np.array(["film"] * 8))
