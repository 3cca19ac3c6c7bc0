from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporters import ExportError
from exporters.modelopt import onnx_to_int8_modelopt
from exporters.onnx_facts import onnx_facts
from exporters.onnx_graph import clean_bytes

has_modelopt = importlib.util.find_spec("modelopt") is not None


def digits_model(folder: Path) -> bytes:
    namespace: dict[str, object] = {}
    exec((folder / "models.py").read_text(), namespace)
    network = namespace["build"]()  # type: ignore[operator]
    network.load_state_dict(torch.load(folder / "runs" / "epoch-6.pt", weights_only=True)["model"])
    program = torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 1, 8, 8),),
        input_names=["input"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
        external_data=False,
        verbose=False,
        opset_version=20,
        dynamo=True,
    )
    assert program is not None
    return clean_bytes(program.model_proto.SerializeToString(), metadata={"recipe": "abc"}, where="digits")


def images(folder: Path, name: str) -> np.ndarray:
    stored = np.load(folder / f"{name}.npz")["images"].transpose(0, 3, 1, 2)
    return ((stored / 255 - 0.3) / 0.35).astype(np.float32)


def run(model: bytes, inputs: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": inputs})[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # on import it sets filters of its own, and what it imports warns
@pytest.mark.skipif(not has_modelopt, reason="NVIDIA ModelOpt is not installed")
@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_modelopts_graph_obeys_our_rules_and_decides_as_the_float_graph(trained: Path, method: str) -> None:
    model, calibration = digits_model(trained), images(trained, "train")[:200]

    def batches() -> Iterator[Mapping[str, np.ndarray]]:
        return iter([{"input": part} for part in np.split(calibration, 4)])

    made = onnx_to_int8_modelopt(model, batches, method=method, where="digits")
    before, after = onnx_facts(model, where="before"), onnx_facts(made.model, where="after")
    assert (after.inputs, after.outputs, after.metadata) == (before.inputs, before.outputs, before.metadata)
    assert len(made.quantized) + len(made.kept) == 3
    assert len(made.quantized) >= 1
    graph = onnx.ModelProto.FromString(made.model).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        assert not node.metadata_props
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert values[node.input[2]].dtype == np.int8
            assert not values[node.input[2]].any()
    by_output = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.name in made.quantized:
            dequantize = by_output[node.input[1]]
            assert values[dequantize.input[0]].dtype == np.int8
            assert values[dequantize.input[1]].shape == values[dequantize.input[0]].shape[:1]
            assert all(values[name].dtype == np.float32 for name in node.input[2:])
    test = images(trained, "test")
    agreement = (run(model, test).argmax(axis=1) == run(made.model, test).argmax(axis=1)).mean()
    assert agreement > 0.95

    one = made.quantized[-1]
    kept = onnx_to_int8_modelopt(model, batches, method=method, keep=[one], where="digits")
    assert kept.kept[one] == "asked for"
    assert one not in kept.quantized


def tiny() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"], name="product")],
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.skipif(has_modelopt, reason="NVIDIA ModelOpt is installed")
def test_without_modelopt_the_command_that_brings_it_is_named() -> None:
    with pytest.raises(ExportError, match=r"a\.onnx: NVIDIA ModelOpt .* pip install nvidia-modelopt") as caught:
        onnx_to_int8_modelopt(tiny(), lambda: [], method="minmax", where="a.onnx")
    assert caught.value.kind == "environment"


def test_a_method_that_modelopt_lacks_and_a_layer_that_is_none_are_refused() -> None:
    with pytest.raises(ExportError, match="calibrates by minmax or entropy, not by 'mse'"):
        onnx_to_int8_modelopt(tiny(), lambda: [], method="mse", where="a.onnx")
    with pytest.raises(ExportError, match="has no layer 'gone'"):
        onnx_to_int8_modelopt(tiny(), lambda: [], method="minmax", keep=["gone"], where="a.onnx")
