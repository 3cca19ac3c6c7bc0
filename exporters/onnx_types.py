"""The precision that an ONNX graph asks for, tensor by tensor, read without the onnx package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from exporters.onnx_wire import fields, integers, messages, text

FLOAT, INT8, INT64, BOOL, FLOAT16 = 1, 3, 7, 9, 10  # TensorProto.DataType
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

_CODES_OF = {
    **dict.fromkeys(("Shape", "Size", "ArgMax", "ArgMin", "NonZero"), INT64),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor"), BOOL),
    **dict.fromkeys(("IsNaN", "IsInf"), BOOL),
}
_INPUT_OF = {"Where": 1, DEQUANTIZE: 1}  # the output has the type of this input; of the first, if it is another node


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the main graph, in its order."""

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def nodes(model: bytes) -> tuple[Node, ...]:
    """The main graph's nodes; those of subgraphs are not among them. Raises ValueError if it is no ONNX."""
    return tuple(_node(message) for graph in messages(memoryview(model), 7) for message in messages(graph, 1))


def tensor_types(model: bytes) -> dict[str, int]:
    """TensorProto.DataType of the main graph's tensors, as far as operators tell: unknown ones are left out."""
    types: dict[str, int] = {}
    for graph in messages(memoryview(model), 7):
        types |= {text(tensor, 8): _last(tensor, 2) for tensor in messages(graph, 5)}
        types |= {text(value, 1): _element(value) for number in (11, 12, 13) for value in messages(graph, number)}
        for message in messages(graph, 1):
            node = _node(message)
            code = _output_type(node, message, types)
            for index, name in enumerate(node.outputs):
                found = INT64 if node.op == "TopK" and index == 1 else code
                if name and found is not None:
                    types.setdefault(name, found)
    return types


def graph_precisions(model: bytes) -> frozenset[str]:
    """ "fp16" where some tensor is float16, "int8" where some node quantizes; neither is FP32."""
    found = {"fp16"} if FLOAT16 in tensor_types(model).values() else set()
    if any(node.op in (QUANTIZE, DEQUANTIZE) for node in nodes(model)):
        found.add("int8")
    return frozenset(found)


def opset(model: bytes) -> int:
    """The version of the default operator set; 0 where the model names none."""
    return max(
        (_last(item, 2) for item in messages(memoryview(model), 8) if text(item, 1) in ("", "ai.onnx")), default=0
    )


def _node(message: memoryview) -> Node:
    return Node(
        name=text(message, 3),
        op=text(message, 4),
        domain=text(message, 7),
        inputs=tuple(_texts(message, 1)),
        outputs=tuple(_texts(message, 2)),
    )


def _output_type(node: Node, message: memoryview, types: dict[str, int]) -> int | None:
    if node.op in _CODES_OF:
        return _CODES_OF[node.op]
    attributes = {text(attribute, 1): attribute for attribute in messages(message, 5)}
    if node.op == "Cast":
        return _last(attributes["to"], 3) if "to" in attributes else None
    if node.op in ("Constant", "ConstantOfShape"):
        values = [_last(tensor, 2) for name in attributes for tensor in messages(attributes[name], 5)]
        return values[0] if values else (FLOAT if node.op == "ConstantOfShape" else None)
    if node.op == QUANTIZE:
        return types.get(node.inputs[2], INT8) if len(node.inputs) > 2 else INT8
    index = _INPUT_OF.get(node.op, 0)
    return types.get(node.inputs[index]) if len(node.inputs) > index else None


def _element(value: memoryview) -> int:
    codes = [_last(tensor, 1) for kind in messages(value, 2) for tensor in messages(kind, 1)]
    return codes[-1] if codes else 0


def _last(message: memoryview, number: int) -> int:
    return (integers(message, number) or [0])[-1]


def _texts(message: memoryview, number: int) -> Iterator[str]:
    for found, value in fields(message):
        if found == number and isinstance(value, memoryview):
            yield bytes(value).decode("utf-8", "replace")
