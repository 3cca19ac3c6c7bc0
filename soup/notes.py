"""What the reader of a report should know before its figures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from exporters.runtimes import Arrays
from soup.config import Config
from soup.data import Split
from soup.larder import Larder
from soup.score import Kitchen
from soup.search import Found
from soup.sources import several

FEWEST_CALIBRATION = 250  # with fewer images recalibration did harm in trials (docs/decisions.md)


def notes_of(larder: Larder, kitchen: Kitchen, splits: Mapping[str, Split]) -> tuple[str, ...]:
    """What the reader of the report should know before the figures."""
    notes = [*larder.notes, *(f"{one.where}: {one.what}" for one in larder.preflight.findings)]
    if len(larder.ingredients) == 1:
        notes.append("one checkpoint: there was nothing to average, and it is the model")
    if not kitchen.batchnorm:
        notes.append("the network has no BatchNorm: nothing to recalibrate")
    elif kitchen.calibration is None:
        notes.append("no data.train: BatchNorm statistics are averaged, not measured again")
    elif len(kitchen.calibration.order) < FEWEST_CALIBRATION:
        told = ", and the search averages it" if kitchen.policy == "averaged" else ""
        notes.append(
            f"{len(kitchen.calibration.order)} images to recalibrate BatchNorm on; "
            f"under {FEWEST_CALIBRATION} it did harm in trials{told}"
        )
    if "test" not in splits:
        notes.append("no data.test: soup and best single are compared on val, which the search has seen; expect less")
    notes += [f"data.{split.name}: {note}" for split in splits.values() for note in split.notes]
    notes += [
        f"data.{split.name}: {len(split.skipped)} skipped: {several([_left_out(*one) for one in split.skipped])}"
        for split in splits.values()
        if split.skipped
    ]
    return tuple(notes)


def _left_out(sample: str, reason: str) -> str:
    """A record that belongs to no sample has its place in the reason."""
    return f"{sample}: {reason}" if sample else reason


def found_nothing(per_sample: Arrays, value: float | None) -> Iterator[str]:
    """Of a detector: a score of 0 says nothing of why."""
    labels = per_sample.get("label")
    if labels is None or labels.ndim != 2 or value:
        return
    if (labels < 0).all():
        yield "the model finds no box at all on data.val: check detection.suppression.score, the adapter and preprocess"
    elif value == 0:
        yield "no box that the model finds on data.val matches one: check the adapter's arguments and the class order"


def not_finite(found: Found, larder: Larder, config: Config) -> Iterator[str]:
    """NaN counts as a wrong answer, so that nothing else would tell of it."""
    for trial in found.singles:
        if bad := trial.evaluation.not_finite:
            (sha,) = trial.weights
            path = os.path.relpath(larder.ingredients[sha].path, config.folder)
            seen = int(trial.evaluation.seen.sum())
            yield f"{path}: its outputs hold NaN or Inf for {bad} of {seen} images of data.val"
