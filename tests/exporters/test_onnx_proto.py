"""A model read for the onnx package, or refused in one sentence."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters import ExportError
from exporters.onnx_proto import constants_to_initializers, proto_types, read_proto


def model() -> bytes:
    constant = numpy_helper.from_array(np.ones(2, np.float32), "ignored")
    nodes = [
        helper.make_node("Constant", [], ["two"], value=constant),
        helper.make_node("Add", ["input", "two"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["output"], to=TensorProto.FLOAT16),
    ]
    values = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("output", TensorProto.FLOAT16, [2]),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(made.SerializeToString())


def test_a_constant_becomes_an_initializer_of_its_output_s_name_and_the_order_stays() -> None:
    proto = read_proto(model(), where="m", need="which a test needs")
    constants_to_initializers(proto)
    assert [node.op_type for node in proto.graph.node] == ["Add", "Cast"]
    (tensor,) = proto.graph.initializer
    assert (tensor.name, numpy_helper.to_array(tensor).tolist()) == ("two", [1.0, 1.0])


def test_every_tensor_has_its_type() -> None:
    types = proto_types(read_proto(model(), where="m", need="which a test needs"))
    assert types == {
        "input": TensorProto.FLOAT, "two": TensorProto.FLOAT, "sum": TensorProto.FLOAT, "output": TensorProto.FLOAT16,
    }  # fmt: skip


def test_what_is_no_model_and_a_missing_package_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match="m: not an ONNX file") as damaged:
        read_proto(b"\xff\xff", where="m", need="which a test needs")
    assert damaged.value.kind == "input"
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExportError, match=r"m: onnx is not installed, which a test needs\. Run: pip") as missing:
        read_proto(model(), where="m", need="which a test needs")
    assert missing.value.kind == "environment"
