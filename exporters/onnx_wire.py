"""Just enough protobuf to read an ONNX file where the onnx package is absent."""

from __future__ import annotations

from collections.abc import Iterator

from exporters import ExportError

# Message -> field number -> message, along every way from a model to its tensors (onnx.proto).
_TOWARDS_TENSORS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) in file order: a number for varints, else the bytes.

    Raises ValueError where the bytes are no protobuf message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire_type = key & 7
        if wire_type == 0:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        if wire_type == 2:
            size, at = _varint(message, at)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"a field of {size} bytes does not fit at byte {at} of {len(message)}")
        yield key >> 3, message[at : at + size]
        at += size


def messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """The length-delimited values of one field."""
    return (value for found, value in fields(message) if found == number and isinstance(value, memoryview))


def text(message: memoryview, number: int) -> str:
    """A string field, "" where absent; the last one counts, as in protobuf."""
    return ([bytes(value).decode("utf-8", "replace") for value in messages(message, number)] or [""])[-1]


def integers(message: memoryview, number: int) -> list[int]:
    """An int64 field's values, packed or not."""
    found: list[int] = []
    for key, value in fields(message):
        if key != number:
            continue
        if isinstance(value, int):
            found.append(_signed(value))
            continue
        at = 0
        while at < len(value):
            item, at = _varint(value, at)
            found.append(_signed(item))
    return found


def has_external_data(model: memoryview) -> bool:
    """Whether any tensor, also inside nodes, subgraphs and functions, points to another file."""
    pending = [("model", model)]
    while pending:
        kind, message = pending.pop()
        for number, value in fields(message):
            if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value)):
                return True
            if isinstance(value, memoryview) and number in _TOWARDS_TENSORS[kind]:
                pending.append((_TOWARDS_TENSORS[kind][number], value))
    return False


def refuse_external_data(model: bytes, *, where: str) -> None:
    """ONNX Runtime and TensorRT would read any path that the model names.

    Raises ExportError ("input") where it names one, and where it is no protobuf message.
    """
    try:
        external = has_external_data(memoryview(model))
    except ValueError as error:
        raise ExportError(f"{where}: not an ONNX file ({error}).", kind="input") from error
    if external:
        message = f"{where}: keeps weights in other files, expected all inside. Save it with external_data=False."
        raise ExportError(message, kind="input")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError(f"the bytes end inside a number at byte {at}")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than ten bytes at byte {at}")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
