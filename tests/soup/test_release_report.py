"""Findings become four reports that agree with each other and with the exit code."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from exporters.latency import Latency
from soup.build_folder import Hop, Outputs
from soup.gates import Check, Exit, Verdict
from soup.proof import Findings, Proof
from soup.release_report import Heading, write_reports
from soup.search_records import Difference
from soup.tasks import metric_named

HEADING = Heading(
    "Release report", "2026-11-22T03:00:00+00:00", Exit.OK, "a" * 64, metric_named("classification", "accuracy"), "val"
)
WORSE = Hop(
    "best single → soup", 0.9, 0.5, (Outputs("output", 3.0, 1.0, 0.8),), 170,
    Difference(-0.4, -0.45, -0.35, 0.95, "paired", 400, None, "worse"), "val", "torch on cpu",
)  # fmt: skip
BETTER = Hop(
    "soup → recalibrated", 0.5, 0.91, (), None,
    Difference(0.41, 0.36, 0.46, 0.95, "paired", 400, None, "better"), "val", "torch on cpu",
)  # fmt: skip
LATENCY = Latency(7.5, 8.0, 8.2, 7.6, 8.1, None, 0.99, 7.6, 7.1, 12.0, 400, 20, {"batch": 1, "loop": "closed"})


def gate(verdict: Verdict) -> Check:
    return Check("model.onnx", "best single → ONNX", "accuracy", verdict, "the sentence", -0.01, 0.02, "%", "cpu", 900)


def findings(*checks: Check) -> Findings:
    return Findings(
        hops=[WORSE, BETTER],
        checks=[*checks, Check("model.onnx", "gate", "latency", "pending", "p99 elsewhere", 8.2, 9.0, "ms", "cpu")],
        verified=[
            Proof("model.engine", "tensorrt_rtx", "1.7", "ahead of time", "cpu", ("built for 8.6", "not run")),
            Proof("model.onnx", "onnxruntime", "1.31.1", "CPUExecutionProvider", "AMD EPYC", ("outputs", "latency")),
        ],
        latency={"model.onnx": LATENCY},
        values={"model.onnx": 0.91, "broken.onnx": None},
        notes=["the engine was built but not run here"],
    )


def case_tags(folder: Path) -> dict[str, str]:
    cases = ET.parse(folder / "junit.xml").getroot().iter("testcase")
    return {
        str(case.get("name")): next((str(child.get("type")) for child in case if child.tag != "properties"), "pass")
        for case in cases
    }


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_a_hop_that_lost_accuracy_shares_the_verdict_of_the_gate(tmp_path: Path, verdict: Verdict) -> None:
    """Correctness 40: the cause of a drop is named; a loss that a later hop makes good blocks nothing."""
    write_reports(tmp_path, HEADING, findings(gate(verdict)))
    tags = case_tags(tmp_path)
    assert (tags["best single → soup"], tags["soup → recalibrated"]) == (verdict, "pass")
    assert len(ET.parse(tmp_path / "junit.xml").getroot().findall(".//testcase")) == 4


def test_without_a_gate_no_hop_blocks(tmp_path: Path) -> None:
    write_reports(tmp_path, HEADING, findings())
    assert case_tags(tmp_path) == {
        "best single → soup": "pass", "soup → recalibrated": "pass", "model.onnx": "pending",
    }  # fmt: skip


def test_report_json_holds_every_figure(tmp_path: Path) -> None:
    write_reports(tmp_path, HEADING, findings(gate("pass")))
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report.keys() == {
        "schema_version", "created", "exit_code", "checks", "hops", "values", "latency", "verified", "notes",
        "precision", "cost", "metric",
    }  # fmt: skip
    assert report["values"] == {"model.onnx": 0.91, "broken.onnx": None}
    assert report["hops"][0]["outputs"] == [{"name": "output", "max_abs": 3.0, "mean_abs": 1.0, "cosine": 0.8}]
    assert report["hops"][0]["flips"] == 170
    assert report["latency"]["model.onnx"]["p99_upper_ms"] is None
    assert [check["verdict"] for check in report["checks"]] == ["pass", "pending"]


def test_the_report_says_what_was_proved_where_what_is_open_and_what_the_files_are(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    write_reports(tmp_path, HEADING, findings(gate("pass")))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for sentence in (
        "model.engine by tensorrt_rtx 1.7 (ahead of time), cpu: built for 8.6, not run",
        "model.onnx by onnxruntime 1.31.1 (CPUExecutionProvider), AMD EPYC: outputs, latency",
        "- p99 elsewhere",
        "- the engine was built but not run here",
        "91.00 %",
        "`model.onnx`",
    ):
        assert sentence in text.replace("\\_", "_"), sentence
    assert "onnxruntime on AMD EPYC" in text  # latency stands beside what ran, not what was only built


def test_a_release_whose_manifest_is_damaged_gets_reports_without_the_manifests_facts(tmp_path: Path) -> None:
    damaged = Check("manifest.json", "files", "hash", "fail", "'manifest.json' has another hash")
    heading = Heading("Verification report", "2026-11-22", Exit.CHECK, None, None, "the golden samples")
    write_reports(tmp_path, heading, Findings(checks=[damaged]))
    assert case_tags(tmp_path) == {"manifest.json": "fail"}
    assert "unknown" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_bytes())["exit_code"] == 1
