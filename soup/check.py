"""Before the build: what it would refuse or warn about, one checkpoint against its trainer's figure, and the cost."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from calib import CalibError
from exporters.runtimes import Arrays
from soup import Progress, SoupError
from soup.build_folder import claim_folder
from soup.config import Config
from soup.data import Split
from soup.estimate import Estimate, estimate
from soup.expect import Comparison, compare
from soup.files import finite
from soup.gates import Exit
from soup.larder import Larder, find_overlaps, gather, load_data
from soup.notes import notes_of
from soup.pipeline import cache_folder, open_kitchen


@dataclass(frozen=True, slots=True)
class CheckedIngredient:
    """A checkpoint that may be averaged; `cosine` is with the first of them."""

    path: str
    sha256: str
    weights: str  # "raw" or "ema"
    size_bytes: int
    cosine: float | None
    recorded: Mapping[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckedSplit:
    """What a split holds; `classes` counts those that have an image."""

    n: int
    classes: int
    groups: int | None
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What `soup check` tells. `refused` is what a build would stop at; only without any is there an estimate."""

    ingredients: tuple[CheckedIngredient, ...]
    set_aside: tuple[tuple[str, str], ...]
    splits: Mapping[str, CheckedSplit]
    overlaps: tuple[str, ...]
    refused: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    comparison: Comparison | None  # None without `expect`
    estimate: Estimate | None
    exit_code: Exit


def check(config: Config, out: Path, *, progress: Progress) -> CheckResult:
    """Go a build's way up to its search, past every refusal. Writes decoded images only, which the build reuses."""
    errors: list[SoupError | CalibError] = []
    cache = cache_folder(config, out)
    overlaps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    comparison = cost = None
    with _kept(errors):
        claim_folder(out)
    larder = _gather(config, out, errors, progress)
    splits = load_data(config, ("train", "val", "test"), cache=cache, progress=progress, each=partial(_kept, errors))
    with _kept(errors):
        overlaps = find_overlaps(config, splits)
    if larder and "val" in splits:
        with _kept(errors):
            kitchen = open_kitchen(config, larder, splits, progress=progress)
            if config.expect:
                comparison = compare(config, config.expect, kitchen, splits, cache=cache, progress=progress)
            if not errors:
                notes = (*_reading_notes(larder), *notes_of(larder, kitchen, splits), *_how_to_expect(config, larder))
                cost = estimate(kitchen, splits, methods=config.search.methods, out=out)
    warnings = _warnings(larder, cost)
    return CheckResult(
        ingredients=_ingredients(larder, config) if larder else (),
        set_aside=larder.set_aside if larder and config.checkpoints.on_bad_ingredient == "skip" else (),
        splits={name: _checked(split) for name, split in splits.items()},
        overlaps=overlaps,
        refused=tuple(dict.fromkeys(line for error in errors for line in str(error).splitlines())),
        warnings=warnings,
        notes=tuple(note for note in notes if note not in warnings),
        comparison=comparison,
        estimate=cost,
        exit_code=_exit_code(errors, comparison),
    )


@contextmanager
def _kept(errors: list[SoupError | CalibError]) -> Iterator[None]:
    """A refusal is kept and not raised: the user is told all problems in one run."""
    try:
        yield
    except (SoupError, CalibError) as error:
        errors.append(error)


def _gather(config: Config, out: Path, errors: list[SoupError | CalibError], progress: Progress) -> Larder | None:
    """As a build does, but an unusable checkpoint hides none of the others."""
    skipping = config.checkpoints.model_copy(update={"on_bad_ingredient": "skip"})
    larder = None
    with _kept(errors):
        larder = gather(config.model_copy(update={"checkpoints": skipping}), exclude=out, progress=progress)
        if config.checkpoints.on_bad_ingredient == "fail":
            errors += [SoupError(f"{path}: {reason}") for path, reason in larder.set_aside]
    return larder


def _ingredients(larder: Larder, config: Config) -> tuple[CheckedIngredient, ...]:
    return tuple(
        CheckedIngredient(
            os.path.relpath(one.path, config.folder), one.sha256, one.weights,
            sum(stamp.size_bytes for stamp in one.files), finite(larder.preflight.cosines.get(one.sha256, math.nan)),
            one.recorded, one.notes,
        )
        for one in larder.ingredients.values()
    )  # fmt: skip


def _checked(split: Split) -> CheckedSplit:
    groups = None if split.groups is None else len(np.unique(split.groups))
    return CheckedSplit(len(split), _classes(split.targets), groups, split.skipped)


def _classes(targets: Arrays) -> int:
    """Those that occur in an image, a box or a mask; none of masks that judge nothing and are not read."""
    if not targets:
        return 0
    if "mask" in targets:
        return int(np.count_nonzero(np.bincount(targets["mask"].reshape(-1), minlength=256)[:255]))
    if "labels" in targets and targets["labels"].dtype == bool:
        return int(targets["labels"].any(axis=0).sum())
    found = np.unique(targets["labels"] if "labels" in targets else targets["label"])
    return int((found >= 0).sum())


def _warnings(larder: Larder | None, cost: Estimate | None) -> tuple[str, ...]:
    findings = larder.preflight.findings if larder else ()
    warnings = [f"{one.where}: {one.what}" for one in findings if one.level == "warning"]
    if cost and cost.written_bytes > cost.free_disk_bytes:
        need, free = cost.written_bytes / 1e9, cost.free_disk_bytes / 1e9
        warnings.append(f"disk: build and export write about {need:.1f} GB, and {free:.1f} GB are free.")
    if cost and cost.memory_bytes > cost.total_memory_bytes:
        need, total = cost.memory_bytes / 1e9, cost.total_memory_bytes / 1e9
        warnings.append(f"memory: a build needs about {need:.1f} GB, and this machine has {total:.1f} GB.")
    return tuple(warnings)


def _reading_notes(larder: Larder) -> list[str]:
    """What reading did to the checkpoints, each kind of it once: prefixes, dropped tensors, weights not used."""
    counts = Counter(note for one in larder.ingredients.values() for note in one.notes)
    return [f"in {count} of {len(larder.ingredients)} checkpoints: {note}" for note, count in counts.items()]


def _how_to_expect(config: Config, larder: Larder) -> tuple[str, ...]:
    if config.expect:
        return ()
    first = os.path.relpath(next(iter(larder.ingredients.values())).path, config.folder)
    line = f'expect: {{checkpoint: "{first}", value: 0.9, tolerance: 0.003}}'
    return (
        f"expect is not given, so no score was compared. Add to val.yaml, with the {config.metric} on val that the "
        f"trainer reported: {line}",
    )


def _exit_code(errors: Sequence[SoupError | CalibError], comparison: Comparison | None) -> Exit:
    """That of the build for what it would refuse; else 1 where the figure is missed."""
    if errors:
        return Exit.INPUT if any(error.kind == "input" for error in errors) else Exit.ENVIRONMENT
    return Exit.CHECK if comparison and comparison.verdict == "fail" else Exit.OK
