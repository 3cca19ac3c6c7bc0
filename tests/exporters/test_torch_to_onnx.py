from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxslim
import pytest
import torch
from torch import Tensor, nn

from exporters import ExportError
from exporters.onnx_facts import inspect_onnx
from exporters.parity import compare_outputs, within
from exporters.runtimes import Arrays, TensorInfo, open_onnx
from exporters.torch_to_onnx import OnnxExport, torch_to_onnx

EXAMPLE = {"image": np.random.default_rng(0).random((3, 3, 8, 8), np.float32)}
ROUTES = pytest.mark.parametrize("opset", [17, 18], ids=["legacy", "dynamo"])


def convnet() -> nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout()]
    model = nn.Sequential(*layers, nn.Linear(4, 5))
    model(torch.rand(16, 3, 8, 8))  # statistics that are not the identity
    return model.eval()


def export(
    model: nn.Module,
    path: Path,
    *,
    example: Arrays = EXAMPLE,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    batch: int | tuple[int, int, int] = 2,
    opset: int = 18,
    metadata: Mapping[str, str] | None = None,
    simplify: bool = False,
) -> OnnxExport:
    return torch_to_onnx(
        model,
        example,
        path,
        inputs=inputs or {},
        outputs=outputs or {},
        batch=batch,
        opset=opset,
        metadata=metadata or {},
        simplify=simplify,
    )


def torch_outputs(model: nn.Module, images: np.ndarray) -> Arrays:
    with torch.no_grad():
        return {"output": model(torch.from_numpy(images)).numpy()}


@ROUTES
def test_the_exported_model_says_what_torch_says_at_min_opt_and_max_batch(tmp_path: Path, opset: int) -> None:
    """Correctness 34."""
    model, images = convnet(), np.random.default_rng(1).random((6, 3, 8, 8), np.float32)
    found = export(model, tmp_path / "m.onnx", batch=(1, 4, 6), opset=opset, simplify=True)
    assert found.inputs == (TensorInfo("input", "float32", ("batch", 3, 8, 8)),)
    assert found.outputs == (TensorInfo("output", "float32", ("batch", 5)),)
    with open_onnx(found.path, expected_sha256=found.sha256, threads=1) as runtime:
        for count in (1, 4, 6):
            reference = torch_outputs(model, images[:count])
            assert within(compare_outputs(reference, runtime({"input": images[:count]})), atol=1e-5, rtol=1e-5)


@ROUTES
def test_the_opset_is_the_one_that_was_asked_for_by_onnxs_own_reading(tmp_path: Path, opset: int) -> None:
    """Correctness 35: asked for 17, torch's default exporter gives 18 and only logs it."""
    found = export(convnet(), tmp_path / "m.onnx", opset=opset)
    proto = onnx.load(found.path)
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", opset)]
    assert found.opset == opset
    assert ("exported by the legacy exporter" in found.notes) is (opset == 17)


def test_an_opset_that_no_exporter_gives_is_refused_with_what_came_out(tmp_path: Path) -> None:
    """Correctness 35."""
    with pytest.raises(
        ExportError, match="cannot be exported at opset 99: the dynamo exporter gave opset 18"
    ) as caught:
        export(convnet(), tmp_path / "m.onnx", opset=99)
    assert caught.value.kind == "build"
    assert list(tmp_path.iterdir()) == []


@ROUTES
@pytest.mark.parametrize("simplify", [False, True])
def test_all_weights_and_no_local_path_are_in_the_file_and_its_bytes_repeat(
    tmp_path: Path, opset: int, simplify: bool
) -> None:
    """Correctness 36, and 46: the same content gives the same bytes."""
    metadata = {"recipe": "0" * 64, "labels": "cat,dog"}
    first = export(convnet(), tmp_path / "a.onnx", opset=opset, metadata=metadata, simplify=simplify)
    reordered = dict(reversed(metadata.items()))
    again = export(convnet(), tmp_path / "b.onnx", opset=opset, metadata=reordered, simplify=simplify)
    assert first.sha256 == again.sha256
    data = first.path.read_bytes()
    assert data == again.path.read_bytes()
    for local in (
        sys.prefix,
        str(Path.cwd()),
        str(Path(__file__).parent),
        str(tmp_path),
        str(Path.home()) + "/",
        ".py",
    ):
        assert local.encode() not in data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]
    facts = inspect_onnx(first.path)
    assert not facts.external_data
    assert facts.metadata == metadata
    assert facts.weights["float32"] == 3 * 4 * 9 + 4 + 4 * 5 + 5  # BatchNorm is folded


def test_a_model_beyond_what_one_file_can_hold_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """Correctness 36. On the meta device 2.1 GB take no memory."""
    model = nn.Linear(32768, 16384, bias=False, device="meta").eval()
    with pytest.raises(ExportError, match=r"the weights take 2\.15 GB, expected less than 2 GB"):
        export(model, tmp_path / "m.onnx")


def test_a_static_batch_is_static_and_larger_than_the_example_may_be(tmp_path: Path) -> None:
    found = export(convnet(), tmp_path / "m.onnx", batch=5)
    assert (found.inputs[0].shape, found.outputs[0].shape) == ((5, 3, 8, 8), (5, 5))


