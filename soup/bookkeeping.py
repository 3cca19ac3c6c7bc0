"""What a build found, as its files hold it: recipe.json, trials.json, build.json and per-sample statistics."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calib.batchnorm import Recalibration, batchnorm_layers
from soup import __version__
from soup.build_folder import SCHEMA_VERSION, BuildRecord, Hop, Ingredient, Model
from soup.checkpoint import StateDict, state_sha256
from soup.config import Config, resolved
from soup.data import Split
from soup.doctor import versions
from soup.evaluate import Evaluation
from soup.files import canonical_json, finite
from soup.gates import Check, compare
from soup.geometry import Geometry
from soup.judge import class_values, other_values, paired, prefixed
from soup.larder import Larder, split_record
from soup.notes import found_nothing, not_finite, notes_of
from soup.optimism import optimism
from soup.score import Kitchen, Policy
from soup.search import Found
from soup.search_records import (
    Answer,
    Cost,
    Explanation,
    OptimismRecord,
    ResolutionPoint,
    TrialRecord,
    difference_record,
)
from soup.statistics import FEWEST_UNITS, Interval
from soup.trials import Trial
from soup.weights import Weights


@dataclass(frozen=True, slots=True)
class Settled:
    """The winner as it will ship, and what each BN policy scored on val (with outputs)."""

    trial: Trial
    policy: Policy
    state: StateDict
    recalibration: Recalibration | None
    evaluations: Mapping[Policy, Evaluation]
    convergence: float | None = None  # of the recalibrated statistics, whichever policy ships

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


def recipe(kitchen: Kitchen, found: Found, settled: Settled, state_sha: str, *, base: str | None) -> dict[str, object]:
    """recipe.json: facts that do not depend on history, so that equal searches give equal bytes.

    What was tried out of turn, and how far, depends on what was expected; that an ingredient was rejected does not.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "ingredients": sorted(found_names(found)),
        "base": base,
        "method": settled.trial.method,
        "metric": kitchen.metric.name,
        "weights": as_json(settled.trial.weights),
        "use": next(iter(kitchen.ingredients.values())).weights,
        "dtype": kitchen.dtype,
        "bn": _batchnorm(kitchen, settled),
        "kept": [
            {
                "method": trial.method,
                "added": trial.added,
                "weights": as_json(trial.weights),
                "val": finite(trial.value),
            }
            for trial in found.trials
            if trial.kept
        ],
        "rejected": sorted(
            (
                {"method": trial.method, "weights": as_json(trial.weights), "reason": trial.reason}
                for trial in found.trials
                if not trial.kept
            ),
            key=canonical_json,
        ),
        "state_sha256": state_sha,
    }


def trial_records(kitchen: Kitchen, found: Found, geometry: Geometry | None) -> tuple[TrialRecord, ...]:
    """trials.json: every candidate in order, each with its difference from what it had to beat, in pairs on val."""
    best = found.singles[0].evaluation
    records = [_trial(single, kitchen, against=None, distance=None) for single in found.singles]
    for trial in found.trials:
        starts = trial.reason == "first" and len(trial.weights) == 1
        against = None if starts else trial.bar.holder if trial.bar and trial.bar.holder else best
        records.append(_trial(trial, kitchen, against=against, distance=_distance(trial, geometry)))
    return tuple(records)


def cost_of(config: Config, kitchen: Kitchen, found: Found) -> Cost:
    """What was forwarded so far; and the plain greedy loop's 2K - 1 evaluations, all but K of them recalibrated."""
    count, n = len(found.singles), len(kitchen.val)
    recalibrated = len(kitchen.calibration.order) if kitchen.calibration and kitchen.policy == "recalibrated" else 0
    textbook = {"singles": count * n, "candidates": (count - 1) * n, "recalibration": (count - 1) * recalibrated}
    backend = "torch" if kitchen.runner is None else kitchen.runner.name
    return Cost(dict(kitchen.images), dict(kitchen.reused), textbook, backend)


