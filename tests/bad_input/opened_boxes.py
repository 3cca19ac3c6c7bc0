"""What a reader of boxes makes of bad data, by either policy of `on_bad_sample`."""

from __future__ import annotations

from pathlib import Path

from soup import SoupError
from soup.box_sources import BoxSource, open_boxes


def opened(folder: Path, source: object = ".", **options: object) -> BoxSource:
    return open_boxes("val", source, folder=folder, max_bytes=options.pop("max_bytes", 1e9), **options)


def told(found: BoxSource, folder: Path) -> list[str]:
    """All problems, as `on_bad_sample: fail` would tell them."""
    problems = [*found.problems, *(problem for sample in found.samples for problem in sample.problems)]
    assert not any(problem.endswith(".") for problem in problems)
    return [problem.replace(f"{folder}/", "") for problem in problems]


def kept(found: BoxSource) -> dict[str, int | None]:
    """Boxes of each image, as `on_bad_sample: skip` would judge them; None for an image that is left out."""
    for sample in found.samples:
        assert sample.usable == (sample.truth is not None) == (not isinstance(sample.image, SoupError))
        assert sample.usable or sample.problems
    return {sample.id: None if sample.truth is None else len(sample.truth.labels) for sample in found.samples}
