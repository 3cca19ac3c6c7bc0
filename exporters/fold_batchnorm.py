"""A BatchNormalization that an exporter left in the graph becomes one product and one sum, worked out in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_EPSILON = 1e-5  # the operator's default


def fold_batchnorm(proto: onnx.ModelProto) -> None:
    """Replace each BatchNormalization of constants by Mul and Add, in place; their names begin with its own.

    y = x · s + (b - mean · s) with s = scale / √(var + ε) (onnx.ai, operator BatchNormalization). A variance in FP16
    would be 0 below 3e-8 and infinite above 65504, where s is harmless. One in training mode, or with a computed
    statistic, stays.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in _values(proto)}
    nodes = list(proto.graph.node)
    folded: list[onnx.NodeProto] = []
    for node in nodes:
        if _foldable(node, constants) and node.input[0] in ranks:
            folded.extend(_product_and_sum(node, proto.graph, constants, rank=ranks[node.input[0]]))
        else:
            folded.append(node)
    if len(folded) == len(nodes):
        return
    copies = [type(node).FromString(node.SerializeToString()) for node in folded]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)


def _values(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    return [value for value in values if value.type.tensor_type.HasField("shape")]


def _foldable(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    return (
        node.op_type == "BatchNormalization"
        and len(node.output) == 1  # more of them in training mode
        and all(name in constants and constants[name].data_type == 1 for name in node.input[1:])  # 1: FLOAT
    )


def _product_and_sum(
    node: onnx.NodeProto, graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto], *, rank: int
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    import onnx

    scale, bias, mean, var = (onnx.numpy_helper.to_array(constants[name]).astype(np.float64) for name in node.input[1:])
    epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), _EPSILON)
    factor = scale / np.sqrt(var + epsilon)
    name = node.name or node.output[0]
    axes = (-1, *(1,) * (rank - 2))  # against [batch, channels, …]
    for what, values in (("factor", factor), ("shift", bias - mean * factor)):
        tensor = values.astype(np.float32).reshape(axes)
        graph.initializer.append(onnx.numpy_helper.from_array(tensor, f"{name}:{what}"))
    product = onnx.helper.make_node("Mul", [node.input[0], f"{name}:factor"], [f"{name}:product"], name=f"{name}:mul")
    total = onnx.helper.make_node("Add", [f"{name}:product", f"{name}:shift"], [node.output[0]], name=f"{name}:add")
    return product, total
