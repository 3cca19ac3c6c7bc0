"""An FP32 graph becomes an INT8 one through NVIDIA ModelOpt, where the user has it, held to the same rules as ours."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters import ExportError
from exporters.int8_plan import Int8Plan, plan_int8
from exporters.onnx_facts import onnx_facts
from exporters.onnx_graph import clean_bytes
from exporters.onnx_to_int8 import Int8Graph
from exporters.quiet import quiet
from exporters.runtimes import Arrays

if TYPE_CHECKING:
    import onnx

INSTALL = "pip install nvidia-modelopt onnx-graphsurgeon lief cppimport"
_METHODS = {"minmax": "max", "entropy": "entropy"}


def onnx_to_int8_modelopt(
    model: bytes,
    batches: Callable[[], Iterable[Arrays]],
    *,
    method: str,
    keep: Collection[str] = (),
    where: str,
) -> Int8Graph:
    """What modelopt.onnx.quantization.quantize makes of the graph, with its own placement and its own calibration.

    `batches()` gives the graph's inputs by name, as often as it is called; `method` is "minmax" or "entropy". Weights
    come out in int8, as with `onnx_to_int8`, and the interface stays; ModelOpt raises an opset below 19 to 19.

    Raises:
        ExportError: "environment" without ModelOpt; "input" as `onnx_to_int8` does, and for another method; "build"
            where ModelOpt fails, or its result is not symmetric int8 with a scale for each output channel.
    """
    if method not in _METHODS:
        message = f"{where}: ModelOpt calibrates by {' or '.join(_METHODS)}, not by '{method}'. Choose one of them."
        raise ExportError(message, kind="input")
    plan = plan_int8(model, where=where)
    unknown = sorted(set(keep) - {layer.name for layer in plan.layers})
    if unknown:
        raise ExportError(f"{where}: has no layer {', '.join(map(repr, unknown))}. Name layers of it.", kind="input")
    proto = _quantize(plan, batches, method=_METHODS[method], keep=keep, where=where)
    _fold_weights(proto.graph)
    metadata = {item.key: item.value for item in plan.proto.metadata_props}
    made = clean_bytes(proto.SerializeToString(), metadata=metadata, where=where)
    _assert_same_interface(model, made, where=where)
    quantized = _quantized_layers(plan, proto.graph, where=where)
    kept = [layer.name for layer in plan.layers if layer.name not in quantized]
    reasons = {name: "asked for" if name in keep else "ModelOpt leaves it float" for name in kept}
    return Int8Graph(made, quantized, reasons)


class _Reader:
    """onnxruntime's CalibrationDataReader, with the two more methods that ModelOpt calls."""

    def __init__(self, batches: Callable[[], Iterable[Arrays]]) -> None:
        self._batches = batches
        self.rewind()

    def rewind(self) -> None:
        self._left = iter(self._batches())

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else dict(batch)

    def get_first(self) -> dict[str, np.ndarray]:
        return dict(next(iter(self._batches())))


def _quantize(
    plan: Int8Plan, batches: Callable[[], Iterable[Arrays]], *, method: str, keep: Collection[str], where: str
) -> onnx.ModelProto:
    import onnx

    logging.disable(logging.ERROR)  # it tells a CPU-only machine that it has no GPU, as an error
    try:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
            source.write_bytes(plan.proto.SerializeToString())
            _modelopt(where)(
                str(source),
                quantize_mode="int8",
                calibration_data_reader=_Reader(batches),
                calibration_method=method,
                calibration_eps=["cpu"],
                high_precision_dtype="fp32",
                nodes_to_exclude=[f"^{re.escape(name)}$" for name in sorted(keep)],
                output_path=str(target),
            )
            return onnx.ModelProto.FromString(target.read_bytes())
    # It has no error class of its own.
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, OSError) as error:
        raise ExportError(f"{where}: ModelOpt failed with {type(error).__name__}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)


def _modelopt(where: str) -> Any:
    try:
        from modelopt.onnx.quantization import quantize
    except ImportError as error:
        message = f"{where}: NVIDIA ModelOpt is not installed, or not whole ({error}). Run: {INSTALL}"
        raise ExportError(message, kind="environment") from error
    return quantize


def _fold_weights(graph: onnx.GraphProto) -> None:
    """Round what ModelOpt leaves to a QuantizeLinear on float weights: a quarter of the bytes; in place."""
    import onnx

    weights = {tensor.name: tensor for tensor in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in weights]
    for node in quantizers:
        values, scale, point = (onnx.numpy_helper.to_array(weights[name]) for name in node.input)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        shape = [1] * values.ndim
        if scale.ndim:
            shape[axis] = -1
        rounded = np.rint(values / scale.reshape(shape)) + point.reshape(shape)
        graph.initializer.append(
            onnx.numpy_helper.from_array(np.clip(rounded, -128, 127).astype(np.int8), node.output[0])
        )
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in quantizers:
        if node.input[0] not in used:
            graph.initializer.remove(weights.pop(node.input[0]))


def _assert_same_interface(before: bytes, after: bytes, *, where: str) -> None:
    was, now = onnx_facts(before, where=where), onnx_facts(after, where=where)
    if (was.inputs, was.outputs) != (now.inputs, now.outputs):
        message = f"{where}: ModelOpt changed the interface to {now.inputs} → {now.outputs}"
        raise ExportError(f"{message}, expected {was.inputs} → {was.outputs}.")


def _quantized_layers(plan: Int8Plan, graph: onnx.GraphProto, *, where: str) -> tuple[str, ...]:
    """The layers whose factors are all int8; checks every scale on the way."""
    import onnx

    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            point = values[node.input[2]]
            if point.dtype != np.int8 or point.any():
                raise ExportError(f"{where}: ModelOpt gave node '{node.name}' a zero point that is not 0 in int8.")
    by_output = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    nodes = {node.name: node for node in graph.node}
    found = []
    for layer in plan.layers:
        inputs = list(nodes[layer.name].input) if layer.name in nodes else [""]
        if any(name in by_output for name in inputs[2:3]):
            raise ExportError(f"{where}: ModelOpt rounded the bias of '{layer.name}', which TensorRT does not take.")
        if all(name in by_output for name in inputs[:2]) and layer.name in plan.weight_axes:
            _assert_per_channel(plan, layer.name, by_output[inputs[1]], values, where=where)
            found.append(layer.name)
    return tuple(found)


def _assert_per_channel(
    plan: Int8Plan, name: str, dequantize: onnx.NodeProto, values: dict[str, np.ndarray], *, where: str
) -> None:
    axis = plan.weight_axes[name]
    if axis is None:
        return
    weight, scale = values[dequantize.input[0]], values[dequantize.input[1]]
    given = next((attribute.i for attribute in dequantize.attribute if attribute.name == "axis"), 1) % weight.ndim
    if given != axis or scale.shape != weight.shape[axis : axis + 1]:
        message = f"{where}: ModelOpt gave the weight of '{name}' scales of shape {scale.shape} on axis {given}"
        raise ExportError(f"{message}, expected {weight.shape[axis : axis + 1]} on axis {axis}.")
