"""What the manifest of a release says of the export that made it, and what a device needs to build its engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

from calib.samples import list_sha256
from exporters.engine_settings import settings_facts
from exporters.torch_to_onnx import OnnxExport
from soup.attempts import Attempt
from soup.build_folder import RANGES, RECIPE
from soup.checkpoint import state_sha256
from soup.export_source import Source
from soup.files import sha256_file
from soup.gates import Exit
from soup.proof import Artifact, Findings
from soup.release_facts import Candidate, EngineRecipe, GoldenFacts, GraphFacts, Previous, ReleaseFacts, ValFacts
from soup.target_plan import TargetPlan, engine_settings

ONNX = "model.onnx"  # the FP32 graph, from which all else is made


def release_facts(
    source: Source, exported: OnnxExport, artifacts: Sequence[Artifact], findings: Findings, *,
    code: Exit, previous: Previous | None, plan: TargetPlan,
) -> ReleaseFacts:  # fmt: skip
    """The facts of a finished export, with the time of now."""
    record, config, golden = source.built.record, source.config, source.golden
    return ReleaseFacts(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        task=config.task,
        metric=config.metric,
        classes=source.val.class_names,
        preprocess=config.preprocess.facts if config.preprocess else None,
        recipe_sha256=sha256_file(source.built.path / RECIPE),
        state_sha256=record.state_sha256 if source.point is None else state_sha256(source.model.state_dict()),
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
        precision=tuple(findings.attempts),
        settings=record.settings,
        build=_recipe(source, artifacts, findings.attempts, plan),
    )


def _recipe(
    source: Source, artifacts: Sequence[Artifact], attempts: Sequence[Attempt], plan: TargetPlan
) -> EngineRecipe:
    """What a device builds its engine from: the precisions that did not fail here, else all of them, in their order."""
    graphs = {one.file: one for one in artifacts if one.kind == "onnx"}
    passed = [one for one in attempts if one.outcome != "failed"] or attempts
    inside = {one.precision: one for one in artifacts if one.kind == "onnx" and one.boxes}
    packed = [
        _candidate(inside.get(one.precision, graphs[one.file]), graphs[ONNX], plan)
        for one in passed if one.file in graphs
    ]  # fmt: skip
    settings = replace(
        engine_settings(source.config, plan, capabilities=()), timing_cache=None, timing_cache_sha256=None
    )
    return EngineRecipe(
        tuple(packed),
        source.batch,
        tuple((one.min, one.opt, one.max) for one in source.config.export.profiles),
        settings_facts(settings),
        plan.target.name if plan.target else None,
    )


def _candidate(graph: Artifact, fp32: Artifact, plan: TargetPlan) -> Candidate:
    """A graph as a device builds from it; a DLA that reads no Q/DQ nodes takes the FP32 one, with ranges beside it."""
    if graph.precision == "int8" and plan.calibration_cache:
        return Candidate("int8", fp32.file, fp32.sha256, graph.tolerance, RANGES)
    return Candidate(graph.precision, graph.file, graph.sha256, graph.tolerance, boxes=graph.boxes)
