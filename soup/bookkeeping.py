"""What a build found, as its files hold it: recipe.json, trials.json, build.json and per-sample statistics."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.batchnorm import Recalibration, batchnorm_layers
from soup import __version__
from soup.build_folder import SCHEMA_VERSION, BuildRecord, Hop, Ingredient, Model, TrialRecord, difference_record
from soup.checkpoint import StateDict, state_sha256
from soup.config import Config, resolved
from soup.data import Split
from soup.doctor import versions
from soup.evaluate import Evaluation
from soup.files import finite
from soup.gates import Check, compare
from soup.judge import paired, prefixed
from soup.larder import Larder, split_record
from soup.score import Kitchen, Policy
from soup.search import FIRST, Found, Trial
from soup.statistics import Interval


@dataclass(frozen=True, slots=True)
class Settled:
    """The winner as it will ship, and what each BN policy scored on val (with outputs)."""

    trial: Trial
    policy: Policy
    state: StateDict
    recalibration: Recalibration | None
    evaluations: Mapping[Policy, Evaluation]

    @property
    def evaluation(self) -> Evaluation:
        """Under the policy that ships."""
        return self.evaluations[self.policy]


@dataclass(frozen=True, slots=True)
class Judged:
    """Best single and winner on the split that judges, the way between them on val, and the gates' verdicts."""

    split: str
    single: Evaluation
    winner: Evaluation
    interval: Interval
    single_on_val: Evaluation
    hops: tuple[Hop, ...]
    checks: tuple[Check, ...]


