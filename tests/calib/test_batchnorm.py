"""BatchNorm statistics against an oracle that records what each layer receives and computes in numpy float64."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from calib import CalibError
from calib.batchnorm import batchnorm_layers, install, measure, recalibrate, statistics

Batches = Sequence[torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_net() -> nn.Sequential:
    """A first BatchNorm on the image itself, a second behind a convolution and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm2d(4)).eval()


def images(count: int = 10, *, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def oracle(model: nn.Module, batches: Batches) -> dict[str, torch.Tensor]:
    """running_mean and running_var that each BatchNorm should end with; `model` is not touched."""
    model = copy.deepcopy(model).eval()
    received: dict[str, list[np.ndarray]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            layer.training = True  # not train(), which would switch on the dropout inside timm's layers
            layer.register_forward_pre_hook(
                lambda _, args, name=name: received.setdefault(name, []).append(args[0].double().numpy().copy())
            )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    expected = {}
    for name, arrays in received.items():
        values = np.concatenate([np.moveaxis(array, 1, 0).reshape(array.shape[1], -1) for array in arrays], axis=1)
        expected[f"{name}.running_mean"] = torch.from_numpy(values.mean(axis=1)).float()
        expected[f"{name}.running_var"] = torch.from_numpy(values.var(axis=1, ddof=1)).float()
    return expected


def assert_statistics(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    """To one unit in the last place: two float64 sums may lie on either side of a rounding boundary."""
    assert expected
    for name, value in expected.items():
        np.testing.assert_array_max_ulp(model.state_dict()[name].numpy(), value.numpy(), maxulp=1)


def everything(model: nn.Module) -> tuple[object, ...]:
    """All that a pass must leave alone, comparable with ==."""
    modules = list(model.modules())
    return (
        [module.training for module in modules],
        [(getattr(module, "momentum", 0), getattr(module, "track_running_stats", 0)) for module in modules],
        [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules],
        {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()},
    )


def test_statistics_equal_the_float64_population_over_unequal_batches() -> None:
    """Correctness 19."""
    model, batches = small_net(), images().split(4)
    expected = oracle(model, batches)
    result = recalibrate(model, batches)
    assert_statistics(model, expected)
    assert (result.layers, result.samples, result.batches) == (("0", "4"), 10, 3)
    assert model[0].num_batches_tracked == model[4].num_batches_tracked == 3


def test_a_large_mean_with_a_small_variance_comes_out_right() -> None:
    """Correctness 19: a float32 E[x²] - E[x]² is off by a factor of six here."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    batches = (images(50) / 20 + 1000).split(7)
    expected = oracle(model, batches)
    recalibrate(model, batches)
    assert_statistics(model, expected)
    assert model[0].running_var.mean() == pytest.approx(0.01, rel=0.05)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 10), min_size=1, max_size=6).map(lambda sizes: [*itertools.accumulate(sizes)]))
def test_the_first_batchnorm_does_not_depend_on_how_the_images_are_split(cuts: list[int]) -> None:
    """Correctness 19; the deeper one equals what it really received under that split."""
    everything_at_once, model = small_net(), small_net()
    batches = [batch for batch in images(20).tensor_split(cuts) if len(batch)]
    expected = oracle(model, batches)
    recalibrate(everything_at_once, [images(20)])
    recalibrate(model, batches)
    assert_statistics(model, expected)
    first = {name: value for name, value in everything_at_once.state_dict().items() if name.startswith("0.running")}
    assert_statistics(model, first)


@pytest.mark.parametrize("width", [torch.bfloat16, torch.float16])
def test_autocast_is_off_during_the_pass(width: torch.dtype) -> None:
    """Correctness 19."""
    model, batches = small_net(), images().split(4)
    expected = oracle(model, batches)
    with torch.autocast("cpu", dtype=width):
        recalibrate(model, batches)
    assert_statistics(model, expected)


@pytest.mark.parametrize(
    "noise",
    [
        nn.Dropout(0.5),
        nn.RReLU(),
        DropPath(0.5),
        StochasticDepth(0.5, "row"),
        timm.layers.BatchNormAct2d(4, drop_layer=nn.Dropout),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_only_batchnorm_runs_in_training_mode(noise: nn.Module, training: bool) -> None:
    """Correctness 20: dropout and stochastic depth stay off, in whatever mode the model is given."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), noise, nn.BatchNorm2d(4)).train(training)
    expected = oracle(model, images().split(5))
    recalibrate(model, images().split(5))
    assert_statistics(model, expected)
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (5, 3)),
        (nn.BatchNorm1d(3), (5, 3, 7)),
        (nn.BatchNorm2d(3, affine=False), (5, 3, 4, 4)),
        (nn.BatchNorm2d(3, momentum=None), (5, 3, 4, 4)),
        (nn.BatchNorm3d(3), (5, 3, 2, 3, 4)),
        (nn.SyncBatchNorm(3), (5, 3, 4, 4)),
        (timm.layers.BatchNormAct2d(3, drop_layer=nn.Dropout), (5, 3, 4, 4)),
        (timm.layers.SyncBatchNormAct(3), (5, 3, 4, 4)),
    ],
)
def test_every_kind_of_batchnorm_is_recalibrated(layer: _BatchNorm, shape: tuple[int, ...]) -> None:
    """Correctness 20."""
    if isinstance(layer, timm.layers.SyncBatchNormAct):
        layer.add_module("drop", nn.Identity())
        layer.add_module("act", nn.ReLU())
    model, momentum = nn.Sequential(layer), layer.momentum
    batches = [torch.randn(shape), torch.randn(shape) + 1]
    expected = oracle(model, batches)
    assert recalibrate(model, batches).layers == ("0",)
    assert_statistics(model, expected)
    assert layer.momentum == momentum


