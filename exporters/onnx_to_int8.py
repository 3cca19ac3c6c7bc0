"""An FP32 graph becomes an INT8 one: Q/DQ by onnxruntime.quantization, placed and scaled as TensorRT needs them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters import ExportError
from exporters.int8_plan import Int8Plan, activations, plan_int8, rounded_tensors
from exporters.layers import COMPUTE_OPS, Layer
from exporters.onnx_graph import clean_bytes
from exporters.quiet import quiet

if TYPE_CHECKING:
    import onnx

_SUFFIX = "_DequantizeLinear_Output"  # onnxruntime's name for what it puts in a tensor's place


@dataclass(frozen=True, slots=True)
class Int8Graph:
    """`quantized` layers in graph order; `kept` layers with the reason why they are still float."""

    model: bytes
    quantized: tuple[str, ...]
    kept: Mapping[str, str]


def calibration_tensors(model: bytes) -> tuple[str, ...]:
    """The float activations that need a range for every layer to become INT8."""
    plan = plan_int8(model, where="model")
    return rounded_tensors(plan, plan.weight_axes)


def onnx_to_int8(
    model: bytes,
    ranges: Mapping[str, tuple[float, float]],
    *,
    keep: Collection[str] = (),
    only: Collection[str] | None = None,
    where: str,
) -> Int8Graph:
    """The graph with `ranges` (lowest, highest of each tensor of `calibration_tensors`) as INT8 scales.

    Activations have one symmetric scale, weights one for each output channel, zero points are 0, biases stay float;
    interface and opset stay. Layers in `keep` stay float, and read what they read before; with `only`, all others do.
    The same arguments give the same bytes. For many calls on one model see `plan_int8` and `to_int8`.

    Raises:
        ExportError: "input" for ranges that are no numbers or a name in `keep` or `only` that is no layer;
            "environment" without onnx and onnxruntime; "build" where the result is not as described.
    """
    return to_int8(plan_int8(model, where=where), ranges, keep=keep, only=only, where=where)


def to_int8(
    plan: Int8Plan,
    ranges: Mapping[str, tuple[float, float]],
    *,
    keep: Collection[str] = (),
    only: Collection[str] | None = None,
    where: str,
) -> Int8Graph:
    """As `onnx_to_int8`, from a model that was read once."""
    _refuse(plan, ranges, keep=keep, only=only, where=where)
    largest = _largest(plan, ranges)
    reasons = {layer.name: _reason(plan, layer, largest, keep=keep, only=only) for layer in plan.layers}
    active = [name for name, reason in reasons.items() if not reason]
    model = _quantized(plan, active, largest, where=where) if active else plan.proto.SerializeToString()
    metadata = {item.key: item.value for item in plan.proto.metadata_props}
    cleaned = clean_bytes(model, metadata=metadata, where=where)
    return Int8Graph(cleaned, tuple(active), {name: reason for name, reason in reasons.items() if reason})


def _refuse(
    plan: Int8Plan,
    ranges: Mapping[str, tuple[float, float]],
    *,
    keep: Collection[str],
    only: Collection[str] | None,
    where: str,
) -> None:
    unknown = sorted({*keep, *(only or ())} - {layer.name for layer in plan.layers})
    if unknown:
        raise ExportError(f"{where}: has no layer {', '.join(map(repr, unknown))}. Name layers of it.", kind="input")
    for name, ends in ranges.items():
        if not (all(map(math.isfinite, ends)) and ends[0] <= ends[1]):
            message = f"{where}: the range of '{name}' is {ends}, expected two finite numbers in order."
            raise ExportError(f"{message} Calibrate again.", kind="input")


def _largest(plan: Int8Plan, ranges: Mapping[str, tuple[float, float]]) -> dict[str, np.float32]:
    """The largest magnitude by tensor; tensors of one group have that of the whole group."""
    by_group: dict[str, float] = {}
    for name, ends in ranges.items():
        group = plan.group.get(name, name)
        by_group[group] = max(by_group.get(group, 0.0), abs(ends[0]), abs(ends[1]))
    return {
        name: np.float32(by_group[plan.group.get(name, name)])
        for name in plan.floats
        if plan.group.get(name, name) in by_group
    }


def _reason(
    plan: Int8Plan,
    layer: Layer,
    largest: Mapping[str, np.float32],
    *,
    keep: Collection[str],
    only: Collection[str] | None,
) -> str:
    """Why the layer stays float, "" where it does not."""
    if layer.name in plan.reasons:
        return plan.reasons[layer.name]
    if layer.name in keep or (only is not None and layer.name not in only):
        return "asked for"
    for tensor in activations(plan, layer):
        if tensor not in largest:
            return f"no range was measured for '{tensor}'"
        if not largest[tensor] > 0:
            return f"'{tensor}' is 0 for every calibration image, which gives no scale"
    return ""


def _quantized(plan: Int8Plan, active: Sequence[str], largest: Mapping[str, np.float32], *, where: str) -> bytes:
    """The serialised graph as onnxruntime's quantiser makes it, with our tensors, our ranges and our exceptions."""
    rounded = [name for name in rounded_tensors(plan, active) if largest.get(name, 0) > 0]
    proto = _to_quantize(plan, active)
    quantizer = _quantizer(proto, active, {name: largest[name] for name in rounded}, where=where)
    with quiet():
        for name in rounded:
            quantizer.quantize_activation_tensor(name)
        made: onnx.ModelProto = quantizer.quantize_model()
    made.graph.output.extend(plan.proto.graph.output)
    del made.graph.value_info[:]
    _mend(made.graph, plan, active, rounded)
    _sort(made.graph)
    _assert_symmetric(made.graph, where=where)
    serialized: bytes = made.SerializeToString()
    return serialized


