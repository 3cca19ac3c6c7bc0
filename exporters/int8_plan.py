"""Which tensors of a graph are rounded to INT8, and which share a scale, so that TensorRT can fuse and move bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporters import ExportError
from exporters.layers import Layer, compute_layers, inferred
from exporters.onnx_proto import constants_to_initializers, read_proto
from exporters.onnx_wire import refuse_external_data

if TYPE_CHECKING:
    import onnx

_LEAST_OPSET = 13  # QuantizeLinear and DequantizeLinear have an axis since then
# Operators that move or pick values, so that rounding before is rounding after.
_COMMUTING = frozenset(
    ("Concat", "DepthToSpace", "Flatten", "Identity", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze")
) | {"Transpose", "Unsqueeze"}


@dataclass(frozen=True, slots=True)
class Int8Plan:
    """A prepared graph, made once and used for many sets of layers; nothing in it is changed.

    `weight_axes` has the output-channel axis of each layer's weight, None for a product of two activations, and only
    the layers that can be INT8; `reasons` has the others. `group` leads from a tensor to the first of those that are
    the same values in another place, as Concat's inputs and output are.
    """

    proto: onnx.ModelProto
    layers: tuple[Layer, ...]
    weight_axes: Mapping[str, int | None]
    reasons: Mapping[str, str]
    group: Mapping[str, str]
    producers: Mapping[str, onnx.NodeProto]
    consumers: Mapping[str, tuple[onnx.NodeProto, ...]]
    floats: frozenset[str]


def plan_int8(model: bytes, *, where: str) -> Int8Plan:
    """Read and prepare a model: shapes inferred, constants as initializers, layers named.

    Raises:
        ExportError: "environment" without the onnx package, "input" for bytes that are no model, one with weights in
            other files or an opset below 13, or one that is quantised already.
    """
    proto, layers = _prepared(model, where=where)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in dict.fromkeys(node.input):
            consumers.setdefault(name, []).append(node)
    nodes = {node.name: node for node in proto.graph.node}
    axes: dict[str, int | None] = {}
    reasons: dict[str, str] = {}
    floats = _float_tensors(proto)
    for layer in layers:
        found = _weight_axis(layer, nodes[layer.name], constants, floats)
        if isinstance(found, str):
            reasons[layer.name] = found
        else:
            axes[layer.name] = found
    return Int8Plan(
        proto=proto,
        layers=layers,
        weight_axes=axes,
        reasons=reasons,
        group=_groups(proto, floats),
        producers={name: node for node in proto.graph.node for name in node.output},
        consumers={name: tuple(found) for name, found in consumers.items()},
        floats=floats,
    )


def activations(plan: Int8Plan, layer: Layer) -> tuple[str, ...]:
    """The layer's inputs that are computed, in order: all that it multiplies but its weight, and not its bias."""
    return layer.inputs[:1] if plan.weight_axes[layer.name] is not None else layer.inputs[:2]


def rounded_tensors(plan: Int8Plan, active: Collection[str]) -> tuple[str, ...]:
    """The float tensors to put Q/DQ on where the layers named in `active` are INT8; more layers never need fewer.

    By TensorRT's own advice (docs.nvidia.com/deeplearning/tensorrt, "Explicit Quantization", Q/DQ layer-placement
    recommendations): every input of a weighted layer and no output of one; and the other operand where a layer's only
    use is an Add, which is then fused into the layer. Of two layers that meet in an Add, the one with more
    multiply-adds takes it. Where a rounded tensor comes out of a Concat, the Concat's inputs are rounded too.
    """
    found: dict[str, None] = {}
    for layer in plan.layers:
        if layer.name in active:
            for tensor in (*activations(plan, layer), *_shortcut(plan, layer)):
                found.update(dict.fromkeys((tensor, *_concatenated(plan, tensor))))
    return tuple(found)


