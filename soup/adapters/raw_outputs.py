"""One tensor out of what a network returned: a tensor, a tuple, a dict, or an object with attributes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from soup import SoupError

Key = str | int


def tensor_at(raw: object, key: Key, *, where: str) -> Tensor:
    """The tensor under `key`: of a dict by name, of a tuple or list by position, else the attribute of that name.

    A position counts a dict's values in their order. Raises SoupError where there is none, or it is no tensor.
    """
    found = at(raw, key, where=where)
    if not isinstance(found, Tensor):
        raise SoupError(f"{where}: '{key}' of the raw outputs is {type(found).__name__}, expected a tensor.")
    return found


def at(raw: object, key: Key, *, where: str) -> object:
    """As `tensor_at`, whatever lies there; a tensor is its own only position."""
    values: object = [raw] if isinstance(raw, Tensor) else raw
    if isinstance(values, Mapping):
        if key in values:
            return values[key]
        known = f"a dict of {', '.join(map(repr, values))}"
        values = list(values.values())
    else:
        count = f" of {len(raw)}" if isinstance(raw, Sequence) else ""
        known = f"{type(raw).__name__}{count}"
    if isinstance(key, int) and isinstance(values, Sequence) and -len(values) <= key < len(values):
        return values[key]
    if isinstance(key, str) and hasattr(raw, key) and not isinstance(raw, Tensor | Mapping):
        return getattr(raw, key)
    raise SoupError(
        f"{where}: the network returned {known}, expected {key!r} in it. Name the output in the adapter's arguments."
    )


def expect_axes(tensor: Tensor, axes: Sequence[int | str], *, name: str, where: str) -> None:
    """Raise SoupError unless the tensor has these axes after the batch; a word stands for any length."""
    shape = lengths(tensor)
    fits = len(shape) == len(axes) and all(
        isinstance(want, str) or have == want for have, want in zip(shape, axes, strict=True)
    )
    if not fits:
        expected = ", ".join(map(str, ("n", *axes)))
        found = ", ".join(map(str, ("n", *shape)))
        raise SoupError(f"{where}: {name} is ({found}), expected ({expected}).")


def lengths(tensor: Tensor) -> tuple[int, ...]:
    """The axes after the batch, which no export makes dynamic; the legacy exporter's tracer has them as tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(int(axis) for axis in tensor.shape[1:])


def corners(centers: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [..., 4] as x1, y1, x2, y2 from centres [..., 2] (x, y) and sizes [..., 2] (width, height)."""
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)


def cells(height: int, width: int, *, like: Tensor) -> Tensor:
    """[height · width, 2]: x and y of every cell of a feature map, row by row, as numbers like those of `like`."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype).repeat_interleave(width)
    columns = torch.arange(width, device=like.device, dtype=like.dtype).repeat(height)
    return torch.stack([columns, rows], dim=-1)


def one_of(value: object, choices: Sequence[str], *, name: str, where: str) -> None:
    """Raise SoupError unless the argument is one of the choices."""
    if value not in choices:
        raise SoupError(f"{where}: {name} is {value!r}, expected {' or '.join(choices)}.")
