"""The story on the device: hashes first, then outputs, metric and latency again from the golden samples. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from pydantic import TypeAdapter

from exporters import ExportError
from exporters.latency import Latency
from exporters.plan import plan_flavour
from exporters.runtimes import Arrays, RuntimeInfo, TensorInfo
from soup import SoupError
from soup.files import sha256_file, staged
from soup.gates import Check, Exit, State, Subject, accuracy_gate, exit_code, require_gates
from soup.golden import Golden, read_golden
from soup.judge import paired
from soup.manifest import read_manifest, verify_files
from soup.proof import Artifact, Findings, Proof, open_artifact, outputs_check, place_of, proof_of, prove_latency, time_runtime
from soup.release_report import write_reports
from soup.tasks import Metric, metric_named

GOLDEN = "golden.safetensors"


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What `soup verify` tells; `golden_values` is the metric on the golden samples by artifact, torch included."""

    release: Path
    digest: str | None  # None where the manifest itself is damaged
    golden_values: Mapping[str, float]
    findings: Findings
    exit_code: Exit


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What `soup bench` tells of one model file on this machine."""

    model: Path
    info: RuntimeInfo
    latency: Latency


def verify(
    release: Path, *, out: Path | None = None, device: str | None = None, allow_inconclusive: bool = False
) -> VerifyResult:
    """Check every hash, then run what can run here on the golden samples; reads only, but for the reports in `out`.

    Nothing is opened when a hash is wrong: an engine is executable code. Verdicts that need all of val are the export's,
    repeated here where the golden samples are all of it. Raises SoupError for a folder that is no release.
    """
    findings = Findings(checks=list(verify_files(release)))
    if any(check.verdict == "fail" for check in findings.checks):
        code = exit_code(findings.checks)
        return VerifyResult(release, None, {}, findings, code)
    manifest = read_manifest(release)
    facts = cast("Mapping[str, Any]", manifest.facts)
    golden = read_golden(release / GOLDEN)
    metric = metric_named(facts["task"], facts["metric"])
    values = {"torch": _golden_value(metric, golden.outputs["torch"], golden)}
    findings.checks += _recorded_checks(facts)
    for artifact in TypeAdapter(tuple[Artifact, ...]).validate_python(facts["artifacts"]):
        value = _prove_again(release, artifact, golden, metric, facts, findings, device=device)
        values |= {artifact.file: value} if value is not None else {}
    findings.checks += _required(facts, findings)
    code = exit_code(findings.checks, allow_inconclusive=allow_inconclusive)
    if out is not None:
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        here = {**facts, "created": created, "exit_code": int(code), "split": "the golden samples"}
        _write(out, release, here, findings, unit=metric.unit)
    return VerifyResult(release, manifest.self_sha256, values, findings, code)


def bench(model: Path, *, batch: int) -> BenchResult:
    """Latency of an ONNX file, an engine, or a release's ONNX model, on random inputs (uniform in 0..1, seed 0).

    Raises SoupError or ExportError for a file that cannot be opened here.
    """
    path = model / "model.onnx" if model.is_dir() else model
    if not path.is_file():
        raise SoupError(f"{path}: not found, expected an .onnx file, an engine, or a release folder.")
    kind: Literal["onnx", "engine"] = "engine" if plan_flavour(path.read_bytes()) or path.suffix == ".engine" else "onnx"
    artifact = Artifact(path.name, kind, sha256_file(path), batch)
    with open_artifact(path.parent, artifact) as runtime:
        inputs = _random_inputs(runtime.inputs, batch)
        return BenchResult(path, runtime.info, time_runtime(runtime, inputs, artifact))


def _prove_again(
    release: Path, artifact: Artifact, golden: Golden, metric: Metric, facts: Mapping[str, Any], findings: Findings, *,
    device: str | None,
) -> float | None:  # fmt: skip
    """Run one artifact on the golden samples; None where nothing here can, which is a note and no failure."""
    try:
        with open_artifact(release, artifact) as runtime:
            answers = runtime(golden.inputs)
            where = str(place_of(runtime.info, device=device))
            for reference in dict.fromkeys(("torch", artifact.file)):
                if reference in golden.outputs:
                    subject = Subject(artifact.file, f"{reference} at export → {artifact.label} here", where)
                    checks = outputs_check(golden.outputs[reference], answers, subject, limit=facts["tolerance"])
                    findings.checks.append(checks)
            findings.checks += _accuracy_again(metric, answers, golden, facts, Subject(artifact.file, "gate", where))
            prove_latency(runtime, artifact, golden.inputs, findings, gates=facts["gates"], device=device)
            proof = proof_of(artifact, runtime.info, proved=("outputs", "golden metric", "latency"))
    except ExportError as error:
        if error.kind != "environment":
            raise
        findings.notes.append(f"{artifact.file} was not run here: {error}")
        return None
    findings.verified.append(proof)
    value = findings.values[artifact.file] = _golden_value(metric, answers, golden)
    return value


def _golden_value(metric: Metric, answers: Arrays, golden: Golden) -> float:
    return metric.reduce(metric.per_sample(answers, golden.targets))


def _accuracy_again(
    metric: Metric, answers: Arrays, golden: Golden, facts: Mapping[str, Any], subject: Subject
) -> tuple[Check, ...]:
    """The accuracy gate again, where the golden samples are all of the split; a few of them, the hardest among them,
    would judge too harshly."""
    gate, share = facts["gates"].get("accuracy"), facts["golden"]
    if gate is None or not golden.best_single or share["count"] < share["of"]:
        return ()
    interval = paired(metric, metric.per_sample(answers, golden.targets), golden.best_single, groups=None)
    return (accuracy_gate(interval, subject, max_drop=gate["max_drop"], higher_is_better=metric.higher_is_better,
                          unit=metric.unit),)  # fmt: skip


def _recorded_checks(facts: Mapping[str, Any]) -> list[Check]:
    """Verdicts of the export that need its data: accuracy, gain, and what was built."""
    recorded = TypeAdapter(list[Check]).validate_python(facts["checks"])
    return [
        replace(check, hop=f"at export: {check.hop}") for check in recorded if check.kind in ("accuracy", "gain", "build")
    ]


def _required(facts: Mapping[str, Any], findings: Findings) -> tuple[Check, ...]:
    """`gates.require` from what the export proved and what ran here; nothing run at all is always open."""
    proofs = [*TypeAdapter(list[Proof]).validate_python(facts["verified"]), *findings.verified]
    kinds = {artifact["file"]: artifact["kind"] for artifact in facts["artifacts"]}
    done: dict[str, State] = {}
    if "engine" in kinds.values():
        done["engine"] = "done"
    for proof in proofs:
        done["onnx" if kinds[proof.artifact] == "onnx" else "device"] = "done"
    checks = require_gates(facts["gates"]["require"], done)
    if findings.verified:
        return checks
    message = "nothing could be run here: " + "; ".join(findings.notes)
    return (*checks, Check("runtime", "golden", "require", "pending", message))


def _write(out: Path, release: Path, facts: Mapping[str, object], findings: Findings, *, unit: str) -> None:
    if out.resolve() == release.resolve() or release.resolve() in out.resolve().parents:
        raise SoupError(f"{out}: is inside the release, whose manifest would no longer hold. Choose another -o.")
    with staged(out, last="report.json") as stage:
        write_reports(stage, facts, findings, title="Verification report", unit=unit)


def _random_inputs(infos: Sequence[TensorInfo], batch: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    inputs = {}
    for info in infos:
        if any(isinstance(axis, str) for axis in info.shape[1:]):
            raise SoupError(f"input '{info.name}' has shape {info.shape}: only the first axis may be dynamic.")
        shape = (batch, *(int(axis) for axis in info.shape[1:]))
        inputs[info.name] = generator.random(shape).astype(info.dtype)
    return inputs
