"""The samples of a split: what the model is fed, its targets, and who each sample is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.decoded import Decoded, Progress, decode
from soup.files import canonical_json, sha256_bytes
from soup.label_truth import LABELS
from soup.preprocess import Preprocess, normalize
from soup.sources import Given, drawn, several
from soup.truth import Reader, without_bad


@dataclass(frozen=True, slots=True)
class Split:
    """train, val or test, decoded; implements `evaluate.Samples`."""

    name: str
    images: np.ndarray  # read-only: uint8 [n, height, width, channels], or float32 [n, …] fed as it is
    targets: Arrays  # first axis n, by task: see `soup.truth`
    ids: tuple[str, ...]
    hashes: tuple[str, ...]  # SHA-256 of each row of `images`, as `calib.samples.sample_sha256`
    groups: np.ndarray | None  # str [n]
    class_names: tuple[str, ...] | None
    skipped: tuple[tuple[str, str], ...]  # (id, reason)
    preprocess: Preprocess | None
    notes: tuple[str, ...] = ()  # on what was read

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, batch: int, *, order: Sequence[int] | None = None) -> Iterator[tuple[np.ndarray, Arrays, Arrays]]:
        """(indices, inputs, targets) for each batch of all samples, or of those in `order`; the last may be smaller."""
        wanted = np.arange(len(self)) if order is None else np.asarray(order, np.int64)
        for start in range(0, len(wanted), batch):
            indices = wanted[start : start + batch]
            targets = {name: values[indices] for name, values in self.targets.items()}
            yield indices, {"input": self.inputs(indices)}, targets

    def targets_sha256(self) -> str:
        """Of the targets and groups, in the order of the samples."""
        groups = np.array([]) if self.groups is None else self.groups
        named = {**self.targets, "group": groups}
        return sha256_bytes(canonical_json({name: _told(array) for name, array in named.items()}))

    def inputs(self, indices: np.ndarray) -> np.ndarray:
        """What the model is fed for the samples at `indices`: float32 [n, channels, height, width]."""
        if self.preprocess is None:
            return np.asarray(self.images[indices])
        _, height, width, channels = self.images.shape
        mean = np.broadcast_to(np.asarray(self.preprocess.mean, np.float32), channels)
        std = np.broadcast_to(np.asarray(self.preprocess.std, np.float32), channels)
        batch = np.empty((len(indices), channels, height, width), np.float32)
        for row, index in enumerate(indices):
            normalize(self.images[index], mean, std, out=batch[row])
        return batch


def load_split(
    name: str,
    source: Given,
    *,
    folder: Path,
    preprocess: Preprocess | None,
    cache: Path,
    max_gb: float,
    on_bad: Literal["fail", "skip"],
    reader: Reader = LABELS,
    draw: int | None = None,
    progress: Progress | None = None,
) -> Split:
    """Open a split; `reader` says what `source` may be, `decoded.decode` how `cache` keeps its images.

    With `draw`, no more samples than that are decoded (`sources.drawn`).
    Raises SoupError for what these refuse, and for unreadable images (all at once) unless `on_bad` is "skip".
    """
    listed, aside = without_bad(reader.open(name, source, folder=folder, max_bytes=max_gb * 1e9), on_bad=on_bad)
    listed = listed if draw is None else drawn(listed, draw)
    decoded = decode(listed, preprocess, cache=cache, max_bytes=max_gb * 1e9, progress=progress)
    if decoded.skipped and on_bad == "fail":
        bad, total = len(decoded.skipped), len(decoded.skipped) + len(decoded.samples)
        reasons = several([f"{sample}: {reason.rstrip('.')}" for sample, reason in decoded.skipped])
        raise SoupError(
            f"{listed.origin}: {bad} of {total} images cannot be read: {reasons}. "
            "Repair or remove them, or set data.on_bad_sample: skip."
        )
    return Split(
        name=name,
        images=decoded.images,
        targets=reader.targets(decoded, preprocess, origin=listed.origin, judges=name != "train"),
        ids=tuple(sample.id for sample in decoded.samples),
        hashes=decoded.hashes,
        groups=_groups(decoded),
        class_names=listed.class_names,
        skipped=(*aside, *decoded.skipped),
        preprocess=preprocess,
        notes=listed.notes,
    )


def _told(array: np.ndarray) -> object:
    """An array as JSON; what is larger than a list by its content."""
    if array.ndim == 1:
        return array.tolist()
    return [str(array.dtype), list(array.shape), sha256_bytes(np.ascontiguousarray(array).tobytes())]


def _groups(decoded: Decoded) -> np.ndarray | None:
    groups = [sample.group for sample in decoded.samples]
    return None if None in groups else np.array(groups)
