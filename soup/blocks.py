"""Ingredients read block by block, the same block of each at a time, a few blocks ahead of whoever asks for them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from soup import SoupError
from soup.checkpoint import Checkpoint, check_unchanged
from soup.tensors import TensorSpec, read_tensor

BLOCK_BYTES = 1 << 20  # of one ingredient
THREADS = 2
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the soup: where the ingredients of positive weight keep it, by SHA-256, and what it becomes."""

    name: str
    parts: tuple[TensorSpec, ...]
    weights: tuple[float, ...]  # of the parts, positive
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


Batch = list[tuple[Planned, int]]  # blocks of tensors, each named by its first row
Opened = Mapping[Path, int]


def in_blocks(
    planned: Sequence[Planned], ingredients: Sequence[Checkpoint], work: Callable[[Planned, int, Opened], _T]
) -> Generator[_T, None, None]:
    """`work(tensor, first row, files)` of every block of every tensor, in order; raises SoupError if a file changes.

    Blocks are worked out a few ahead: numpy and the kernel release the interpreter lock.
    """
    with contextlib.ExitStack() as stack:
        opened = {stamp.path: stack.enter_context(_opened(stamp.path)) for item in ingredients for stamp in item.files}
        pool = stack.enter_context(ThreadPoolExecutor(THREADS))
        pending: deque[Future[list[_T]]] = deque()
        _check_unchanged(ingredients)
        for batch in _batches(planned):
            pending.append(pool.submit(lambda jobs: [work(tensor, start, opened) for tensor, start in jobs], batch))
            if len(pending) > 2 * THREADS:
                yield from pending.popleft().result()
        wait(pending)
        _check_unchanged(ingredients)  # before the last results, so that a soup of other bytes is never whole
        for future in pending:
            yield from future.result()


def read_block(tensor: Planned, start: int, part: TensorSpec, opened: Opened, buffer: np.ndarray) -> np.ndarray:
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


def _check_unchanged(ingredients: Sequence[Checkpoint]) -> None:
    for item in ingredients:
        check_unchanged(item)


def _batches(planned: Sequence[Planned]) -> Iterator[Batch]:
    """One block each, or as many of the small tensors as make one: handing over a job costs more than a bias does."""
    batch: Batch = []
    size_bytes = 0
    for tensor, start in ((one, start) for one in planned for start in one.starts):
        batch.append((tensor, start))
        size_bytes += tensor.block_bytes
        if size_bytes >= BLOCK_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


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
