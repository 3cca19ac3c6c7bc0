"""One tensor in a file: where its bytes lie, how it is read, written as safetensors and hashed by content."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from soup import SoupError
from soup.files import Entry, canonical_json, write_safetensors

StateDict = dict[str, torch.Tensor]
_TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "BOOL": "bool",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
# The safetensors dtypes that this torch has; float8_e8m0fnu came with torch 2.7.
DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, torch_name) for name, torch_name in _TORCH_NAMES.items() if hasattr(torch, torch_name)
}
_SAFETENSORS_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor lies in a file: `offset` is the byte of its element [0, …, 0]; strides are in elements."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        """True where the elements follow each other in C order, so that the tensor is one range of bytes."""
        steps = c_order(self.shape)
        return self.size_bytes == 0 or all(
            size == 1 or stride == step for size, stride, step in zip(self.shape, self.stride, steps, strict=True)
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements themselves: product of `shape` × item size."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def span_bytes(self) -> int:
        """Bytes from `offset` to the end of the last element; more than `size_bytes` where elements lie apart."""
        if self.size_bytes == 0:
            return 0
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.dtype.itemsize


def is_possible(shape: tuple[int, ...]) -> bool:
    """Whether torch can have this shape: at most 64 axes, and strides within 64 bits even where it has no elements."""
    return len(shape) <= 64 and math.prod(max(size, 1) for size in shape) < 1 << 48


def c_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a C-ordered tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def read_tensor(spec: TensorSpec) -> torch.Tensor:
    """The tensor in memory of its own, in C order. Raises SoupError when its file ends early or cannot be read."""
    try:
        with spec.file.open("rb", buffering=0) as file:
            return read_from(file, spec)
    except OSError as error:
        raise SoupError(
            f"{spec.file}: cannot be read: {error.strerror or error}. Check the file and its disk."
        ) from error


def read_from(file: BinaryIO, spec: TensorSpec) -> torch.Tensor:
    """`read_tensor` from its opened file."""
    raw = torch.empty(spec.span_bytes, dtype=torch.uint8)
    view: memoryview = raw.numpy().data
    file.seek(spec.offset)
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled:])  # type: ignore[attr-defined]  # every binary file has it
        if not count:
            raise SoupError(
                f"{spec.file}: ends {len(view) - filled} bytes before its last tensor. "
                "It changed since it was checked: run again when nothing writes to it."
            )
        filled += count
    if spec.size_bytes == 0:
        return torch.empty(spec.shape, dtype=spec.dtype)
    return raw.view(spec.dtype).as_strided(spec.shape, spec.stride).contiguous()


def state_entry(tensor: torch.Tensor, *, name: str = "") -> Entry:
    """A tensor as what `files.write_safetensors` writes. Raises SoupError for a dtype that the format lacks."""
    if tensor.dtype not in _SAFETENSORS_NAMES:
        raise SoupError(f"tensor '{name}': safetensors has no {tensor.dtype}. Convert or drop it.")
    data = _bytes(tensor)
    return Entry(_SAFETENSORS_NAMES[tensor.dtype], tuple(tensor.shape), len(data), [data])


def save_state(path: Path, state: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict as safetensors, tied tensors under each name; the same content gives the same bytes."""
    entries = {name: state_entry(tensor, name=name) for name, tensor in state.items()}
    write_safetensors(path, entries, metadata=metadata)


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes: independent of the file format and of the order of names."""
    facts = [
        [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), hashlib.sha256(_bytes(tensor)).hexdigest()]
        for name, tensor in sorted(state.items())
    ]
    return hashlib.sha256(canonical_json(facts)).hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    data: memoryview = flat.view(torch.uint8).numpy().data
    return data
