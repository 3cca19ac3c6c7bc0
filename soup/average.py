"""The soup itself: Σ w·x / Σ w of the ingredients, streamed from their files, summed in float64, rounded once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from soup import SoupError
from soup.checkpoint import Checkpoint, check_unchanged
from soup.files import Entry, write_safetensors
from soup.rounding import REALS, cooked_dtype, reals, rounded
from soup.tensors import StateDict, TensorSpec, read_tensor, state_entry

DtypePolicy = Literal["same", "float32", "float16", "bfloat16"]

BLOCK_BYTES = 1 << 20  # of one ingredient
THREADS = 2


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the soup: where each ingredient keeps it, in the order of their SHA-256, and what it becomes."""

    name: str
    parts: tuple[TensorSpec, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    flat: bool  # in each file one range of bytes, whose rows are the single elements; else rows of the first axis
    rows: int
    row_bytes: int  # of the widest part
    rows_per_block: int

    @property
    def starts(self) -> range:
        return range(0, self.rows, self.rows_per_block)

    @property
    def block_bytes(self) -> int:
        return min(self.rows, self.rows_per_block) * self.row_bytes


Batch = list[tuple[_Tensor, int]]  # blocks of tensors, each named by its first row


def cook(
    weights: Mapping[str, float], ingredients: Mapping[str, Checkpoint], *, dtype: DtypePolicy = "same"
) -> StateDict:
    """Average in memory: {SHA-256 of an ingredient: positive weight} → names in sorted order, tied tensors still tied.

    Floating and complex tensors are Σ w·x / Σ w, summed in float64 in the order of the SHA-256 and rounded once, to
    `dtype` where they are floating, else to the widest dtype among the ingredients. So the result depends on the set
    alone, and a soup of one, or of copies, has its bits. Integers and booleans are copied; `num_batches_tracked` is the
    largest.

    Raises SoupError when names, shapes or integer tensors differ, for float8, and when a file changed after its check.
    """
    state: StateDict = {}
    tied: dict[tuple[TensorSpec, ...], torch.Tensor] = {}
    fresh: list[_Tensor] = []
    for tensor in _plan(weights, ingredients, dtype=dtype):
        if tensor.parts not in tied:
            tied[tensor.parts] = torch.empty(tensor.shape, dtype=tensor.dtype)
            fresh.append(tensor)
        state[tensor.name] = tied[tensor.parts]
    with contextlib.closing(_blocks(fresh, weights, ingredients)) as blocks:
        for tensor in fresh:
            target = state[tensor.name].reshape(-1).view(torch.uint8).numpy()
            start = 0
            for block in itertools.islice(blocks, len(tensor.starts)):
                target[start : start + len(block)] = block
                start += len(block)
    return state


def cook_to_file(
    weights: Mapping[str, float],
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
    plan = _plan(weights, ingredients, dtype=dtype)
    if unknown := replaced.keys() - {tensor.name for tensor in plan}:
        raise ValueError(f"no ingredient has the tensors to be replaced: {sorted(unknown)}")
    averaged = [tensor for tensor in plan if tensor.name not in replaced]
    with contextlib.closing(_blocks(averaged, weights, ingredients)) as blocks:
        # Entries are written in the order of their names, which is the plan's: each takes the blocks that come next.
        entries = {tensor.name: _entry(tensor, blocks) for tensor in averaged}
        entries.update((name, state_entry(tensor)) for name, tensor in replaced.items())
        write_safetensors(path, entries, metadata=metadata)


def _plan(weights: Mapping[str, float], ingredients: Mapping[str, Checkpoint], *, dtype: DtypePolicy) -> list[_Tensor]:
    if not weights or not all(0 < weight < math.inf for weight in weights.values()):
        raise SoupError(f"recipe: weights are {list(weights.values())}, expected one or more positive numbers.")
    first, *others = (ingredients[sha] for sha in sorted(weights))
    for other in others:
        if differing := sorted(other.tensors.keys() ^ first.tensors.keys()):
            raise SoupError(f"{other.path}: tensor {differing[0]!r} is here or in {first.path}, expected in both.")
    kept = {name: tuple(item.tensors[name] for item in (first, *others)) for name in sorted(first.tensors)}
    return [_planned(name, parts, dtype=dtype) for name, parts in kept.items()]


def _planned(name: str, parts: tuple[TensorSpec, ...], *, dtype: DtypePolicy) -> _Tensor:
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
    return _Tensor(
        name, parts, shape, result, flat, rows, row_bytes, max(1, BLOCK_BYTES // row_bytes if in_blocks else rows)
    )


def _entry(tensor: _Tensor, blocks: Iterator[np.ndarray]) -> Entry:
    empty = state_entry(torch.empty(0, dtype=tensor.dtype))
    chunks = (block.data for block in itertools.islice(blocks, len(tensor.starts)))
    return Entry(empty.dtype, tensor.shape, math.prod(tensor.shape) * tensor.dtype.itemsize, chunks)


def _blocks(
    plan: Sequence[_Tensor], weights: Mapping[str, float], ingredients: Mapping[str, Checkpoint]
) -> Generator[np.ndarray, None, None]:
    """Bytes (uint8) of every block of every tensor, in order; the last comes only after no file was seen to change."""
    used = [ingredients[sha] for sha in sorted(weights)]
    ordered = [weights[sha] for sha in sorted(weights)]
    with contextlib.ExitStack() as stack:
        opened = {stamp.path: stack.enter_context(_opened(stamp.path)) for item in used for stamp in item.files}

        def check() -> None:
            for item in used:
                check_unchanged(item)

        check()
        work = functools.partial(_cook_batch, weights=ordered, opened=opened)
        yield from _in_order(work, _batches(plan), before_last=check)


def _batches(plan: Sequence[_Tensor]) -> Iterator[Batch]:
    """One block each, or as many of the small tensors as make one: handing over a job costs more than a bias does."""
    batch: Batch = []
    size_bytes = 0
    for tensor, start in ((one, start) for one in plan for start in one.starts):
        batch.append((tensor, start))
        size_bytes += tensor.block_bytes
        if size_bytes >= BLOCK_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _in_order(
    work: Callable[[Batch], list[np.ndarray]], jobs: Iterable[Batch], *, before_last: Callable[[], None]
) -> Generator[np.ndarray, None, None]:
    """Results in the order of the jobs, worked out a few ahead: numpy and the kernel release the interpreter lock."""
    pending: deque[Future[list[np.ndarray]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for job in jobs:
            pending.append(pool.submit(work, job))
            if len(pending) > 2 * THREADS:
                yield from pending.popleft().result()
        wait(pending)
        before_last()
        for future in pending:
            yield from future.result()


def _cook_batch(batch: Batch, *, weights: Sequence[float], opened: Mapping[Path, int]) -> list[np.ndarray]:
    return [_cook_block(tensor, start, weights, opened) for tensor, start in batch]


def _cook_block(tensor: _Tensor, start: int, weights: Sequence[float], opened: Mapping[Path, int]) -> np.ndarray:
    if tensor.dtype not in REALS:
        return _agreed(tensor, start, opened)
    with np.errstate(invalid="ignore"):  # NaN comes out as NaN; it is the pre-flight that refuses it
        mean = _mean(tensor, start, weights, opened)
    if any(part.dtype != tensor.dtype for part in tensor.parts):
        largest = np.abs(mean[np.isfinite(mean)]).max(initial=0)
        if largest > torch.finfo(tensor.dtype).max:
            raise SoupError(
                f"checkpoints: tensor {tensor.name!r} reaches {largest:g}, "
                f"more than {tensor.dtype} holds. Set checkpoints.dtype to same."
            )
    return rounded(mean, tensor.dtype)


def _agreed(tensor: _Tensor, start: int, opened: Mapping[Path, int]) -> np.ndarray:
    """A block that is not averaged: the same bytes in all (an index, a mask), or the largest counter."""
    first = _read(tensor, start, tensor.parts[0], opened, np.empty(tensor.block_bytes, np.uint8))
    for part in tensor.parts[1:]:
        other = _read(tensor, start, part, opened, np.empty(tensor.block_bytes, np.uint8))
        if tensor.name.rpartition(".")[2] == "num_batches_tracked":
            values = torch.from_numpy(first).view(part.dtype)
            torch.maximum(values, torch.from_numpy(other).view(part.dtype), out=values)
        elif not np.array_equal(first, other):
            raise SoupError(
                f"{part.file}: tensor {tensor.name!r} ({part.dtype}) differs from that of {tensor.parts[0].file}, "
                "expected equal: integers and masks are not averaged. Leave one of the two out."
            )
    return first


def _mean(tensor: _Tensor, start: int, weights: Sequence[float], opened: Mapping[Path, int]) -> np.ndarray:
    """Σ w·x / Σ w as float64[n]; where parts are float64 themselves, kept between the least and the largest of them."""
    buffer = np.empty(tensor.block_bytes, np.uint8)
    wide = any(REALS[part.dtype] is np.float64 for part in tensor.parts)
    total = low = high = np.empty(0)
    for index, (part, weight) in enumerate(zip(tensor.parts, weights, strict=True)):
        values = reals(_read(tensor, start, part, opened, buffer), part.dtype)
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
    total /= math.fsum(weights)
    return np.clip(total, low, high, out=total) if wide else total


def _read(tensor: _Tensor, start: int, part: TensorSpec, opened: Mapping[Path, int], buffer: np.ndarray) -> np.ndarray:
    """One ingredient's bytes (uint8) of one block in C order, in `buffer` where they follow each other in the file."""
    count = min(tensor.rows_per_block, tensor.rows - start)
    if not tensor.flat:
        offset = part.offset + start * part.stride[0] * part.dtype.itemsize
        rows = dataclasses.replace(part, offset=offset, shape=(count, *part.shape[1:]))
        return read_tensor(rows).reshape(-1).view(torch.uint8).numpy()
    offset = part.offset + start * part.dtype.itemsize
    data = buffer[: count * part.dtype.itemsize]
    filled = 0
    while filled < len(data):
        try:
            got = os.preadv(opened[part.file], [data.data[filled:]], offset + filled)
        except OSError as error:
            raise _unreadable(part.file, error) from error
        if got == 0:
            raise SoupError(
                f"{part.file}: ends at byte {offset + filled}, expected {len(data) - filled} more. "
                "It changed since it was checked: run again when nothing writes to it."
            )
        filled += got
    return data


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _unreadable(path: Path, error: OSError) -> SoupError:
    return SoupError(f"{path}: cannot be read: {error.strerror or error}. Check the file and its disk.")
