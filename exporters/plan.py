"""What an engine file and its builder's log say of themselves, read without TensorRT."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from exporters import ExportError
from exporters.flavours import Flavour

# The header is not documented. It was read off plans of tensorrt_rtx 1.7; that classic plans carry the version at the
# same place is NVIDIA's word (github.com/NVIDIA/TensorRT/issues/3073). Anything else is reported as not known.
_FLAVOUR_OF_TAG: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_VERSION_AT = slice(24, 28)
_CAPABILITIES_AT = slice(32, 36)
_CAPABILITY_BITS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
_HEADER_BYTES = 64

_LAYER = re.compile(
    r"Name: (?P<name>.*), LayerType: (?P<type>[^,]*), Inputs: \[(?P<inputs>.*), Outputs: \[(?P<outputs>.*)"
)
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d,]*)\].*?Datatype: (?P<dtype>\w+)")
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """An engine file from outside; None where its header is not one that is known."""

    path: Path
    size_bytes: int
    sha256: str
    flavour: Flavour | None
    version: str | None
    compute_capabilities: tuple[str, ...] | None


class Tensor(TypedDict):
    """One side of a layer: TensorRT's name of the dtype ("Float", "Half", "Int8"), -1 for a dynamic axis."""

    name: str
    dtype: str
    shape: list[int]


class Layer(TypedDict):
    """One layer after fusion, and the ONNX nodes that went into it."""

    name: str
    type: str
    inputs: list[Tensor]
    constants: list[Tensor]
    outputs: list[Tensor]
    onnx_nodes: list[str]


def inspect_engine(path: Path) -> EngineFacts:
    """Size, hash and header; nothing is deserialised. Raises ExportError (input) if the file cannot be read."""
    digest, size, header = hashlib.sha256(), 0, b""
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                header = header or block[:_HEADER_BYTES]
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}.", kind="input") from error
    flavour = plan_flavour(header)
    return EngineFacts(
        path=path,
        size_bytes=size,
        sha256=digest.hexdigest(),
        flavour=flavour,
        version=".".join(str(byte) for byte in header[_VERSION_AT]) if flavour else None,
        compute_capabilities=_capabilities(header) if flavour == "tensorrt_rtx" else None,
    )


def plan_flavour(plan: bytes) -> Flavour | None:
    """Which TensorRT a plan is for, by its tag; None where that is not a known one, or there is no whole header."""
    return _FLAVOUR_OF_TAG.get(plan[:4]) if len(plan) >= _HEADER_BYTES else None


def parse_layers(text: str) -> list[Layer]:
    """The layers in a builder's `Layers:` log record.

    Raises ValueError where the text, which is not a documented format, has another form than the known one.
    """
    lines = text.partition("Layers:\n")[2].partition("\n\n")[0].strip("\n").split("\n")
    if lines == [""]:
        raise ValueError("the record holds no layer")
    return [_layer(line) for line in lines]


def dtype_counts(layers: Sequence[Layer]) -> dict[str, int]:
    """How many layers compute on each dtype, by their first input; those that read nothing are left out."""
    counts = Counter(layer["inputs"][0]["dtype"] for layer in layers if layer["inputs"])
    return dict(sorted(counts.items()))


def _layer(line: str) -> Layer:
    match = _LAYER.fullmatch(line)
    if match is None:
        raise ValueError(f"a line has another form: {line[:80]!r}")
    inputs, _, constants = match["inputs"].partition(", Constants: [")
    return Layer(
        name=match["name"],
        type=match["type"],
        inputs=_tensors(inputs),
        constants=_tensors(constants),
        outputs=_tensors(match["outputs"]),
        onnx_nodes=_ONNX_NODE.findall(match["outputs"]),
    )


def _tensors(text: str) -> list[Tensor]:
    found = [
        Tensor(
            name=match["name"], dtype=match["dtype"], shape=[int(size) for size in match["shape"].split(",") if size]
        )
        for match in _TENSOR.finditer(text)
    ]
    if len(found) != text.count("{ Name: "):
        raise ValueError(f"a tensor has another form: {text[:80]!r}")
    return found


def _capabilities(header: bytes) -> tuple[str, ...]:
    mask = int.from_bytes(header[_CAPABILITIES_AT], "little")
    return tuple(name for bit, name in enumerate(_CAPABILITY_BITS) if mask >> bit & 1)
