"""An FP32 graph becomes an FP16 one, but for the nodes whose numbers on real data FP16 cannot hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exporters import ExportError
from exporters.fold_batchnorm import fold_batchnorm
from exporters.half_graph import Sides, half_sides, to_half
from exporters.half_range import Span, Tally, span_of, unfit
from exporters.in_graph import PREPROCESS
from exporters.layers import COMPUTE_OPS
from exporters.onnx_facts import onnx_facts
from exporters.onnx_graph import clean_bytes
from exporters.onnx_proto import constants_to_initializers, proto_types, read_proto
from exporters.runtimes import Arrays
from exporters.tapped import tapped

if TYPE_CHECKING:
    import onnx

__all__ = ["Fp16Graph", "Span", "onnx_to_fp16", "spans"]

# Operators that make small numbers large, and which of their inputs those are.
_STEEP = {"Div": (1,), "Reciprocal": (0,), "Log": (0,), "Sqrt": (0,)}
# Inputs that are added to others, so that their errors count beside the sum.
_ADDED = {"Add": (0, 1), "Sub": (0, 1), "Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,)}


@dataclass(frozen=True, slots=True)
class Fp16Graph:
    """`kept` are the nodes that compute in FP32 (not those in INT8), in graph order, with the reason."""

    model: bytes
    kept: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What is known of the numbers; `steep` are the tensors of which some reader makes the smallest large."""

    spans: Mapping[str, Span]
    constants: frozenset[str]
    steep: frozenset[str]


def spans(model: bytes, batches: Iterable[Arrays], *, where: str) -> dict[str, Span]:
    """The span of every float activation of the FP32 graph, its inputs among them, over all batches, by ONNX Runtime.

    Tensors are those of the graph after `onnx_to_fp16` has folded its BatchNorms. The activations of one batch are in
    memory together, so that batches should be small.

    Raises:
        ExportError: "input" for no model, or no batch that it can be run on; "environment" without onnx and
            onnxruntime; "build" where it fails on the inputs.
    """
    proto = _prepared(model, where=where)
    types = proto_types(proto)
    names = [value.name for value in proto.graph.input if types[value.name] == 1]
    names += [name for node in proto.graph.node for name in node.output if types.get(name) == 1]
    tallies: dict[str, Tally] = {}
    for tensors in tapped(proto.SerializeToString(deterministic=True), names, batches, where=where):
        for name, array in tensors.items():
            tallies.setdefault(name, Tally()).add(array)
    if not tallies:
        raise ExportError(
            f"{where}: nothing was run, expected real images that fill one batch of the graph. Give more.", kind="input"
        )
    return {name: tally.span for name, tally in tallies.items()}


def onnx_to_fp16(model: bytes, spans: Mapping[str, Span], *, keep: Collection[str] = (), where: str) -> Fp16Graph:
    """The graph with FP16 weights and arithmetic, and the FP32 inputs and outputs, opset and metadata that it had.

    A node stays FP32 where it is named in `keep`; where its operator takes no FP16; where it normalises the frames of
    `in_graph`; or where a tensor of it, by the limits of IEEE 754 binary16,
      - has no span;
      - overflows: a weight beyond 65504, or an activation beyond half of that, as other images may go further;
      - is flushed: what it loses below 2^-14, where FP16 has ever fewer digits, is a larger share of it than 2^-11, by
        which normal numbers are rounded at worst (root mean squares; a bias or an addend counts beside the sum);
      - is below 2^-14 anywhere, and a node divides by it, or takes its root or logarithm.
    What reads a layer that stays FP32 does too, or TensorRT would not leave the layer so. Sums inside a node are not
    seen. BatchNorms are folded first. Layers of a Q/DQ graph that are INT8 stay so, with FP32 around them; what is
    dequantised has the span of what was quantised. The same arguments give the same bytes.

    Raises:
        ExportError: "input" for no model, or a name in `keep` that is no node; "environment" without onnx; "build" for
            a graph with subgraphs, or where ONNX's checker refuses the result.
    """
    proto = _prepared(model, where=where)
    unknown = sorted(set(keep) - {node.name for node in proto.graph.node})
    if unknown:
        raise ExportError(f"{where}: has no node {', '.join(map(repr, unknown))}. Name nodes of it.", kind="input")
    types, opset = proto_types(proto), onnx_facts(model, where=where).opset
    sides = {node.name: half_sides(node, types, opset) for node in proto.graph.node}
    evidence, int8 = _evidence(proto, spans), _int8_nodes(proto)
    reasons = {}
    for node in proto.graph.node:
        if node.name not in int8 and 1 in map(types.get, (*node.input, *node.output)):  # 1: FLOAT
            found = _reason(node, sides[node.name]) or _numbers(node, sides[node.name], evidence)
            reasons[node.name] = "asked for" if node.name in keep else found
    kept = _with_readers(proto, {name: reason for name, reason in reasons.items() if reason}, set(reasons))
    to_half(proto, {name: side for name, side in sides.items() if name not in kept and name not in int8})
    metadata = {item.key: item.value for item in proto.metadata_props}
    return Fp16Graph(clean_bytes(proto.SerializeToString(), metadata=metadata, where=where), kept)


