"""The precisions of an export in their order: each made, proved and built; the first that passes ships, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from exporters import ExportError
from exporters.audit import audit_onnx, share
from exporters.precision import Precision
from exporters.runtimes import Arrays, OnnxRuntime
from soup.attempts import Attempt, Raised, Step
from soup.engine_stage import Engine, make_engine, speedup_check
from soup.evaluate import evaluate, value_on
from soup.export_gates import answer_gates
from soup.export_proof import Job, Proved, prove_file
from soup.files import finite, sha256_bytes, write_file
from soup.gates import ACCURACY_KINDS, Check, Kind, Subject, stopping, why_not
from soup.nms_stage import with_suppression
from soup.precision_audit import audit_check
from soup.proof import Artifact, fed
from soup.sensitivity import Judged, Loss, Problem, raise_layers
from soup.task_settings import evaluation_batch
from soup.trials import value_of
from soup.variants import Forge, Variant

SENSITIVITY_SAMPLES = 256  # of val, those of smallest margin: where a small error shows first


@dataclass(frozen=True, slots=True)
class Rung:
    """One precision that was tried: what is told of it, its graph where one was made, and its engine where asked."""

    attempt: Attempt
    graph: Proved | None
    engine: Engine | None
    inside: Proved | None = None  # the graph with suppression after it, where export.nms wants it there

    @property
    def checks(self) -> tuple[Check, ...]:
        """Everything that decides whether it may ship."""
        engine = self.engine
        ran = () if engine is None or engine.proved is None else (*engine.proved.parity, *engine.proved.gates)
        inside = () if self.inside is None else (*self.inside.parity, *self.inside.gates)
        return (*self.attempt.checks, *inside, *(() if engine is None else engine.checks), *ran)


def climb(job: Job, forge: Forge, reference: Proved, *, wanted: Sequence[Precision]) -> tuple[Rung, ...]:
    """Every precision of `wanted`, until one ships; those after it are made and proved, and wait behind it.

    `reference` is the FP32 graph, which is there already. Raises what the user can mend: calibration images, mostly.
    """
    rungs: list[Rung] = []
    for precision in wanted:
        behind = any(rung.attempt.outcome == "ships" for rung in rungs)
        rungs.append(_tried(job, forge, reference, precision, behind=behind))
    return tuple(rungs)


def shipped_graph(rungs: Sequence[Rung], reference: Proved) -> Proved:
    """The graph that ships; the FP32 one where nothing passed."""
    ships = (rung for rung in rungs if rung.attempt.outcome == "ships")
    found = (graph for rung in ships if (graph := rung.inside or rung.graph) is not None)
    return next(found, reference)


def _tried(job: Job, forge: Forge, reference: Proved, precision: Precision, *, behind: bool) -> Rung:
    try:
        graph, attempt = _graph(job, forge, reference, precision)
    except ExportError as error:
        if error.kind == "input":
            raise
        message = job.unlocated(str(error))
        kind: Kind = "require" if error.kind == "environment" else "build"  # 6, or 7
        check = Check(_file(precision), f"ONNX → {precision.upper()}", kind, "fail", message)
        return Rung(Attempt(precision, None, "failed", message, checks=(check,)), None, None)
    if why := _why_not(job, attempt.checks):
        return Rung(replace(attempt, outcome="failed", reason=why), graph, None)
    if attempt.share == 0:
        why = f"no layer computes in {precision.upper()}: the gates pass only with all of them higher"
        return Rung(replace(attempt, outcome="failed", reason=why), graph, None)
    if behind:
        waits = "passes, and waits behind the one that ships"
        return Rung(replace(attempt, outcome="fallback", reason=waits), graph, None)
    inside = with_suppression(job, graph)
    engine = _engine(job, forge, inside or graph) if job.options.trt else None
    rung = Rung(attempt, graph, engine, inside)
    if why := _why_not(job, rung.checks):
        return replace(rung, attempt=replace(attempt, outcome="failed", reason=why))
    return rung


def _engine(job: Job, forge: Forge, graph: Proved) -> Engine:
    """The engine of a graph, and for INT8 whether it pays beside FP16."""
    engine = make_engine(job, graph)
    if graph.artifact.precision != "int8":
        return engine
    check = speedup_check(job, engine, lambda: forge.make("fp16").graph)
    return engine if check is None else replace(engine, checks=(*engine.checks, check))


def _graph(job: Job, forge: Forge, reference: Proved, precision: Precision) -> tuple[Proved, Attempt]:
    """The graph in a precision, proved; layers are raised where the gates fail it and the FP32 graph passes them."""
    ships = "passes every gate that can be judged here"
    if precision == "fp32":
        return reference, Attempt(
            "fp32",
            reference.artifact.file,
            "ships",
            ships,
            _value(reference),
            share=1.0,
            checks=reference.gates,
            layers=reference.audits,
        )
    variant, raised = forge.make(precision), None
    graph, audit, part = _proved(job, reference, variant)
    budget = job.source.config.quantization.budget
    if budget and _why_not(job, graph.gates) and not _why_not(job, reference.gates) and _loses(job, graph):
        before = _step(job, reference, graph, part)
        raised = _raised(job, forge, reference, variant)
        raised = replace(raised, steps=(before, *raised.steps))
        if raised.passed:
            variant = forge.make(precision, keep=raised.layers)
            graph, audit, part = _proved(job, reference, variant)
    kept = {**variant.kept, **dict.fromkeys(raised.layers if raised else (), "the gates fail with it lower")}
    checks = (*graph.parity, audit, *graph.gates)
    return graph, Attempt(
        precision, graph.artifact.file, "ships", ships, _value(graph), kept, part, checks, raised, graph.audits
    )


def _proved(job: Job, reference: Proved, variant: Variant) -> tuple[Proved, Check, float]:
    """The variant written and run; whether it computes as it was asked to; the share of multiply-adds that do."""
    file, batch = _file(variant.precision), reference.artifact.batch
    write_file(job.stage / file, variant.graph)
    boxes = reference.artifact.boxes
    artifact = Artifact(file, "onnx", sha256_bytes(variant.graph), batch, precision=variant.precision, boxes=boxes)
    graph = prove_file(job, artifact, reference.as_before, limit=None)
    audits = audit_onnx(variant.graph, asked=variant.precision, kept=tuple(variant.kept), where=file)
    audit = audit_check(audits, Subject(file, graph.hop.name), asked=variant.precision)
    return replace(graph, audits=audits), audit, share(audits, variant.precision)


def _step(job: Job, reference: Proved, graph: Proved, part: float) -> Step:
    """The graph that failed, as the first of the sets that were judged: none is raised yet."""
    drop = _drop(job, value_of(reference.answers), value_of(graph.answers))
    verdict = next(one.verdict for one in graph.gates if one.kind in ACCURACY_KINDS and one.verdict != "pass")
    return Step(0, part, finite(drop), verdict, len(job.source.val))


def _loses(job: Job, graph: Proved) -> bool:
    """Whether it is accuracy that the gates fail it for: a slow graph gets no faster by computing higher."""
    return any(check.kind in ACCURACY_KINDS and check.verdict != "pass" for check in graph.gates)


def _raised(job: Job, forge: Forge, reference: Proved, variant: Variant) -> Raised:
    """Look for the layers to keep higher, on a sample of val and then on all of it."""
    layers = {one.name: one.macs or 0 for one in forge.layers}
    answers, outputs = reference.answers.answers or {}, reference.answers.outputs or {}
    margins = job.source.metric.task.margins(answers, outputs)[: len(next(iter(outputs.values())))]
    rows = np.sort(np.argsort(margins, kind="stable")[:SENSITIVITY_SAMPLES])
    problem = Problem(
        macs={name: macs for name, macs in layers.items() if name not in variant.kept},
        all_macs=sum(layers.values()),
        make=lambda **which: forge.make(variant.precision, **which).graph,
        measure=partial(_loss, job, reference, rows),
        judge=partial(_judged, job, reference, variant.precision),
        samples=len(rows),
        total=len(job.source.val),
    )
    return raise_layers(problem, budget=job.source.config.quantization.budget, progress=job.progress)


def _loss(job: Job, reference: Proved, rows: np.ndarray, graph: bytes) -> Loss:
    """Against the FP32 graph, on the samples at `rows`."""
    source, chosen = job.source, np.zeros(len(job.source.val), bool)
    chosen[rows] = True
    with OnnxRuntime(graph, where="a trial graph", batch=reference.artifact.batch) as runtime:
        outputs = fed(runtime)({"input": source.val.inputs(rows)})
    targets = {name: array[rows] for name, array in source.val.targets.items()}
    value = source.metric.reduce(source.metric.per_sample(source.metric.task.answers(outputs, targets), targets))
    drop = _drop(job, value_on(reference.answers, chosen, source.metric), value)
    return Loss(drop, _mean_square(job, reference, rows, outputs))


def _mean_square(job: Job, reference: Proved, rows: np.ndarray, outputs: Arrays) -> float:
    """Of the outputs' difference over the reference's own, the largest of all outputs."""
    pairs = zip((reference.answers.outputs or {}).values(), outputs.values(), strict=True)
    ratios = []
    for before, after in pairs:
        was = before[rows].astype(np.float64)
        ratios.append(float(np.square(after.astype(np.float64) - was).sum() / max(np.square(was).sum(), 1e-30)))
    return max(ratios, default=0.0)


def _judged(job: Job, reference: Proved, precision: Precision, graph: bytes) -> Judged:
    """The accuracy gates on all of val, and the loss there."""
    source = job.source
    artifact = replace(reference.artifact, precision=precision)
    with OnnxRuntime(graph, where="a trial graph", batch=artifact.batch) as runtime:
        batch = evaluation_batch(source.config)
        answers = evaluate(fed(runtime), source.val, source.metric, batch=batch, keep_outputs=True)
    assert job.held is not None
    checks = answer_gates(source, artifact, answers, job.held, where=None)
    stops = stopping(checks, allow_inconclusive=job.options.allow_inconclusive)
    drop = _drop(job, value_of(reference.answers), value_of(answers))
    return Judged("pass" if stops is None else stops.verdict, drop)


def _drop(job: Job, before: float, after: float) -> float:
    """What was lost, in the metric's unit, whichever way is better."""
    return before - after if job.source.metric.higher_is_better else after - before


def _why_not(job: Job, checks: Sequence[Check]) -> str | None:
    return why_not(checks, allow_inconclusive=job.options.allow_inconclusive)


def _value(graph: Proved) -> float | None:
    return None if graph.answers.value is None else finite(graph.answers.value)


def _file(precision: Precision) -> str:
    return f"model.{precision}.onnx"
