from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, prune, spectral_norm, weight_norm
from torch.nn.utils.parametrizations import orthogonal

from soup import SoupError
from soup.checkpoint import Checkpoint, read_checkpoint
from soup.models import tensor_table
from soup.preflight import preflight
from soup.tensors import StateDict

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")


def network(seed: int = 0, *, classes: int = 4) -> nn.Sequential:
    """A convnet with BatchNorm and a linear head, initialised from `seed`."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip


def finetuned(seed: int, *, classes: int = 4) -> StateDict:
    """The network of seed 0 with a little noise on its weights, as fine-tuning would leave it."""
    state = network(classes=classes).state_dict()
    generator = torch.manual_seed(seed)
    return {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor + seed
        for name, tensor in state.items()
    }


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Checkpoint]:
    def save(name: str, state: StateDict | nn.Module, **changes: object) -> Checkpoint:
        torch.save(state.state_dict() if isinstance(state, nn.Module) else state, tmp_path / name)
        return replace(read_checkpoint(tmp_path / name), **changes)  # type: ignore[arg-type]

    return save


Save = Callable[..., Checkpoint]


def refusal(*checkpoints: Checkpoint, model: nn.Module | None = None) -> str:
    """The message with which these are refused; paths cut to file names."""
    with pytest.raises(SoupError) as caught:
        preflight(checkpoints, model_spec=tensor_table(model) if model else None, on_bad="fail")
    return re.sub(r"/\S*/", "", str(caught.value))


def test_finetunes_of_one_network_pass_without_a_finding(saved: Save) -> None:
    ingredients = [saved(f"{seed}.pt", finetuned(seed)) for seed in range(3)]
    checked = preflight(ingredients, model_spec=tensor_table(network()), on_bad="fail")
    assert (checked.ingredients, checked.set_aside, checked.findings) == (tuple(ingredients), (), ())


def test_the_cosine_is_that_of_all_kernels_and_matrices_laid_end_to_end(saved: Save) -> None:
    states = [finetuned(0), network(1).state_dict()]
    first, other = (saved(f"{index}.pt", state) for index, state in enumerate(states))
    checked = preflight([first, other], model_spec=None, on_bad="fail")
    vectors = [torch.cat([state[name].double().flatten() for name in ("0.weight", "5.weight")]) for state in states]
    expected = float(torch.nn.functional.cosine_similarity(*vectors, dim=0))
    assert checked.cosines[other.sha256] == pytest.approx(expected, abs=1e-12)
    assert checked.cosines[first.sha256] == pytest.approx(1)


def test_independent_initialisations_are_warned_of_although_their_gains_agree(saved: Save) -> None:
    ingredients = [saved("a.pt", network(0)), saved("b.pt", network(1))]
    (finding,) = preflight(ingredients, model_spec=None, on_bad="fail").findings
    assert (finding.level, finding.where) == ("warning", str(ingredients[1].path))
    assert "independent initialisations?" in finding.what


# ---- names and shapes (correctness 14)


def test_the_whole_difference_of_all_ingredients_is_listed_at_once(saved: Save) -> None:
    """Correctness 14."""
    first = finetuned(0)
    narrow = {**finetuned(1), "0.weight": torch.randn(8, 1, 3, 3), "extra": torch.ones(2), "more": torch.ones(2)}
    del narrow["1.weight"], narrow["1.bias"]
    text = refusal(
        saved("a.pt", first), saved("b.pt", narrow), saved("c.pt", {**finetuned(2), "5.bias": torch.arange(4)})
    )
    assert text.splitlines() == [
        "b.pt: lacks 2 tensors that the first ingredient has: '1.weight', '1.bias'.",
        "b.pt: has 2 tensors that the first ingredient lacks: 'extra', 'more'. checkpoints.drop leaves tensors out.",
        "b.pt: tensor '0.weight' has shape (8, 1, 3, 3), expected (8, 3, 3, 3) as in the first ingredient.",
        "c.pt: tensor '5.bias' is int64, expected float32 as in the first ingredient.",
        "checkpoints: leave these out, or set on_bad_ingredient: skip.",
    ]


def test_another_number_of_classes_is_called_so(saved: Save) -> None:
    """Correctness 14."""
    text = refusal(saved("a.pt", finetuned(0)), saved("b.pt", finetuned(1, classes=7)))
    assert text.splitlines()[:2] == [
        "b.pt: the last layer '5' has 7 classes, expected 4 as in the first ingredient.",
        "b.pt: tensor '5.weight' has shape (7, 8), expected (4, 8) as in the first ingredient.",
    ]


def test_the_model_counts_more_than_the_first_ingredient_and_one_line_tells_of_all(saved: Save) -> None:
    ingredients = [saved(f"{seed}.pt", finetuned(seed)) for seed in range(3)]
    text = refusal(*ingredients, model=network(classes=10))
    assert text.splitlines()[0] == "0.pt and 2 more: the last layer '5' has 4 classes, expected 10 as in the model."
    assert "on_bad_ingredient" not in text  # it would leave nothing


def test_skip_sets_the_odd_ones_aside_with_all_their_reasons(saved: Save) -> None:
    good, odd = saved("a.pt", finetuned(0)), saved("b.pt", finetuned(1, classes=7))
    checked = preflight([good, odd], model_spec=tensor_table(network()), on_bad="skip")
    assert checked.ingredients == (good,)
    ((path, reason),) = checked.set_aside
    assert path == odd.path
    assert "'5.weight' has shape (7, 8)" in reason
    assert "'5.bias' has shape (7,)" in reason


def test_skip_with_nothing_left_is_refused(saved: Save) -> None:
    with pytest.raises(SoupError, match="as in the model"):
        preflight([saved("a.pt", finetuned(0))], model_spec=tensor_table(network(classes=9)), on_bad="skip")


# ---- copies, kinds of weights, precisions


def test_a_copied_file_counts_once(saved: Save) -> None:
    """Correctness 16."""
    first = saved("a.pt", finetuned(0))
    copy = replace(first, path=first.path.with_name("copy.pt"))
    checked = preflight([first, copy], model_spec=None, on_bad="fail")
    assert checked.ingredients == (first,)
    assert [(finding.level, finding.where) for finding in checked.findings] == [("info", str(copy.path))]


def test_the_same_tensors_in_another_file_count_once(saved: Save) -> None:
    """Correctness 16: best.pt is most often one of the epochs, under another name inside the zip."""
    first, best = saved("epoch1.pt", finetuned(1)), saved("best.pt", {"state_dict": finetuned(1)})
    near = {**finetuned(1)}
    near["1.bias"] = near["1.bias"] + 1e-3  # no kernel differs
    other = saved("near.pt", near)
    checked = preflight([first, best, other], model_spec=None, on_bad="fail")
    assert checked.ingredients == (first, other)
    (finding,) = checked.findings
    assert (finding.level, finding.where) == ("info", str(best.path))
    assert finding.what == f"holds the tensors of '{first.path}', counted once."


@pytest.mark.parametrize("on_bad", ["fail", "skip"])
def test_raw_and_averaged_weights_do_not_mix(saved: Save, on_bad: str) -> None:
    """Correctness 13."""
    mixed = [saved("a.pt", finetuned(0)), saved("b.pt", {"model": finetuned(1), "model_ema": finetuned(2)})]
    with pytest.raises(
        SoupError, match=r"ema weights in 1 \('.*b.pt'\) and raw weights in 1 \('.*a.pt'\), expected one kind"
    ):
        preflight(mixed, model_spec=None, on_bad=on_bad)  # type: ignore[arg-type]


def test_float16_ingredients_are_warned_of(saved: Save) -> None:
    half = [
        saved(f"{i}.pt", {name: t.half() if t.is_floating_point() else t for name, t in finetuned(i).items()})
        for i in (0, 1)
    ]
    checked = preflight([*half, saved("2.pt", finetuned(2))], model_spec=tensor_table(network()), on_bad="fail")
    assert [finding.level for finding in checked.findings] == ["warning", "warning"]
    assert "tensor '0.weight' (and 6 more) is float32 and not float16" in checked.findings[0].what
    assert "all weights are float16 here (in 2 of 3 ingredients)" in checked.findings[1].what


# ---- values (correctness 17)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_tensor_with_nan_or_inf_is_named(saved: Save, value: float) -> None:
    """Correctness 17."""
    bad = finetuned(1)
    bad["1.running_var"][3] = value
    bad["5.weight"][0, :2] = value
    text = refusal(saved("a.pt", finetuned(0)), saved("b.pt", bad))
    assert text.splitlines()[0] == "b.pt: tensor '1.running_var' holds NaN or Inf in 1 of 8 values."


def test_a_first_ingredient_with_nan_is_set_aside_and_the_next_one_is_compared_with(saved: Save) -> None:
    """Correctness 17."""
    bad = finetuned(0)
    bad["0.weight"][0] = float("nan")
    ingredients = [saved("a.pt", bad), saved("b.pt", finetuned(1)), saved("c.pt", finetuned(2))]
    checked = preflight(ingredients, model_spec=tensor_table(network()), on_bad="skip")
    assert checked.ingredients == tuple(ingredients[1:])
    assert [path for path, _ in checked.set_aside] == [ingredients[0].path]
    assert checked.cosines[ingredients[1].sha256] == pytest.approx(1)
    assert checked.cosines[ingredients[2].sha256] > 0.9


def test_integers_that_differ_are_refused_but_counters_may(saved: Save) -> None:
    """Correctness 1; the counters of `finetuned` differ in every test here."""
    states = [{**finetuned(seed), "index": torch.tensor([0, 1 + seed])} for seed in (0, 1)]
    text = refusal(*(saved(f"{index}.pt", state) for index, state in enumerate(states)))
    assert text.splitlines()[0].startswith("1.pt: tensor 'index' (torch.int64) is not that of '0.pt'")


# ---- what has no average (correctness 7, 8, 9)


def parametrised(kind: Callable[[nn.Module], nn.Module], seed: int) -> nn.Module:
    model = network(seed)
    kind(model[0])
    return model


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (weight_norm, "0.weight_g"),
        (nn.utils.parametrizations.weight_norm, "0.parametrizations.weight.original0"),
        (spectral_norm, "0.weight_orig"),
        (nn.utils.parametrizations.spectral_norm, "0.parametrizations.weight.original"),
        (orthogonal, "0.parametrizations.weight.original"),
    ],
)
def test_parametrised_weights_are_refused(saved: Save, kind: Callable[[nn.Module], nn.Module], name: str) -> None:
    """Correctness 7."""
    ingredients = [saved(f"{seed}.pt", parametrised(kind, seed)) for seed in (0, 1)]
    assert refusal(*ingredients).startswith(f"0.pt and 1 more: tensor '{name}' is part of a parametrised weight")
    assert preflight(ingredients[:1], model_spec=None, on_bad="fail").ingredients  # alone there is nothing to average


def test_folded_batchnorm_is_called_so(saved: Save) -> None:
    """Correctness 8."""
    model = network().eval()
    folded = nn.Sequential(fuse_conv_bn_eval(model[0], model[1]), nn.Identity(), *model[2:])
    first_line = refusal(saved("a.pt", finetuned(0)), saved("b.pt", folded), model=network()).splitlines()[0]
    assert first_line.startswith(
        "b.pt: BatchNorm is already folded into its layers ('0.bias' is here, '1.running_mean' of the model is not)"
    )


def test_pruned_ingredients_average_under_one_mask_only(saved: Save) -> None:
    """Correctness 9."""
    ingredients = []
    for seed, mask_seed in enumerate((5, 5, 6)):
        model = network()
        model.load_state_dict(finetuned(seed))
        torch.manual_seed(mask_seed)
        prune.random_unstructured(model[0], "weight", amount=0.5)
        ingredients.append(saved(f"{seed}.pt", model))
    assert len(preflight(ingredients[:2], model_spec=None, on_bad="fail").ingredients) == 2
    assert "2.pt: mask '0.weight_mask' is not that of '0.pt'" in refusal(*ingredients)


@pytest.mark.parametrize(
    ("first", "second", "averages"), [(0.5, 0.5, False), (0.9, 0.9, False), (0.0, 0.3, False), (0.0, 0.0, True)]
)
def test_zeros_in_other_places_are_refused(saved: Save, first: float, second: float, averages: bool) -> None:
    """Correctness 9: masks that were made permanent leave only their zeros."""
    ingredients = []
    for seed, share in enumerate((first, second)):
        state = finetuned(seed)
        for name in ("0.weight", "5.weight"):
            state[name] = state[name] * (torch.rand(state[name].shape, generator=torch.manual_seed(seed + 10)) >= share)
        ingredients.append(saved(f"{seed}.pt", state))
    if averages:
        assert preflight(ingredients, model_spec=None, on_bad="fail").ingredients
    else:
        assert "no longer pruned" in refusal(*ingredients)


def test_the_same_zeros_everywhere_are_fine(saved: Save) -> None:
    ingredients = []
    for seed in range(2):
        state = finetuned(seed)
        state["0.weight"][:4] = 0  # dead filters that fine-tuning leaves dead
        state["0.weight"][4, 0, 0, seed] = 0  # and one that happens to be zero here only
        ingredients.append(saved(f"{seed}.pt", state))
    assert len(preflight(ingredients, model_spec=None, on_bad="fail").ingredients) == 2


QUANTISED = {
    "0.weight_fake_quant.scale": True, "0.weight_fake_quant.zero_point": True,
    "0.activation_post_process.min_val": True, "quant.zero_point": True,
    "0.weight_fake_quant.fake_quant_enabled": True, "5._packed_params.dtype": True, "5.weight_quantizer._amax": True,
    "layer_scale.scale": False, "neck.scales.0.scale": False,
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTISED)
def test_names_of_quantisation_are_refused_and_learned_scales_are_not(saved: Save, name: str) -> None:
    """Correctness 9."""
    ingredients = [saved(f"{seed}.pt", {**finetuned(seed), name: torch.tensor([0.1])}) for seed in (0, 1)]
    if QUANTISED[name]:
        assert f"tensor '{name}' comes from quantisation" in refusal(*ingredients)
    else:
        assert preflight(ingredients, model_spec=None, on_bad="fail").ingredients


def test_weights_stored_in_bytes_are_refused(saved: Save) -> None:
    """Correctness 9."""
    ingredients = [saved(f"{i}.pt", {**finetuned(i), "5.weight": torch.ones(4, 8).to(torch.int8)}) for i in (0, 1)]
    assert "tensor '5.weight' comes from quantisation" in refusal(*ingredients)
