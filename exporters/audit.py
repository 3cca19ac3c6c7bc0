"""What was asked for and what a file really computes in: per layer of the graph, and of the engine made of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from exporters.layers import compute_layers
from exporters.onnx_proto import proto_types, read_proto
from exporters.plan import Layer, Tensor
from exporters.precision import Precision

if TYPE_CHECKING:
    import onnx

Found = Precision | Literal["mixed", "unknown"]

_FLOAT, _INT8, _HALF = 1, 3, 10  # TensorProto.DataType
# TensorRT's names of dtypes; TF32 is FP32 with another rounding, and has no name of its own.
_TYPES: Mapping[str, Precision] = {"Float": "fp32", "Half": "fp16", "Int8": "int8"}
# What the types of TensorRT's layers that only multiply have in their names: convolutions and products.
_KERNELS = ("conv", "correlation", "gemm", "matmul")
_RANK: Mapping[str, int] = {"int8": 0, "fp16": 1, "fp32": 2}


@dataclass(frozen=True, slots=True)
class LayerAudit:
    """One Conv, ConvTranspose, Gemm or MatMul; `may_be_higher` where the layer was kept so on purpose.

    `found` is "mixed" where it computes on two types, "unknown" where that could not be read.
    """

    name: str
    op: str
    asked: Precision
    found: Found
    macs: int | None
    may_be_higher: bool = False

    @property
    def as_asked(self) -> bool:
        """Whether it computes as it was asked to; a kept layer may compute higher, too."""
        higher = self.may_be_higher and self.found in _RANK and _RANK[self.found] > _RANK[self.asked]
        return self.found == self.asked or higher


def audit_onnx(model: bytes, *, asked: Precision, kept: Collection[str], where: str) -> tuple[LayerAudit, ...]:
    """By each layer's two factors: FP16 of that type, INT8 where both are dequantised int8, else FP32; in graph order.

    `kept` are names of layers that may compute higher than asked; other names in it are passed over.

    Raises ExportError: "input" for no model, "environment" without onnx.
    """
    proto = read_proto(model, where=where, need="which the audit needs")
    types = proto_types(proto)
    dequantised = _dequantised(proto, types)
    return tuple(
        LayerAudit(
            name=layer.name,
            op=layer.op,
            asked=asked,
            found=_found_in_graph(
                [types.get(name, 0) if name not in dequantised else _INT8 for name in layer.inputs[:2]]
            ),
            macs=layer.macs,
            may_be_higher=layer.name in kept,
        )
        for layer in compute_layers(proto)
    )


def audit_engine(layers: Sequence[Layer], *, onnx: Sequence[LayerAudit]) -> tuple[LayerAudit, ...]:
    """The same layers as the engine computes them, by the types of what the engine's layer multiplies.

    What was asked of the engine is what the graph has, which says each layer's type.

    TensorRT fuses several ONNX nodes into one layer, and spreads one over several: an INT8 Conv has a layer before it
    that rounds and one behind it that scales. The one that multiplies is a convolution or product by its type, else it
    is known by a constant with the axes of a weight or, for two activations, by two inputs. Where nothing in the record
    fits, as in one that was not readable, it is "unknown".
    """
    return tuple(
        replace(audit, asked=_asked(audit), found=_found_in_engine(audit, layers), may_be_higher=False)
        for audit in onnx
    )


def differences(audits: Iterable[LayerAudit]) -> tuple[LayerAudit, ...]:
    """Those that do not compute as they were asked to; one that is not known is among them."""
    return tuple(audit for audit in audits if not audit.as_asked)


def share(audits: Sequence[LayerAudit], precision: Precision) -> float:
    """Of all multiply-adds that are known, those of layers found in this precision; NaN where none is known."""
    total = sum(audit.macs or 0 for audit in audits)
    part = sum(audit.macs or 0 for audit in audits if audit.found == precision)
    return part / total if total else float("nan")


def int8_share(audits: Sequence[LayerAudit]) -> float:
    """Of all multiply-adds that are known, those in INT8."""
    return share(audits, "int8")


def _found_in_graph(factors: Sequence[int]) -> Found:
    by_type: dict[int, Precision] = {_FLOAT: "fp32", _INT8: "int8", _HALF: "fp16"}
    found: set[Found] = {by_type.get(factor, "unknown") for factor in factors}
    if len(found) == 1:
        return found.pop()
    # With one factor in INT8 the other is FP32 or FP16, and so is the product.
    floats: set[Found] = found - {"int8"}
    return floats.pop() if len(floats) == 1 and "unknown" not in floats else "unknown"


def _dequantised(proto: onnx.ModelProto, types: Mapping[str, int]) -> frozenset[str]:
    """Tensors that come out of a DequantizeLinear of int8, with nothing between but a Cast."""
    found: set[str] = set()
    for node in proto.graph.node:
        int8 = node.op_type == "DequantizeLinear" and types.get(node.input[0]) == _INT8
        if int8 or (node.op_type == "Cast" and node.input[0] in found):
            found.update(node.output)
    return frozenset(found)


def _asked(audit: LayerAudit) -> Precision:
    return audit.asked if audit.found == "mixed" or audit.found == "unknown" else audit.found


def _found_in_engine(audit: LayerAudit, layers: Sequence[Layer]) -> Found:
    named = [layer for layer in layers if audit.name in layer["onnx_nodes"]]
    kernels = [layer for layer in named if any(word in layer["type"].lower() for word in _KERNELS)]
    factors: set[str] = set()
    for layer in kernels or named:
        factors |= _factors(layer, kernel=bool(kernels), two_inputs=audit.op in ("Gemm", "MatMul"))
    if not factors or not factors.issubset(_TYPES):
        return "unknown"
    return _TYPES[factors.pop()] if len(factors) == 1 else "mixed"


def _factors(layer: Layer, *, kernel: bool, two_inputs: bool) -> set[str]:
    """The dtypes of what a layer of the engine multiplies, empty where it does not seem to multiply."""
    inputs = {tensor["dtype"] for tensor in layer["inputs"]}
    if weights := {tensor["dtype"] for tensor in layer["constants"] if _is_matrix(tensor)}:
        # Among the inputs is what the weight meets, and perhaps what is added behind it.
        return weights if weights <= inputs else weights | inputs
    matrices = [tensor["dtype"] for tensor in layer["inputs"] if _is_matrix(tensor)]
    if two_inputs and len(matrices) > 1:
        return set(matrices)
    return inputs if kernel else set()


def _is_matrix(tensor: Tensor) -> bool:
    """Whether it varies along two axes, as weights do; factors and shifts of channels vary along one."""
    return sum(size != 1 for size in tensor["shape"]) > 1
