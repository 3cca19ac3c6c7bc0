"""One file of an export, proved: a hop over all of val, the gates, its latency, and what it answers to the golden
samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from exporters.audit import LayerAudit
from exporters.runtimes import Arrays, Runtime
from soup import Progress
from soup.build_folder import Hop
from soup.evaluate import Evaluation, evaluate
from soup.export_gates import Held, Timing, gate_checks
from soup.export_source import Source
from soup.files import finite, unlocated
from soup.gates import Check, Subject
from soup.judge import hop
from soup.proof import (
    TIMED,
    WITH_NMS,
    Artifact,
    Findings,
    as_fed,
    fed,
    open_artifact,
    parity_check,
    place_of,
    proof_of,
    suppression_of,
    time_in_turns,
    time_runtime,
)
from soup.target_plan import TargetPlan
from soup.task_settings import evaluation_batch

_MARGIN = 2.0  # what the same file may differ by elsewhere, over what it was found to differ by here


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beyond val.yaml."""

    trt: bool = False
    compute_capabilities: tuple[str, ...] = ()
    baseline: Path | None = None
    device: str | None = None  # what the user calls the device that this runs on
    allow_inconclusive: bool = False
    resolution: str | None = None  # "best" or a scale, of those that the build measured


@dataclass(frozen=True, slots=True)
class Job:
    """An export in progress: what it starts from, the folder that it fills, and what it has found."""

    source: Source
    stage: Path
    findings: Findings
    options: Options
    plan: TargetPlan
    progress: Progress
    held: Held | None = None  # what the gates compare with, once the interface is known

    def unlocated(self, text: str) -> str:
        """A message as it may travel: files by their names in the release or beside val.yaml."""
        return unlocated(text, self.stage, self.source.config.folder)


@dataclass(frozen=True, slots=True)
class Before:
    """What a file is compared with: a label for the hop's name, and its answers on val."""

    label: str
    answers: Evaluation


@dataclass(frozen=True, slots=True)
class Proved:
    """A file that was run: its answers on val and to the golden samples, the step it took, what was found of it.

    `parity` are the checks of its outputs, `gates` the user's own.
    """

    artifact: Artifact
    answers: Evaluation
    inputs: Arrays  # the golden samples as it was fed
    golden: Arrays
    hop: Hop
    parity: tuple[Check, ...]
    gates: tuple[Check, ...]
    audits: tuple[LayerAudit, ...] = ()  # of a graph: what its layers compute in

    @property
    def as_before(self) -> Before:
        """For the next hop, which begins where this one ended."""
        return Before(self.hop.name.rpartition(" → ")[2], self.answers)


def prove_file(
    job: Job, artifact: Artifact, before: Before, *, limit: float | None, label: str | None = None
) -> Proved:
    """Open a file of the stage by its hash and prove it; raises ExportError (environment) where nothing here runs it.

    The step fails where an output moved by more than `limit`, as a share of max(1, its magnitude); None lets it move,
    as another precision does, but for NaN. The tolerance of what it gives is what was measured, and a margin. `label`
    names the step, where it is not the file's own.
    """
    with open_artifact(job.stage, artifact) as runtime:
        return _prove(job, runtime, artifact, before, name=f"{before.label} → {label or artifact.label}", limit=limit)


def answers_of(job: Job, runtime: Runtime, what: str) -> Evaluation:
    """What a runtime answers to all of val, outputs kept."""
    source = job.source
    return evaluate(
        fed(runtime), source.val, source.metric, batch=evaluation_batch(source.config), keep_outputs=True,
        progress=lambda done, total: job.progress(f"{what} on val", done, total),
    )  # fmt: skip


def step(job: Job, name: str, before: Evaluation, after: Evaluation, *, where: str) -> Hop:
    """A hop between two sets of answers to all of val."""
    source = job.source
    return hop(
        name, before, after, metric=source.metric, groups=source.val.groups, split="val", where=where,
        labels=source.val.targets.get("label"), class_names=source.val.class_names, ids=source.val.ids,
    )[0]  # fmt: skip


def _prove(job: Job, runtime: Runtime, artifact: Artifact, before: Before, *, name: str, limit: float | None) -> Proved:
    source, findings = job.source, job.findings
    place = place_of(runtime.info, device=job.options.device)
    subject = Subject(artifact.file, name, str(place))
    answers = answers_of(job, runtime, artifact.file)
    golden = as_fed(source.golden_inputs, runtime.inputs)
    job.progress(f"timing {artifact.file}: {TIMED}", 0, 0)
    latency = findings.latency[artifact.file] = time_runtime(runtime, golden, artifact)
    if source.config.task == "detection" and not artifact.boxes:
        after = suppression_of(source.metric, golden_targets(source), artifact)
        findings.latency[artifact.file + WITH_NMS] = time_runtime(runtime, golden, artifact, then=after)
    findings.values[artifact.file] = None if answers.value is None else finite(answers.value)
    findings.verified.append(proof_of(artifact, runtime.info, proved=("outputs", "metric", "latency")))
    outputs = parity_check(
        before.answers, answers, source.metric.task, subject, boxes=artifact.boxes,
        limit=math.inf if limit is None else limit,
    )  # fmt: skip
    moved = outputs.measured or 0.0  # of what is no number there is no tolerance either; it fails as it is
    return Proved(
        artifact=replace(artifact, tolerance=max(artifact.tolerance, _MARGIN * moved)),
        answers=answers,
        inputs=golden,
        golden=runtime(golden),
        hop=step(job, name, before.answers, answers, where=str(place)),
        parity=(outputs,) if limit is not None or outputs.verdict == "fail" else (),
        gates=_gates(
            job,
            artifact,
            answers,
            Timing(latency, place, lambda other: time_in_turns(runtime, other, golden, artifact)),
        ),
    )


def golden_targets(source: Source) -> Arrays:
    """The targets of the golden samples."""
    return {name: array[source.golden_rows] for name, array in source.golden.targets.items()}


def _gates(job: Job, artifact: Artifact, answers: Evaluation, timing: Timing) -> tuple[Check, ...]:
    return () if job.held is None else gate_checks(job.source, artifact, answers, job.held, timing)