def _shortcut(plan: Int8Plan, layer: Layer) -> tuple[str, ...]:
    """The other operand of the Add that the layer's output goes to and nowhere else."""
    adds = plan.consumers.get(layer.outputs[0], ())
    if len(adds) != 1 or adds[0].op_type != "Add":
        return ()
    others = [name for name in adds[0].input if name != layer.outputs[0]]
    if len(others) != 1 or others[0] not in plan.floats:
        return ()
    rival = next(
        (other for other in plan.layers if others[0] in other.outputs and other.name in plan.weight_axes), None
    )
    if rival and len(plan.consumers[others[0]]) == 1 and _weight(rival) > _weight(layer):
        return ()
    return (others[0],)


def _weight(layer: Layer) -> tuple[int, str]:
    return layer.macs or 0, layer.name


def _concatenated(plan: Int8Plan, tensor: str) -> Iterator[str]:
    """Output and inputs of the Concat that the tensor's values come from, where only moving lies between."""
    node = plan.producers.get(tensor)
    while node is not None and node.op_type in _COMMUTING:
        if node.op_type == "Concat":
            yield from (name for name in (*node.output, *node.input) if name in plan.floats)
            return
        node = plan.producers.get(node.input[0])


def _prepared(model: bytes, *, where: str) -> tuple[onnx.ModelProto, tuple[Layer, ...]]:
    proto = read_proto(model, where=where, need="which INT8 needs")
    refuse_external_data(model, where=where)
    opset = max((item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")), default=0)
    if opset < _LEAST_OPSET:
        message = (
            f"{where}: has opset {opset}, expected {_LEAST_OPSET} or more for scales per channel. Export it again."
        )
        raise ExportError(message, kind="input")
    done = [node.name for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if done:
        message = f"{where}: is quantised already (node '{done[0]}'), expected a float graph. Give the FP32 model."
        raise ExportError(message, kind="input")
    constants_to_initializers(proto)
    layers = compute_layers(proto)
    names = {layer.outputs[0]: layer.name for layer in layers}
    for node in proto.graph.node:
        node.name = names.get(node.output[0], node.name)
    graph, _ = inferred(proto, sized=False)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(graph.value_info)
    return proto, layers


def _float_tensors(proto: onnx.ModelProto) -> frozenset[str]:
    """Computed FP32 tensors; those of the subgraphs are not among them."""
    graph, float_type = proto.graph, 1  # TensorProto.FLOAT
    constants = {tensor.name for tensor in graph.initializer}
    return frozenset(
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == float_type and value.name not in constants
    )


def _weight_axis(
    layer: Layer, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], floats: Collection[str]
) -> int | str | None:
    """The output-channel axis of the layer's weight, None where it has none, or why the layer cannot be INT8."""
    import onnx

    first, second = layer.inputs[:2]
    if first not in floats:
        return "its first factor is constant, or is no FP32 tensor"
    weight = constants.get(second)
    if weight is None:
        if layer.op == "MatMul" and second in floats:
            return None
        return "its weight is not constant"
    rank = {"Conv": None, "ConvTranspose": None, "Gemm": 2, "MatMul": 2}[layer.op]
    if weight.data_type != 1 or (rank is not None and len(weight.dims) != rank):
        return f"its weight has {len(weight.dims)} axes and ONNX type {weight.data_type}, expected a matrix of floats"
    if not np.isfinite(onnx.numpy_helper.to_array(weight)).all():
        return "its weight holds NaN or Inf"
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if layer.op == "ConvTranspose" and attributes.get("group", 1) > 1:
        return "its weight is [in, out / groups, …], and the channels of groups would have to share scales"
    if layer.op == "Gemm":
        return 0 if attributes.get("transB") else 1
    return 0 if layer.op == "Conv" else 1


def _groups(proto: onnx.ModelProto, floats: Collection[str]) -> dict[str, str]:
    """From each tensor to the first of its group, by union over the operators that only move values."""
    first: dict[str, str] = {}

    def find(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    for node in proto.graph.node:
        if node.op_type in _COMMUTING:
            sources = node.input if node.op_type == "Concat" else node.input[:1]
            one, *others = [name for name in (*sources, *node.output) if name in floats] or [""]
            for other in others:
                first[find(other)] = find(one)
    return {name: find(name) for name in first}
