"""What an ONNX file says about itself, read without the onnx package and without running it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exporters import ExportError
from exporters.onnx_wire import has_external_data, integers, messages, text
from exporters.runtimes import TensorInfo

# TensorProto.DataType -> numpy's name where there is one.
_DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool"},
    **{10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16"},
    **{17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4"},
}


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """`opset` is the default domain's; `nodes` counts the main graph's operators, `weights` its elements by dtype."""

    sha256: str
    size_bytes: int
    ir_version: int
    opset: int
    opsets: Mapping[str, int]
    producer: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    nodes: Mapping[str, int]
    weights: Mapping[str, int]
    external_data: bool


def inspect_onnx(path: Path) -> OnnxFacts:
    """The facts of an ONNX file.

    Raises:
        ExportError: "input" where the file cannot be read or is no ONNX.
    """
    try:
        return onnx_facts(path.read_bytes(), where=str(path))
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}.", kind="input") from error


def onnx_facts(model: bytes, *, where: str) -> OnnxFacts:
    """The facts of an ONNX model in memory; `where` begins the error message."""
    try:
        return _facts(memoryview(model))
    except ValueError as error:
        raise ExportError(f"{where}: not an ONNX file ({error}).", kind="input") from error


def _facts(model: memoryview) -> OnnxFacts:
    graphs = list(messages(model, 7))
    if len(graphs) != 1:
        raise ValueError(f"{len(graphs)} graphs, expected 1")
    graph = graphs[0]
    opsets = {text(item, 1): _number(item, 2) for item in messages(model, 8)}
    weights: Counter[str] = Counter()
    for tensor in messages(graph, 5):
        weights[_dtype(_number(tensor, 2))] += math.prod(integers(tensor, 1))
    # Before IR version 4 every initializer was also listed as an input.
    initializers = {text(tensor, 8) for tensor in messages(graph, 5)}
    return OnnxFacts(
        sha256=hashlib.sha256(model).hexdigest(),
        size_bytes=len(model),
        ir_version=_number(model, 1),
        opset=opsets.get("", opsets.get("ai.onnx", 0)),
        opsets=opsets,
        producer=f"{text(model, 2)} {text(model, 3)}".strip(),
        inputs=tuple(_tensor_info(item) for item in messages(graph, 11) if text(item, 1) not in initializers),
        outputs=tuple(_tensor_info(item) for item in messages(graph, 12)),
        metadata={text(item, 1): text(item, 2) for item in messages(model, 14)},
        nodes=dict(Counter(text(node, 4) for node in messages(graph, 1))),
        weights=dict(weights),
        external_data=has_external_data(model),
    )


def _tensor_info(value: memoryview) -> TensorInfo:
    tensor = _message(_message(value, 2), 1)
    return TensorInfo(text(value, 1), _dtype(_number(tensor, 1)), tuple(map(_axis, messages(_message(tensor, 2), 1))))


def _axis(dimension: memoryview) -> int | str:
    length = integers(dimension, 1)
    return length[-1] if length else text(dimension, 2) or "?"


def _dtype(code: int) -> str:
    return _DTYPES.get(code, f"type {code}")


def _number(message: memoryview, number: int) -> int:
    return (integers(message, number) or [0])[-1]


def _message(message: memoryview, number: int) -> memoryview:
    return ([*messages(message, number)] or [memoryview(b"")])[-1]
