"""From a build to a release that may ship, the story top to bottom: ONNX, engine, parity, latency, gates, manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporters.audit import audit_onnx
from exporters.in_graph import with_preprocess
from exporters.onnx_facts import onnx_facts
from exporters.parity import FP32_TOLERANCE
from exporters.runtimes import OnnxRuntime
from exporters.torch_to_onnx import OnnxExport
from soup import Progress, SoupError
from soup.baseline import Baseline, open_baseline, refuse_missing
from soup.build_folder import read_build
from soup.calibration_images import calibration_images, keep_ranges, known_ranges
from soup.chosen_resolution import hop_to, point_of
from soup.companion_files import companions
from soup.contract import Interface
from soup.engine_gates import open_gates
from soup.export_gates import hold, interface_check
from soup.export_graph import export_graph
from soup.export_proof import Before, Job, Options, Proved, answers_of, golden_targets, prove_file, step
from soup.export_source import Source, exported_config, open_build
from soup.files import staged_folder, write_file
from soup.gates import Exit, Subject, exit_code, require_gates
from soup.golden import GOLDEN, Golden, write_golden
from soup.ladder import Rung, climb, shipped_graph
from soup.manifest import seal, strangers
from soup.pipeline import int8_rules
from soup.proof import BOXES_TOLERANCE, Artifact, Findings, parity_check, place_of
from soup.release_facts import Previous, as_json
from soup.release_report import Heading, write_reports
from soup.ship_facts import ONNX, release_facts
from soup.single_cost import compare_cost
from soup.target_plan import plan_for
from soup.variants import Forge


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
    claim_release(out)
    baseline = open_baseline(options.baseline) if options.baseline else None
    built = read_build(folder)
    with staged_folder(out) as stage:  # now, so that a folder that cannot be written is told before the work
        point = point_of(built, options.resolution)
        config = exported_config(built, overrides, point=point)
        refuse_missing(config.gates.against_baseline, baseline)
        plan = plan_for(config, engine=options.trt)
        source = open_build(built, config, point=point, progress=progress)
        findings = Findings(list(built.record.hops), list(built.record.checks))
        findings.hops += [] if point is None else [hop_to(built, point)]
        start = Job(source, stage, findings, options, plan, progress)
        job, reference, exported = _onnx(start, baseline)
        forge = _forge(job)
        rungs = climb(job, forge, reference, wanted=plan.precisions)
        ships = _settle(job, reference, rungs)
        artifacts = _artifacts(job, reference, rungs, ships)
        keep_ranges(forge.measured, (stage, built.path) if _has_int8(rungs) else (built.path,))
        shipped = shipped_graph(rungs, reference)
        interface = onnx_facts((stage / shipped.artifact.file).read_bytes(), where=shipped.artifact.file)
        companions(job, shipped, (interface.inputs, interface.outputs))
        write_golden(stage / GOLDEN, _golden(source, reference, rungs, artifacts))
        findings.checks += require_gates(source.config.gates.require, findings.done)
        code = exit_code(findings.checks, allow_inconclusive=options.allow_inconclusive)
        findings.attempts += [rung.attempt for rung in rungs]
        facts = release_facts(source, exported, artifacts, findings, code=code, previous=_previous(baseline), plan=plan)
        if read_build(folder).record != built.record:
            raise SoupError(f"{folder}: was built anew meanwhile. Export again.")
        heading = Heading("Release report", facts.created, code, facts.recipe_sha256, source.metric, "val")
        write_reports(stage, heading, findings)
        digest = str(seal(stage, as_json(facts))["self_sha256"])
        files = sorted(path for path in stage.rglob("*") if path.is_file())
        sizes = {path.relative_to(stage).as_posix(): path.stat().st_size for path in files}
    return ExportResult(out, digest, sizes, source.metric.unit, findings, code)


def _onnx(job: Job, baseline: Baseline | None) -> tuple[Job, Proved, OnnxExport]:
    """model.onnx, the FP32 graph that all else starts from, proved step by step: exported, simplified, fed frames.

    The job that it gives back feeds what the graph takes, and knows what the gates compare with.
    """
    job.progress("exporting to ONNX", 0, 0)
    exported = export_graph(job.source, job.stage / ONNX, opset=job.plan.opset)
    job.findings.notes += [job.unlocated(note) for note in exported.notes]
    if (asked := job.source.config.export.opset) > job.plan.opset:
        job.findings.notes.append(f"opset {job.plan.opset} instead of {asked}: the greatest that the target reads")
    _cost(job)
    before, label = Before(job.source.label, job.source.answers["val"]), "ONNX"
    if exported.plain is not None:
        before, label = _trial_hop(job, exported.plain, before, label), "simplified"
    if job.source.config.export.preprocess == "in_graph":
        before, label = _trial_hop(job, (job.stage / ONNX).read_bytes(), before, label), "frames"
        job, exported = _framed(job, exported)
    job = _held(job, exported, baseline)
    boxes = job.source.finds_boxes
    artifact = Artifact(ONNX, "onnx", exported.sha256, job.source.batch, boxes=boxes)
    reference = prove_file(job, artifact, before, limit=BOXES_TOLERANCE if boxes else FP32_TOLERANCE, label=label)
    audits = audit_onnx((job.stage / ONNX).read_bytes(), asked="fp32", kept=(), where=ONNX)
    reference = replace(reference, audits=audits)
    job.findings.hops.append(reference.hop)
    job.findings.checks += reference.parity
    job.findings.done["onnx"] = "done"
    return job, reference, exported


def _held(job: Job, exported: OnnxExport, baseline: Baseline | None) -> Job:
    source, preprocess = job.source, job.source.config.preprocess
    told = preprocess.facts if preprocess else {}
    now = Interface(exported.inputs, exported.outputs, source.val.class_names, told)
    job.findings.checks += interface_check(baseline, now)
    return replace(job, held=hold(source, baseline, now, cost=job.findings.cost, progress=job.progress))


def _framed(job: Job, exported: OnnxExport) -> tuple[Job, OnnxExport]:
    """model.onnx again, with the normalisation inside; from here on it is fed uint8 frames."""
    source, preprocess = job.source.framed(), job.source.config.preprocess
    assert preprocess is not None
    graph = with_preprocess(
        (job.stage / ONNX).read_bytes(), mean=preprocess.mean, std=preprocess.std, color=preprocess.color,
        source_color=source.frames or preprocess.color, where=ONNX,
    )  # fmt: skip
    write_file(job.stage / ONNX, graph)
    facts = onnx_facts(graph, where=ONNX)
    job.findings.notes.append(f"the graph takes uint8 frames [n, height, width, {source.frames}] and normalises them")
    return replace(job, source=source), replace(exported, sha256=facts.sha256, inputs=facts.inputs)


def _trial_hop(job: Job, graph: bytes, before: Before, label: str) -> Before:
    """A graph on the way to what ships: what it loses is then not the next step's."""
    with OnnxRuntime(graph, where=f"the graph ({label})", batch=job.source.batch) as runtime:
        answers, where = answers_of(job, runtime, f"the graph ({label})"), str(place_of(runtime.info))
    subject = Subject(f"graph ({label})", f"{before.label} → {label}", where)
    job.findings.hops.append(step(job, subject.hop, before.answers, answers, where=where))
    boxes = job.source.finds_boxes
    limit = BOXES_TOLERANCE if boxes else FP32_TOLERANCE
    job.findings.checks.append(
        parity_check(before.answers, answers, job.source.metric.task, subject, boxes=boxes, limit=limit)
    )
    return Before(label, answers)


