"""From a build to a release that may ship, the story top to bottom: ONNX, engine, parity, latency, gates, manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from calib.samples import list_sha256
from exporters import ExportError
from exporters.onnx_to_tensorrt import onnx_to_tensorrt
from exporters.runtimes import Arrays, Runtime
from exporters.torch_to_onnx import OnnxExport, torch_to_onnx
from soup import Progress, SoupError
from soup.build_folder import RECIPE, read_build
from soup.evaluate import Evaluation, evaluate
from soup.export_source import Source, open_build
from soup.files import canonical_json, finite, sha256_file, staged_folder
from soup.gates import Check, Exit, Subject, accuracy_gate, exit_code, require_gates
from soup.golden import GOLDEN, Golden, write_golden
from soup.judge import hop, paired
from soup.manifest import read_manifest, seal, strangers
from soup.pipeline import EVALUATION_BATCH
from soup.proof import (
    TIMED,
    Artifact,
    Findings,
    as_fed,
    built_check,
    built_proof,
    fed,
    open_artifact,
    outputs_check,
    place_of,
    proof_of,
    prove_latency,
)
from soup.release_facts import GoldenFacts, GraphFacts, Previous, ReleaseFacts, ValFacts, as_json, latency_rule
from soup.release_report import Heading, write_reports

ONNX, ENGINE, LAYERS = "model.onnx", "model.engine", "model.layers.json"
_EXAMPLES = 8  # samples that the exporter traces with, and compares a simplified graph on


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beyond val.yaml."""

    trt: bool = False
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    baseline: Path | None = None
    device: str | None = None  # what the user calls the device that this runs on
    allow_inconclusive: bool = False


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What `soup export` tells; `digest` names the whole release, `metric_unit` is "%" for a fraction, else empty."""

    release: Path
    digest: str
    files: Mapping[str, int]  # size_bytes by name
    metric_unit: str
    findings: Findings
    exit_code: Exit


def export(folder: Path, out: Path, *, overrides: Sequence[str], options: Options, progress: Progress) -> ExportResult:
    """Write a release of the build in `folder` to `out`, whatever the gates say of it, and tell what they said.

    Raises SoupError or ExportError for what leaves no release at all; `out` is then as it was.
    """
    _refuse_idle(options)
    claim_release(out)
    previous = _previous(options.baseline)
    built = read_build(folder)
    with staged_folder(out) as stage:  # now, so that a folder that cannot be written is told before the work
        source = open_build(built, overrides, progress=progress)
        record = source.built.record
        findings = Findings(list(record.hops), list(record.checks))
        progress("exporting to ONNX", 0, 0)
        exported = _export_onnx(source, stage)
        findings.notes += [_unlocated(note, stage, source) for note in exported.notes]
        artifacts = [Artifact(ONNX, "onnx", exported.sha256, source.batch)]
        with open_artifact(stage, artifacts[0]) as runtime:
            before = (record.winner.label, source.answers["val"])
            on_val, golden = _prove(runtime, artifacts[0], source, findings, options, before=before, progress=progress)
        findings.done["onnx"] = "done"
        answers = {ONNX: golden}
        if options.trt and (engine := _build_engine(stage, source, findings, options, progress=progress)):
            artifacts.append(engine)
            before = (artifacts[0].label, on_val)
            answers |= _run_engine(stage, engine, source, findings, options, before=before, progress=progress)
        write_golden(stage / GOLDEN, _golden(source, exported, answers))
        findings.checks += require_gates(source.config.gates.require, findings.done)
        code = exit_code(findings.checks, allow_inconclusive=options.allow_inconclusive)
        facts = _facts(source, exported, artifacts, findings, code=code, previous=previous)
        if read_build(folder).record != built.record:
            raise SoupError(f"{folder}: was built anew meanwhile. Export again.")
        heading = Heading("Release report", facts.created, code, facts.recipe_sha256, source.metric, "val")
        write_reports(stage, heading, findings)
        digest = str(seal(stage, as_json(facts))["self_sha256"])
        sizes = {path.name: path.stat().st_size for path in sorted(stage.iterdir())}
    return ExportResult(out, digest, sizes, source.metric.unit, findings, code)


def _refuse_idle(options: Options) -> None:
    """An option for an engine that nobody asked for is a slip that would ship a release without one."""
    idle = {"--compute-capability": options.compute_capabilities, "--workspace-mb": options.workspace_bytes}
    if not options.trt and (given := [name for name, value in idle.items() if value]):
        raise SoupError(f"{' and '.join(given)}: only for an engine, which was not asked for. Add --trt.")


def claim_release(out: Path) -> None:
    """Refuse an output folder that is a file, or holds anything that is not of an earlier release."""
    if out.exists() and not out.is_dir():
        raise SoupError(f"{out}: is a file, expected a folder. Choose another -o.")
    if out.is_dir() and any(out.iterdir()) and (others := strangers(out)):
        raise SoupError(f"{out}: holds '{others[0]}', which no intact release there lists. Choose another -o.")


def _export_onnx(source: Source, stage: Path) -> OnnxExport:
    export = source.config.export
    example = {name: array[np.arange(_EXAMPLES) % len(array)] for name, array in source.golden_inputs.items()}
    return torch_to_onnx(
        source.prepared(), example, stage / ONNX,
        inputs=export.inputs, outputs=export.outputs, batch=source.batch, opset=export.opset,
        metadata=_metadata(source),
    )  # fmt: skip


def _metadata(source: Source) -> dict[str, str]:
    """What a reader of model.onnx alone must know: classes, preprocessing, and the recipe that it comes from."""
    preprocess = source.config.preprocess
    return {
        "soup.task": source.config.task,
        "soup.labels": canonical_json(source.val.class_names).decode(),
        "soup.preprocess": canonical_json(preprocess.model_dump(mode="json") if preprocess else None).decode(),
        "soup.recipe_sha256": sha256_file(source.built.path / RECIPE),
    }


def _prove(
    runtime: Runtime, artifact: Artifact, source: Source, findings: Findings, options: Options, *,
    before: tuple[str, Evaluation], progress: Progress,
) -> tuple[Evaluation, Arrays]:  # fmt: skip
    """One hop over all of val, and the gates: outputs, accuracy against the best single, latency.

    Gives the answers on val, and to the golden samples under the graph's own names.
    """
    where = place_of(runtime.info, device=options.device)
    last, reference = before
    subject = Subject(artifact.file, f"{last} → {artifact.label}", str(where))
    answers = evaluate(
        fed(runtime), source.val, source.metric, batch=EVALUATION_BATCH, keep_outputs=True,
        progress=lambda done, total: progress(f"{artifact.file} on val", done, total),
    )  # fmt: skip
    step = hop(
        subject.hop, reference, answers, metric=source.metric, groups=source.val.groups, split="val", where=str(where)
    )[0]
    findings.hops.append(step)
    findings.values[artifact.file] = None if answers.value is None else finite(answers.value)
    findings.checks.append(outputs_check(reference.outputs or {}, answers.outputs or {}, subject))
    findings.checks += _accuracy_checks(source, answers, artifact, str(where))
    golden = as_fed(source.golden_inputs, runtime.inputs)
    rule = latency_rule(source.config.gates)
    progress(f"timing {artifact.file}: {TIMED}", 0, 0)
    prove_latency(runtime, artifact, golden, findings, rule=rule, device=options.device)
    findings.verified.append(proof_of(artifact, runtime.info, proved=("outputs", "metric", "latency")))
    return answers, runtime(golden)


def _accuracy_checks(source: Source, answers: Evaluation, artifact: Artifact, where: str) -> tuple[Check, ...]:
    """What ships against the best single, on all of val, by the rule in val.yaml."""
    gate = source.config.gates.accuracy
    if gate is None:
        return ()
    best_single = source.built.per_sample("best_single", "val")
    interval = paired(source.metric, answers.per_sample, best_single, groups=source.val.groups)
    subject = Subject(artifact.file, f"best single → {artifact.label}", where)
    higher, unit = source.metric.higher_is_better, source.metric.unit
    return (accuracy_gate(interval, subject, max_drop=gate.max_drop, higher_is_better=higher, unit=unit),)


def _build_engine(
    stage: Path, source: Source, findings: Findings, options: Options, *, progress: Progress
) -> Artifact | None:
    """Build the engine; a failure is a finding, since the ONNX release is whole without it."""
    try:
        engine = onnx_to_tensorrt(
            stage / ONNX, stage / ENGINE, profile=None if isinstance(source.batch, int) else source.batch,
            workspace_bytes=options.workspace_bytes, compute_capabilities=options.compute_capabilities,
            progress=lambda phase: progress(f"building the engine: {phase}", 0, 0),
        )  # fmt: skip
    except ExportError as error:
        if error.kind == "input":
            raise
        for name in (ENGINE, LAYERS):
            (stage / name).unlink(missing_ok=True)
        missing = error.kind == "environment"
        findings.done["engine"] = "pending" if missing else "failed"
        findings.checks.append(
            Check("engine", "ONNX → engine", "require" if missing else "build", "pending" if missing else "fail",
                  _unlocated(str(error), stage, source))
        )  # fmt: skip
        return None
    findings.done["engine"] = "done"
    findings.checks.append(built_check(engine))
    findings.verified.append(built_proof(ENGINE, engine))
    return Artifact(ENGINE, "engine", engine.sha256, source.batch)


def _run_engine(
    stage: Path, engine: Artifact, source: Source, findings: Findings, options: Options, *,
    before: tuple[str, Evaluation], progress: Progress,
) -> dict[str, Arrays]:  # fmt: skip
    """Run the very file that ships where there is a GPU; elsewhere say that nobody did."""
    try:
        with open_artifact(stage, engine) as runtime:
            _, golden = _prove(runtime, engine, source, findings, options, before=before, progress=progress)
    except ExportError as error:
        if error.kind != "environment":
            raise
        findings.done["device"] = "pending"
        built = findings.verified[-1]
        findings.verified[-1] = replace(built, proved=(*built.proved, "not run"))
        findings.notes.append(f"the engine was built but not run here: {_unlocated(str(error), stage, source)}")
        return {}
    findings.done["device"] = "done"
    return {ENGINE: golden}


def _golden(source: Source, exported: OnnxExport, answers: Mapping[str, Arrays]) -> Golden:
    """Inputs as the graph is fed, targets, every artifact's answers, and the best single's scores if they were kept."""
    rows = source.golden_rows
    names = [info.name for info in exported.outputs]
    torch_answers = dict(zip(names, source.golden_outputs.values(), strict=True))
    best_single = source.built.per_sample("best_single", source.golden.name)
    return Golden(
        inputs=as_fed(source.golden_inputs, exported.inputs),
        targets={name: array[rows] for name, array in source.golden.targets.items()},
        outputs={"torch": torch_answers, **answers},
        best_single={name: array[rows] for name, array in best_single.items()},
    )


def _facts(
    source: Source, exported: OnnxExport, artifacts: Sequence[Artifact], findings: Findings, *,
    code: Exit, previous: Previous | None,
) -> ReleaseFacts:  # fmt: skip
    record, config, golden = source.built.record, source.config, source.golden
    return ReleaseFacts(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        task=config.task,
        metric=config.metric,
        classes=source.val.class_names,
        preprocess=config.preprocess.model_dump(mode="json") if config.preprocess else None,
        recipe_sha256=sha256_file(source.built.path / RECIPE),
        state_sha256=record.state_sha256,
        best_single=record.best_single,
        winner=record.winner,
        val=ValFacts(len(source.val), list_sha256(source.val.hashes), findings.values),
        golden=GoldenFacts(golden.name, len(source.golden_rows), len(golden), record.splits[golden.name].groups),
        onnx=GraphFacts(exported.opset, exported.inputs, exported.outputs, exported.simplified),
        artifacts=tuple(artifacts),
        gates=config.gates,
        checks=tuple(findings.checks),
        verified=tuple(findings.verified),
        exit_code=int(code),
        previous=previous,
    )


def _previous(baseline: Path | None) -> Previous | None:
    """The release that this one follows, by digest."""
    if baseline is None:
        return None
    manifest = read_manifest(baseline)
    return Previous(manifest.self_sha256, manifest.soup_version)


def _unlocated(text: str, stage: Path, source: Source) -> str:
    """A message as it may travel: files by their names in the release or beside val.yaml, no folder of this machine."""
    for folder in (stage, source.config.folder):
        text = text.replace(f"{folder.resolve()}/", "").replace(f"{folder}/", "")
    return text
