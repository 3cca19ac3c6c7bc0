"""The user's network: built from a name, loaded strictly, run as a Predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from soup import SoupError
from soup.models import build_model, load, named_outputs, select_device, tensor_table, to_device, torch_predict

CPU = torch.device("cpu")


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_file_beside_val_yaml_builds_the_network_in_evaluation_mode(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\ndef make(width): return nn.BatchNorm2d(width).train()\n")
    model = build_model("./net.py:make", {"width": 3}, folder=tmp_path)
    assert isinstance(model, nn.BatchNorm2d)
    assert model.num_features == 3
    assert not model.training


def test_torchvision_and_timm_build_by_name_without_weights() -> None:
    resnet = build_model("torchvision:resnet18", {"num_classes": 7}, folder=Path())
    assert tensor_table(resnet)["fc.weight"] == ((7, 512), "float32")
    vit = build_model("timm:test_vit", {"num_classes": 7}, folder=Path())
    assert tensor_table(vit)["head.weight"][0][0] == 7


@pytest.mark.parametrize("spec", ["torchvision:resnet19", "timm:no_such_net"])
def test_an_unknown_name_is_refused_with_the_call_that_lists_the_known_ones(spec: str) -> None:
    with pytest.raises(SoupError, match="list_models"):
        build_model(spec, {}, folder=Path())


@pytest.mark.parametrize("args", [{"pretrained": True}, {"weights": "DEFAULT"}, {"weights_backbone": "DEFAULT"}])
def test_arguments_that_would_download_weights_are_refused(args: dict[str, object]) -> None:
    with pytest.raises(SoupError, match="would download weights"):
        build_model("torchvision:resnet18", args, folder=Path())


@pytest.mark.parametrize(
    ("spec", "args"), [("timm:test_vit", {"pretrained": False}), ("torchvision:squeezenet1_1", {"weights": None})]
)
def test_arguments_that_ask_for_no_download_pass(spec: str, args: dict[str, object]) -> None:
    assert build_model(spec, args, folder=Path())


def test_a_callable_that_gives_no_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def make(): return {}\n")
    with pytest.raises(SoupError, match=r"returned dict, expected a torch.nn.Module"):
        build_model("./net.py:make", {}, folder=tmp_path)


def test_the_table_lists_what_a_checkpoint_must_hold_and_no_transient_buffer() -> None:
    model = nn.BatchNorm1d(2)
    model.register_buffer("scratch", torch.zeros(9), persistent=False)
    assert tensor_table(model) == {
        "weight": ((2,), "float32"), "bias": ((2,), "float32"),
        "running_mean": ((2,), "float32"), "running_var": ((2,), "float32"), "num_batches_tracked": ((), "int64"),
    }  # fmt: skip


@pytest.mark.parametrize("change", ["missing", "unexpected", "reshaped"])
def test_weights_that_do_not_fit_are_refused_by_name(change: str) -> None:
    state = small_net().state_dict()
    if change == "missing":
        del state["0.bias"]
    elif change == "unexpected":
        state["0.extra"] = torch.zeros(1)
    else:
        state["0.bias"] = torch.zeros(5)
    with pytest.raises(SoupError, match=r"the weights do not fit: .*0\.(bias|extra)"):
        load(small_net(), state)


def test_auto_takes_a_device_that_is_there_and_an_absent_one_is_an_environment_error() -> None:
    assert select_device("cpu") == CPU
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(SoupError, match="no CUDA device") as caught:
            select_device("cuda:0")
        assert caught.value.kind == "environment"


def test_a_prediction_equals_the_plain_model_in_evaluation_mode_and_changes_nothing() -> None:
    model, images = small_net().train(), np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outputs = torch_predict(model, device=CPU)({"input": images})
    with torch.no_grad():
        expected = small_net().eval()(torch.from_numpy(images)).numpy()
    assert outputs.keys() == {"output"}
    assert outputs["output"].dtype == np.float32
    np.testing.assert_allclose(outputs["output"], expected, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_half_precision_outputs_come_as_float32() -> None:
    outputs = torch_predict(nn.Identity(), device=CPU)({"input": np.ones((2, 3), np.float16)})
    assert outputs["output"].dtype == np.float32


def test_images_are_fed_channels_last_and_other_arrays_as_they_are() -> None:
    assert to_device(np.zeros((2, 3, 4, 4), np.float32), CPU).is_contiguous(memory_format=torch.channels_last)
    assert to_device(np.zeros((2, 3), np.float32), CPU).shape == (2, 3)


def test_outputs_are_named_by_kind() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert named_outputs(one) == {"output": one}
    assert list(named_outputs((one, two))) == ["output_0", "output_1"]
    assert named_outputs({"logits": one}) == {"logits": one}


@pytest.mark.parametrize("output", [None, 3.0, [torch.zeros(1), None], {"a": 1}])
def test_a_forward_that_gives_no_tensors_is_refused(output: object) -> None:
    with pytest.raises(SoupError, match="expected a tensor"):
        named_outputs(output)


def test_several_inputs_reach_forward_by_name() -> None:
    class Sum(nn.Module):
        def forward(self, right: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
            return left - right

    outputs = torch_predict(Sum(), device=CPU)({"left": np.full((1, 2), 5.0), "right": np.full((1, 2), 2.0)})
    np.testing.assert_array_equal(outputs["output"], np.full((1, 2), 3.0))
