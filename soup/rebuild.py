"""The few calls in a checkpoint's pickle whose result is data: tensors, numbers, containers. All others stay inert."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch

from soup.tensors import TensorSpec, is_possible

Args = tuple[object, ...]
_PLAIN_CLASSES = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
_UNREADABLE = {
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_wrapper_subclass": "a wrapper around other tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor saved from a device of its own kind",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor saved from a device of its own kind",
}
_SCALARS = (str, bytes, int, float, type(None), torch.dtype)


@dataclass(slots=True, eq=False)
class Inert:
    """What a pickle names and nobody made: a class, a function or, with `args`, what calling it would have given."""

    name: str
    args: Args | None = None
    state: object = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A tensor whose values are not simply the numbers that are stored, and what it is."""

    what: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A range of bytes in a file that tensors are views of; `file_bytes` bounds what one of them may claim."""

    file: Path
    offset: int
    size_bytes: int
    dtype: torch.dtype
    file_bytes: int


def rebuild(name: str, args: Args) -> object:
    """What calling `name` with `args` gives, where that is data; an `Unreadable` tensor or an `Inert` otherwise.

    Raises ValueError or LookupError where the arguments make no sense.
    """
    if name in _UNREADABLE:
        return Unreadable(_UNREADABLE[name])
    return _REBUILT[name](args) if name in _REBUILT else Inert(name, args)


def as_key(value: object) -> object:
    """A value as a dict key; what may be unhashable, or take forever to hash, becomes an object of its own."""
    parts = value if isinstance(value, tuple) else (value,)
    return value if all(isinstance(part, (*_SCALARS, Inert)) for part in parts) else Inert("a key")


def natural(value: object) -> TypeGuard[int]:
    """Whether this is an integer from 0 up; a bool is none."""
    return type(value) is int and value >= 0


def naturals(values: object) -> TypeGuard[tuple[int, ...]]:
    """Whether this is a tuple of such integers."""
    return isinstance(values, tuple) and all(map(natural, values))


def _tensor(args: Args) -> object:
    """`_rebuild_tensor` and `_v2`: storage, offset, shape, strides, requires_grad, hooks, metadata."""
    storage = args[0]
    return _strided(args[:4], dtype=storage.dtype if isinstance(storage, Storage) else None, options=args[6:7])


def _typed_tensor(args: Args) -> object:
    """`_rebuild_tensor_v3`: as `_v2`, with the dtype before the metadata."""
    return _strided(args[:4], dtype=args[6], options=args[7:8])


def _strided(args: Args, *, dtype: object, options: Args) -> object:
    storage, first, shape, stride = args
    if any(options):
        return Unreadable("a view with its conjugate or negative bit set")
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor has no known storage and dtype")
    if not natural(first) or not naturals(shape) or not naturals(stride):
        raise ValueError("a tensor's offset, shape or strides are not natural numbers")
    if len(shape) != len(stride) or not is_possible(shape):
        raise ValueError(f"no tensor has {len(shape)} axes of the sizes {shape[:64]} and {len(stride)} strides")
    spec = TensorSpec(storage.file, storage.offset + first * dtype.itemsize, dtype, shape, stride)
    if spec.offset + spec.span_bytes > storage.offset + storage.size_bytes:
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {storage.size_bytes} bytes")
    if spec.size_bytes > storage.file_bytes:
        raise ValueError(f"a tensor of shape {shape} is larger than the whole file")
    return spec


def _subclassed(args: Args) -> object:
    """`_rebuild_from_type_v2`: a plain tensor that has attributes, or one of another class."""
    function, kind, inner = args[:3]
    if not isinstance(function, Inert) or not isinstance(kind, Inert) or not isinstance(inner, tuple):
        raise ValueError("a tensor subclass has no name")
    known = _REBUILT.get(function.name)
    plain = kind.name in _PLAIN_CLASSES and known in (_tensor, _typed_tensor)
    return known(inner) if known and plain else Unreadable(f"a tensor of the class {kind.name}")


def _first(args: Args) -> object:
    return args[0]


def _dict(args: Args) -> object:
    pairs = args[0] if args and isinstance(args[0], list) else []
    return {as_key(pair[0]): pair[1] for pair in pairs if isinstance(pair, (list, tuple))}


def _set(args: Args) -> object:
    return set(map(as_key, args[0])) if args and isinstance(args[0], list) else set()


def _bytes(args: Args) -> object:
    """`_codecs.encode(text, "latin1")`: how protocol 2 writes bytes."""
    text = args[0]
    if not isinstance(text, str) or args[1:] != ("latin1",):
        raise ValueError("bytes are in an unknown encoding")
    return text.encode("latin1")


def _numpy_number(args: Args) -> object:
    """A numpy scalar as a Python number; anything but a little-endian number stays inert."""
    kind, data = args
    code = kind.args[0] if isinstance(kind, Inert) and kind.args else None
    order = kind.state[1] if isinstance(kind, Inert) and isinstance(kind.state, tuple) else None
    if not isinstance(code, str) or not re.fullmatch("f[248]|[iu][1248]", code) or order not in ("<", "|"):
        return Inert("numpy.generic", args)
    if not isinstance(data, bytes) or len(data) != int(code[1]):
        raise ValueError(f"a numpy number of type {code} has the wrong length")
    number: object = np.frombuffer(data, dtype=f"<{code}")[0].item()
    return number


_REBUILT: Mapping[str, Callable[[Args], object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _subclassed,
    "torch.Size": _first,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda _: {},
    "builtins.dict": _dict,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "_codecs.encode": _bytes,
    "numpy.core.multiarray.scalar": _numpy_number,
    "numpy._core.multiarray.scalar": _numpy_number,
}
