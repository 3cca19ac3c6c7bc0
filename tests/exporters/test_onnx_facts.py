from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from exporters import ExportError
from exporters.onnx_facts import inspect_onnx, onnx_facts
from exporters.runtimes import TensorInfo


@cache
def model_bytes() -> bytes:
    """Every kind of fact: two domains, a dynamic axis, an unnamed one, a scalar, two dtypes of weights, a subgraph."""
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["value"], value=numpy_helper.from_array(np.zeros(2, np.float32)))],
        "branch",
        [],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, [2])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "weight"], ["output"]),
            helper.make_node("If", ["flag"], ["chosen"], then_branch=branch, else_branch=branch),
        ],
        "graph",
        [
            helper.make_tensor_value_info("input", TensorProto.FLOAT16, ["batch", None, 3]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
            helper.make_tensor_value_info("weight", TensorProto.FLOAT16, [3, 5]),
        ],
        [
            helper.make_tensor_value_info("output", TensorProto.FLOAT16, ["batch", None, 5]),
            helper.make_tensor_value_info("chosen", TensorProto.FLOAT, [2]),
        ],
        [
            numpy_helper.from_array(np.ones((3, 5), np.float16), "weight"),
            numpy_helper.from_array(np.array(7), "scalar"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="maker", producer_version="2.1")
    helper.set_model_props(model, {"labels": '["ä"]', "recipe": "abc"})
    data: bytes = model.SerializeToString()
    return data


def test_the_facts_are_those_that_the_onnx_package_reads(tmp_path: Path) -> None:
    """Correctness 35: the opset is read back from the file."""
    path = tmp_path / "m.onnx"
    path.write_bytes(model_bytes())
    facts = inspect_onnx(path)
    assert (facts.opset, facts.opsets, facts.ir_version) == (17, {"": 17, "com.microsoft": 1}, 9)
    assert facts.producer == "maker 2.1"
    assert facts.inputs == (TensorInfo("input", "float16", ("batch", "?", 3)), TensorInfo("flag", "bool", ()))
    assert facts.outputs == (TensorInfo("output", "float16", ("batch", "?", 5)), TensorInfo("chosen", "float32", (2,)))
    assert facts.metadata == {"labels": '["ä"]', "recipe": "abc"}
    assert facts.nodes == {"MatMul": 1, "If": 1}
    assert facts.weights == {"float16": 15, "int64": 1}
    assert facts.size_bytes == len(model_bytes())
    assert facts.sha256 == hashlib.sha256(model_bytes()).hexdigest()
    assert not facts.external_data


def test_weights_in_another_file_are_told() -> None:
    model = onnx.ModelProto.FromString(model_bytes())
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    assert onnx_facts(model.SerializeToString(), where="m.onnx").external_data


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_damaged_bytes_are_read_or_refused_and_nothing_else_happens(data: st.DataObject) -> None:
    damaged = bytearray(model_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        onnx_facts(bytes(damaged[:cut]), where="m.onnx")
    except ExportError as error:
        assert str(error).startswith("m.onnx: not an ONNX file")  # noqa: PT017  (reading is right, too)


def test_a_folder_in_place_of_the_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be read: Is a directory") as caught:
        inspect_onnx(tmp_path)
    assert caught.value.kind == "input"
