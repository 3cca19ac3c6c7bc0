"""Which images: content hashes, overlap of splits, and a choice that depends on content alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from calib import CalibError

_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Overlap:
    """Content that two splits share, told for the split that holds relatively more of it."""

    first: str
    second: str
    count: int  # samples of that split whose content the other holds too
    share: float  # `count` as a fraction of that split; without duplicates it is the smaller one
    examples: tuple[tuple[int, int], ...]  # up to ten (index in first, index in second)


def sample_sha256(array: np.ndarray) -> str:
    """SHA-256 of an array's dtype, shape and values; independent of memory layout and byte order."""
    if array.dtype.hasobject:
        raise CalibError(f"sample: has dtype {array.dtype}, expected numbers. Convert it before it is hashed.")
    values = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    digest = hashlib.sha256(f"{array.dtype.name} {array.shape}\n".encode())
    digest.update(values.tobytes())
    return digest.hexdigest()


def list_sha256(hashes: Iterable[str]) -> str:
    """SHA-256 of a list of sample hashes in its order, one per line."""
    return hashlib.sha256("".join(f"{sample}\n" for sample in hashes).encode()).hexdigest()


def overlaps(splits: Mapping[str, Sequence[str]]) -> tuple[Overlap, ...]:
    """Each pair of splits (name → sample hashes) that share content, in the order of `splits`."""
    found = (_overlap(first, second, splits=splits) for first, second in combinations(splits, 2))
    return tuple(overlap for overlap in found if overlap.count)


def choose(
    hashes: Sequence[str],
    count: int,
    *,
    exclude: Collection[str] = (),
    labels: Sequence[Hashable] | np.ndarray | None = None,
) -> np.ndarray:
    """Indices (int64) of up to `count` samples with distinct contents, none of them in `exclude`.

    Taken in the order of their SHA-256, thus mixed and the same however the files were named or listed. With `labels`
    (one per sample) that order is kept within a class, and classes take turns in proportion to their size: the k-th
    of n samples of a class (k from 0) stands at (k + ½) / n, so that every part of the list is mixed as the whole.

    Raises CalibError if nothing is left to choose from.
    """
    excluded = set(exclude)
    first_seen = {sample: index for index, sample in reversed(list(enumerate(hashes))) if sample not in excluded}
    if not first_seen:
        raise CalibError(
            f"choose: all of {len(hashes)} samples have excluded content, expected at least 1 that has not. "
            "Add images that are in no other split."
        )
    ordered = [first_seen[sample] for sample in sorted(first_seen)]
    if labels is not None:
        ordered = _taking_turns(ordered, [labels[index] for index in ordered])
    return np.array(ordered[:count], dtype=np.int64)


def _overlap(first: str, second: str, *, splits: Mapping[str, Sequence[str]]) -> Overlap:
    ours, theirs = splits[first], splits[second]
    where = {sample: index for index, sample in reversed(list(enumerate(theirs)))}
    pairs = [(index, where[sample]) for index, sample in enumerate(ours) if sample in where]
    shared = {theirs[index] for _, index in pairs}
    affected = [(len(pairs), len(ours)), (sum(sample in shared for sample in theirs), len(theirs))]
    share, count = max((count / max(1, total), count) for count, total in affected)
    return Overlap(first, second, count, share, tuple(pairs[:_EXAMPLES]))


def _taking_turns(ordered: Sequence[int], labels: Sequence[Hashable]) -> list[int]:
    """Sorted by (rank within the class + ½) / size of the class; equal places keep their order."""
    sizes, ranks = Counter(labels), Counter[Hashable]()
    places = []
    for label in labels:
        places.append((ranks[label] + 0.5) / sizes[label])
        ranks[label] += 1
    return [ordered[position] for position in np.argsort(places, kind="stable")]
