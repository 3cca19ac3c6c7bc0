"""Tensors inside a graph made outputs of it, without the onnx package, so that a device can look inside too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from exporters import ExportError
from exporters.onnx_wire import messages, text

# onnx.proto: ModelProto.graph, GraphProto.node/input/output, NodeProto.output, ValueInfoProto.name.
_GRAPH, _NODE, _INPUT, _OUTPUT, _NODE_OUTPUT, _NAME = 7, 1, 11, 12, 2, 1


def tensor_names(model: bytes) -> tuple[str, ...]:
    """The outputs of all nodes of the main graph, in graph order, of whatever dtype.

    Raises ExportError (input) where the bytes are no ONNX model.
    """
    try:
        graphs = list(messages(memoryview(model), _GRAPH))
        return tuple(
            name
            for graph in graphs
            for node in messages(graph, _NODE)
            for name in map(_text, messages(node, _NODE_OUTPUT))
            if name  # "" is an optional output that is not wanted
        )
    except ValueError as error:
        raise ExportError(f"model: not an ONNX file ({error}).", kind="input") from error


def with_taps(model: bytes, names: Sequence[str]) -> bytes:
    """The model with `names` as further outputs, after its own and in that order, each once.

    Nothing is decoded: protobuf merges a second occurrence of a singular message into the first, and appends its
    repeated fields (protobuf.dev/programming-guides/encoding, "Last One Wins"), so a few bytes at the end do. The new
    outputs have a name and no type, which ONNX Runtime (1.32) infers; `onnx_facts` and the checker want a type. Where a
    tap keeps ONNX Runtime from fusing two nodes, the other outputs may change in their last bits, unless its
    optimisations are off.

    Raises ExportError (input) where the model has no tensor of that name, or the bytes are no model.
    """
    known = {*tensor_names(model), *_values(model, _INPUT)}
    missing = [name for name in names if name not in known]
    if missing:
        raise ExportError(f"model: has no tensor {', '.join(map(repr, missing))}, so it cannot be read.", kind="input")
    present = set(_values(model, _OUTPUT))
    new = [name for name in dict.fromkeys(names) if name not in present]
    outputs = b"".join(_field(_OUTPUT, _field(_NAME, name.encode())) for name in new)
    return model + _field(_GRAPH, outputs) if new else model


def _values(model: bytes, number: int) -> Iterator[str]:
    for graph in messages(memoryview(model), _GRAPH):
        yield from (text(value, _NAME) for value in messages(graph, number))


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field (wire type 2)."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
