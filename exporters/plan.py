"""What an engine file and its builder's log say of themselves, read without TensorRT."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from exporters import ExportError
from exporters.flavours import Flavour

# The header is not documented. It was read off plans of tensorrt_rtx 1.7; that classic plans carry the version at the
# same place is NVIDIA's word (github.com/NVIDIA/TensorRT/issues/3073). Anything else is reported as not known.
_FLAVOUR_OF_TAG: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_VERSION_AT = slice(24, 28)
_SIZE_AT = slice(16, 24)  # of the whole file; read off tensorrt_rtx's plans only
_CAPABILITIES_AT = slice(32, 36)
_PORTABLE = {"8.0", "8.6", "8.9", "12.0"}
_CAPABILITY_BITS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
_HEADER_BYTES = 64

_LAYER = re.compile(
    r"Name: (?P<name>.*), LayerType: (?P<type>[^,]*), Inputs: \[(?P<inputs>.*), Outputs: \[(?P<outputs>.*)"
)
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d,]*)\].*?Datatype: (?P<dtype>\w+)")
# What else is called .engine by mistake, by how it begins.
_OTHER_FILES = (
    (re.compile(rb"PK\x03\x04"), "a zip file, as PyTorch writes its checkpoints"),
    (re.compile(rb"\x7fELF"), "a program or shared library"),
    (re.compile(rb"\x80[\x02-\x05]"), "a pickle"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer: the file itself was not fetched"),
    (re.compile(rb".{8}\{\"", re.DOTALL), "a safetensors file"),
    (re.compile(rb"\x08[\x03-\x20][\x12\x1a\x22\x28\x3a\x42]"), "an ONNX model"),
)
_NAME_OF_DTYPE = {"fp32": "Float", "float": "Float", "fp16": "Half", "half": "Half", "int8": "Int8", "bf16": "BFloat16",
                  "bfloat16": "BFloat16", "fp8": "FP8", "int4": "Int4", "int32": "Int32", "int64": "Int64",
                  "bool": "Bool", "uint8": "UInt8"}  # fmt: skip
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """An engine file from outside; None where its header is not one that is known.

    `declared_bytes` is the size that a tensorrt_rtx header tells. `looks_like` names another kind of file.
    """

    path: Path
    size_bytes: int
    sha256: str
    flavour: Flavour | None
    version: str | None
    compute_capabilities: tuple[str, ...] | None
    declared_bytes: int | None = None
    looks_like: str | None = None


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
        declared_bytes=int.from_bytes(header[_SIZE_AT], "little") if flavour == "tensorrt_rtx" else None,
        looks_like=None if flavour else _other_file(header),
    )


def preflight(
    facts: EngineFacts, *, flavour: Flavour | None, version: str | None, compute_capability: str | None
) -> tuple[str, ...]:
    """Why an engine file cannot run on the TensorRT and GPU that are here, a reason each; none is no promise.

    `flavour` and `version` are of the TensorRT here, `compute_capability` of the GPU; None is not asked. An engine runs
    on the version it was built with; where it was built to be version-compatible, which no header is known to tell, the
    reason names it.
    """
    if facts.flavour is None:
        return (_not_an_engine(facts),)
    reasons = []
    if facts.declared_bytes is not None and facts.declared_bytes != facts.size_bytes:
        kind = "is cut off" if facts.size_bytes < facts.declared_bytes else "has bytes after its end"
        reasons.append(f"it {kind}: {facts.size_bytes} bytes, expected {facts.declared_bytes} as its header tells")
    if flavour is not None and facts.flavour != flavour:
        reasons.append(f"it is for {facts.flavour}, here is {flavour}: neither runs the other's engines")
    elif version is not None and facts.version is not None and not _same_version(facts.version, version):
        reasons.append(
            f"it was built by {facts.flavour} {facts.version}, here is {version}: an engine runs on the version that "
            "built it, unless it was built to be version-compatible"
        )
    known = facts.compute_capabilities
    if compute_capability is not None and known and not _covers(known, compute_capability):
        reasons.append(f"it is for compute capability {', '.join(known)}, the GPU here has {compute_capability}")
    return tuple(reasons)


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


def parse_inspector(text: str) -> list[Layer]:
    """The layers in the JSON of classic TensorRT's engine inspector, at detailed verbosity.

    Raises ValueError where it has another form than the known one: layers with their names only, a dtype not in words.
    """
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the inspector's JSON has another form: {text[:80]!r}") from error
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError("the inspector tells names of layers only")
    return [_inspected(layer) for layer in layers]


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


def _inspected(layer: dict[str, Any]) -> Layer:
    try:
        name, metadata = str(layer["Name"]), str(layer.get("Metadata", ""))
        return Layer(
            name=name,
            type=str(layer["LayerType"]),
            inputs=[_inspected_tensor(tensor) for tensor in layer["Inputs"]],
            constants=[_inspected_tensor(tensor) for tensor in layer.get("Constants", [])],
            outputs=[_inspected_tensor(tensor) for tensor in layer["Outputs"]],
            # Without metadata the names of fused layers are all there is, and those are the nodes'.
            onnx_nodes=_ONNX_NODE.findall(metadata) or name.split(" + "),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a layer has another form: {str(layer)[:80]!r}") from error


def _inspected_tensor(tensor: dict[str, Any]) -> Tensor:
    """A dtype is a word of its own ("FP32", "Half") or one within a format ("Row major linear FP16 format")."""
    words = re.findall(r"\w+", str(tensor.get("Datatype") or tensor["Format/Datatype"]))
    found = [_NAME_OF_DTYPE[word.lower()] for word in words if word.lower() in _NAME_OF_DTYPE]
    if not found:
        raise ValueError(f"a tensor has another form: {str(tensor)[:80]!r}")
    return Tensor(name=str(tensor["Name"]), dtype=found[-1], shape=[int(size) for size in tensor["Dimensions"]])


def _other_file(header: bytes) -> str | None:
    if not header:
        return "empty"
    return next((kind for pattern, kind in _OTHER_FILES if pattern.match(header)), None)


def _not_an_engine(facts: EngineFacts) -> str:
    if facts.size_bytes == 0:
        return "it is empty"
    if facts.looks_like is not None:
        return f"it is {facts.looks_like}, no engine"
    if facts.size_bytes < _HEADER_BYTES:
        return (
            f"it has {facts.size_bytes} bytes, an engine's header alone has {_HEADER_BYTES}: it is cut off or no engine"
        )
    return "it begins like no engine that is known"


def _same_version(engine: str, here: str) -> bool:
    """Compared as far as both go: a header tells four numbers, a package sometimes three."""
    ours, theirs = engine.split("."), re.findall(r"\d+", here)
    return all(a == b for a, b in zip(ours, theirs, strict=False))


def _covers(capabilities: Sequence[str], gpu: str) -> bool:
    """By name, or by NVIDIA's word that a portable engine also runs on what is newer than 12.0 (cpu-engines.html)."""
    newest = max(map(float, capabilities))
    return gpu in capabilities or (set(capabilities) >= _PORTABLE and float(gpu) > newest)


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