class Siamese(nn.Module):
    """One BatchNorm on two paths and under two names, and one that is used on wide images only."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.BatchNorm2d(3)
        self.alias = self.shared
        self.rare = nn.BatchNorm2d(3)

    def forward(self, image: torch.Tensor, *, scale: float = 3.0) -> torch.Tensor:
        out = self.shared(image) + self.alias(input=image * scale)
        return self.rare(out) if image.shape[3] > 6 else out


def test_the_calls_of_a_shared_batchnorm_are_pooled() -> None:
    """Correctness 20."""
    model, batches = Siamese(), images().split(4)
    result = recalibrate(model, batches)
    seen = torch.cat([images(), images() * 3]).double()
    torch.testing.assert_close(model.shared.running_mean, seen.mean((0, 2, 3)).float(), rtol=2e-7, atol=0)
    torch.testing.assert_close(model.shared.running_var, seen.var((0, 2, 3)).float(), rtol=2e-7, atol=0)
    assert model.shared.num_batches_tracked == 3
    assert set(statistics(model, result.layers)) == {
        f"{name}.{buffer}"
        for name in ("shared", "alias")
        for buffer in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_a_batchnorm_that_no_image_reached_keeps_its_statistics_and_is_listed() -> None:
    """Correctness 20."""
    model = Siamese()
    model.rare.running_mean.fill_(7)
    result = recalibrate(model, images().split(4))
    assert (result.layers, result.unreached) == (("shared",), ("rare",))
    assert model.rare.running_mean.tolist() == [7, 7, 7]
    assert model.rare.num_batches_tracked == 0


def frozen_models() -> dict[str, nn.Module]:
    evaluated = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).train()
    evaluated[0].eval()
    without_gradient = nn.Sequential(nn.BatchNorm2d(3).requires_grad_(False), nn.BatchNorm2d(3))
    return {
        "not a BatchNorm that trains": nn.Sequential(FrozenBatchNorm2d(3), nn.BatchNorm2d(3)),
        "InstanceNorm2d is not": nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.BatchNorm2d(3)),
        "no running statistics": nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3)),
        "eval mode while": evaluated,
        "need no gradient": without_gradient,
    }


@pytest.mark.parametrize("reason", frozen_models())
def test_a_frozen_batchnorm_is_left_alone_and_named_with_the_reason(reason: str) -> None:
    """Correctness 20."""
    model = frozen_models()[reason]
    before = {name: tensor.clone() for name, tensor in model[0].state_dict().items()}
    result = recalibrate(model, images().split(5))
    assert result.layers == ("1",)
    assert list(result.frozen) == ["0"]
    assert reason in result.frozen["0"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model[0].state_dict().items())
    outputs = torch.cat([model[0].eval()(batch) for batch in images().split(5)]).detach()
    np.testing.assert_allclose(model[1].running_mean, outputs.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-7)


def test_layers_can_be_named_as_frozen() -> None:
    """Correctness 20: model.eval() hides which layers were frozen on purpose."""
    model = nn.Sequential(small_net(), small_net(), nn.BatchNorm2d(4)).eval()
    assert list(batchnorm_layers(model, frozen=["0", "2"])) == ["1.0", "1.4"]
    with pytest.raises(CalibError, match=r"no BatchNorm at or below \['0.1', 'backbone'\]"):
        batchnorm_layers(model, frozen=["0.1", "0", "backbone"])


def test_a_model_whose_parameters_all_need_no_gradient_is_not_frozen() -> None:
    assert list(batchnorm_layers(small_net().requires_grad_(False))) == ["0", "4"]


def test_a_lazy_batchnorm_is_refused() -> None:
    with pytest.raises(CalibError, match="BatchNorm '0': is lazy and has seen no input"):
        recalibrate(nn.Sequential(nn.LazyBatchNorm2d()), [images()])


class Unruly(nn.BatchNorm2d):
    """Keeps its buffers itself, as some layers of the wild do."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.running_mean += 1
        return super().forward(values)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["model", "batches"])