def recipe(kitchen: Kitchen, found: Found, settled: Settled, state_sha: str) -> dict[str, object]:
    """recipe.json: facts that do not depend on history, so that equal searches give equal bytes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "ingredients": sorted(kitchen.ingredients),
        "base": None,
        "method": settled.trial.method,
        "metric": kitchen.metric.name,
        "weights": dict(sorted(settled.trial.weights.items())),
        "use": next(iter(kitchen.ingredients.values())).weights,
        "dtype": kitchen.dtype,
        "bn": _batchnorm(kitchen, settled),
        "kept": [
            {
                "method": trial.method,
                "added": trial.added,
                "ingredients": sorted(trial.weights),
                "val": finite(trial.value),
            }
            for trial in found.trials
            if trial.kept
        ],
        "rejected": [
            {"method": trial.method, "added": trial.added, "reason": trial.reason}
            for trial in found.trials
            if not trial.kept
        ],
        "state_sha256": state_sha,
    }


def trial_records(kitchen: Kitchen, found: Found) -> tuple[TrialRecord, ...]:
    """trials.json: every candidate in order, each with its difference from what it had to beat, in pairs on val."""
    best = current = found.singles[0]
    records = [_trial(single, kitchen, against=None) for single in found.singles]
    for trial in found.trials:
        greedy = trial.method == "greedy"
        against = None if trial.reason == FIRST else current if greedy else best
        records.append(_trial(trial, kitchen, against=against))
        if greedy and trial.kept:
            current = trial
    return tuple(records)


def evaluations(found: Found, settled: Settled, judged: Judged) -> dict[str, np.ndarray]:
    """Per-sample statistics of every candidate on val, and of the two that matter on the split that judges."""
    arrays: dict[str, np.ndarray] = {}
    for index, trial in enumerate((*found.singles, *found.trials)):
        arrays |= prefixed(f"val/trial-{index:03d}", trial.evaluation.per_sample)
    arrays |= prefixed("val/best_single", judged.single_on_val.per_sample)
    arrays |= prefixed("val/winner", settled.evaluation.per_sample)
    if judged.split != "val":
        arrays |= prefixed(f"{judged.split}/best_single", judged.single.per_sample)
        arrays |= prefixed(f"{judged.split}/winner", judged.winner.per_sample)
    return arrays


def build_record(
    config: Config, out: Path, larder: Larder, splits: Mapping[str, Split], overlaps: Sequence[str], *,
    kitchen: Kitchen, found: Found, settled: Settled, judged: Judged, seconds: float,
) -> BuildRecord:  # fmt: skip
    """build.json, but for the hashes of the files beside it."""
    single, recalibration = found.singles[0], settled.recalibration
    on_test = judged.split != "val"
    verdict = compare(judged.interval, higher_is_better=kitchen.metric.higher_is_better)
    if verdict == "better" and not on_test:
        verdict = "undecided"  # val chose the winner, so that it looks better there proves nothing
    return BuildRecord(
        schema_version=SCHEMA_VERSION,
        soup_version=__version__,
        versions=versions(),
        val_folder=os.path.relpath(config.folder, out),
        config=resolved(config),
        task=config.task,
        metric=kitchen.metric.name,
        metric_unit=kitchen.metric.unit,
        higher_is_better=kitchen.metric.higher_is_better,
        class_names=splits["val"].class_names,
        ingredients=tuple(_ingredient(trial, larder, config) for trial in found.singles),
        set_aside=larder.set_aside,
        notes=(*notes_of(larder, kitchen, splits), *_not_finite(found, larder, config)),
        splits={name: split_record(split) for name, split in splits.items()},
        overlaps=tuple(overlaps),
        best_single=Model(
            "single", single.weights, "own", finite(single.value), _value(judged.single) if on_test else None
        ),
        winner=Model(
            settled.trial.method, settled.trial.weights, settled.policy, _value(settled.evaluation),
            _value(judged.winner) if on_test else None,
        ),
        policies={policy: _value(evaluation) for policy, evaluation in settled.evaluations.items()},
        batchnorm_layers=len(batchnorm_layers(kitchen.model)),
        convergence=recalibration.convergence if recalibration else None,
        judged_on=judged.split,
        comparison=difference_record(judged.interval, verdict),
        hops=judged.hops,
        checks=judged.checks,
        state_sha256=state_sha256(settled.state),
        files={},
        images=dict(kitchen.images),
        seconds=seconds,
    )  # fmt: skip


def _batchnorm(kitchen: Kitchen, settled: Settled) -> dict[str, object]:
    done, calibration = settled.recalibration, kitchen.calibration
    if done is None or calibration is None:
        return {"policy": settled.policy}
    return {
        "policy": settled.policy,
        "samples": len(calibration.order),
        "samples_sha256": calibration.list_sha256,
        "batch": calibration.batch,
        "statistics_sha256": done.sha256,
    }


def _trial(trial: Trial, kitchen: Kitchen, *, against: Trial | None) -> TrialRecord:
    evaluation, difference = trial.evaluation, None
    if against is not None and evaluation.seen.all():
        interval = paired(
            kitchen.metric, evaluation.per_sample, against.evaluation.per_sample, groups=kitchen.val.groups
        )
        difference = difference_record(interval, compare(interval, higher_is_better=kitchen.metric.higher_is_better))
    return TrialRecord(
        trial.method, trial.added, tuple(sorted(trial.weights)), _value(evaluation), evaluation.bound,
        int(evaluation.seen.sum()), trial.kept, trial.reason, difference, _fragile(trial, kitchen, against),
    )  # fmt: skip


def _fragile(trial: Trial, kitchen: Kitchen, against: Trial | None) -> bool:
    """Whether one image would turn a greedy decision; told only of metrics that count right images."""
    if trial.method != "greedy" or against is None or "correct" not in trial.evaluation.per_sample:
        return False
    one, hair = 1 / trial.evaluation.n_total, 1e-9  # a hair more or less, so that rounding decides nothing
    changes = (-one * (1 - hair), 0.0, one * (1 + hair))
    decisions = {kitchen.rule.accepts(trial.value + change, against.value) for change in changes}
    return len(decisions) > 1


def _ingredient(trial: Trial, larder: Larder, config: Config) -> Ingredient:
    (sha,) = trial.weights
    checkpoint = larder.ingredients[sha]
    return Ingredient(
        sha, os.path.relpath(checkpoint.path, config.folder), checkpoint.container, checkpoint.weights,
        sum(stamp.size_bytes for stamp in checkpoint.files), finite(trial.value),
        finite(larder.preflight.cosines.get(sha, math.nan)), checkpoint.notes,
    )  # fmt: skip


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
        notes.append(
            f"BatchNorm is recalibrated on {len(kitchen.calibration.order)} images; "
            f"under {FEWEST_CALIBRATION} it did harm in trials"
        )
    if "test" not in splits:
        notes.append("no data.test: soup and best single are compared on val, which the search has seen; expect less")
    notes += [f"data.{split.name}: {len(split.skipped)} samples skipped" for split in splits.values() if split.skipped]
    return tuple(notes)


def _not_finite(found: Found, larder: Larder, config: Config) -> Iterator[str]:
    """NaN counts as a wrong answer, so that nothing else would tell of it."""
    for trial in found.singles:
        if bad := trial.evaluation.not_finite:
            path = _ingredient(trial, larder, config).path
            yield f"{path}: its outputs hold NaN or Inf for {bad} of {trial.evaluation.n_total} images of data.val"


def _value(evaluation: Evaluation) -> float | None:
    return None if evaluation.value is None else finite(evaluation.value)


FEWEST_CALIBRATION = 250  # with fewer images recalibration did harm in trials (docs/decisions.md)