def optimism_of(kitchen: Kitchen, found: Found) -> OptimismRecord | None:
    """How much too good val looks for the best of all candidates that were measured to the end there."""
    finished = [one.evaluation for one in (*found.singles, *found.trials) if not math.isnan(one.value)]
    distinct = {id(one): one.per_sample for one in finished}
    groups = kitchen.val.groups
    units = len(kitchen.val) if groups is None else len(np.unique(groups))
    if len(distinct) < 2 or units < FEWEST_UNITS:
        return None
    metric = kitchen.metric
    told = optimism(
        list(distinct.values()), metric.reduce, higher_is_better=metric.higher_is_better,
        resampled=metric.resampled, groups=kitchen.val.groups,
    )  # fmt: skip
    return OptimismRecord(
        finite(told.value), finite(told.standard_error), finite(told.ceiling), told.candidates, told.method
    )


def as_json(weights: Weights) -> dict[str, object]:
    """Weights as a recipe holds them, sorted."""
    return {
        sha: weight if isinstance(weight, float) else dict(sorted(weight.items()))
        for sha, weight in sorted(weights.items())
    }


def found_names(found: Found) -> list[str]:
    """SHA-256 of every candidate ingredient."""
    return [sha for single in found.singles for sha in single.weights]


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
    config: Config, out: Path, larder: Larder, splits: Mapping[str, Split], overlaps: Sequence[str],
    explanation: Explanation, cost: Cost, *,
    kitchen: Kitchen, found: Found, settled: Settled, judged: Judged, points: tuple[ResolutionPoint, ...],
    seconds: float,
) -> BuildRecord:  # fmt: skip
    """build.json, but for the hashes of the files beside it."""
    single = found.singles[0]
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
        notes=(*notes_of(larder, kitchen, splits), *not_finite(found, larder, config), *kitchen.astray,
            *found_nothing(settled.evaluation.per_sample, settled.evaluation.value),
        ),
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
        convergence=settled.convergence,
        judged_on=judged.split,
        comparison=difference_record(judged.interval, verdict),
        hops=judged.hops,
        checks=judged.checks,
        state_sha256=state_sha256(settled.state),
        files={},
        answers=_answers(found),
        cost=replace(cost, forwarded=dict(kitchen.images), reused=dict(kitchen.reused)),
        optimism=optimism_of(kitchen, found),
        explanation=explanation,
        seconds=seconds,
        settings=kitchen.settings,
        also=other_values(
            settled.evaluation, judged.single_on_val, splits["val"].targets,
            task=config.task, settings=kitchen.settings, but=kitchen.metric.name,
        ),
        resolutions=points,
        by_class=class_values(
            kitchen.metric, judged.winner.per_sample, judged.single.per_sample, splits[judged.split].class_names
        ),
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


def _answers(found: Found) -> tuple[Answer, ...]:
    """Of each method, the best single's first."""
    return tuple(
        Answer(answer.method, answer.weights, finite(answer.value), None if value == answer.value else finite(value))
        for answer, value in zip(found.answers, found.values, strict=True)
    )


def _trial(trial: Trial, kitchen: Kitchen, *, against: Evaluation | None, distance: float | None) -> TrialRecord:
    evaluation, difference = trial.evaluation, None
    if against is not None and evaluation.seen.all():
        interval = paired(kitchen.metric, evaluation.per_sample, against.per_sample, groups=kitchen.val.groups)
        difference = difference_record(interval, compare(interval, higher_is_better=kitchen.metric.higher_is_better))
    bound = None if evaluation.bound is None else finite(evaluation.bound)
    plain = all(weight == 1 for weight in trial.weights.values())
    return TrialRecord(
        trial.method, trial.added, tuple(sorted(trial.weights)), _value(evaluation), bound,
        int(evaluation.seen.sum()), trial.kept, trial.reason, difference, _fragile(trial, kitchen, against),
        distance, None if plain else trial.weights, trial.label,
    )  # fmt: skip


def _distance(trial: Trial, geometry: Geometry | None) -> float | None:
    """Of an added ingredient from the soup that it was to join."""
    if geometry is None or trial.added is None or len(trial.weights) < 2:
        return None
    rest = {sha: weight for sha, weight in trial.weights.items() if sha != trial.added}
    return finite(geometry.distance({trial.added: 1.0}, rest))


def _fragile(trial: Trial, kitchen: Kitchen, against: Evaluation | None) -> bool:
    """Whether one image would turn a greedy decision; told only of metrics that count right images."""
    if trial.method != "greedy" or against is None or against.value is None or "correct" not in against.per_sample:
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
        None if trial.evaluation.bound is None else finite(trial.evaluation.bound),
    )  # fmt: skip


def _value(evaluation: Evaluation) -> float | None:
    return None if evaluation.value is None else finite(evaluation.value)