def test_a_failure_in_the_middle_leaves_the_model_as_it_was(error: type[BaseException], where: str) -> None:
    """Correctness 21."""

    def batches() -> Iterator[torch.Tensor]:
        yield images()
        if where == "batches":
            raise error("in the middle")
        yield images(2)

    def fail_on_two(_: nn.Module, args: tuple[torch.Tensor]) -> None:
        if len(args[0]) == 2:
            raise error("in the middle")

    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), Unruly(3), nn.Dropout(), nn.Flatten()).train()
    model[2].eval()
    model[3].register_forward_pre_hook(fail_on_two)
    before = everything(model)
    with pytest.raises(error, match="in the middle"):
        recalibrate(model, batches())
    assert everything(model) == before


def test_success_changes_nothing_but_the_statistics() -> None:
    model = small_net()
    model[3].train()
    modes, constants, hooks, before = everything(model)
    recalibrate(model, images().split(5))
    assert everything(model)[:3] == (modes, constants, hooks)
    changed = {name for name, tensor in model.state_dict().items() if tensor.numpy().tobytes() != before[name]}
    assert changed == set(statistics(model, ["0", "4"]))


def test_statistics_that_do_not_fit_their_dtype_are_an_error_and_nothing_is_written() -> None:
    """Correctness 21."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].weight.data.fill_(1e4)
    model.append(nn.BatchNorm2d(3))
    model[2].running_var = model[2].running_var.half()
    before = everything(model)
    with pytest.raises(CalibError, match=r"BatchNorm '2': running_var reaches 1e\+08"):
        recalibrate(model, [images()])
    assert everything(model) == before


def test_an_empty_loader_is_an_error() -> None:
    """Correctness 22."""
    with pytest.raises(CalibError, match="got 0 batches for 2 layers, expected at least 1"):
        recalibrate(small_net(), iter(()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_is_told_with_batch_and_layer(bad: float) -> None:
    """Correctness 22."""
    model, batches = small_net(), list(images().split(4))
    batches[1][2, 0, 3, 3] = bad
    before = everything(model)
    with pytest.raises(CalibError, match="batch 2: BatchNorm '0' received NaN or Inf"):
        recalibrate(model, batches)
    assert everything(model) == before


def test_a_single_value_per_channel_is_told_with_batch_and_layer() -> None:
    """Correctness 22."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    with pytest.raises(CalibError, match="batch 3: BatchNorm '1' received 1 value per channel, expected 2 or more"):
        recalibrate(model, images(9).split(4))
    assert recalibrate(small_net(), images(1).split(1)).samples == 1, "one image of many pixels is enough"


def test_a_value_error_of_the_model_itself_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        recalibrate(small_net(), [torch.zeros(2, 3)])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda batch: (batch, torch.zeros(len(batch))),
        lambda batch: [batch],
        lambda batch: {"image": batch},
        lambda batch: batch.numpy(),
    ],
)
def test_tuples_lists_dicts_and_arrays_are_batches(wrap: object) -> None:
    """Correctness 22."""
    assert callable(wrap)
    plain, wrapped = Siamese(), Siamese()
    expected = recalibrate(plain, images().split(4))
    assert recalibrate(wrapped, [wrap(batch) for batch in images().split(4)]) == expected


