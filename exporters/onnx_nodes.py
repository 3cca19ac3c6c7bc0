"""A graph's nodes with the tensors between them, read without the onnx package."""

from __future__ import annotations

from dataclasses import dataclass

from exporters import ExportError
from exporters.onnx_wire import messages, text

# onnx.proto: ModelProto.graph, GraphProto.node; NodeProto.input, output, name, op_type.
_GRAPH, _NODE, _INPUT, _OUTPUT, _NAME, _OP = 7, 1, 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the main graph; absent optional tensors are left out."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_nodes(model: bytes, *, where: str) -> tuple[Node, ...]:
    """The nodes of the main graph in its order. Raises ExportError (input) where the bytes are no ONNX model."""
    try:
        return tuple(
            Node(text(node, _NAME), text(node, _OP), _names(node, _INPUT), _names(node, _OUTPUT))
            for graph in messages(memoryview(model), _GRAPH)
            for node in messages(graph, _NODE)
        )
    except ValueError as error:
        raise ExportError(f"{where}: not an ONNX file ({error}).", kind="input") from error


def _names(node: memoryview, number: int) -> tuple[str, ...]:
    return tuple(name for value in messages(node, number) if (name := bytes(value).decode("utf-8", "replace")))
