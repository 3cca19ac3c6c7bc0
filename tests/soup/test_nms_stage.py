"""Suppression inside the graph: what is written, by whose rules, and what is proved of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from soup import nms_stage
from soup.build_folder import read_build
from soup.export_proof import Job, Options, Proved
from soup.export_source import exported_config, open_build
from soup.files import sha256_bytes
from soup.judge import hop
from soup.nms_stage import with_suppression
from soup.proof import BOXES_TOLERANCE, Artifact, Findings
from soup.target_plan import plan_for
from tests.soup.detection_project import built_detector, released_detector, silent


@pytest.fixture
def graph_of(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(overrides) → (Job, Proved): the release's graph in a stage, proved against torch."""
    base = tmp_path_factory.getbasetemp()

    def make(*overrides: str) -> tuple[Job, Proved]:
        built = read_build(built_detector(base) / "soup-out")
        config = exported_config(built, overrides)
        source = open_build(built, config, progress=silent)
        shutil.copy(released_detector(base) / "model.onnx", tmp_path / "model.onnx")
        digest = sha256_bytes((tmp_path / "model.onnx").read_bytes())
        job = Job(source, tmp_path, Findings(), Options(), plan_for(config, engine=False), silent)
        artifact, answers = Artifact("model.onnx", "onnx", digest, 1), source.answers["val"]
        step, _ = hop(
            "soup → ONNX", answers, answers, metric=source.metric, groups=None, split="val", where="here"
        )  # fmt: skip
        return job, Proved(artifact, answers, source.golden_inputs, source.golden_outputs, step, (), ())

    return make


def test_outside_is_the_default_and_nothing_is_written(graph_of: Any, tmp_path: Path) -> None:
    assert with_suppression(*graph_of()) is None
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["model.onnx"]


def test_what_has_labels_already_gets_no_second_suppression(graph_of: Any) -> None:
    job, graph = graph_of("export.nms=onnx")
    inside = {**graph.golden, "labels": graph.golden["scores"][..., 0]}
    assert with_suppression(job, replace(graph, golden=inside)) is None


def test_onnx_nms_is_proved_as_boxes_under_its_own_name(graph_of: Any, tmp_path: Path) -> None:
    job, graph = graph_of("export.nms=onnx")
    found = with_suppression(job, graph)
    assert found is not None
    assert (found.artifact.file, found.artifact.boxes, found.artifact.tolerance) == (
        "model.nms.onnx", True, BOXES_TOLERANCE,
    )  # fmt: skip
    assert found.artifact.sha256 == sha256_bytes((tmp_path / "model.nms.onnx").read_bytes())
    assert found.hop.name == "ONNX → ONNX with NMS"
    assert found.audits == graph.audits
    assert [check.verdict for check in found.parity] == ["pass"]
    assert found.answers.value == pytest.approx(graph.answers.value)
    assert job.findings.values == {"model.nms.onnx": pytest.approx(graph.answers.value)}
    assert list(job.findings.latency) == ["model.nms.onnx"]  # with nothing left to do after it
    assert list(found.golden) == ["boxes", "scores", "labels"]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_name_of_another_precision_is_kept(graph_of: Any, tmp_path: Path, precision: str) -> None:
    job, graph = graph_of("export.nms=onnx")
    file = f"model.{precision}.onnx"
    (tmp_path / "model.onnx").rename(tmp_path / file)
    found = with_suppression(job, replace(graph, artifact=replace(graph.artifact, file=file, precision=precision)))
    assert found is not None
    assert (found.artifact.file, found.artifact.precision) == (f"model.{precision}.nms.onnx", precision)
    assert found.hop.name == f"ONNX → {precision.upper()} with NMS"


def test_boxes_that_are_others_fail_the_step(graph_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NMS at another overlap and score than val.yaml's: the boxes are others, and that is found."""
    right = nms_stage.with_nms
    monkeypatch.setattr(
        nms_stage, "with_nms", lambda graph, **rules: right(graph, **{**rules, "score": 0.6})
    )  # fmt: skip
    job, graph = graph_of("export.nms=onnx")
    found = with_suppression(job, graph)
    assert found is not None
    (check,) = found.parity
    assert check.verdict == "fail"
    assert "of the boxes are others, beyond the limit of 1.00%" in check.message


def test_the_rules_are_those_of_val_yaml(graph_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(nms_stage, "with_nms", lambda graph, **rules: asked.update(rules) or _stop())
    job, graph = graph_of("export.nms=onnx")
    with pytest.raises(Stopped):
        with_suppression(job, graph)
    rules = job.source.config.detection.suppression
    assert asked == {
        "iou": rules.iou, "score": rules.score, "max_detections": rules.max_detections,
        "candidates": rules.candidates, "class_agnostic": rules.class_agnostic, "where": "model.onnx",
    }  # fmt: skip


class Stopped(Exception):  # noqa: N818
    """Enough was seen."""


def _stop() -> bytes:
    raise Stopped


def test_tensorrts_plugin_is_written_and_said_to_be_unproved(graph_of: Any, tmp_path: Path) -> None:
    job, graph = graph_of("export.nms=efficientnms_trt")
    found = with_suppression(job, graph)
    assert found is not None
    assert (found.parity, found.gates, found.artifact.file) == ((), (), "model.nms.onnx")
    model = onnx.load(tmp_path / "model.nms.onnx")
    assert "EfficientNMS_TRT" in {node.op_type for node in model.graph.node}
    assert job.findings.notes == [
        "model.nms.onnx holds TensorRT's plugin EfficientNMS_TRT: it was not run here"
    ]  # fmt: skip
    assert job.findings.latency == {}