def test_names_and_dtypes_are_cast_at_the_edges_as_configured(tmp_path: Path) -> None:
    model, pixels = convnet(), np.arange(2 * 192, dtype=np.uint8).reshape(2, 3, 8, 8)
    found = export(model, tmp_path / "m.onnx", inputs={"pixels": "uint8"}, outputs={"logits": "float16"}, simplify=True)
    assert [(info.name, info.dtype) for info in (*found.inputs, *found.outputs)] == [
        ("pixels", "uint8"),
        ("logits", "float16"),
    ]
    with open_onnx(found.path, threads=1) as runtime:
        logits = runtime({"pixels": pixels})["logits"]
    np.testing.assert_array_equal(logits, torch_outputs(model, pixels.astype(np.float32))["output"].astype(np.float16))


class TwoHeads(nn.Module):
    def forward(self, image: Tensor, offset: Tensor) -> dict[str, object]:
        flat = image.flatten(1)
        return {"scores": flat + offset, "rest": (flat.sum(1), [flat.argmax(1)])}


def test_several_inputs_and_nested_outputs_come_out_flat_and_in_order(tmp_path: Path) -> None:
    example = {"image": np.ones((2, 1, 2, 2), np.float32), "offset": np.arange(2, dtype=np.float32)[:, None]}
    defaults = export(TwoHeads().eval(), tmp_path / "m.onnx", example=example)
    assert [info.name for info in defaults.inputs] == ["input", "input_1"]
    assert [(info.name, info.dtype) for info in defaults.outputs] == [
        ("output", "float32"),
        ("output_1", "float32"),
        ("output_2", "int64"),
    ]
    with open_onnx(defaults.path, threads=1) as runtime:
        outputs = runtime({"input": example["image"], "input_1": example["offset"]})
    assert outputs["output"].tolist() == [[1, 1, 1, 1], [2, 2, 2, 2]]
    assert outputs["output_1"].tolist() == [4, 4]


def test_names_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"2 output names are given \(a, b\), the model has 1") as caught:
        export(convnet(), tmp_path / "m.onnx", outputs={"a": "float32", "b": "float32"})
    assert caught.value.kind == "input"
    with pytest.raises(ExportError, match=r"input dtypes \{'x': 'float8'\}, expected some of float32, float16"):
        export(convnet(), tmp_path / "m.onnx", inputs={"x": "float8"})


def test_a_model_in_training_mode_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    model = convnet()
    model[5].train()
    with pytest.raises(ExportError, match=r"1 modules are in training mode \(first: '5'\)") as caught:
        export(model, tmp_path / "m.onnx")
    assert caught.value.kind == "input"
    assert [name for name, module in model.named_modules() if module.training] == ["5"]


class Unsupported(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.linalg.svd(image.flatten(1)[:, :4].reshape(-1, 2, 2))[1]


def test_an_operator_that_onnx_lacks_is_named_and_stdout_stays_empty(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """torch's C++ prints its whole graph to descriptor 1 here."""
    with pytest.raises(ExportError, match="linalg_svd") as caught:
        export(Unsupported().eval(), tmp_path / "m.onnx")
    assert caught.value.kind == "build"
    assert capfd.readouterr().out == ""


class Branching(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image * 2 if image.sum() > 1e9 else image


def test_a_fall_back_to_the_legacy_exporter_is_told_with_its_warnings(tmp_path: Path) -> None:
    found = export(Branching().eval(), tmp_path / "m.onnx")
    assert found.notes[0].startswith("the dynamo exporter failed: ")
    assert found.notes[1] == "exported by the legacy exporter"
    assert "treated as a constant" in found.notes[2]


class Text(nn.Module):
    def forward(self, image: Tensor) -> str:
        return "cat"


class BatchLess(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.sum()[None]


def test_outputs_that_are_no_tensors_or_not_per_sample_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the model returns a str"):
        export(Text().eval(), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"output 0 has shape \(1,\), expected 2 samples"):
        export(BatchLess().eval(), tmp_path / "m.onnx")


def test_a_simplified_graph_that_says_something_else_is_not_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Correctness 37."""

    def wrong(proto: onnx.ModelProto) -> onnx.ModelProto:
        next(node for node in proto.graph.node if node.op_type == "Relu").op_type = "Neg"
        return proto

    plain = export(convnet(), tmp_path / "plain.onnx")
    monkeypatch.setattr(onnxslim, "slim", wrong)
    found = export(convnet(), tmp_path / "m.onnx", simplify=True)
    assert not found.simplified
    assert found.notes[-1].startswith("not simplified: onnxslim's graph has another interface or other outputs")
    assert found.sha256 == plain.sha256


def test_a_simplified_graph_with_another_interface_is_not_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Correctness 37, 35."""

    def renamed(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
        return proto

    monkeypatch.setattr(onnxslim, "slim", renamed)
    found = export(convnet(), tmp_path / "m.onnx", simplify=True)
    assert found.notes[-1].startswith("not simplified: onnxslim's graph has another interface")
    assert found.outputs[0].shape == (2, 5)


def test_a_simplifier_that_fails_or_is_absent_costs_no_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Correctness 37."""

    def broken(proto: onnx.ModelProto) -> onnx.ModelProto:
        raise KeyError("no such node")

    monkeypatch.setattr(onnxslim, "slim", broken)
    found = export(convnet(), tmp_path / "m.onnx", simplify=True)
    assert "onnxslim failed with KeyError" in found.notes[-1]
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    found = export(convnet(), tmp_path / "m.onnx", simplify=True)
    assert "pip install 'edgesoup[build]'" in found.notes[-1]
    assert not found.simplified


def test_missing_packages_are_named_with_the_command_that_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"onnx and onnxscript not installed.*edgesoup\[build\]") as caught:
        export(convnet(), tmp_path / "m.onnx")
    assert caught.value.kind == "environment"
