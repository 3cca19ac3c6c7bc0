from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import detection, segmentation

from calib.batchnorm import recalibrate
from exporters.onnx_facts import inspect_onnx
from exporters.parity import compare_outputs, within
from exporters.runtimes import open_onnx
from exporters.torch_to_onnx import torch_to_onnx
from soup import SoupError
from soup.adapters import adapt, adapt_segmentation, detach

IMAGES = np.random.default_rng(0).random((5, 3, 16, 24), np.float32)
ROUTES = pytest.mark.parametrize("opset", [17, 18], ids=["legacy", "dynamo"])
OWN = """
def decode(raw, images, scale=1.0):
    rows = raw["rows"]
    return {"scores": rows[..., 4:].sigmoid(), "boxes": rows[..., :4] * scale}


def wrong(raw, images):
    return raw["rows"]


def broken(raw, images):
    return raw["columns"], raw["rows"]
"""


class Dense(nn.Module):
    """Rows [n, 96, 4 + 3] of a small convnet with BatchNorm, as a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 7, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"rows": self.head(self.body(images)).flatten(2).transpose(1, 2)}


def dense() -> nn.Module:
    torch.manual_seed(0)
    return Dense().eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "decoding.py").write_text(OWN)
    return tmp_path


def run(model: nn.Module, images: np.ndarray = IMAGES) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: tensor.numpy() for name, tensor in model(torch.from_numpy(images)).items()}


def test_an_adapted_network_is_the_same_network_with_the_same_names(folder: Path) -> None:
    model = dense()
    names, modules, weights = list(model.state_dict()), [name for name, _ in model.named_modules()], model.state_dict()
    adapted = adapt(model, "./decoding.py:decode", {"scale": 2.0}, folder=folder, input_size=(16, 24))
    assert adapted is model
    assert type(model) is Dense
    assert list(model.state_dict()) == names
    assert [name for name, _ in model.named_modules()] == modules
    outputs = run(model)
    assert {name: array.shape for name, array in outputs.items()} == {"boxes": (5, 96, 4), "scores": (5, 96, 3)}
    fresh = Dense().eval()
    fresh.load_state_dict(weights)
    with torch.no_grad():
        rows = fresh(torch.from_numpy(IMAGES))["rows"].numpy()
    np.testing.assert_array_equal(outputs["boxes"], rows[..., :4] * 2)
    np.testing.assert_allclose(outputs["scores"], 1 / (1 + np.exp(-rows[..., 4:])), rtol=1e-5)


def test_a_deep_copy_answers_by_its_own_weights(folder: Path) -> None:
    model = adapt(dense(), "./decoding.py:decode", {}, folder=folder)
    other = copy.deepcopy(model)
    before = run(model)
    with torch.no_grad():
        other.head.weight.zero_()
    assert np.ptp(run(other)["boxes"], axis=(0, 1)).max() == 0
    np.testing.assert_array_equal(run(model)["boxes"], before["boxes"])


def test_weights_of_a_functional_call_reach_the_decoded_outputs(folder: Path) -> None:
    model = adapt(dense(), "./decoding.py:decode", {}, folder=folder)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        outputs = functional_call(model, zeros, (torch.from_numpy(IMAGES),))
    assert not outputs["boxes"].any()


def test_batchnorm_is_recalibrated_as_without_the_adapter(folder: Path) -> None:
    plain, adapted = dense(), adapt(dense(), "./decoding.py:decode", {}, folder=folder)
    found = [recalibrate(model, [IMAGES[:3], IMAGES[3:]]) for model in (plain, adapted)]
    assert found[0].layers == found[1].layers == ("body.1",)
    assert found[0].sha256 == found[1].sha256


@ROUTES
def test_both_exporters_take_it_with_a_dynamic_batch_and_without_a_note(folder: Path, opset: int) -> None:
    model = adapt(dense(), "./decoding.py:decode", {}, folder=folder)
    exported = torch_to_onnx(
        model, {"image": IMAGES[:3]}, folder / "m.onnx", inputs={}, outputs={"boxes": "float32", "scores": "float32"},
        batch=(1, 2, 5), opset=opset, metadata={}, simplify=False,
    )  # fmt: skip
    assert exported.notes[-1] == f"exported by the {'legacy' if opset == 17 else 'dynamo'} exporter"
    with open_onnx(exported.path, threads=1) as runtime:
        for count in (1, 5):
            assert within(compare_outputs(run(model, IMAGES[:count]), runtime({"input": IMAGES[:count]})))


@pytest.mark.parametrize("name", ["centernet", "yolo", "dfl", "detr"])
def test_each_decoder_goes_through_the_legacy_exporter_without_a_note(tmp_path: Path, name: str) -> None:
    """The other exporter is tried on whole families, in test_detection_families.py."""

    class Raw(Dense):
        def forward(self, images: Tensor) -> object:
            maps = self.head(self.body(images))
            rows = super().forward(images)["rows"]
            return {
                "centernet": (maps[:, :3], maps[:, 3:5], maps[:, 5:]),
                "yolo": rows.transpose(1, 2),
                "dfl": [maps],
                "detr": {"pred_logits": rows[..., 4:], "pred_boxes": rows[..., :4].sigmoid()},
            }[name]

    torch.manual_seed(0)
    options = {"yolo": {"layout": "v8"}, "dfl": {"layout": "dfl", "strides": [2], "reg_max": 1}}.get(name, {})
    spec = "yolo" if name == "dfl" else name
    model = adapt(Raw().eval(), spec, options, folder=tmp_path, input_size=(16, 24))
    exported = torch_to_onnx(
        model, {"image": IMAGES[:3]}, tmp_path / "m.onnx", inputs={},
        outputs={"boxes": "float32", "scores": "float32"}, batch=(1, 2, 5), opset=17, metadata={}, simplify=False,
    )  # fmt: skip
    assert exported.notes[-1] == "exported by the legacy exporter"
    with open_onnx(exported.path, threads=1) as runtime:
        assert within(compare_outputs(run(model), runtime({"input": IMAGES})), atol=1e-4, rtol=1e-4)


def test_adapting_again_replaces_the_adapter_and_detaching_gives_the_network_back(folder: Path) -> None:
    model = dense()
    raw = run(model)
    adapt(model, "./decoding.py:decode", {}, folder=folder)
    adapt(model, "./decoding.py:decode", {"scale": 3.0}, folder=folder)
    np.testing.assert_array_equal(run(model)["boxes"], raw["rows"][..., :4] * np.float32(3))
    detach(model)
    np.testing.assert_array_equal(run(model)["rows"], raw["rows"])
    detach(model)
    assert "forward" not in vars(model)


def test_a_forward_that_the_network_had_set_itself_is_the_one_that_is_decoded(folder: Path) -> None:
    class Switched(Dense):
        def __init__(self) -> None:
            super().__init__()
            self.forward = self.deployed  # type: ignore[method-assign]

        def deployed(self, images: Tensor) -> dict[str, Tensor]:
            return {"rows": super().forward(images)["rows"] * 0}

    model = adapt(Switched().eval(), "./decoding.py:decode", {}, folder=folder)
    assert not run(model)["boxes"].any()
    detach(model)
    assert not run(model)["rows"].any()


def test_outputs_that_are_decoded_already_pass_by_name_or_in_order(tmp_path: Path) -> None:
    class Decoded(Dense):
        def forward(self, images: Tensor) -> object:
            rows = super().forward(images)["rows"]
            return rows[..., :4].double(), rows[..., 4], rows[..., 5].long()

    outputs = run(adapt(Decoded().eval(), "none", {}, folder=tmp_path, input_size=(16, 24)))
    assert {name: (array.shape, array.dtype.name) for name, array in outputs.items()} == {
        "boxes": ((5, 96, 4), "float32"), "scores": ((5, 96), "float32"), "labels": ((5, 96), "int64"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "args", "message"),
    [
        ("yolov8", {}, r"adapter 'yolov8': is not known, expected torchvision, centernet, yolo, detr, none, '\./file"),
        ("yolo", {}, "argument 'layout' is missing, expected some of layout, output, strides, reg_max"),
        ("detr", {"layout": "v8"}, "argument 'layout' is not known, expected some of scores, background, logits"),
        ("none", {"scale": 1}, "argument 'scale' is not known, expected none"),
        ("none", {}, "adapter 'none': gave a dict of 'rows', expected the tensors boxes and scores"),
        ("detr", {}, "the network returned a dict of 'rows', expected 'pred_logits' in it"),
        ("./decoding.py:decoded", {}, "has no 'decoded'. Did you mean 'decode'?"),
        ("./decoding.py:wrong", {}, "gave Tensor, expected the tensors boxes and scores, as a dict or in this order"),
        ("./decoding.py:broken", {}, r"forward of one image \(1, 3, 16, 24\): raised KeyError at .*decoding\.py:12"),
        ("./decoding.py:decode", {"shift": 1}, "raised TypeError"),
    ],
)
def test_what_does_not_fit_is_told_and_leaves_the_network_without_an_adapter(
    folder: Path, spec: str, args: dict[str, object], message: str
) -> None:
    model = dense()
    with pytest.raises(SoupError, match=message):
        adapt(model, spec, args, folder=folder, input_size=(16, 24))
    assert "forward" not in vars(model)


def test_a_network_in_training_mode_is_refused(folder: Path) -> None:
    model = dense()
    model.body[1].train()
    with pytest.raises(SoupError, match=r"module 'body\.1' is in training mode\. Call model\.eval\(\) first"):
        adapt(model, "./decoding.py:decode", {}, folder=folder)


def test_shapes_that_do_not_go_together_are_told(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def decode(raw, images):\n    return raw['rows'][..., :4], raw['rows'][:, 1:]\n")
    with pytest.raises(SoupError, match=r"boxes \(n, 96, 4\), scores \(n, 95, 7\), expected \(n, A, 4\) and \(n, A, "):
        adapt(dense(), "./own.py:decode", {}, folder=tmp_path, input_size=(16, 24))


def test_an_auxiliary_head_stays_in_the_network_and_out_of_the_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    build = segmentation.deeplabv3_mobilenet_v3_large
    model = build(weights=None, weights_backbone=None, num_classes=3, aux_loss=True).eval()
    images = torch.rand(2, 3, 32, 48)
    names = list(model.state_dict())
    auxiliary = sum(tensor.numel() for name, tensor in model.named_parameters() if name.startswith("aux_"))
    with torch.no_grad():
        whole = model(images)
        found = adapt_segmentation(model)(images)
    assert set(whole) == {"out", "aux"}
    assert list(model.state_dict()) == names
    torch.testing.assert_close(found, whole["out"], rtol=0, atol=0)
    exported = torch_to_onnx(
        model, {"image": images.numpy()}, tmp_path / "m.onnx", inputs={}, outputs={}, batch=2, opset=17, metadata={},
        simplify=False,
    )  # fmt: skip
    assert [info.shape for info in exported.outputs] == [(2, 3, 32, 48)]
    weights = sum(tensor.numel() for tensor in model.parameters())
    assert auxiliary > 0
    assert inspect_onnx(exported.path).weights["float32"] <= weights - auxiliary


def test_segmentation_takes_a_name_an_attribute_or_the_tensor_itself() -> None:
    class Raw(nn.Module):
        def __init__(self, make: object) -> None:
            super().__init__()
            self.make = make

        def forward(self, images: Tensor) -> object:
            return self.make(images)  # type: ignore[operator]

    images = torch.rand(1, 3, 8, 8)
    for make, output in (
        (lambda x: x, "out"),
        (lambda x: {"logits": x}, "logits"),
        (lambda x: (x * 0, x), 1),
        (lambda x: type("Output", (), {"logits": x})(), "logits"),
    ):
        assert torch.equal(adapt_segmentation(Raw(make).eval(), output)(images), images)
    with pytest.raises(SoupError, match="the network returned a dict of 'logits', expected 'out' in it"):
        adapt_segmentation(Raw(lambda x: {"logits": x}).eval())(images)
    with pytest.raises(SoupError, match=r"'out' is \(1, 3\), expected \(n, classes, h, w\) or \(n, h, w\)"):
        adapt_segmentation(Raw(lambda x: {"out": x.mean((2, 3))}).eval())(images)


def test_anchors_survive_inference_mode_and_a_trace_without_them_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    build = detection.ssdlite320_mobilenet_v3_large
    model = build(weights=None, weights_backbone=None, num_classes=3).eval()
    adapt(model, "torchvision", {}, folder=tmp_path)
    with pytest.raises(SoupError, match="traced on images of 96 × 96, for which the anchors are not known"):
        torch.export.export(model, (torch.rand(2, 3, 96, 96),))
    with torch.inference_mode():
        model(torch.rand(1, 3, 96, 96))
    loss = model(torch.rand(1, 3, 96, 96))["boxes"].sum()
    loss.backward()
    assert model.head.regression_head.module_list[0][1].weight.grad is not None
