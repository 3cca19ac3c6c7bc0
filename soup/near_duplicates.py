"""Leaks that content hashes miss: nearly the same image in two splits, and one group in two splits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from soup import SoupError

DISTANCE = 4  # of 64 bits; what that and ALIKE let through is measured in this module's tests
ALIKE = 0.97  # correlation of two images reduced to 32 × 32, from which on they count as nearly the same
CONTRAST = 4.0  # gray levels between the darkest and the lightest of the cells that are hashed
_BITS, _GRID, _LOW = 64, 32, 8
_ROWS = 256  # images reduced at once
_BLOCK = 1 << 22  # pairs compared at once: bounds the memory, whatever the number of images
_POPCOUNT = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


@dataclass(frozen=True, slots=True)
class Hashes:
    """Perceptual hashes of a split, uint64 [n], and which images are too flat to have one, bool [n]."""

    values: np.ndarray
    flat: np.ndarray


def near_duplicates(
    splits: Mapping[str, np.ndarray],
    ids: Mapping[str, Sequence[str]],
    hashes: Mapping[str, Sequence[str]],
    *,
    distance: int = DISTANCE,
) -> tuple[str, ...]:
    """One line for each pair of splits (name → uint8 [n, height, width, channels]) that hold images nearly alike.

    Two images are nearly alike where at most `distance` bits of `perceptual_hashes` differ, and they correlate by at
    least `ALIKE` when reduced to 32 × 32: digits on black share hashes without being the same picture. Pairs of equal
    content (`hashes`, SHA-256 of each image) are left out: `larder.find_overlaps` tells those. One more line for each
    split that has images of almost no contrast: they all hash alike, and are not compared.
    Raises SoupError where images are no uint8.
    """
    hashed = {name: perceptual_hashes(images, name=name) for name, images in splits.items()}
    lines = []
    for first, second in itertools.combinations(splits, 2):
        pairs = _hashed_alike(hashed[first], hashed[second], distance=distance)
        same = np.array([hashes[first][one] == hashes[second][other] for one, other, _ in pairs], bool)
        pairs = pairs[~same]
        pairs = pairs[_look_alike(splits[first], splits[second], pairs)]
        lines += [_line(first, second, pairs, ids)] if len(pairs) else []
    flat = [
        f"data.{name}: {int(one.flat.sum())} of {len(one.flat)} images have almost no contrast, as "
        f"'{ids[name][int(one.flat.argmax())]}': not compared with other splits"
        for name, one in hashed.items()
        if one.flat.any()
    ]
    return (*lines, *flat)


def shared_groups(groups: Mapping[str, np.ndarray | None]) -> tuple[str, ...]:
    """One line for each pair of splits (name → group of each sample, or None) with samples of the same group."""
    lines = []
    grouped = {name: np.asarray(values) for name, values in groups.items() if values is not None}
    for (first, ours), (second, theirs) in itertools.combinations(grouped.items(), 2):
        both = np.intersect1d(ours, theirs)
        if len(both):
            counts = [int(np.isin(values, both).sum()) for values in (ours, theirs)]
            lines.append(
                f"data.{first} and data.{second} share {len(both)} groups ({counts[0]} and {counts[1]} samples), "
                f"as '{both[0]}'"
            )
    return tuple(lines)


def perceptual_hashes(images: np.ndarray, *, name: str) -> Hashes:
    """64 bits that survive recompression, scaling and small changes of light, from uint8 [n, height, width, channels].

    The image's mean over channels, reduced to 32 × 32, and of its discrete cosine transform the 8 × 8 lowest
    frequencies but for the constant one: which of them are above their median (Zauner, Implementation and benchmarking
    of perceptual image hash functions, 2010, section 3.2.1; the 64th bit is always 0).
    Raises SoupError where images are no uint8; `name` is the split's.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise SoupError(
            f"data.{name}: holds {images.dtype} of shape {images.shape}, expected uint8 images (n, height, width, "
            "channels) to find near-duplicates. Give image files, or leave the comparison out."
        )
    values, flat = np.zeros(len(images), np.uint64), np.zeros(len(images), bool)
    for start in range(0, len(images), _ROWS):
        small = _reduced(images[start : start + _ROWS])
        rows = slice(start, start + len(small))
        values[rows] = _bits(small)
        cells = small.reshape(len(small), _LOW, _GRID // _LOW, _LOW, _GRID // _LOW).mean(axis=(2, 4))
        flat[rows] = np.ptp(cells, axis=(1, 2)) < CONTRAST
    return Hashes(values, flat)


def near_pairs(first: np.ndarray, second: np.ndarray, *, distance: int) -> np.ndarray:
    """int64 [pairs, 3]: indices in first and second, uint64 hashes, and their differing bits, if at most `distance`."""
    found = [np.zeros((0, 3), np.int64)]
    step = max(1, _BLOCK // max(1, len(second)))
    for start in range(0, len(first), step):
        bits = _differing(first[start : start + step, None] ^ second[None, :])
        ours, theirs = np.nonzero(bits <= distance)
        found.append(np.stack([ours + start, theirs, bits[ours, theirs].astype(np.int64)], axis=1))
    return np.concatenate(found)


def _hashed_alike(first: Hashes, second: Hashes, *, distance: int) -> np.ndarray:
    """`near_pairs` of the images that are not flat."""
    ours, theirs = (np.flatnonzero(~one.flat) for one in (first, second))
    pairs = near_pairs(first.values[ours], second.values[theirs], distance=distance)
    return np.stack([ours[pairs[:, 0]], theirs[pairs[:, 1]], pairs[:, 2]], axis=1)


def _look_alike(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """bool [pairs]: whether what the hash takes for alike correlates."""
    alike = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), _ROWS):
        some = pairs[start : start + _ROWS]
        ours, theirs = _standard(_reduced(first[some[:, 0]])), _standard(_reduced(second[some[:, 1]]))
        alike[start : start + _ROWS] = (ours * theirs).mean(axis=(1, 2)) >= ALIKE
    return alike


def _line(first: str, second: str, pairs: np.ndarray, ids: Mapping[str, Sequence[str]]) -> str:
    one, other, bits = pairs[np.lexsort((pairs[:, 1], pairs[:, 0], pairs[:, 2]))[0]]
    counts = [len(np.unique(pairs[:, column])) for column in (0, 1)]
    return (
        f"data.{first} and data.{second} hold images nearly alike ({counts[0]} and {counts[1]} of them), "
        f"as '{ids[first][one]}' ~ '{ids[second][other]}' ({bits} of {_BITS} bits differ)"
    )


def _reduced(images: np.ndarray) -> np.ndarray:
    """float32 [n, 32, 32] of the mean over channels."""
    from PIL import Image

    gray = images.mean(axis=3, dtype=np.float32)
    return np.array([np.asarray(Image.fromarray(one).resize((_GRID, _GRID), Image.Resampling.BOX)) for one in gray])


def _standard(small: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 for each; no image that is compared is flat."""
    centred = small - small.mean(axis=(1, 2), keepdims=True)
    standard: np.ndarray = centred / centred.std(axis=(1, 2), keepdims=True)
    return standard


def _bits(small: np.ndarray) -> np.ndarray:
    """uint64 [n]: the lowest frequencies against their median."""
    angle = np.pi / _GRID * np.outer(np.arange(_LOW), np.arange(_GRID) + 0.5)
    basis = np.cos(angle).astype(np.float32)  # DCT-II, unscaled: rows differ by a factor only where the index is 0
    basis[0] /= np.sqrt(2, dtype=np.float32)
    frequencies = (basis @ small @ basis.T).reshape(len(small), -1)[:, 1:]
    above = frequencies > np.median(frequencies, axis=1, keepdims=True)
    packed = np.packbits(np.pad(above, ((0, 0), (1, 0))), axis=1)
    values: np.ndarray = packed.view(">u8").astype(np.uint64).reshape(-1)
    return values


def _differing(values: np.ndarray) -> np.ndarray:
    """How many bits are set, uint8."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        counts: np.ndarray = np.bitwise_count(values)
        return counts
    parts = [_POPCOUNT[(values >> np.uint64(shift)) & np.uint64(0xFFFF)] for shift in (0, 16, 32, 48)]
    total: np.ndarray = parts[0] + parts[1] + parts[2] + parts[3]
    return total
