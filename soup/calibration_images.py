"""The real images that ranges are measured on, as the graph is fed; and the ranges, kept from export to export."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calib import CalibError
from calib.ranges import RangeTable, read_ranges, write_ranges
from calib.samples import choose, list_sha256
from soup import Progress, SoupError
from soup.build_folder import RANGES
from soup.export_source import Source
from soup.larder import classes_of, load_data, open_split
from soup.pipeline import cache_folder
from soup.variants import Images


def calibration_images(source: Source, *, progress: Progress) -> Images:
    """`quantization.samples` images of data.train, classes in proportion, none of which val or test holds.

    Without data.train they are val's, which is enough to see what would overflow FP16; INT8 refuses them.
    Raises SoupError where train holds nothing that val and test do not.
    """
    config, folder = source.config, source.built.path
    count = config.quantization.samples
    if config.data.train is None:
        split, order = source.val, np.arange(min(count, len(source.val)))
    else:
        cache = cache_folder(config, folder)
        draw = 4 * max(count, config.batchnorm.samples)
        classes = classes_of(source.val)
        train = open_split(config, "train", cache=cache, progress=progress, draw=draw, classes=classes)
        others = [name for name in ("val", "test") if name not in source.splits]
        judging = load_data(config, others, cache=cache, progress=progress)
        excluded = {one for other in (*source.splits.values(), *judging.values()) for one in other.hashes}
        split = source.as_fed(train)
        try:
            order = choose(train.hashes, count, exclude=excluded, labels=train.targets.get("label"))
        except CalibError as error:
            raise SoupError(f"data.train: nothing to measure ranges on: {error}") from error
    return Images(split.inputs(order), list_sha256([split.hashes[row] for row in order]), split.name)


def known_ranges(build: Path) -> RangeTable | None:
    """What an earlier export of the build measured; where that is damaged it is measured again."""
    try:
        return read_ranges(build / RANGES) if (build / RANGES).is_file() else None
    except CalibError:
        return None


def keep_ranges(table: RangeTable | None, folders: Sequence[Path]) -> None:
    """Write the table, where one was measured; a folder that is read-only goes without."""
    if table is None:
        return
    for folder in folders:
        with contextlib.suppress(CalibError):
            write_ranges(folder / RANGES, table)
