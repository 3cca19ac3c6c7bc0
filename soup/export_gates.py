"""The gates of val.yaml on one file of an export, from what it answered to all of val and how long it took."""

from __future__ import annotations

from dataclasses import dataclass

from exporters.latency import Latency
from soup.evaluate import Evaluation
from soup.export_source import Source
from soup.gates import Check, Place, Subject, accuracy_gate
from soup.judge import paired
from soup.proof import Artifact, latency_checks
from soup.release_facts import latency_rule


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a file took, and where."""

    latency: Latency
    place: Place


def gate_checks(source: Source, artifact: Artifact, answers: Evaluation, timing: Timing | None) -> tuple[Check, ...]:
    """Every gate that val.yaml sets and this file can answer; without `timing` none of latency."""
    where = str(timing.place) if timing else None
    return (*accuracy_checks(source, artifact, answers, where=where), *_latency_checks(source, artifact, timing))


def accuracy_checks(source: Source, artifact: Artifact, answers: Evaluation, *, where: str | None) -> tuple[Check, ...]:
    """What it answers against what the gates compare it with, on all of val."""
    gate = source.config.gates.accuracy
    if gate is None:
        return ()
    best_single = source.built.per_sample("best_single", "val")
    interval = paired(source.metric, answers.per_sample, best_single, groups=source.val.groups)
    subject = Subject(artifact.file, f"best single → {artifact.label}", where)
    higher, unit = source.metric.higher_is_better, source.metric.unit
    return (accuracy_gate(interval, subject, max_drop=gate.max_drop, higher_is_better=higher, unit=unit),)


def _latency_checks(source: Source, artifact: Artifact, timing: Timing | None) -> tuple[Check, ...]:
    rule = latency_rule(source.config.gates)
    if rule is None or timing is None:
        return ()
    subject = Subject(artifact.file, "gate", str(timing.place))
    return latency_checks(timing.latency, subject, rule=rule, actual=timing.place)
