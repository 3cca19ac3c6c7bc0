"""The decoded cache: every image once through the geometry, into one memory-mapped file that all candidates read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from calib.samples import sample_sha256
from soup import SoupError
from soup.files import canonical_json, readable_json, sha256_bytes, staged
from soup.preprocess import Preprocess, backend_version, fit, read_rgb
from soup.sources import Sample, Source, several

Progress = Callable[[int, int], None]  # (done, total as far as known)
FORMAT = 2  # part of the cache's name
_Row = tuple[np.ndarray, tuple[int, int]]  # as it is kept, and (height, width) before
_IN_FLIGHT = 64  # samples; what a function gives need not fit in memory at once


@dataclass(frozen=True, slots=True)
class Decoded:
    """The images of a source that could be read, in its order."""

    images: np.ndarray  # a read-only map: uint8 [n, height, width, channels], or float32 [n, …]
    hashes: tuple[str, ...]
    samples: tuple[Sample, ...]  # without their images
    skipped: tuple[tuple[str, str], ...]  # (id, reason)
    sizes: np.ndarray  # int64 [n, 2]: (height, width) of each image before its geometry


@dataclass(frozen=True, slots=True)
class _Index:
    """What a cache file holds; stands beside it as JSON and is written after it."""

    shape: tuple[int, ...]
    dtype: str
    hashes: tuple[str, ...]
    skipped: Mapping[int, str]  # place in the source → reason
    sizes: tuple[tuple[int, int], ...]  # (height, width) before the geometry


def decode(
    source: Source[Sample],
    preprocess: Preprocess | None,
    *,
    cache: Path,
    max_bytes: float,
    progress: Progress | None = None,
) -> Decoded:
    """Every image of `source` through `preprocess` (None: float tensors, taken as they are), in 2 threads or more.

    The file is named by the SHA-256 of all that decides its content. When it is opened again each row is compared with
    its own hash; a file that is damaged, or whose unreadable images can be read by now, is made anew. Where only
    reading tells what a source holds (a function), it is read each time, and the file goes with the map.
    Raises SoupError where no image can be read, sizes differ, or the images exceed `max_bytes`.
    """
    version = None if preprocess is None else backend_version(preprocess.backend)
    name = sha256_bytes(canonical_json([FORMAT, source.identity, _geometry(preprocess), version]))
    if source.identity is not None and (found := _open(cache / name, source, preprocess)):
        return found
    with staged(cache, last=f"{name}.json") as stage:
        index, samples = _write(stage / f"{name}.raw", source, preprocess, max_bytes=max_bytes, progress=progress)
        if source.identity is None:
            images = _map(stage / f"{name}.raw", index)
            (stage / f"{name}.raw").unlink()
            return _decoded(images, index, samples)
        (stage / f"{name}.json").write_bytes(readable_json(asdict(index)))
    if found := _open(cache / name, source, preprocess):
        return found
    raise SoupError(f"{cache / name}.raw: does not read back as it was written. Check the disk.", kind="environment")


def _open(path: Path, source: Source[Sample], preprocess: Preprocess | None) -> Decoded | None:
    """The cache as it should be, or None."""
    try:
        record = json.loads(path.with_name(f"{path.name}.json").read_bytes())
        skipped = {int(place): str(reason) for place, reason in record["skipped"].items()}
        sizes = tuple((int(height), int(width)) for height, width in record["sizes"])
        index = _Index(tuple(record["shape"]), str(record["dtype"]), tuple(record["hashes"]), skipped, sizes)
        images = _map(path.with_name(f"{path.name}.raw"), index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    samples = list(source.samples)
    fits = len(images) == len(index.sizes) and len(images) + len(skipped) == len(samples)
    fits = fits and skipped.keys() <= set(range(len(samples)))
    if not fits or _hashes(images) != index.hashes:
        return None
    still_bad = all(isinstance(_attempt(samples[place], preprocess), SoupError) for place in skipped)
    return _decoded(images, index, samples) if still_bad else None


def _map(path: Path, index: _Index) -> np.ndarray:
    size_bytes = math.prod(index.shape) * {"uint8": 1, "float32": 4}[index.dtype]
    if path.stat().st_size != size_bytes:
        raise ValueError(f"{path}: not {size_bytes} bytes")
    return np.memmap(path, index.dtype, mode="r", shape=index.shape).view(np.ndarray)


def _decoded(images: np.ndarray, index: _Index, samples: list[Sample]) -> Decoded:
    return Decoded(
        images=images,
        hashes=index.hashes,
        samples=tuple(
            replace(sample, image=None) for place, sample in enumerate(samples) if place not in index.skipped
        ),
        skipped=tuple((samples[place].id, reason) for place, reason in index.skipped.items()),
        sizes=np.array(index.sizes, np.int64).reshape(-1, 2),
    )


def _write(
    path: Path, source: Source[Sample], preprocess: Preprocess | None, *, max_bytes: float, progress: Progress | None
) -> tuple[_Index, list[Sample]]:
    """Rows one after the other, so that a full disk is an error here and not a signal when the map is written to."""
    samples: list[Sample] = []
    hashes: list[str] = []
    skipped: dict[int, str] = {}
    odd: list[str] = []
    sizes: list[tuple[int, int]] = []
    first: np.ndarray | None = None
    with path.open("wb") as file:
        for place, (sample, found) in enumerate(_rows(source.samples, preprocess)):
            samples.append(replace(sample, image=None))
            if isinstance(found, SoupError):
                skipped[place] = str(found)
            else:
                row, size = found
                sizes.append(size)
                first = row if first is None else first
                _refuse_excess(source, max(source.count or 0, len(hashes) + 1), first, max_bytes=max_bytes)
                odd += [f"{sample.id} is {_size(row)}"] if row.shape != first.shape else []
                hashes.append(_put(file, row))
            if progress:
                progress(place + 1, max(source.count or 0, place + 1))
    if first is None:
        _refuse_all(source, [(samples[place].id, reason) for place, reason in skipped.items()])
    if odd:
        raise SoupError(
            f"{source.origin}: {len(odd)} images differ in size, expected {_size(first)} as the first: {several(odd)}. "
            "Set preprocess.resize to [height, width], resize and crop, or letterbox without a stride."
        )
    return _Index((len(hashes), *first.shape), str(first.dtype), tuple(hashes), skipped, tuple(sizes)), samples


def _refuse_all(source: Source[Sample], skipped: Sequence[tuple[str, str]]) -> NoReturn:
    """Each reason once, with the first image that it stopped."""
    if not skipped:
        raise SoupError(f"{source.origin}: holds no samples, expected one or more pairs of image and label.")
    first: dict[str, str] = {}
    for image, reason in skipped:
        first.setdefault(reason.rstrip("."), image)
    told = several([f"{image}: {reason}" for reason, image in first.items()])
    raise SoupError(f"{source.origin}: none of {len(skipped)} images can be read: {told}.")


def _put(file: BinaryIO, row: np.ndarray) -> str:
    file.write(row.data)
    return sample_sha256(row)


def _rows(samples: Iterable[Sample], preprocess: Preprocess | None) -> Iterator[tuple[Sample, _Row | SoupError]]:
    """In the order of `samples`, whatever thread is first."""
    waiting = iter(samples)
    with ThreadPoolExecutor(_threads()) as pool:
        while chunk := list(islice(waiting, _IN_FLIGHT)):
            yield from zip(chunk, pool.map(lambda sample: _attempt(sample, preprocess), chunk), strict=True)


def _attempt(sample: Sample, preprocess: Preprocess | None) -> _Row | SoupError:
    if isinstance(sample.image, SoupError):
        return sample.image
    try:
        if preprocess is None:
            row = _as_fed(sample.image)
            return row, (int(row.shape[-2]) if row.ndim > 1 else 1, int(row.shape[-1]) if row.ndim else 1)
        pixels = read_rgb(sample.image, preprocess.backend)
        return fit(pixels, preprocess), (pixels.shape[0], pixels.shape[1])
    except SoupError as error:
        return error


def _as_fed(image: object) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.dtype.kind != "f":
        kind = "a file" if isinstance(image, Path) else f"{pixels.dtype} {pixels.shape}"
        raise SoupError(
            f"the image is {kind}, expected a float tensor (channels, height, width) where val.yaml has no `preprocess`"
        )
    if not np.isfinite(pixels).all():
        raise SoupError("the tensor holds NaN or Inf")
    return np.ascontiguousarray(pixels, np.float32)


def _hashes(images: np.ndarray) -> tuple[str, ...]:
    with ThreadPoolExecutor(_threads()) as pool:
        return tuple(pool.map(sample_sha256, images))


def _threads() -> int:
    return max(2, min(16, os.cpu_count() or 1))


def _refuse_excess(source: Source[Sample], count: int, row: np.ndarray, *, max_bytes: float) -> None:
    if not count * row.nbytes <= max_bytes:
        raise SoupError(
            f"{source.origin}: {count:,} images of {_size(row)} take {count * row.nbytes / 1e9:.2f} GB decoded, "
            f"expected at most data.cache.max_gb = {max_bytes / 1e9:g}. Raise it, use fewer images, or resize to less."
        )


def _size(row: np.ndarray) -> str:
    return "×".join(map(str, row.shape))


def _geometry(preprocess: Preprocess | None) -> object:
    """All that changes pixels; mean and std are applied later."""
    if preprocess is None:
        return None
    return {key: value for key, value in asdict(preprocess).items() if key not in ("mean", "std")}
