"""The packed graphs of a release in their order, each built and proved here, until one ships: the device's own part."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from calib.ranges import read_ranges
from exporters import ExportError
from exporters.engine_settings import EngineSettings
from exporters.onnx_to_tensorrt import EngineBuild, find_builder, onnx_to_tensorrt
from exporters.precision import Precision
from exporters.targets import target_named
from exporters.trt_api import uses_timing_cache
from soup import SoupError
from soup.attempts import Attempt
from soup.build_folder import first_complaint
from soup.engine_gates import build_gates
from soup.files import sha256_file, unlocated
from soup.gates import Check, Subject, why_not
from soup.golden_proof import Yardstick, prove_on_golden
from soup.manifest import FILE_NAME
from soup.precision_audit import audit_check, engine_audit
from soup.proof import Artifact, Findings, built_check, built_proof
from soup.release_facts import Candidate, ReleaseFacts, recipe_of
from soup.time_gates import ratio_of_latencies, speedup_gate

ENGINE, LAYERS, TIMING_CACHE = "model.engine", "model.layers.json", "timing.cache"
_LOWER = {"fp16": ("Half",), "int8": ("Int8",)}  # TensorRT's names of the types, one of which must be there
_NOT_FP32 = ("Half", "BFloat16", "Int8", "FP8")


@dataclass(frozen=True, slots=True)
class Job:
    """A kit in progress: the release, the folder that it fills, and what engines are held against."""

    release: Path
    stage: Path
    facts: ReleaseFacts
    by: Yardstick
    allow_inconclusive: bool

    def unlocated(self, text: str, *folders: Path) -> str:
        """A message as it may travel: files by their names in `folders`, the kit or the release."""
        return unlocated(text, *folders, self.stage, self.release)


@dataclass(frozen=True, slots=True)
class Tried:
    """One packed graph: what became of it, and its engine in `folder` where one was built."""

    candidate: Candidate
    attempt: Attempt
    findings: Findings
    folder: Path | None = None
    build: EngineBuild | None = None
    engine: Artifact | None = None
    missing: bool = False  # nothing here could have built it, whatever the graph


def climb(job: Job) -> tuple[Tried, ...]:
    """Every candidate down to the first that ships.

    Raises ExportError where no engine could be built at all: environment if nothing here builds any, else build.
    """
    _refuse_other_target(job)
    tried: list[Tried] = []
    for candidate in recipe_of(job.facts).candidates:
        tried.append(_try(job, candidate))
        if tried[-1].attempt.outcome == "ships":
            break
    if not any(one.build for one in tried):
        raise _nothing_built(job, tried)
    return tuple(tried)


def _refuse_other_target(job: Job) -> None:
    """An engine that the device named at export could not load is no proof of one that it can."""
    name, builder = recipe_of(job.facts).target, find_builder()
    if name is None or builder is None:
        return
    target, gpu = target_named(name), builder.gpu
    here = f"{builder.flavour} {builder.version}" + (f" for compute capability {gpu.compute_capability}" if gpu else "")
    if target.runtime != builder.flavour or (gpu and gpu.compute_capability != target.compute_capability):
        raise ExportError(
            f"{job.release}: is for {name} ({target.runtime} {target.tensorrt}, compute capability "
            f"{target.compute_capability}), and here is {here}. Finish it on that device, or export without a target.",
            kind="environment",
        )


def _nothing_built(job: Job, tried: Sequence[Tried]) -> ExportError:
    reasons = dict.fromkeys(one.attempt.reason for one in tried)  # without a builder all have one and the same
    if not tried:
        reasons = {"the release packs no ONNX graph": None}
    kind = "environment" if tried and all(one.missing for one in tried) else "build"
    text = "; ".join(reason.rstrip(".") for reason in reasons)
    return ExportError(f"{job.release}: no engine could be built here: {text}.", kind=kind)  # type: ignore[arg-type]


def _try(job: Job, candidate: Candidate) -> Tried:
    """The graph itself first, where ONNX Runtime is there: what answers wrongly here is not worth a build."""
    findings = Findings()
    _prove_graph(job, _graph(job, candidate), findings)
    if _why_not(job, findings):
        return Tried(candidate, _failed(job, candidate, findings), findings)
    folder = job.stage / candidate.precision
    folder.mkdir()
    try:
        build = _build(job, candidate, folder)
    except ExportError as error:
        if error.kind == "input":
            raise
        reason = job.unlocated(str(error), folder)
        findings.checks.append(Check("engine", _hop(candidate), "build", "fail", reason))
        attempt = replace(_failed(job, candidate, findings), reason=reason)
        return Tried(candidate, attempt, findings, folder, missing=error.kind == "environment")
    return _proved(job, Tried(candidate, _failed(job, candidate, findings), findings, folder, build))


def _prove_graph(job: Job, graph: Artifact, findings: Findings) -> None:
    """An ONNX Runtime that is too old for the graph says nothing of TensorRT: that is a note."""
    try:
        prove_on_golden(job.release, graph, job.by, findings, references=("torch", graph.file), timed=False)
    except ExportError as error:
        findings.notes.append(f"{graph.file} was not run here: {job.unlocated(str(error))}")


def _proved(job: Job, one: Tried) -> Tried:
    """Run the very engine that is to ship, where there is a GPU; elsewhere that nobody did is a note."""
    assert one.build is not None
    assert one.folder is not None
    candidate, findings, build = one.candidate, one.findings, one.build
    batch = recipe_of(job.facts).batch
    engine = Artifact(ENGINE, "engine", build.sha256, batch, candidate.tolerance, candidate.precision, candidate.boxes)
    findings.checks += [built_check(build), _precision_check(job, candidate, build)]
    findings.checks += build_gates(build, job.facts.gates, Subject(ENGINE, _hop(candidate), build.flavour))
    findings.notes += [job.unlocated(note, one.folder) for note in build.notes]
    try:
        ran = prove_on_golden(one.folder, engine, job.by, findings, references=("torch", candidate.file))
    except ExportError as error:
        ran, reason = False, job.unlocated(str(error), one.folder)
        findings.checks.append(Check(ENGINE, f"{candidate.file} → engine here", "outputs", "fail", reason))
    if not ran:
        built = built_proof(ENGINE, build)
        findings.verified.append(replace(built, proved=(*built.proved, "not run")))
    findings.checks += _speedup(job, one, findings, ran=ran)
    attempt = _attempt(job, candidate, findings)
    return replace(one, attempt=attempt, engine=engine)


def _speedup(job: Job, one: Tried, findings: Findings, *, ran: bool) -> tuple[Check, ...]:
    """`gates.int8_speedup`: the packed FP16 graph as an engine beside the INT8 one, built for its time alone."""
    gate = job.facts.gates.int8_speedup
    if gate is None or one.candidate.precision != "int8":
        return ()
    subject = Subject(ENGINE, "FP16 → INT8")
    packed = (other for other in recipe_of(job.facts).candidates if other.precision == "fp16")
    other, beside = next(packed, None), Findings()
    if not ran or other is None:
        return (speedup_gate(None, subject, minimum=gate.min),)
    folder = job.stage / "fp16-beside-int8"
    folder.mkdir()
    built = _build(job, other, folder)
    engine = Artifact(ENGINE, "engine", built.sha256, recipe_of(job.facts).batch, other.tolerance, "fp16")
    prove_on_golden(folder, engine, job.by, beside, references=())
    shutil.rmtree(folder)
    ratio = ratio_of_latencies(beside.latency[ENGINE], findings.latency[ENGINE])
    return (speedup_gate(ratio, subject, minimum=gate.min),)


def _build(job: Job, candidate: Candidate, folder: Path) -> EngineBuild:
    recipe, graph = recipe_of(job.facts), job.release / candidate.file
    own = () if isinstance(recipe.batch, int) else (recipe.batch,)
    build = onnx_to_tensorrt(
        graph, folder / ENGINE, profiles=recipe.profiles or own, settings=_settings(job, recipe.settings, candidate),
        progress=lambda phase, done, total: job.by.progress(
            f"building the {candidate.precision.upper()} engine: {phase}", done, total
        ),
    )  # fmt: skip
    if sha256_file(graph) != candidate.sha256:
        raise SoupError(f"{graph}: was changed while the engine was built from it. Fetch the release again.")
    return build


def _settings(job: Job, packed: Mapping[str, object], candidate: Candidate) -> EngineSettings:
    """What the release asks for, the ranges that a DLA takes, and the kit's timing cache where it is of use: one build
    hands it to the next."""
    where = job.release / FILE_NAME
    if unknown := set(packed) - {one.name for one in fields(EngineSettings)}:
        raise SoupError(
            f"{where}: asks for the engine setting '{sorted(unknown)[0]}', not known here. Upgrade edgesoup."
        )
    try:
        settings = TypeAdapter(EngineSettings).validate_python(packed)
    except ValidationError as error:
        raise SoupError(f"{where}: {first_complaint(error)}. Export the release again.") from error
    if candidate.ranges is not None:
        table = read_ranges(job.release / candidate.ranges, graph_sha256=candidate.sha256)
        settings = replace(settings, int8_ranges=table.ranges)
    builder, path = find_builder(), job.stage / TIMING_CACHE
    if builder is None or not uses_timing_cache(builder.flavour):
        return replace(settings, timing_cache=None, timing_cache_sha256=None)
    pinned = sha256_file(path) if path.is_file() else None
    return replace(settings, timing_cache=path, timing_cache_sha256=pinned)


def _graph(job: Job, candidate: Candidate) -> Artifact:
    """The candidate as the release lists it among what can run, else as its recipe says."""
    listed = next((one for one in job.facts.artifacts if one.file == candidate.file), None)
    batch = recipe_of(job.facts).batch
    return listed or Artifact(
        candidate.file, "onnx", candidate.sha256, batch, candidate.tolerance, candidate.precision, candidate.boxes
    )


def _precision_check(job: Job, candidate: Candidate, build: EngineBuild) -> Check:
    """Whether the engine computes in what its graph asks for: by layer where the release tells the graph's own, else by
    the types that its layers have."""
    subject, asked = Subject(ENGINE, _hop(candidate), build.flavour), candidate.precision
    graph = next((one.layers for one in job.facts.precision if one.file == candidate.file), ())
    if graph:
        return audit_check(engine_audit(build.layers_path, graph), subject, asked=asked)
    check = Check(subject.name, subject.hop, "precision", "pending", "", where=subject.where)
    if build.layers is None:
        return replace(check, message=f"{asked} was asked for; the engine's layers are not readable here")
    found = ", ".join(f"{count} {name}" for name, count in build.dtypes.items())
    message = f"{asked} was asked for, the layers compute in: {found}"
    return replace(check, verdict="pass" if _is(asked, build.dtypes) else "fail", message=message)


def _is(asked: Precision, dtypes: Mapping[str, int]) -> bool:
    if asked == "fp32":
        return not any(name in dtypes for name in _NOT_FP32)
    return any(name in dtypes for name in _LOWER[asked])


def _hop(candidate: Candidate) -> str:
    return f"{'ONNX' if candidate.precision == 'fp32' else candidate.precision.upper()} → engine"


def _attempt(job: Job, candidate: Candidate, findings: Findings) -> Attempt:
    if _why_not(job, findings):
        return _failed(job, candidate, findings)
    value = findings.values.get(ENGINE, findings.values.get(candidate.file))
    reason = "passes every gate that can be judged here"
    return Attempt(candidate.precision, candidate.file, "ships", reason, value, checks=tuple(findings.checks))


def _failed(job: Job, candidate: Candidate, findings: Findings) -> Attempt:
    """With the check that stops it, in words."""
    reason = _why_not(job, findings) or ""
    value = findings.values.get(ENGINE, findings.values.get(candidate.file))
    return Attempt(candidate.precision, candidate.file, "failed", reason, value, checks=tuple(findings.checks))


def _why_not(job: Job, findings: Findings) -> str | None:
    return why_not(findings.checks, allow_inconclusive=job.allow_inconclusive)
