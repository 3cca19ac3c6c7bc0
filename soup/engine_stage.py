"""The engine of an export: built from the graph that is to ship, and run where there is a GPU for it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from exporters import ExportError
from exporters.onnx_to_tensorrt import EngineBuild, onnx_to_tensorrt
from soup.adapters import refuse_tensorrt
from soup.engine_gates import build_gates
from soup.export_proof import Job, Proved, prove_file
from soup.files import write_file
from soup.gates import Check, State, Subject
from soup.precision_audit import audit_check, engine_audit
from soup.proof import Artifact, built_check, built_proof, open_artifact, time_runtime
from soup.target_plan import engine_settings
from soup.time_gates import ratio_of_latencies, speedup_gate

ENGINE, LAYERS = "model.engine", "model.layers.json"


@dataclass(frozen=True, slots=True)
class Engine:
    """What came of it: the file where one was built, what it said where it ran, and what `gates.require` may name."""

    artifact: Artifact | None
    proved: Proved | None
    checks: tuple[Check, ...]
    done: dict[str, State]
    note: str | None = None

    @property
    def failed(self) -> bool:
        """Whether a builder was there and made none."""
        return self.done.get("engine") == "failed"


def make_engine(job: Job, graph: Proved) -> Engine:
    """Build and run it; what fails is a finding, since the ONNX release is whole without it."""
    if reason := refuse_tensorrt(job.source.model):
        return _unbuilt(job, ExportError(reason), f"{graph.artifact.label} → engine")
    implicit = job.plan.calibration_cache and graph.artifact.precision == "int8"  # built from the packed ranges
    if implicit or job.plan.built in ("device", "trtexec"):
        return _elsewhere(job)
    try:
        built = _build(job, graph.artifact, job.stage)
    except ExportError as error:
        if error.kind == "input":
            raise
        for name in (ENGINE, LAYERS):
            (job.stage / name).unlink(missing_ok=True)
        if graph.artifact.boxes and error.kind == "build":
            error = ExportError(f"{error} With export.nms: none boxes are thinned out after the engine.")
        return _unbuilt(job, error, f"{graph.artifact.label} → engine")
    artifact = Artifact(
        ENGINE, "engine", built.sha256, graph.artifact.batch, graph.artifact.tolerance, graph.artifact.precision,
        graph.artifact.boxes,
    )  # fmt: skip
    job.findings.verified.append(built_proof(ENGINE, built))
    hop = f"{graph.artifact.label} → engine"
    checks = [replace(built_check(built), hop=hop)]
    checks += build_gates(built, job.source.config.gates, Subject(ENGINE, hop))
    job.findings.notes += [job.unlocated(note) for note in built.notes]
    if graph.audits:
        audits = engine_audit(job.stage / LAYERS, graph.audits)
        checks.append(audit_check(audits, Subject(ENGINE, hop), asked=graph.artifact.precision))
    return _run(job, Engine(artifact, None, tuple(checks), {"engine": "done"}), graph)


def speedup_check(job: Job, int8: Engine, fp16: Callable[[], bytes]) -> Check | None:
    """`gates.int8_speedup`: an FP16 engine of the same network, built for its time alone, beside the INT8 one that ran.

    None where the gate is not set; pending where the INT8 engine did not run here.
    """
    gate = job.source.config.gates.int8_speedup
    if gate is None:
        return None
    subject = Subject(ENGINE, "FP16 → INT8")
    if int8.proved is None:
        return speedup_gate(None, subject, minimum=gate.min)
    with tempfile.TemporaryDirectory(dir=job.stage, prefix=".fp16-") as name:
        folder = Path(name)
        write_file(folder / "model.fp16.onnx", fp16())
        graph = Artifact("model.fp16.onnx", "onnx", "", int8.proved.artifact.batch, precision="fp16")
        built = _build(job, graph, folder)
        with open_artifact(folder, replace(int8.proved.artifact, sha256=built.sha256)) as runtime:
            other = time_runtime(runtime, int8.proved.inputs, int8.proved.artifact)
    return speedup_gate(ratio_of_latencies(other, job.findings.latency[ENGINE]), subject, minimum=gate.min)


def _build(job: Job, graph: Artifact, folder: Path) -> EngineBuild:
    source = job.source
    profiles = tuple((one.min, one.opt, one.max) for one in source.config.export.profiles)
    batch = () if isinstance(source.batch, int) else (source.batch,)
    settings = engine_settings(source.config, job.plan, capabilities=job.options.compute_capabilities)
    return onnx_to_tensorrt(
        folder / graph.file, folder / ENGINE, profiles=profiles or batch, settings=settings,
        must_take=graph.timed_batch if profiles else None,
        progress=lambda phase, done, total: job.progress(f"building the engine: {phase}", done, total),
    )  # fmt: skip


def _elsewhere(job: Job) -> Engine:
    """An engine for a device that this machine is not."""
    target = job.plan.target
    assert target is not None
    how = (
        "check_device.sh in the release builds it there" if job.plan.built == "trtexec"
        else "soup verify RELEASE --finish -o KIT builds it there"
    )  # fmt: skip
    message = f"an engine for {target.name} is built on the device itself: {how}"
    return Engine(None, None, (), {"engine": "pending"}, message)


def _unbuilt(job: Job, error: ExportError, hop: str) -> Engine:
    missing = error.kind == "environment"
    check = Check(
        "engine", hop, "require" if missing else "build", "pending" if missing else "fail",
        job.unlocated(str(error)),
    )  # fmt: skip
    return Engine(None, None, (check,), {"engine": "pending" if missing else "failed"})


def _run(job: Job, engine: Engine, graph: Proved) -> Engine:
    """The very file that ships, on the GPU at hand; elsewhere a note that nobody ran it."""
    assert engine.artifact is not None
    try:
        proved = prove_file(job, engine.artifact, graph.as_before, limit=engine.artifact.tolerance)
    except ExportError as error:
        if error.kind != "environment":
            raise
        built = job.findings.verified[-1]
        job.findings.verified[-1] = replace(built, proved=(*built.proved, "not run"))
        note = f"the engine was built but not run here: {job.unlocated(str(error))}"
        return replace(engine, done={**engine.done, "device": "pending"}, note=note)
    return replace(engine, proved=proved, done={**engine.done, "device": "done"})