def _forge(job: Job) -> Forge:
    """What makes the lower precisions; it looks at images when it is first asked."""
    return Forge(
        (job.stage / ONNX).read_bytes(), lambda: calibration_images(job.source, progress=job.progress),
        int8_rules(job.source.config), where=ONNX, progress=job.progress,
        known=known_ranges(job.source.built.path),
    )  # fmt: skip


def _has_int8(rungs: Sequence[Rung]) -> bool:
    return any(rung.attempt.precision == "int8" and rung.graph is not None for rung in rungs)


def _settle(job: Job, reference: Proved, rungs: Sequence[Rung]) -> Rung | None:
    """Put into the findings what was found of the precision that ships; where none does, of all that were tried."""
    ships = next((rung for rung in rungs if rung.attempt.outcome == "ships"), None)
    if not any(rung.engine and rung.engine.artifact for rung in rungs):
        job.findings.checks += open_gates(job.source.config.gates)
    if ships is None and (job.options.trt or job.source.config.export.nms != "none"):
        job.findings.notes.append("no precision passes: NMS is not put inside, and no engine is built of what fails")
    for rung in [ships] if ships else rungs:
        graph, engine = rung.graph, rung.engine
        if graph is not None and graph is not reference:
            job.findings.hops.append(graph.hop)
        if rung.inside is not None and rung.inside.gates:
            job.findings.hops.append(rung.inside.hop)
        job.findings.checks += rung.checks
        if engine is not None:
            job.findings.hops += [engine.proved.hop] if engine.proved else []
            job.findings.done |= engine.done
            job.findings.notes += [engine.note] if engine.note else []
    return ships