def _to_quantize(plan: Int8Plan, active: Collection[str]) -> onnx.ModelProto:
    """A copy without what the quantiser would round for others than the INT8 layers.

    It rounds what any reader of a weight reads, so that each such layer gets a weight of its own; and a tensor that is
    an output of the graph too, so that the graph has no outputs until it is done.
    """
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(plan.proto)
    # Else it would write the model to disk to infer the shapes, which `plan` has done.
    proto.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
    proto.graph.value_info.extend(proto.graph.output)
    del proto.graph.output[:]
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        has_weight = node.name in active and plan.weight_axes[node.name] is not None
        if has_weight and len(plan.consumers[node.input[1]]) > 1:
            own = proto.graph.initializer.add()
            own.CopyFrom(weights[node.input[1]])
            own.name = node.input[1] = f"{node.input[1]}:{node.name}"
    return proto


def _quantizer(proto: onnx.ModelProto, active: Sequence[str], largest: Mapping[str, np.float32], *, where: str) -> Any:
    """An onnxruntime QDQQuantizer with the settings that TensorRT needs and ranges from elsewhere."""
    try:
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    except ImportError as error:
        message = f"{where}: onnxruntime is not installed, which INT8 needs. Run: pip install 'edgesoup[build]'"
        raise ExportError(message, kind="environment") from error
    return QDQQuantizer(
        proto,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, {name: (-top, top) for name, top in largest.items()}),
        nodes_to_quantize=list(active),
        nodes_to_exclude=[],
        op_types_to_quantize=list(COMPUTE_OPS),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            # Else weights get wider scales for the sake of int32 biases, also where no bias is quantised.
            "QDQDisableWeightAdjustForInt32Bias": True,
            # A layer's output is rounded only where the next one reads it rounded.
            "OpTypesToExcludeOutputQuantization": list(COMPUTE_OPS),
        },
    )


def _mend(graph: onnx.GraphProto, plan: Int8Plan, active: Collection[str], rounded: Sequence[str]) -> None:
    """Let float layers read what they read before, and Gemm multiply its float bias by its own beta; in place."""
    before = {node.name: node for node in plan.proto.graph.node}
    layers = {layer.name for layer in plan.layers}
    back = {name + _SUFFIX: name for name in rounded}
    for node in graph.node:
        if node.name not in layers:
            continue
        if node.name not in active:
            node.input[:] = [back.get(name, name) for name in node.input]
        # The quantiser puts beta into a bias that it quantises, and sets it to 1 also where it leaves the bias alone.
        del node.attribute[:]
        node.attribute.extend(before[node.name].attribute)


def _sort(graph: onnx.GraphProto) -> None:
    """The nodes in their old order, each Q and DQ just before the first that needs it; in place."""
    added = {node.output[0]: node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    ordered: list[onnx.NodeProto] = []

    def place(name: str) -> None:
        if node := added.pop(name, None):
            place(node.input[0])
            ordered.append(node)

    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            for name in node.input:
                place(name)
            ordered.append(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def _assert_symmetric(graph: onnx.GraphProto, *, where: str) -> None:
    """TensorRT takes no other zero point than 0, and no type but int8; what the quantiser made is read back."""
    import onnx

    points = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            point = points[node.input[2]]
            if point.data_type != onnx.TensorProto.INT8 or onnx.numpy_helper.to_array(point).any():
                raise ExportError(f"{where}: node '{node.name}' came out with a zero point that is not 0 in int8.")
