"""The masks of images as a split's targets: class numbers at the size of each image, or at the network's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.decoded import Decoded
from soup.mask_sources import open_masks
from soup.masks import MaskSample, Palette, checked, fit_mask, read_mask, stacked
from soup.preprocess import Preprocess
from soup.sources import Given, Sample, Source
from soup.truth import Reader, Unusable, placements


def masks(
    ignore_index: int, *, classes: Sequence[str] | None, at: Literal["image", "input"], palette: Palette | None = None
) -> Reader:
    """Of segmentation; pixels of `ignore_index` count for nothing, `at` says at which size masks are compared.

    `palette` is the class of each colour, where masks are colour images.
    """
    return Reader(
        partial(_open_masks, ignore_index=ignore_index, classes=classes, palette=palette),
        partial(_mask_targets, ignore_index=ignore_index, classes=classes, at=at),
    )


def _open_masks(
    name: str, source: Given, *, folder: Path, max_bytes: float, ignore_index: int, classes: Sequence[str] | None,
    palette: Palette | None,
) -> Source[Sample]:  # fmt: skip
    """Those that judge are read once, so that all that is wrong with them is told at once."""
    found = open_masks(
        name, source, folder=folder, ignore_index=ignore_index, classes=classes, palette=palette, max_bytes=max_bytes
    )  # fmt: skip
    if name != "train" and isinstance(found.samples, Sequence):
        names = classes or found.class_names
        found = checked(found, classes=None if names is None else len(names), ignore_index=ignore_index)
    return found.mapped(_masked)


def _masked(sample: MaskSample) -> Sample:
    truth = sample if sample.usable else Unusable()
    return Sample(sample.id, sample.image, 0, sample.group, truth, sample.problems)


def _mask_targets(
    decoded: Decoded, preprocess: Preprocess | None, *, origin: str, judges: bool, ignore_index: int,
    classes: Sequence[str] | None, at: Literal["image", "input"],
) -> Arrays:  # fmt: skip
    """Class numbers at the size of each image, or at the network's; none of images that judge nothing."""
    if not judges:
        return {}
    count = None if classes is None else len(classes)
    found = []
    for sample, size in zip(decoded.samples, decoded.sizes.tolist(), strict=True):
        assert isinstance(sample.truth, MaskSample)
        mask = read_mask(sample.truth, classes=count, ignore_index=ignore_index, size=(size[0], size[1]))
        if at == "input" and preprocess is not None:
            mask = fit_mask(mask, preprocess, ignore_index=ignore_index)
        found.append(mask)
    whole = stacked(found, ignore_index=ignore_index)
    if not (whole != ignore_index).any():
        raise SoupError(f"{origin}: all pixels of {len(found)} masks are {ignore_index}: nothing can be judged.")
    canvas = decoded.images.shape[1:3] if decoded.images.dtype == np.uint8 else decoded.images.shape[2:4]
    return {
        "mask": whole,
        "size": decoded.sizes.astype(np.int32),
        "placement": placements(decoded, preprocess),
        "canvas": np.tile(np.array(canvas, np.int32), (len(found), 1)),
    }