def test_a_dict_gives_forward_its_keyword_arguments() -> None:
    """Correctness 22."""
    model = Siamese()
    recalibrate(model, [{"image": images(), "scale": 1.0}])
    np.testing.assert_allclose(model.shared.running_mean, images().mean((0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("batch", [None, (), {}, "image", (None, 1)])
def test_what_is_no_batch_is_refused(batch: object) -> None:
    """Correctness 22."""
    with pytest.raises(CalibError, match=r"batch 1: is .*, expected a tensor"):
        recalibrate(small_net(), [batch])


def test_the_same_batches_give_the_same_bits_whatever_the_buffers_held() -> None:
    """Correctness 23, 24 and 44."""
    fresh, stale = small_net(), small_net()
    for layer in batchnorm_layers(stale).values():
        layer.running_mean.fill_(1e6)
        layer.running_var.fill_(float("nan"))
    first, second = recalibrate(fresh, images().split(4)), recalibrate(stale, images().split(4))
    assert first == second
    assert everything(fresh) == everything(stale)


def test_order_and_batch_size_matter_below_the_first_layer_and_show_in_the_hash() -> None:
    """Correctness 44: why the recipe pins them."""
    hashes = {recalibrate(small_net(), images().split(size)).sha256 for size in (4, 5)}
    hashes.add(recalibrate(small_net(), images().flip(0).split(4)).sha256)
    assert len(hashes) == 3


@pytest.mark.parametrize("name", ["ConvNeXt", "VisionTransformer"])
def test_a_model_without_batchnorm_passes_through_and_no_batch_is_read(name: str) -> None:
    """Correctness 26."""
    small = {
        "ConvNeXt": lambda: timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=2),
        "VisionTransformer": lambda: timm.models.VisionTransformer(img_size=16, embed_dim=8, depth=1, num_heads=1),
    }
    model = small[name]()
    before, batches = everything(model), iter([images()])
    result = recalibrate(model, batches)
    assert (result.layers, result.frozen, result.batches, result.convergence) == ((), {}, 0, None)
    assert everything(model) == before
    assert len(list(batches)) == 1


def test_workers_that_share_the_batches_out_give_the_one_workers_bits() -> None:
    """Correctness 27."""
    alone, shared = small_net(), small_net()
    batches = images(22).split(4)
    expected = recalibrate(alone, batches)
    workers = [measure(small_net(), batches[0::2]), measure(small_net(), batches[1::2])]
    in_order = [part for pair in itertools.zip_longest(*workers) for part in pair if part is not None]
    assert install(shared, in_order) == expected
    assert everything(shared) == everything(alone)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(small_net(), Unruly(4))
    before = everything(model)
    measure(model, images().split(5))
    assert everything(model) == before


def test_convergence_tells_how_far_the_second_half_moved_the_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    assert recalibrate(model, [images()]).convergence is None
    assert recalibrate(model, [images(), images()]).convergence == pytest.approx(0, abs=1e-12)
    one = torch.ones(4, 3, 2, 2)
    # half: mean 1, variance 0; whole: mean 0, variance 1
    assert recalibrate(model, [one, -one]).convergence == pytest.approx(1)
    assert recalibrate(model, [one]).convergence is None
    settled = recalibrate(small_net(), images(1000).split(100)).convergence
    assert settled is not None
    assert 0 < settled < 0.05


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), timm.layers.BatchNormAct2d(3), nn.BatchNorm2d(3, affine=False)])
def test_a_layer_normalises_during_the_pass_as_training_mode_does(layer: _BatchNorm) -> None:
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
    measure(nn.Sequential(layer), [images() * 3 + 5])
    hook.remove()
    expected = copy.deepcopy(layer).train()(images() * 3 + 5)
    torch.testing.assert_close(seen[0], expected.detach(), rtol=1e-6, atol=1e-6)


class ChangesItsInput(nn.BatchNorm2d):
    """What it normalises is no longer what it received."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values.relu_())


def test_a_layer_that_changes_its_input_normalises_what_it_changed() -> None:
    model, seen = nn.Sequential(nn.Identity(), ChangesItsInput(3)), list[torch.Tensor]()
    model.register_forward_hook(lambda _module, _args, output: seen.append(output))
    measure(model, [images()])
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)
