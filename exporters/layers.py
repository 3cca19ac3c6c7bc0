"""The layers of a graph that hold its arithmetic, each with its multiply-adds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporters import ExportError
from exporters.tapped import tapped

if TYPE_CHECKING:
    import onnx

COMPUTE_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One node that multiplies and adds; `macs` is per sample, None where a shape is not known before it runs."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: int | None


def compute_layers(proto: onnx.ModelProto) -> tuple[Layer, ...]:
    """Every Conv, ConvTranspose, Gemm and MatMul of the main graph, in graph order; `proto` stays as it is.

    A layer has its node's name. A node without one, or whose name another node has too, goes by its first output.
    """
    nodes = [node for node in proto.graph.node if node.op_type in COMPUTE_OPS and not _other_domain(node)]
    taken = Counter(node.name for node in proto.graph.node)
    shapes, batch = _shapes(proto)
    return tuple(
        Layer(
            name=node.name if node.name and taken[node.name] == 1 else node.output[0],
            op=node.op_type,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            macs=_macs(node, shapes, batch),
        )
        for node in nodes
    )


def _other_domain(node: onnx.NodeProto) -> bool:
    return node.domain not in ("", "ai.onnx")


def _macs(node: onnx.NodeProto, shapes: Mapping[str, _Shape], batch: int) -> int | None:
    """Multiply-adds of one sample: elements of one side, times the multiplications that each takes part in."""
    first, second = (shapes.get(name, (None,)) for name in node.input[:2])
    output = shapes.get(node.output[0], (None,))
    if node.op_type == "Conv":
        factors = (*output, *second[1:])  # weights are [out, in / groups, *kernel]
    elif node.op_type == "ConvTranspose":
        factors = (*first, *second[1:])  # weights are [in, out / groups, *kernel]
    elif node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        factors = (*output, first[0] if transposed else first[-1])
    else:
        factors = (*output, first[-1] if first else None)
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) // batch if len(known) == len(factors) else None


def inferred(proto: onnx.ModelProto, *, sized: bool) -> tuple[onnx.GraphProto, int]:
    """A copy of the graph with its shapes inferred anew and its float weights as inputs, which is many times faster.

    With `sized` the first axis of every input has a length, 1 where it is dynamic: shapes that depend on it become
    numbers. Second, that length.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph, batch = copy.graph, 1
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    del graph.initializer[:], graph.value_info[:]  # value_info names the batch, and would outlive its new length
    for value in graph.input:
        axes = value.type.tensor_type.shape.dim
        if sized and axes and value.name not in weights:
            if not axes[0].HasField("dim_value"):
                axes[0].dim_value = 1
            batch = max(1, axes[0].dim_value)
    listed = {value.name for value in graph.input}
    for tensor in weights.values():
        if tensor.data_type != onnx.TensorProto.FLOAT:  # others may say what shape something gets
            graph.initializer.append(tensor)
        elif tensor.name not in listed:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return onnx.shape_inference.infer_shapes(copy, data_prop=True).graph, batch


def _shapes(proto: onnx.ModelProto) -> tuple[dict[str, _Shape], int]:
    """Shape by tensor for a batch of that many samples: the static batch, or one sample where it is dynamic."""
    graph, batch = inferred(proto, sized=True)
    values = (*graph.input, *graph.output, *graph.value_info)
    constants = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    shapes = {**{value.name: _shape(value) for value in values}, **constants}
    wanted = {
        name for node in proto.graph.node if node.op_type in COMPUTE_OPS for name in (*node.input[:2], *node.output)
    }
    unknown = sorted(name for name in wanted if None in shapes.get(name, (None,)))
    return {**shapes, **(_run_shapes(proto, unknown, graph.input) if unknown else {})}, batch


def _run_shapes(proto: onnx.ModelProto, names: list[str], inputs: Iterable[onnx.ValueInfoProto]) -> dict[str, _Shape]:
    """The shapes that inference does not find, of one run on zeros; none where nothing here can run it.

    torch writes an adaptive pooling as arithmetic on shapes, behind which inference knows nothing any more.
    """
    import onnx

    weights = {tensor.name for tensor in proto.graph.initializer}
    feed = {}
    for value in inputs:
        shape = _shape(value)
        if value.name in weights:
            continue
        if None in shape:
            return {}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feed[value.name] = np.zeros([axis or 1 for axis in shape], dtype)
    try:
        (found,) = tapped(proto.SerializeToString(), names, [feed], where="the graph")
    except ExportError:
        return {}
    return {name: array.shape for name, array in found.items() if array.size}  # of zeros, the data may make nothing


def _shape(value: onnx.ValueInfoProto) -> _Shape:
    if not value.type.tensor_type.HasField("shape"):
        return (None,)
    return tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in value.type.tensor_type.shape.dim)
