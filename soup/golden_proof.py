"""One file run on a release's golden samples, wherever that is: what it answers, what that is worth, how long it
takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters import ExportError
from exporters.runtimes import Arrays, Runtime
from soup import Progress
from soup.answer_gates import Answers, OnVal, answer_checks
from soup.files import finite
from soup.gate_sections import Against
from soup.gates import Check, Place, Subject
from soup.golden import GOLDEN, Golden, read_golden
from soup.proof import (
    TIMED,
    WITH_NMS,
    Artifact,
    Findings,
    open_artifact,
    parity_check,
    place_of,
    proof_of,
    prove_latency,
    suppression_of,
    time_runtime,
)
from soup.release_facts import ReleaseFacts, latency_rule
from soup.tasks import Metric, metric_named
from soup.tasks.alternatives import answers_by
from soup.time_gates import throughput_gate


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What a file is held against: the golden samples, the release's facts, and what the user calls this device."""

    golden: Golden
    facts: ReleaseFacts
    metric: Metric
    device: str | None
    progress: Progress


def yardstick_of(release: Path, facts: ReleaseFacts, *, device: str | None, progress: Progress) -> Yardstick:
    """The yardstick that a release carries. Raises SoupError where it is damaged."""
    metric = metric_named(facts.task, facts.metric, facts.settings)
    golden = read_golden(release / GOLDEN)
    order = [*(info.name for info in facts.onnx.outputs), "boxes", "scores", "labels"]
    return Yardstick(golden.in_order(order), facts, metric, device, progress)


def prove_on_golden(
    folder: Path, artifact: Artifact, by: Yardstick, findings: Findings, *,
    references: Sequence[str], timed: bool = True,
) -> bool:  # fmt: skip
    """Run a file of `folder` on the golden samples; where nothing here can, that is a note, no failure, and False.

    `references` name recorded answers ("torch" or a file) to compare with, of which those that were recorded count.
    Without `timed` only outputs are proved: that is for a file that another one is built from.
    """
    try:
        with open_artifact(folder, artifact) as runtime:
            answers = runtime(by.golden.inputs)
            where = str(place_of(runtime.info, device=by.device))
            findings.checks += _outputs_checks(artifact, answers, by, references=references, where=where)
            if timed:
                _prove_worth(runtime, artifact, answers, by, findings, where=where)
            shown = ("outputs", "golden metric", "latency") if timed else ("outputs", "golden metric")
            findings.verified.append(proof_of(artifact, runtime.info, proved=shown))
    except ExportError as error:
        if error.kind != "environment":
            raise
        reason = str(error).removeprefix(f"{folder / artifact.file}: ")
        findings.notes.append(f"{artifact.file} was not run here: {reason}")
        return False
    findings.values[artifact.file] = golden_value(answers, by)
    return True


def golden_value(outputs: Arrays, by: Yardstick) -> float | None:
    """The metric on the golden samples; None where it is not a number."""
    return finite(by.metric.reduce(_answers("", outputs, by).per_sample or {}))


def values_otherwise(by: Yardstick) -> dict[str, float | None]:
    """The metric on the golden samples with torch's boxes thinned out in other ways; none for other tasks."""
    outputs, targets, metric = by.golden.outputs["torch"], by.golden.targets, by.metric
    found = answers_by(metric, outputs, targets)
    return {label: finite(metric.reduce(metric.per_sample(one, targets))) for label, one in found.items()}


def _answers(label: str, outputs: Arrays, by: Yardstick) -> Answers:
    answers = by.metric.task.answers(outputs, by.golden.targets)
    return Answers(label, by.metric.per_sample(answers, by.golden.targets), outputs, answers=answers)


def _said(outputs: Arrays, by: Yardstick, *, boxes: bool) -> Answers:
    """Without the answers where outputs are compared as they are: on a device they take their time."""
    return Answers("", outputs=outputs, answers=by.metric.task.answers(outputs, by.golden.targets) if boxes else None)


def _outputs_checks(
    artifact: Artifact, answers: Arrays, by: Yardstick, *, references: Sequence[str], where: str
) -> list[Check]:
    checks = []
    for reference in references:
        if (before := by.golden.outputs.get(reference)) is None:
            continue
        subject = Subject(artifact.file, f"{reference} at export → {artifact.label} here", where)
        said = [_said(outputs, by, boxes=artifact.boxes) for outputs in (before, answers)]
        checks.append(
            parity_check(said[0], said[1], by.metric.task, subject, boxes=artifact.boxes, limit=artifact.tolerance)
        )
    return checks


def _prove_worth(
    runtime: Runtime, artifact: Artifact, answers: Arrays, by: Yardstick, findings: Findings, *, where: str
) -> None:
    """The accuracy gates where these samples can decide them, latency and throughput."""
    gates, subject = by.facts.gates, Subject(artifact.file, "gate", where)
    findings.checks += _accuracy_again(answers, by, artifact, where=where)
    by.progress(f"timing {artifact.file}: {TIMED}", 0, 0)
    prove_latency(runtime, artifact, by.golden.inputs, findings, rule=latency_rule(gates), device=by.device)
    if by.facts.task == "detection" and not artifact.boxes:
        after = suppression_of(by.metric, by.golden.targets, artifact)
        findings.latency[artifact.file + WITH_NMS] = time_runtime(runtime, by.golden.inputs, artifact, then=after)
    if (floor := gates.throughput) is not None:
        latency, actual = findings.latency[artifact.file], place_of(runtime.info, device=by.device)
        wanted = Place(floor.runtime, floor.device)
        findings.checks.append(
            throughput_gate(latency, subject, min_per_s=floor.min_per_s, wanted=wanted, actual=actual)
        )


def _accuracy_again(answers: Arrays, by: Yardstick, artifact: Artifact, *, where: str) -> tuple[Check, ...]:
    """The gates on answers again, where the golden samples are all of val; a few of them, the hardest among them, would
    judge too harshly. What they were compared with at export and is not here stays the export's word."""
    if not by.facts.golden.can_judge or by.metric.name != by.facts.metric:
        return ()
    metric, golden = by.metric, by.golden
    against: dict[Against, Answers] = {
        "best_single": Answers("best single", golden.best_single),
        "soup": _answers("torch at export", golden.outputs["torch"], by),
    }
    on = OnVal(metric, golden.targets.get("label"), None, by.facts.classes)
    after = _answers(artifact.label, answers, by)
    checks = answer_checks(by.facts.gates, after, against, on=on, file=artifact.file, where=where)
    return tuple(check for check in checks if check.verdict != "pending")