def claim_release(out: Path) -> None:
    """Refuse an output folder that is a file, or holds anything that is not of an earlier release."""
    if out.exists() and not out.is_dir():
        raise SoupError(f"{out}: is a file, expected a folder. Choose another -o.")
    if out.is_dir() and any(out.iterdir()) and (others := strangers(out)):
        raise SoupError(f"{out}: holds '{others[0]}', which no intact release there lists. Choose another -o.")


def _artifacts(job: Job, reference: Proved, rungs: Sequence[Rung], ships: Rung | None) -> list[Artifact]:
    """The files that can run, FP32 first. What failed stays only where nothing ships, for a look at it."""
    found = [reference.artifact]
    for rung in rungs:
        if rung.graph is None or rung.graph is reference:
            continue
        if ships is None or rung.attempt.outcome != "failed":
            found.append(rung.graph.artifact)
        else:
            (job.stage / rung.graph.artifact.file).unlink()
    found += [rung.inside.artifact for rung in rungs if rung.inside is not None]
    built = [rung.engine.artifact for rung in rungs if rung.engine is not None and rung.engine.artifact is not None]
    found += [one for one in built[-1:] if (job.stage / one.file).is_file()]
    job.findings.keep({one.file for one in found})
    return found


def _cost(job: Job) -> None:
    """Time the soup against the best single: that it costs nothing is to be shown, too."""
    found = compare_cost(job, (job.stage / ONNX).read_bytes())
    if isinstance(found, str):
        job.findings.notes.append(found)
    else:
        job.findings.cost = found


def _golden(source: Source, reference: Proved, rungs: Sequence[Rung], artifacts: Sequence[Artifact]) -> Golden:
    """Inputs as the graph is fed, targets, every artifact's answers, and the best single's scores if they were kept."""
    rows, names = source.golden_rows, list(reference.golden)
    graphs = [reference, *(rung.graph for rung in rungs if rung.graph)]
    graphs += [rung.inside for rung in rungs if rung.inside and rung.inside.gates]
    engines = [rung.engine.proved for rung in rungs if rung.engine and rung.engine.proved]
    files = {one.sha256 for one in artifacts}
    answers = {one.artifact.file: one.golden for one in (*graphs, *engines) if one.artifact.sha256 in files}
    torch_answers = dict(zip(names, source.golden_outputs.values(), strict=True))
    best_single = source.built.per_sample("best_single", source.golden.name)
    return Golden(
        inputs=reference.inputs,
        targets=golden_targets(source),
        outputs={"torch": torch_answers, **answers},
        best_single={name: array[rows] for name, array in best_single.items()},
    )


def _previous(baseline: Baseline | None) -> Previous | None:
    """What this release was held against, by digest."""
    return None if baseline is None else Previous(baseline.digest, baseline.soup_version, baseline.kind)
