"""From a build to a release that may ship, the story top to bottom: ONNX, engine, parity, latency, gates, manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from calib.samples import list_sha256
from exporters import ExportError
from exporters.onnx_to_tensorrt import EngineBuild, onnx_to_tensorrt
from exporters.parity import FP32_TOLERANCE
from exporters.runtimes import Arrays, Runtime
from exporters.torch_to_onnx import OnnxExport, torch_to_onnx
from soup import SoupError
from soup.build_folder import RECIPE
from soup.evaluate import Evaluation, evaluate
from soup.export_source import EVALUATION_BATCH, Source, open_source
from soup.files import canonical_json, sha256_file, staged_folder
from soup.gates import Check, Exit, Subject, accuracy_gate, exit_code, require_gates
from soup.golden import Golden, write_golden
from soup.judge import hop, paired
from soup.larder import Progress
from soup.manifest import FILE_NAME, read_manifest, seal
from soup.proof import (
    Artifact, Findings, as_fed, fed, open_artifact, outputs_check, place_of, proof_of, prove_latency,
)  # fmt: skip
from soup.release_report import write_reports

ONNX, ENGINE, LAYERS, GOLDEN = "model.onnx", "model.engine", "model.layers.json", "golden.safetensors"
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
    """What `soup export` tells; `digest` names the whole release."""

    release: Path
    digest: str
    files: Mapping[str, int]  # size_bytes by name
    findings: Findings
    exit_code: Exit


def export(folder: Path, out: Path, *, overrides: Sequence[str], options: Options, progress: Progress) -> ExportResult:
    """Write a release of the build in `folder` to `out`, whatever the gates say of it, and tell what they said.

    Raises SoupError or ExportError for what leaves no release at all; `out` is then as it was.
    """
    claim_release(out)
    previous = _previous(options.baseline)
    source = open_source(folder, overrides, progress=progress)
    record = source.built.record
    findings = Findings(list(record.hops), list(record.checks))
    with staged_folder(out) as stage:
        exported = _export_onnx(source, stage)
        findings.notes += exported.notes
        artifacts = [Artifact(ONNX, "onnx", exported.sha256, source.batch)]
        with open_artifact(stage, artifacts[0]) as runtime:
            before = (record.winner.label, source.answers["val"])
            on_val, golden = _prove(runtime, artifacts[0], source, findings, options, before=before, progress=progress)
        findings.done["onnx"] = "done"
        answers = {ONNX: golden}
        if options.trt and (engine := _build_engine(stage, source, findings, options, progress=progress)):
            artifacts.append(engine)
            before = ("ONNX", on_val)
            answers |= _run_engine(stage, engine, source, findings, options, before=before, progress=progress)
        write_golden(stage / GOLDEN, _golden(source, exported, answers))
        findings.checks += require_gates(source.config.gates.require, findings.done)
        code = exit_code(findings.checks, allow_inconclusive=options.allow_inconclusive)
        facts = _facts(source, exported, artifacts, findings, code)
        write_reports(stage, facts, findings, title="Release report", unit=source.metric.unit)
        digest = str(seal(stage, facts | previous)["self_sha256"])
        sizes = {path.name: path.stat().st_size for path in sorted(stage.iterdir())}
    return ExportResult(out, digest, sizes, findings, code)

def claim_release(out: Path) -> None:
    """Refuse an output folder that is a file, or holds something that is no release."""
    if out.exists() and not out.is_dir():
        raise SoupError(f"{out}: is a file, expected a folder. Choose another -o.")
    if out.is_dir() and any(out.iterdir()) and not (out / FILE_NAME).is_file():
        raise SoupError(f"{out}: holds files but no {FILE_NAME}, so it is no earlier release. Choose another -o.")


def _export_onnx(source: Source, stage: Path) -> OnnxExport:
    export = source.config.export
    example = {name: array[np.arange(_EXAMPLES) % len(array)] for name, array in source.golden_inputs.items()}
    return torch_to_onnx(
        source.prepared(), example, stage / ONNX,
        inputs=export.inputs, outputs=export.outputs, batch=source.batch, opset=export.opset, metadata=_metadata(source),
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
    findings.values[artifact.file] = answers.value
    findings.checks.append(outputs_check(reference.outputs or {}, answers.outputs or {}, subject))
    findings.checks += _accuracy_checks(source, answers, artifact, str(where))
    golden = as_fed(source.golden_inputs, runtime.inputs)
    gates = source.config.gates.model_dump(mode="json")
    prove_latency(runtime, artifact, golden, findings, gates=gates, device=options.device)
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
            progress=lambda phase: progress(f"engine: {phase}", 0, 0),
        )  # fmt: skip
    except ExportError as error:
        if error.kind == "input":
            raise
        for name in (ENGINE, LAYERS):
            (stage / name).unlink(missing_ok=True)
        missing = error.kind == "environment"
        findings.done["engine"] = "pending" if missing else "failed"
        findings.checks.append(
            Check("engine", "ONNX → engine", "require" if missing else "build", "pending" if missing else "fail", str(error))
        )
        return None
    findings.done["engine"] = "done"
    findings.checks.append(_built_check(engine))
    return Artifact(ENGINE, "engine", engine.sha256, source.batch)


def _built_check(engine: EngineBuild) -> Check:
    target = ", ".join(engine.compute_capabilities) or "any GPU from Ampere on"
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in engine.dtypes.items())
    layers = "layers not readable" if engine.layers is None else f"{engine.layers} layers ({dtypes})"
    message = (
        f"{engine.flavour} {engine.version} built it for {target}: {layers}, {engine.size_bytes / 1e6:.1f} MB, "
        f"{engine.seconds:.1f} s, peak memory {engine.peak_memory_bytes / 1e6:.0f} MB"
    )
    return Check("engine", "ONNX → engine", "build", "pass", message, where=engine.flavour)


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
        findings.notes.append(f"the engine was built but not run here: {error}")
        return {}
    findings.done["device"] = "done"
    return {ENGINE: golden}


def _golden(source: Source, exported: OnnxExport, answers: Mapping[str, Arrays]) -> Golden:
    """Inputs as the graph is fed, targets, every artifact's answers, and the best single's scores where they were kept."""
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
    source: Source, exported: OnnxExport, artifacts: Sequence[Artifact], findings: Findings, code: Exit
) -> dict[str, object]:
    """What the manifest says beside the hashes: all that a device must know to judge the files again."""
    record, config = source.built.record, source.config
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "task": config.task,
        "metric": config.metric,
        "classes": source.val.class_names,
        "preprocess": config.preprocess.model_dump(mode="json") if config.preprocess else None,
        "recipe_sha256": sha256_file(source.built.path / RECIPE),
        "state_sha256": record.state_sha256,
        "best_single": asdict(record.best_single),
        "winner": asdict(record.winner),
        "split": "val",
        "val": {"n": len(source.val), "list_sha256": list_sha256(source.val.hashes), "values": findings.values},
        "golden": {"split": source.golden.name, "count": len(source.golden_rows), "of": len(source.golden)},
        "onnx": {"opset": exported.opset, "inputs": [asdict(i) for i in exported.inputs],
                 "outputs": [asdict(o) for o in exported.outputs], "simplified": exported.simplified},
        "artifacts": [asdict(artifact) for artifact in artifacts],
        "tolerance": FP32_TOLERANCE,
        "gates": config.gates.model_dump(mode="json"),
        "checks": [asdict(check) for check in findings.checks],
        "verified": [asdict(proof) for proof in findings.verified],
        "exit_code": int(code),
    }  # fmt: skip


def _previous(baseline: Path | None) -> dict[str, object]:
    """The release that this one follows, by digest."""
    if baseline is None:
        return {}
    manifest = read_manifest(baseline)
    return {"previous": {"digest": manifest.self_sha256, "soup_version": manifest.soup_version}}
