"""The gates of val.yaml on one file of an export, from what it answered to all of val and how long it took."""

from __future__ import annotations

from dataclasses import dataclass

from exporters.latency import Latency
from soup.answer_gates import Answers, OnVal, answer_checks
from soup.evaluate import Evaluation
from soup.export_source import Source
from soup.gate_sections import Against
from soup.gates import Check, Place, Subject
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
    record, val = source.built.record, source.val
    best_single = source.built.per_sample("best_single", "val")
    against: dict[Against, Answers] = {
        "best_single": Answers("best single", best_single, None, record.best_single.val, len(val)),
        "soup": Answers.of(record.winner.label, source.answers["val"]),
    }
    on = OnVal(source.metric, val.targets.get("label"), val.groups, val.class_names)
    after = Answers.of(artifact.label, answers)
    return answer_checks(source.config.gates, after, against, on=on, file=artifact.file, where=where)


def _latency_checks(source: Source, artifact: Artifact, timing: Timing | None) -> tuple[Check, ...]:
    rule = latency_rule(source.config.gates)
    if rule is None or timing is None:
        return ()
    subject = Subject(artifact.file, "gate", str(timing.place))
    return latency_checks(timing.latency, subject, rule=rule, actual=timing.place)
