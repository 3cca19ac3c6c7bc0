from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from exporters import ExportError
from exporters.int8_plan import plan_int8
from exporters.layers import compute_layers
from exporters.onnx_facts import onnx_facts
from exporters.onnx_graph import clean_bytes
from exporters.onnx_to_int8 import Int8Graph, calibration_tensors, onnx_to_int8, to_int8
from exporters.onnx_to_tensorrt import find_builder, onnx_to_tensorrt
from exporters.taps import with_taps

Ranges = dict[str, tuple[float, float]]
needs_rtx = pytest.mark.skipif(
    (builder := find_builder()) is None or builder.flavour != "tensorrt_rtx", reason="tensorrt_rtx builds these engines"
)


class Blocks(nn.Module):
    """What TensorRT is particular about: a residual block with and without a layer in its shortcut, concatenation and
    channel shuffle, a transposed convolution, attention, and a head whose input is an output too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.three, self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Conv2d(8, 16, 1, stride=2)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mixed = nn.Conv2d(16, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stem = torch.relu(self.stem(images))
        plain = torch.relu(self.two(torch.relu(self.one(stem))) + stem)
        wide = torch.relu(self.three(plain) + self.down(plain))
        first, second = wide.chunk(2, dim=1)
        joined = torch.cat([torch.relu(self.left(first)), torch.relu(self.right(second))], dim=1)
        shuffled = joined.reshape(-1, 2, 8, 8, 8).transpose(1, 2).reshape(-1, 16, 8, 8)
        tokens = self.inner(self.up(torch.relu(self.mixed(shuffled))).flatten(2).transpose(1, 2))
        features = (torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens).mean(1)
        return self.head(features), features


def export(model: nn.Module, *, images: np.ndarray, dynamic: bool = True, opset: int = 18) -> bytes:
    axes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
    program = torch.onnx.export(
        model.eval(),
        (torch.from_numpy(images[:2]),),
        input_names=["input"],
        dynamic_shapes=axes,
        external_data=False,
        verbose=False,
        opset_version=opset,
        dynamo=True,
    )
    assert program is not None
    return clean_bytes(program.model_proto.SerializeToString(), metadata={"recipe": "abc"}, where="test")


def run(model: bytes, images: np.ndarray, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Outputs, and tensors by name, without optimisation: ONNX Runtime's own INT8 kernels round differently."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(with_taps(model, names), options, providers=["CPUExecutionProvider"])
    outputs = [item.name for item in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, {"input": images}), strict=True)) | {"input": images}


def measured(model: bytes, images: np.ndarray) -> Ranges:
    """Largest magnitudes."""
    names = calibration_tensors(model)
    found = run(model, images, names)
    return {name: (-float(np.abs(found[name]).max()), float(np.abs(found[name]).max())) for name in names}


@dataclass(frozen=True)
class Case:
    model: bytes
    images: np.ndarray
    ranges: Ranges
    made: Int8Graph


@pytest.fixture(scope="module")
def blocks() -> Case:
    torch.manual_seed(0)
    images = np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32)
    model = export(Blocks(), images=images)
    ranges = measured(model, images)
    return Case(model, images, ranges, onnx_to_int8(model, ranges, where="blocks"))


def graph_of(made: Int8Graph | bytes) -> onnx.GraphProto:
    return onnx.ModelProto.FromString(made if isinstance(made, bytes) else made.model).graph


def constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def layer(case: Case, op: str, place: int = 0) -> str:
    return [item.name for item in compute_layers(onnx.ModelProto.FromString(case.model)) if item.op == op][place]


def node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    [found] = [item for item in graph.node if item.name == name]
    return found


def small(nodes: Sequence[onnx.NodeProto], *, opset: int = 18, **weights: np.ndarray) -> bytes:
    """A graph from `input` [n, 4] to `output`."""
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    data: bytes = onnx.shape_inference.infer_shapes(model).SerializeToString()
    return data


def rows(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(16, 4)).astype(np.float32)


def test_every_layer_is_quantised_and_the_result_keeps_interface_opset_and_metadata(blocks: Case) -> None:
    before, after = onnx_facts(blocks.model, where="before"), onnx_facts(blocks.made.model, where="after")
    layers = compute_layers(onnx.ModelProto.FromString(blocks.model))
    assert blocks.made.quantized == tuple(item.name for item in layers)
    assert len(layers) == 13
    assert blocks.made.kept == {}
    assert (after.inputs, after.outputs, after.opsets) == (before.inputs, before.outputs, before.opsets)
    assert after.metadata == before.metadata == {"recipe": "abc"}
    onnx.checker.check_model(onnx.ModelProto.FromString(blocks.made.model), full_check=True)
    assert [item.name for item in compute_layers(onnx.ModelProto.FromString(blocks.made.model))] == [
        item.name for item in layers
    ]


def test_all_scales_are_symmetric_int8_and_no_bias_is_rounded(blocks: Case) -> None:
    graph = graph_of(blocks.made)
    values = constants(graph)
    pairs = [item for item in graph.node if item.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for item in pairs:
        assert values[item.input[2]].dtype == np.int8
        assert not values[item.input[2]].any()
        assert (values[item.input[1]] > 0).all()
    for item in graph.node:
        assert not item.metadata_props
        assert not item.doc_string
        if item.op_type in ("Conv", "ConvTranspose", "Gemm") and len(item.input) == 3:
            assert values[item.input[2]].dtype == np.float32
    assert {array.dtype.name for array in values.values()} <= {"int8", "float32", "int64"}


def test_weights_are_numpys_rounding_to_even_with_one_scale_for_each_output_channel(blocks: Case) -> None:
    before, after = constants(graph_of(blocks.model)), graph_of(blocks.made)
    values, made = constants(after), producers(after)
    axes = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": 1}  # this Gemm has its second factor transposed
    planned = plan_int8(blocks.model, where="blocks").weight_axes
    checked = []
    for item in compute_layers(onnx.ModelProto.FromString(blocks.model)):
        if item.inputs[1] not in before:
            continue
        weight, axis = before[item.inputs[1]].astype(np.float64), axes[item.op]
        assert planned[item.name] == axis
        others = tuple(index for index in range(weight.ndim) if index != axis)
        scale = (np.abs(weight).max(axis=others, keepdims=True) / 127).astype(np.float32)
        expected = np.clip(np.rint(before[item.inputs[1]] / scale), -127, 127)
        dequantize = made[node(after, item.name).input[1]]
        np.testing.assert_allclose(values[dequantize.input[1]], scale.ravel(), rtol=1e-6)
        np.testing.assert_array_equal(values[dequantize.input[0]], expected)
        assert [attribute.i for attribute in dequantize.attribute if attribute.name == "axis"] == [axis]
        checked.append(item.op)
    assert set(checked) == set(axes)


def test_every_layer_reads_its_activations_rounded_on_the_scale_of_their_range(blocks: Case) -> None:
    graph = graph_of(blocks.made)
    values, made = constants(graph), producers(graph)
    plan = plan_int8(blocks.model, where="blocks")
    for item in compute_layers(onnx.ModelProto.FromString(blocks.model)):
        ins = item.inputs[: 1 if plan.weight_axes[item.name] is not None else 2]
        for index, name in enumerate(ins):
            dequantize = made[node(graph, item.name).input[index]]
            quantize = made[dequantize.input[0]]
            assert quantize.input[0] == name
            members = [other for other in blocks.ranges if plan.group.get(other, other) == plan.group.get(name, name)]
            top = max(blocks.ranges[other][1] for other in members)
            assert values[quantize.input[1]] == pytest.approx(top / 127, rel=1e-6)


def test_an_add_after_a_layer_reads_its_other_operand_rounded_and_the_layers_output_not(blocks: Case) -> None:
    """Without a layer in the shortcut; and of two layers that meet, the one with more multiply-adds takes the Add."""
    graph = graph_of(blocks.made)
    made = producers(graph)
    for taker, other in ((2, "Relu"), (3, "Conv")):
        name = layer(blocks, "Conv", taker)
        [add] = [item for item in graph.node if item.op_type == "Add" and node(graph, name).output[0] in item.input]
        [rounded] = [made[item] for item in add.input if made[item].name != name]
        assert rounded.op_type == "DequantizeLinear"
        source = made[made[rounded.input[0]].input[0]]
        assert source.op_type == other
        assert (source.name == layer(blocks, "Conv", 4)) == (taker == 3)


def test_inputs_and_output_of_a_concat_share_one_scale_and_so_does_what_only_moves_them(blocks: Case) -> None:
    graph = graph_of(blocks.made)
    made, values = producers(graph), constants(graph)
    [concat] = [item for item in graph.node if item.op_type == "Concat" and item.name == "node_cat"]
    scales = {float(values[made[name].input[1]]) for name in concat.input}
    assert all(made[name].op_type == "DequantizeLinear" for name in concat.input)
    readers = [item for item in graph.node if item.op_type == "QuantizeLinear" and item.input[0] == concat.output[0]]
    scales |= {float(values[item.input[1]]) for item in readers}
    shuffled = made[made[node(graph, layer(blocks, "Conv", 7)).input[0]].input[0]]
    scales.add(float(values[shuffled.input[1]]))
    assert len(readers) == 1
    assert len(scales) == 1


def test_a_tensor_that_is_an_output_too_leaves_the_graph_as_it_was_computed(blocks: Case) -> None:
    graph = graph_of(blocks.made)
    head = node(graph, blocks.made.quantized[-1])
    assert producers(graph)[head.input[0]].op_type == "DequantizeLinear"
    assert producers(graph)[graph.output[1].name].op_type == "ReduceMean"


def test_outputs_are_near_those_of_the_float_graph(blocks: Case) -> None:
    before, after = run(blocks.model, blocks.images), run(blocks.made.model, blocks.images)
    for name in [item.name for item in graph_of(blocks.model).output]:
        assert 0 < np.abs(before[name] - after[name]).max() < 0.05 * np.abs(before[name]).max()


def test_the_graph_does_what_rounding_in_numpy_does() -> None:
    """One layer, by hand: scales, rounding, bias and beta."""
    weight, bias = rows(1)[:4, :3], np.array([0.3, 40.0, -0.7])
    gemm = helper.make_node("Gemm", ["input", "weight", "bias"], ["output"], name="gemm", beta=0.5)
    model = small([gemm], weight=weight, bias=bias)
    top = 1.25
    made = onnx_to_int8(model, {"input": (-top, 0.5)}, where="gemm").model
    x = np.clip(np.rint(rows() / np.float32(top / 127)), -128, 127) * np.float32(top / 127)
    scale = np.abs(weight).max(axis=0) / 127
    w = np.rint(weight / scale) * scale
    np.testing.assert_allclose(run(made, rows())["output"], x @ w + 0.5 * bias, rtol=1e-5, atol=1e-5)


def test_a_bias_too_large_for_int32_does_not_widen_the_weights_scale() -> None:
    weight = np.full((4, 3), 1e-6)
    gemm = helper.make_node("Gemm", ["input", "weight", "bias"], ["output"], name="gemm")
    made = onnx_to_int8(small([gemm], weight=weight, bias=[1e4] * 3), {"input": (0, 1e-3)}, where="gemm")
    graph = graph_of(made)
    dequantize = producers(graph)[node(graph, "gemm").input[1]]
    np.testing.assert_allclose(constants(graph)[dequantize.input[1]], 1e-6 / 127, rtol=1e-5)


def test_the_same_arguments_give_the_same_bytes_and_the_plan_is_not_used_up(blocks: Case) -> None:
    plan = plan_int8(blocks.model, where="blocks")
    one = layer(blocks, "Conv", 1)
    assert to_int8(plan, blocks.ranges, where="blocks") == blocks.made
    assert to_int8(plan, blocks.ranges, keep=[one], where="blocks").model != blocks.made.model
    assert to_int8(plan, dict(reversed(blocks.ranges.items())), where="blocks") == blocks.made


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_set_of_layers_can_be_quantised_and_the_others_read_what_they_read_before(
    blocks: Case, data: st.DataObject
) -> None:
    case = blocks
    names = [item.name for item in compute_layers(onnx.ModelProto.FromString(case.model))]
    chosen = data.draw(st.sets(st.sampled_from(names)))
    plan = plan_int8(case.model, where="blocks")
    made = to_int8(plan, case.ranges, only=chosen, where="blocks")
    assert set(made.quantized) == chosen
    assert set(made.kept) == set(names) - chosen
    assert to_int8(plan, case.ranges, keep=set(names) - chosen, where="blocks") == made
    graph, before = graph_of(made), graph_of(case.model)
    for name in names:
        kinds = [producers(graph)[item].op_type for item in node(graph, name).input if item in producers(graph)]
        if name in chosen:
            assert kinds.count("DequantizeLinear") == 2
        else:
            assert list(node(graph, name).input) == list(node(before, name).input)
    if not chosen:
        assert not any("Quantize" in item.op_type for item in graph.node)


def test_two_layers_that_share_a_weight_each_get_their_own_rounding_of_it() -> None:
    nodes = [
        helper.make_node("Gemm", ["input", "weight"], ["a"], name="straight"),
        helper.make_node("Gemm", ["a", "weight"], ["b"], name="turned", transB=1),
        helper.make_node("MatMul", ["b", "weight"], ["c"], name="float"),
        helper.make_node("Add", ["c", "weight"], ["output"], name="add"),
    ]
    weight = np.array([[1, 2, 3, 4], [10, 20, 30, 40], [0.1, 0.2, 0.3, 0.4], [5, 5, 5, 5]])
    model = small(nodes, weight=weight)
    ranges = measured(model, rows()[:4])
    made = onnx_to_int8(model, ranges, keep=["float"], where="tied")
    graph = graph_of(made)
    values, by_output = constants(graph), producers(graph)
    scales = {name: values[by_output[node(graph, name).input[1]].input[1]] for name in made.quantized}
    np.testing.assert_allclose(scales["straight"], np.abs(weight).max(axis=0) / 127, rtol=1e-6)
    np.testing.assert_allclose(scales["turned"], np.abs(weight).max(axis=1) / 127, rtol=1e-6)
    for name in ("float", "add"):
        np.testing.assert_array_equal(values[node(graph, name).input[1]], weight.astype(np.float32))


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        ([helper.make_node("MatMul", ["weight", "input"], ["output"], name="it")], {"weight": rows()}, "first factor"),
        (
            [
                helper.make_node("Relu", ["weight"], ["w"], name="relu"),
                helper.make_node("Gemm", ["input", "w"], ["output"], name="it"),
            ],
            {"weight": rows()[:4]},
            "its weight is not constant",
        ),
        (
            [helper.make_node("MatMul", ["input", "weight"], ["output"], name="it")],
            {"weight": rows().reshape(4, 4, 4)},
            "3 axes",
        ),
        (
            [helper.make_node("MatMul", ["input", "weight"], ["output"], name="it")],
            {"weight": np.full((4, 4), np.nan)},
            "NaN or Inf",
        ),
    ],
)
def test_a_layer_that_cannot_be_int8_stays_float_with_the_reason(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, np.ndarray], reason: str
) -> None:
    model = small(nodes, **weights)
    made = onnx_to_int8(model, {"input": (-1, 1)}, where="one")
    assert made.quantized == ()
    assert list(made.kept) == ["it"]
    assert reason in made.kept["it"]
    assert not any("Quantize" in item.op_type for item in graph_of(made).node)


def test_a_layer_without_a_range_or_with_an_empty_one_stays_float_with_the_reason(blocks: Case) -> None:
    one, two = layer(blocks, "Conv", 1), layer(blocks, "Conv", 2)
    plan = plan_int8(blocks.model, where="blocks")
    reads = {item.name: item.inputs[0] for item in plan.layers}
    partial = {name: ends for name, ends in blocks.ranges.items() if name != reads[one]}
    made = to_int8(plan, {**partial, reads[two]: (0.0, 0.0)}, where="blocks")
    assert made.kept == {
        one: f"no range was measured for '{reads[one]}'",
        two: f"'{reads[two]}' is 0 for every calibration image, which gives no scale",
    }


def test_a_channel_of_zeros_is_exact() -> None:
    weight = rows(2)[:4].copy()
    weight[:, 1] = 0
    model = small([helper.make_node("MatMul", ["input", "weight"], ["output"], name="it")], weight=weight)
    made = onnx_to_int8(model, {"input": (-4, 4)}, where="one")
    assert made.quantized == ("it",)
    assert not run(made.model, rows())["output"][:, 1].any()


def test_grouped_transposed_convolutions_stay_float() -> None:
    model = export(nn.ConvTranspose2d(4, 4, 2, groups=2), images=np.ones((2, 4, 5, 5), np.float32))
    made = onnx_to_int8(model, {"input": (-1, 1)}, where="up")
    assert list(made.kept.values()) == [
        "its weight is [in, out / groups, …], and the channels of groups would have to share scales"
    ]


def test_weights_in_constant_nodes_are_weights() -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(rows(3)[:4], "value"))
    model = small([constant, helper.make_node("MatMul", ["input", "w"], ["output"], name="it")])
    assert onnx_to_int8(model, {"input": (-1, 1)}, where="one").quantized == ("it",)


@pytest.mark.parametrize("ends", [(np.nan, 1.0), (-1.0, np.inf), (1.0, -1.0)])
def test_a_range_that_is_none_is_refused(blocks: Case, ends: tuple[float, float]) -> None:
    with pytest.raises(ExportError, match=r"blocks: the range of 'input' is .* Calibrate again") as caught:
        onnx_to_int8(blocks.model, {**blocks.ranges, "input": ends}, where="blocks")
    assert caught.value.kind == "input"


@pytest.mark.parametrize("option", ["keep", "only"])
def test_a_name_that_is_no_layer_is_refused(blocks: Case, option: str) -> None:
    with pytest.raises(ExportError, match="has no layer 'gone'") as caught:
        onnx_to_int8(blocks.model, blocks.ranges, **{option: ["gone"]}, where="blocks")
    assert caught.value.kind == "input"


def test_what_is_no_float_graph_is_refused(blocks: Case) -> None:
    gemm = [helper.make_node("MatMul", ["input", "weight"], ["output"], name="it")]
    outside = onnx.ModelProto.FromString(small(gemm, weight=rows()[:4]))
    outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
    outside.graph.initializer[0].external_data.add(key="location", value="../weights")
    refused = {
        "is quantised already": blocks.made.model,
        "not an ONNX file": b"\xff\xff",
        "has opset 12, expected 13 or more": small(gemm, opset=12, weight=rows()[:4]),
        "keeps weights in other files": outside.SerializeToString(),
    }
    for message, data in refused.items():
        with pytest.raises(ExportError, match=f"^a.onnx: {message}") as caught:
            onnx_to_int8(data, {}, where="a.onnx")
        assert caught.value.kind == "input"


def test_a_trained_network_decides_as_before(trained: Path) -> None:
    """Top-1 agreement on images that it was not calibrated with."""
    namespace: dict[str, object] = {}
    exec((trained / "models.py").read_text(), namespace)
    network = namespace["build"]()  # type: ignore[operator]
    network.load_state_dict(torch.load(trained / "runs" / "epoch-6.pt", weights_only=True)["model"])
    images = {
        name: ((np.load(trained / f"{name}.npz")["images"].transpose(0, 3, 1, 2) / 255 - 0.3) / 0.35).astype(np.float32)
        for name in ("train", "test")
    }
    model = export(network, images=images["train"])
    made = onnx_to_int8(model, measured(model, images["train"][:200]), where="digits")
    assert len(made.quantized) == 3
    before, after = (next(iter(run(data, images["test"]).values())) for data in (model, made.model))
    assert (before.argmax(axis=1) == after.argmax(axis=1)).mean() > 0.98
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()
    assert np.abs(before - after).max() > 0


@needs_rtx
def test_tensorrt_builds_it_with_every_convolution_and_product_on_int8(blocks: Case, tmp_path: Path) -> None:
    """But for ConvTranspose, which tensorrt_rtx 1.7 computes on floats whatever the graph says."""
    path = tmp_path / "blocks.onnx"
    path.write_bytes(blocks.made.model)
    built = onnx_to_tensorrt(path, tmp_path / "blocks.engine", profile=(1, 2, 8), workspace_bytes=None)
    compute = [
        item
        for item in json.loads(built.layers_path.read_text())["layers"]
        if item["type"] in ("correlation", "gemm", "deconv")
    ]
    on_int8 = {name for item in compute if item["inputs"][0]["dtype"] == "Int8" for name in item["onnx_nodes"]} & set(
        blocks.made.quantized
    )
    assert on_int8 == set(blocks.made.quantized) - {layer(blocks, "ConvTranspose")}
