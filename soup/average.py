"""The soup itself: Σ w·x / Σ w of the ingredients, streamed from their files, summed in float64, rounded once."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from soup import SoupError
from soup.blocks import BLOCK_BYTES, Opened, Planned, in_blocks, read_block
from soup.checkpoint import Checkpoint
from soup.files import Entry, write_safetensors
from soup.rounding import REALS, cooked_dtype, reals, rounded
from soup.tensors import StateDict, TensorSpec, state_entry
from soup.weights import Weight, Weights, weight_of

DtypePolicy = Literal["same", "float32", "float16", "bfloat16"]


def cook(weights: Weights, ingredients: Mapping[str, Checkpoint], *, dtype: DtypePolicy = "same") -> StateDict:
    """Average in memory → names in sorted order; tied tensors stay tied where the weights of their names are equal.

    Floating and complex tensors are Σ w·x / Σ w, summed in float64 in the order of the SHA-256 and rounded once, to
    `dtype` where they are floating, else to the widest dtype among the parts. So the result depends on the set alone,
    and a soup of one, or of copies, has its bits. Integers and booleans are copied; `num_batches_tracked` is the
    largest. A part of weight 0 is not read, and plays no part in any of this.

    Raises SoupError when names, shapes or integer tensors differ, for float8, for a weight that is no number from 0 up,
    for a tensor with none that is positive or that no prefix fits, and when a file changed after its check.
    """
    state: StateDict = {}
    tied: dict[object, torch.Tensor] = {}
    fresh: list[Planned] = []
    for tensor in plan(weights, ingredients, dtype=dtype):
        if (source := (tensor.parts, tensor.weights)) not in tied:
            tied[source] = torch.empty(tensor.shape, dtype=tensor.dtype)
            fresh.append(tensor)
        state[tensor.name] = tied[source]
    with contextlib.closing(in_blocks(fresh, _used(weights, ingredients), _cook_block)) as blocks:
        for tensor in fresh:
            target = state[tensor.name].reshape(-1).view(torch.uint8).numpy()
            start = 0
            for block in itertools.islice(blocks, len(tensor.starts)):
                target[start : start + len(block)] = block
                start += len(block)
    return state


def cook_to_file(
    weights: Weights,
    ingredients: Mapping[str, Checkpoint],
    path: Path,
    *,
    dtype: DtypePolicy = "same",
    metadata: Mapping[str, str] | None = None,
    replace: StateDict | None = None,
) -> None:
    """Write what `save_state(path, cook(...))` would, holding a few blocks in memory and never the model.

    `replace` holds tensors, such as recalibrated BatchNorm statistics, that are written instead of averaged ones.
    Only a tensor that a file stores transposed is held whole. Raises SoupError as `cook` does, and on a full disk.
    """
    replaced = replace or {}
    planned = plan(weights, ingredients, dtype=dtype)
    if unknown := replaced.keys() - {tensor.name for tensor in planned}:
        raise ValueError(f"no ingredient has the tensors to be replaced: {sorted(unknown)}")
    averaged = [tensor for tensor in planned if tensor.name not in replaced]
    with contextlib.closing(in_blocks(averaged, _used(weights, ingredients), _cook_block)) as blocks:
        # Entries are written in the order of their names, which is the plan's: each takes the blocks that come next.
        entries = {tensor.name: _entry(tensor, blocks) for tensor in averaged}
        entries.update((name, state_entry(tensor)) for name, tensor in replaced.items())
        write_safetensors(path, entries, metadata=metadata)


def plan(weights: Weights, ingredients: Mapping[str, Checkpoint], *, dtype: DtypePolicy = "same") -> list[Planned]:
    """How each tensor is averaged, by name; nothing is read yet. Raises SoupError as `cook` does."""
    if not weights:
        raise SoupError("recipe: has no weights, expected one or more positive numbers.")
    first, *others = used = _used(weights, ingredients)
    for other in others:
        if differing := sorted(other.tensors.keys() ^ first.tensors.keys()):
            raise SoupError(f"{other.path}: tensor {differing[0]!r} is here or in {first.path}, expected in both.")
    weighed = list(zip(used, (weights[sha] for sha in sorted(weights)), strict=True))
    return [_planned(name, *_weighed(name, weighed), dtype=dtype) for name in sorted(first.tensors)]


def _used(weights: Weights, ingredients: Mapping[str, Checkpoint]) -> list[Checkpoint]:
    return [ingredients[sha] for sha in sorted(weights)]


def _weighed(
    name: str, weighed: Sequence[tuple[Checkpoint, Weight]]
) -> tuple[tuple[TensorSpec, ...], tuple[float, ...]]:
    """The parts of positive weight, and these weights."""
    parts, amounts = [], []
    for item, weight in weighed:
        try:
            amount = weight_of(weight, name)
        except SoupError as error:
            raise SoupError(f"{item.path}: {error}") from error
        if amount:
            parts.append(item.tensors[name])
            amounts.append(amount)
    if not parts:
        raise SoupError(f"recipe: tensor {name!r} has the weight 0 everywhere, expected one or more positive numbers.")
    return tuple(parts), tuple(amounts)


def _planned(name: str, parts: tuple[TensorSpec, ...], weights: tuple[float, ...], *, dtype: DtypePolicy) -> Planned:
    first, shape = parts[0], parts[0].shape
    for part in parts:
        if part.shape != shape or (part.dtype != first.dtype and not {part.dtype, first.dtype} <= REALS.keys()):
            raise SoupError(
                f"{part.file}: tensor {name!r} is {part.dtype} {part.shape}, "
                f"expected {first.dtype} {shape} as in {first.file}."
            )
        if part.dtype.is_floating_point and part.dtype not in REALS:
            raise SoupError(f"{part.file}: tensor {name!r} is {part.dtype}, which is too coarse to average.")
    result = cooked_dtype((part.dtype for part in parts), dtype)
    strides = {part.stride: part for part in parts}
    flat = all(part.contiguous for part in strides.values())
    rows, width = (math.prod(shape), 1) if flat else (shape[0], math.prod(shape[1:]))
    row_bytes = width * max(part.dtype.itemsize for part in parts)
    # Where the first axis is not the slowest one, a few rows lie all over the file, and the tensor is read as a whole.
    in_blocks = flat or all(stride[0] == max(stride) for stride in strides)
    rows_per_block = max(1, BLOCK_BYTES // row_bytes if in_blocks else rows)
    return Planned(name, parts, weights, shape, result, flat, rows, row_bytes, rows_per_block)


def _entry(tensor: Planned, blocks: Iterator[np.ndarray]) -> Entry:
    empty = state_entry(torch.empty(0, dtype=tensor.dtype))
    chunks = (block.data for block in itertools.islice(blocks, len(tensor.starts)))
    return Entry(empty.dtype, tensor.shape, math.prod(tensor.shape) * tensor.dtype.itemsize, chunks)


def _cook_block(tensor: Planned, start: int, opened: Opened) -> np.ndarray:
    if tensor.dtype not in REALS:
        return _agreed(tensor, start, opened)
    with np.errstate(invalid="ignore"):  # NaN comes out as NaN; it is the pre-flight that refuses it
        mean = _mean(tensor, start, opened)
    if any(part.dtype != tensor.dtype for part in tensor.parts):
        largest = np.abs(mean[np.isfinite(mean)]).max(initial=0)
        if largest > torch.finfo(tensor.dtype).max:
            raise SoupError(
                f"checkpoints: tensor {tensor.name!r} reaches {largest:g}, "
                f"more than {tensor.dtype} holds. Set checkpoints.dtype to same."
            )
    return rounded(mean, tensor.dtype)


def _agreed(tensor: Planned, start: int, opened: Opened) -> np.ndarray:
    """A block that is not averaged: the same bytes in all (an index, a mask), or the largest counter."""
    first = read_block(tensor, start, tensor.parts[0], opened, np.empty(tensor.block_bytes, np.uint8))
    for part in tensor.parts[1:]:
        other = read_block(tensor, start, part, opened, np.empty(tensor.block_bytes, np.uint8))
        if tensor.name.rpartition(".")[2] == "num_batches_tracked":
            values = torch.from_numpy(first).view(part.dtype)
            torch.maximum(values, torch.from_numpy(other).view(part.dtype), out=values)
        elif not np.array_equal(first, other):
            raise SoupError(
                f"{part.file}: tensor {tensor.name!r} ({part.dtype}) differs from that of {tensor.parts[0].file}, "
                "expected equal: integers and masks are not averaged. Leave one of the two out."
            )
    return first


def _mean(tensor: Planned, start: int, opened: Opened) -> np.ndarray:
    """Σ w·x / Σ w as float64[n]; where parts are float64 themselves, kept between the least and the largest of them."""
    buffer = np.empty(tensor.block_bytes, np.uint8)
    wide = any(REALS[part.dtype] is np.float64 for part in tensor.parts)
    total = low = high = np.empty(0)
    for index, (part, weight) in enumerate(zip(tensor.parts, tensor.weights, strict=True)):
        values = reals(read_block(tensor, start, part, opened, buffer), part.dtype)
        if index == 0:  # not a sum that starts at zero, which would turn a lone -0.0 into 0.0
            total = np.multiply(values, weight, dtype=np.float64)
            low, high = (values.astype(np.float64), values.astype(np.float64)) if wide else (total, total)
        elif weight == 1:
            np.add(total, values, out=total)
        else:
            np.add(total, np.multiply(values, weight, dtype=np.float64), out=total)
        if wide:
            np.minimum(low, values, out=low)
            np.maximum(high, values, out=high)
    total /= math.fsum(tensor.weights)
    return np.clip(total, low, high, out=total) if wide else total
