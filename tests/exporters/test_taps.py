from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from exporters import ExportError
from exporters.onnx_wire import has_external_data
from exporters.taps import tensor_names, with_taps

NAMES = ("conv", "active", "pooled", "flat", "größe", "output")


@cache
def model(*, batch: int | str) -> bytes:
    random = np.random.default_rng(0)
    weights = {"weight": random.normal(size=(4, 3, 3, 3)), "head": random.normal(size=(4, 5))}
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["conv"], name="conv"),
        helper.make_node("Relu", ["conv"], ["active"], name="active"),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Shape", ["flat"], ["größe"], name="shape"),
        helper.make_node("MatMul", ["flat", "head"], ["output"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return data


def run(data: bytes, images: np.ndarray, *, optimised: bool = False) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_EXTENDED if optimised else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": images}), strict=True))


@pytest.mark.parametrize("batch", [2, "batch"])
def test_tapped_tensors_are_those_of_a_graph_that_the_onnx_package_gave_these_outputs(batch: int | str) -> None:
    images = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    proto = onnx.ModelProto.FromString(model(batch=batch))
    inferred = onnx.shape_inference.infer_shapes(proto)
    proto.graph.output.extend(value for value in inferred.graph.value_info if value.name in NAMES)
    expected = run(proto.SerializeToString(), images)
    found = run(with_taps(model(batch=batch), NAMES), images)
    assert list(found) == ["output", *NAMES[:-1]]
    assert found["größe"].tolist() == [2, 4]
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_the_models_own_outputs_come_first_and_keep_their_bits() -> None:
    images = np.random.default_rng(2).normal(size=(3, 3, 8, 8)).astype(np.float32)
    own = run(model(batch="batch"), images)
    tapped = run(with_taps(model(batch="batch"), ["active", "input"]), images)
    assert list(tapped) == ["output", "active", "input"]
    np.testing.assert_array_equal(tapped["output"], own["output"])
    np.testing.assert_array_equal(tapped["input"], images)


def test_what_optimisation_would_fuse_away_can_be_tapped_too() -> None:
    images = np.random.default_rng(3).normal(size=(3, 3, 8, 8)).astype(np.float32)
    plain = run(with_taps(model(batch="batch"), NAMES), images)
    optimised = run(with_taps(model(batch="batch"), NAMES), images, optimised=True)
    for name, array in plain.items():
        np.testing.assert_allclose(optimised[name], array, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(NAMES)))
def test_the_onnx_package_reads_the_appended_outputs_once_each_in_order(names: list[str]) -> None:
    data = with_taps(model(batch=1), names)
    proto, before = onnx.ModelProto.FromString(data), onnx.ModelProto.FromString(model(batch=1))
    assert [value.name for value in proto.graph.output] == list(dict.fromkeys(["output", *names]))
    del proto.graph.output[1:]
    assert proto == before
    assert not has_external_data(memoryview(data))
    assert with_taps(data, names) == data


@pytest.mark.parametrize("length", [125, 126, 127, 128, 200, 16_384, 40_000])
def test_lengths_that_take_more_than_a_byte_are_written_as_protobuf_writes_them(length: int) -> None:
    proto = onnx.ModelProto.FromString(model(batch=1))
    for field in (proto.graph.node[0].output, proto.graph.node[1].input):
        field[0] = "n" * length
    tapped = onnx.ModelProto.FromString(with_taps(proto.SerializeToString(), ["n" * length]))
    assert tapped.graph.output[1].name == "n" * length


def test_names_are_those_of_all_node_outputs_in_graph_order() -> None:
    assert tensor_names(model(batch=1)) == NAMES


def test_a_tensor_that_the_model_lacks_is_one_sentence() -> None:
    with pytest.raises(ExportError, match="has no tensor 'gone', 'weight'") as caught:
        with_taps(model(batch=1), ["conv", "gone", "weight"])
    assert caught.value.kind == "input"


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(ExportError, match="not an ONNX file") as caught:
        tensor_names(b"\xff\xff\xff")
    assert caught.value.kind == "input"
