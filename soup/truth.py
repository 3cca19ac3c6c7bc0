"""How the data of a task are read: what lists the samples of a split, and the targets that their truth becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.decoded import Decoded
from soup.placement import placement
from soup.preprocess import Preprocess
from soup.sources import Given, Sample, Source, several


class Open(Protocol):
    """Lists the samples of a split; no image is decoded yet."""

    def __call__(self, name: str, source: Given, *, folder: Path, max_bytes: float) -> Source[Sample]:
        """Raises SoupError for what `source` may not be."""


class Targets(Protocol):
    """What a metric compares with, of the samples that could be decoded."""

    def __call__(self, decoded: Decoded, preprocess: Preprocess | None, *, origin: str, judges: bool) -> Arrays:
        """First axis the sample; `judges` is False for train, whose images are only looked at.

        Raises SoupError for truth that cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Reader:
    """One task's way from files to targets."""

    open: Open
    targets: Targets


def without_bad(
    source: Source[Sample], *, on_bad: Literal["fail", "skip"]
) -> tuple[Source[Sample], tuple[tuple[str, str], ...]]:
    """The source without what its truth makes unusable, and (id, reason) of all that was wrong.

    Raises SoupError with every problem at once where `on_bad` is "fail". What a function gives is judged when it is
    read: a bad sample's image is then the error.
    """
    if not isinstance(source.samples, Sequence):
        return source.mapped(partial(_judged, on_bad=on_bad)), ()
    bad = [("", problem) for problem in source.problems]
    bad += [(sample.id, problem) for sample in source.samples for problem in sample.problems]
    told = several([f"{one}: {problem.rstrip('.')}" if one else problem for one, problem in bad])
    if bad and on_bad == "fail":
        raise SoupError(
            f"{source.origin}: {len(bad)} {'problem' if len(bad) == 1 else 'problems'}: {told}. Repair them, or set "
            "data.on_bad_sample: skip, which leaves "
            "out what is bad: a box, or an image whose annotation cannot be read."
        )
    usable = [sample for sample in source.samples if not isinstance(sample.truth, Unusable)]
    if not usable:
        raise SoupError(f"{source.origin}: none of {len(source.samples)} images can be used: {told}.")
    return replace(source, samples=usable, count=len(usable)), tuple(bad)


def _judged(sample: Sample, on_bad: Literal["fail", "skip"]) -> Sample:
    refused = isinstance(sample.truth, Unusable) or (bool(sample.problems) and on_bad == "fail")
    return replace(sample, image=SoupError(several(sample.problems))) if refused else sample


@dataclass(frozen=True, slots=True)
class Unusable:
    """The truth of an image that says nothing."""


def placements(decoded: Decoded, preprocess: Preprocess | None) -> np.ndarray:
    """float64 [n, 4]: (scale_x, scale_y, left, top) of each image, from its own pixels to the network's."""
    if preprocess is None:
        return np.tile([1.0, 1.0, 0.0, 0.0], (len(decoded.sizes), 1))
    found = {tuple(size): placement(tuple(size), preprocess) for size in np.unique(decoded.sizes, axis=0).tolist()}
    return np.array([found[tuple(size)] for size in decoded.sizes.tolist()], np.float64).reshape(-1, 4)
