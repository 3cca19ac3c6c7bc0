from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from exporters.layers import compute_layers


class Mixed(nn.Module):
    """One of each: grouped and strided convolutions, a transposed one, attention's MatMul without weights, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.inner = nn.Linear(4, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.up(self.depthwise(self.first(images))).flatten(2)
        tokens = self.inner(features.transpose(1, 2))
        mixed = torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens
        scores: torch.Tensor = self.head(mixed.mean(1))
        return scores


def export(model: nn.Module, example: torch.Tensor, *, dynamic: bool) -> onnx.ModelProto:
    axes = ({0: torch.export.Dim("batch", min=1, max=8)},) if dynamic else None
    options = {"dynamic_shapes": axes, "external_data": False, "verbose": False, "opset_version": 18}
    program = torch.onnx.export(model.eval(), (example,), **options, dynamo=True)
    assert program is not None
    return program.model_proto


def graph(nodes: Sequence[onnx.NodeProto], **weights: np.ndarray) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("dynamic", [True, False])
def test_multiply_adds_are_half_of_torchs_own_count_of_operations(dynamic: bool) -> None:
    model, example = Mixed(), torch.rand(4, 3, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(example)
    layers = compute_layers(export(model, example, dynamic=dynamic))
    assert [layer.op for layer in layers] == ["Conv", "Conv", "ConvTranspose", *["MatMul"] * 3, "Gemm"]
    assert all(layer.macs for layer in layers)
    assert 2 * 4 * sum(layer.macs or 0 for layer in layers) == counter.get_total_flops()


def test_names_are_those_of_the_nodes_and_unique_where_a_graph_has_none_or_repeats_one() -> None:
    nodes = [
        helper.make_node("MatMul", ["input", "weight"], ["a"]),
        helper.make_node("MatMul", ["a", "weight"], ["b"], name="twice"),
        helper.make_node("Relu", ["b"], ["c"], name="twice"),
        helper.make_node("MatMul", ["c", "weight"], ["output"], name="last"),
    ]
    layers = compute_layers(graph(nodes, weight=np.ones((4, 4))))
    assert [layer.name for layer in layers] == ["a", "b", "last"]
    assert layers[0].inputs == ("input", "weight")
    assert layers[0].outputs == ("a",)


def test_a_transposed_gemm_counts_its_inner_axis() -> None:
    node = helper.make_node("Gemm", ["weight", "input"], ["output"], name="gemm", transA=1, transB=1)
    [layer] = compute_layers(graph([node], weight=np.ones((4, 7))))
    assert layer.macs == 7 * 4


def test_a_shape_that_only_running_tells_leaves_the_multiply_adds_unknown() -> None:
    nodes = [
        helper.make_node("NonZero", ["input"], ["places"]),
        helper.make_node("Cast", ["places"], ["found"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["weight", "found"], ["output"], name="ragged"),
    ]
    [layer] = compute_layers(graph(nodes, weight=np.ones((3, 2))))
    assert layer.macs is None


def test_the_graph_stays_as_it_is() -> None:
    proto = graph([helper.make_node("MatMul", ["input", "weight"], ["output"])], weight=np.ones((4, 4)))
    before = proto.SerializeToString(deterministic=True)
    compute_layers(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_a_shape_that_inference_does_not_find_is_that_of_a_run() -> None:
    """As torch writes an adaptive pooling: the target of a Reshape is computed from the shape of a tensor."""
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["real"], ["target"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["input", "target"], ["same"]),
        helper.make_node("MatMul", ["same", "weight"], ["output"], name="behind"),
    ]
    weight = np.ones((4, 7))
    [layer] = compute_layers(graph(nodes, weight=weight))
    [direct] = compute_layers(graph([helper.make_node("MatMul", ["input", "weight"], ["output"])], weight=weight))
    assert layer.macs is not None
    assert layer.macs == direct.macs