def _prepared(model: bytes, *, where: str) -> onnx.ModelProto:
    """The graph with its constants as initializers, its BatchNorms folded, and a name of its own for every node."""
    proto = read_proto(model, where=where, need="which FP16 needs")
    for node in proto.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            message = (
                f"{where}: node '{node.name}' ({node.op_type}) holds a graph of its own, which FP16 is not made of."
            )
            raise ExportError(f"{message} Export without control flow, or ask for fp32.")
    constants_to_initializers(proto)
    taken = Counter(node.name for node in proto.graph.node)
    for node in proto.graph.node:
        if not node.name or taken[node.name] > 1:
            node.name = next(filter(None, node.output))
    fold_batchnorm(proto)
    return proto


def _evidence(proto: onnx.ModelProto, measured: Mapping[str, Span]) -> _Evidence:
    """The spans that were measured, those of the weights, and those of what is dequantised."""
    import onnx

    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    known = {**measured, **{name: span_of(array) for name, array in arrays.items() if array.dtype == np.float32}}
    quantised = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and quantised.get(node.input[0]) in known:
            known[node.output[0]] = known[quantised[node.input[0]]]
    steep = {node.input[at] for node in proto.graph.node for at in _STEEP.get(node.op_type, ())}
    return _Evidence(known, frozenset(arrays), frozenset(steep))


def _int8_nodes(proto: onnx.ModelProto) -> frozenset[str]:
    """Q, DQ and the layers that multiply what is dequantised, by name: their float sides stay FP32.

    TensorRT wants a DQ right before its layer ("Explicit Quantization", Q/DQ layer-placement recommendations), opset 18
    has no FP16 Q/DQ, and where there is one ONNX Runtime's optimiser (1.32, CPU) computed such layers wrong.
    """
    dequantised = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    return frozenset(
        node.name
        for node in proto.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        or (node.op_type in COMPUTE_OPS and dequantised.issuperset(node.input[:2]))
    )


def _reason(node: onnx.NodeProto, sides: Sides) -> str:
    """Why the node must stay FP32 whatever its numbers, "" where nothing says so."""
    if node.name.startswith(PREPROCESS):
        return "it normalises the frames"
    if node.op_type == "BatchNormalization":
        return "its statistics are not constants that can be folded"
    return "" if sides.any else f"{node.op_type} takes no FP16 at this opset"


def _with_readers(proto: onnx.ModelProto, kept: Mapping[str, str], floats: Collection[str]) -> dict[str, str]:
    """`kept`, and the float nodes that read a kept layer.

    tensorrt_rtx 1.7 turns a Conv between two Casts into an FP16 one, weights beyond 65504 and all, in a strongly typed
    network too. With another FP32 node behind it, it does not, unless that is a sum that it merges into the bias; then
    the audit of the engine tells.
    """
    readers: dict[str, list[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    found = dict(kept)
    for node in proto.graph.node:
        if node.op_type in COMPUTE_OPS and node.name in kept:
            for reader in (one for name in node.output for one in readers.get(name, ()) if one in floats):
                found.setdefault(reader, f"TensorRT would put '{node.name}', which it reads, into FP16")
    return {node.name: found[node.name] for node in proto.graph.node if node.name in found}


def _numbers(node: onnx.NodeProto, sides: Sides, evidence: _Evidence) -> str:
    """Which tensor that would be FP16 has numbers that FP16 cannot hold, "" where none has."""
    ends = (*zip(node.input, sides.inputs, strict=True), *zip(node.output, sides.outputs, strict=True))
    for index, (name, half) in enumerate(ends):
        if not half:
            continue
        if name not in evidence.spans:
            return f"'{name}' was not measured"
        added = index < len(node.input) and index in _ADDED.get(node.op_type, ()) and node.output[0] in evidence.spans
        reason = unfit(
            evidence.spans[name],
            constant=name in evidence.constants,
            steep=name in evidence.steep,
            beside=evidence.spans[node.output[0] if added else name].rms,
        )
        if reason:
            return f"'{name}' {reason}"
    return ""
