"""The story on the device: hashes first, then outputs, metric and latency again from the golden samples. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from exporters import ExportError
from exporters.runtimes import Arrays
from soup import Progress, SoupError, silent
from soup.build_folder import claim_folder
from soup.files import finite, staged
from soup.gates import Check, Exit, State, Subject, accuracy_gate, exit_code, require_gates
from soup.golden import GOLDEN, Golden, read_golden
from soup.judge import paired
from soup.manifest import read_manifest, verify_files
from soup.proof import (
    TIMED,
    Artifact,
    Findings,
    open_artifact,
    outputs_check,
    place_of,
    proof_of,
    prove_latency,
)
from soup.release_facts import ReleaseFacts, facts_of, latency_rule
from soup.release_report import NAMES, Heading, write_reports
from soup.tasks import Metric, metric_named


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What `soup verify` tells; `golden_values` is the metric on the golden samples by artifact, torch included."""

    release: Path
    digest: str | None  # None where the manifest itself is damaged
    metric: str | None  # None where the manifest itself is damaged
    metric_unit: str
    golden_values: Mapping[str, float | None]
    findings: Findings
    exit_code: Exit


def verify(
    release: Path, *, out: Path | None = None, device: str | None = None, allow_inconclusive: bool = False,
    progress: Progress = silent,
) -> VerifyResult:  # fmt: skip
    """Check every hash, then run what can run here on the golden samples; reads only, but for the reports in `out`.

    Nothing is opened when a hash is wrong: an engine is executable code. Verdicts that need all of val are the
    export's, repeated here where the golden samples are all of it. Raises SoupError for a folder that is no release.
    """
    if out is not None:
        _refuse_inside(out, release)
        claim_folder(out, ours=NAMES, command="soup verify")
    findings = Findings(checks=list(verify_files(release)))
    intact = all(check.verdict == "pass" for check in findings.checks)
    manifest = read_manifest(release) if findings.checks[0].verdict == "pass" else None
    facts = facts_of(manifest, where=release) if manifest else None
    values = _prove_all(release, facts, findings, device=device, progress=progress) if facts and intact else {}
    code = exit_code(findings.checks, allow_inconclusive=allow_inconclusive)
    heading = _heading(facts, code)
    if out is not None:
        with staged(out, last="report.json") as stage:
            write_reports(stage, heading, findings)
    digest, metric = manifest.self_sha256 if manifest else None, heading.metric.name if heading.metric else None
    return VerifyResult(release, digest, metric, heading.unit, values, findings, code)


def _prove_all(
    release: Path, facts: ReleaseFacts, findings: Findings, *, device: str | None, progress: Progress
) -> dict[str, float | None]:
    """The metric on the golden samples by artifact, torch at export included; findings grow by what is found."""
    golden = read_golden(release / GOLDEN)
    metric = metric_named(facts.task, facts.metric)
    values = {"torch": _golden_value(metric, golden.outputs["torch"], golden)}
    findings.checks += _recorded_checks(facts)
    for artifact in facts.artifacts:
        _prove_again(release, artifact, golden, metric, facts, findings, device=device, progress=progress)
    findings.checks += _required(facts, findings)
    return values | findings.values


def _prove_again(
    release: Path, artifact: Artifact, golden: Golden, metric: Metric, facts: ReleaseFacts, findings: Findings, *,
    device: str | None, progress: Progress,
) -> None:  # fmt: skip
    """Run one artifact on the golden samples; where nothing here can, that is a note and no failure."""
    try:
        with open_artifact(release, artifact) as runtime:
            answers = runtime(golden.inputs)
            where = str(place_of(runtime.info, device=device))
            for reference in ("torch", artifact.file):
                if reference in golden.outputs:
                    subject = Subject(artifact.file, f"{reference} at export → {artifact.label} here", where)
                    findings.checks.append(
                        outputs_check(golden.outputs[reference], answers, subject, limit=artifact.tolerance)
                    )
            findings.checks += _accuracy_again(metric, answers, golden, facts, Subject(artifact.file, "gate", where))
            rule = latency_rule(facts.gates)
            progress(f"timing {artifact.file}: {TIMED}", 0, 0)
            prove_latency(runtime, artifact, golden.inputs, findings, rule=rule, device=device)
            findings.verified.append(proof_of(artifact, runtime.info, proved=("outputs", "golden metric", "latency")))
    except ExportError as error:
        if error.kind != "environment":
            raise
        reason = str(error).removeprefix(f"{release / artifact.file}: ")
        findings.notes.append(f"{artifact.file} was not run here: {reason}")
    else:
        findings.values[artifact.file] = _golden_value(metric, answers, golden)


def _golden_value(metric: Metric, answers: Arrays, golden: Golden) -> float | None:
    return finite(metric.reduce(metric.per_sample(answers, golden.targets)))


def _accuracy_again(
    metric: Metric, answers: Arrays, golden: Golden, facts: ReleaseFacts, subject: Subject
) -> tuple[Check, ...]:
    """The accuracy gate again, where the golden samples are all of val; a few of them, the hardest among them, would
    judge too harshly."""
    gate = facts.gates.accuracy
    if gate is None or not facts.golden.can_judge:
        return ()
    interval = paired(metric, metric.per_sample(answers, golden.targets), golden.best_single, groups=None)
    return (accuracy_gate(interval, subject, max_drop=gate.max_drop, higher_is_better=metric.higher_is_better,
                          unit=metric.unit),)  # fmt: skip


def _recorded_checks(facts: ReleaseFacts) -> list[Check]:
    """Verdicts of the export that need its data: accuracy, gain, and what was built."""
    kinds = ("accuracy", "gain", "build")
    return [replace(check, hop=f"at export: {check.hop}") for check in facts.checks if check.kind in kinds]


def _required(facts: ReleaseFacts, findings: Findings) -> tuple[Check, ...]:
    """`gates.require` from what the export proved and what ran here; nothing run at all is always open."""
    kinds = {artifact.file: artifact.kind for artifact in facts.artifacts}
    done: dict[str, State] = {"engine": "done"} if "engine" in kinds.values() else {}
    for proof in (*facts.verified, *findings.verified):
        if proof.ran:
            done["onnx" if kinds[proof.artifact] == "onnx" else "device"] = "done"
    checks = require_gates(facts.gates.require, done)
    if findings.verified:
        return checks
    message = "nothing could be run here: " + "; ".join(findings.notes)
    return (*checks, Check("runtime", "golden", "require", "pending", message))


def _refuse_inside(out: Path, release: Path) -> None:
    inner, outer = Path(os.path.realpath(out)), Path(os.path.realpath(release))
    if outer in (inner, *inner.parents):
        raise SoupError(f"{out}: is inside the release, whose manifest would no longer hold. Choose another -o.")


def _heading(facts: ReleaseFacts | None, code: Exit) -> Heading:
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    recipe, metric = (facts.recipe_sha256, metric_named(facts.task, facts.metric)) if facts else (None, None)
    return Heading("Verification report", created, code, recipe, metric, "the golden samples")
