from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.onnx_types import BOOL, FLOAT, FLOAT16, INT8, INT64, graph_precisions, nodes, opset, tensor_types

onnx = pytest.importorskip("onnx")


def model_of(listed: list[Any], *, weights: dict[str, np.ndarray], domain: str = "", version: int = 17) -> bytes:
    helper = onnx.helper
    graph = helper.make_graph(
        listed,
        "small",
        [helper.make_tensor_value_info("input", FLOAT, [1, 4])],
        [helper.make_tensor_value_info(listed[-1].output[0], FLOAT, [1, 4])],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, version)]).SerializeToString())


def mixed() -> bytes:
    node = onnx.helper.make_node
    listed = [
        node("QuantizeLinear", ["input", "scale", "zero"], ["q"], name="quantize"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="dequantize"),
        node("Cast", ["dq"], ["half"], to=FLOAT16),
        node("MatMul", ["half", "w"], ["product"]),
        node("Shape", ["product"], ["shape"]),
        node("ConstantOfShape", ["shape"], ["zeros"]),
        node("TopK", ["product", "k"], ["values", "indices"], axis=1),
        node("Greater", ["product", "product"], ["positive"]),
        node("Where", ["positive", "product", "product"], ["chosen"]),
        node("Cast", ["chosen"], ["output"], to=FLOAT),
    ]
    weights = {"scale": np.float32(0.1), "zero": np.int8(0), "w": np.ones((4, 4), np.float16), "k": np.array([2])}
    return model_of(listed, weights=weights)


def test_types_follow_casts_and_quantizers_as_onnxs_own_inference_finds_them() -> None:
    ours = tensor_types(mixed())

    inferred = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(mixed()), strict_mode=True)
    theirs = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    assert theirs.items() <= ours.items()
    assert {name: ours[name] for name in ("q", "half", "indices", "positive", "chosen", "zeros")} == {
        "q": INT8, "half": FLOAT16, "indices": INT64, "positive": BOOL, "chosen": FLOAT16, "zeros": FLOAT,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "quantized", "expected"),
    [(np.float32, False, set()), (np.float16, False, {"fp16"}), (np.float32, True, {"int8"})],
)
def test_the_precisions_of_a_graph(weights: type, quantized: bool, expected: set[str]) -> None:
    node = onnx.helper.make_node
    listed = [node("MatMul", ["input", "w"], ["output"])]
    if quantized:
        listed.insert(0, node("DequantizeLinear", ["q", "scale"], ["w"]))
    arrays = {"q": np.ones((4, 4), np.int8), "scale": np.float32(1)} if quantized else {"w": np.ones((4, 4), weights)}

    assert graph_precisions(model_of(listed, weights=arrays)) == expected
    assert graph_precisions(mixed()) == {"fp16", "int8"}


def test_nodes_are_told_in_order_with_their_names_and_tensors() -> None:
    found = nodes(mixed())

    assert [node.op for node in found][:3] == ["QuantizeLinear", "DequantizeLinear", "Cast"]
    assert (found[0].name, found[0].inputs, found[0].outputs) == ("quantize", ("input", "scale", "zero"), ("q",))


def test_the_opset_is_that_of_the_default_domain() -> None:
    listed = [onnx.helper.make_node("Relu", ["input"], ["output"])]

    assert opset(model_of(listed, weights={}, version=20)) == 20
    assert opset(model_of(listed, weights={}, domain="ai.onnx", version=15)) == 15
    assert opset(model_of(listed, weights={}, domain="com.example", version=3)) == 0


def test_what_is_no_onnx_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="byte"):
        nodes(b"hello world")
