"""Every gate of val.yaml on a real export: what it compares with, its exit code, and what it leaves pending."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from soup import SoupError
from soup.export_proof import Options
from soup.gates import Exit
from soup.ship import ExportResult, export


def silent(what: str, done: int, total: int) -> None:
    pass


def run(built: Path, out: Path, *overrides: str, baseline: Path | None = None, trt: bool = False) -> ExportResult:
    return export(
        built / "soup-out", out, overrides=overrides, options=Options(baseline=baseline, trt=trt), progress=silent
    )


def verdicts(result: ExportResult, file: str = "model.onnx") -> dict[str, str]:
    return {check.kind: check.verdict for check in result.findings.checks if check.name in (file, "interface")}


def test_gates_on_classes_flips_outputs_and_throughput_are_judged_each_by_its_own_limit(
    built: Path, tmp_path: Path
) -> None:
    result = run(
        built, tmp_path / "release", "gates.flips={max_count: 0}", "gates.outputs={max_error: 0.001, cosine: 0.999}",
        "gates.per_class_drop={max_drop: 1, min_images: 5}",
        "gates.throughput={min_per_s: 0.000001, runtime: onnxruntime, device: cpu}",
    )  # fmt: skip
    assert result.exit_code == Exit.OK
    found = verdicts(result)
    assert {found[kind] for kind in ("flips", "outputs", "per_class", "throughput", "accuracy")} == {"pass"}


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        ("gates.throughput={min_per_s: 1000000000, runtime: tensorrt, device: orin-nano}", Exit.OK),
        ("gates.outputs={max_error: 0.000000000001}", Exit.CHECK),
        ("gates.latency={relative: {max_ratio: 0.001}, runtime: onnxruntime, device: cpu}", Exit.LATENCY),
        ("gates.latency={relative: {max_ratio: 1000}, runtime: onnxruntime, device: cpu}", Exit.OK),
    ],
)
def test_a_limit_that_is_missed_ends_with_its_own_code(built: Path, tmp_path: Path, gate: str, code: Exit) -> None:
    assert run(built, tmp_path / "release", gate).exit_code == code


def test_the_soup_is_timed_against_the_best_single_and_the_report_says_so(released: Path) -> None:
    report = json.loads((released / "report.json").read_bytes())
    pair = report["cost"]
    assert pair["low"] < pair["ratio"] < pair["high"]
    assert pair["ratio"] == pytest.approx(1, abs=0.5)
    assert "soup / best single" in (released / "report.md").read_text(encoding="utf-8")


def test_a_baseline_is_compared_in_pairs_and_the_same_model_has_no_drop(
    built: Path, released: Path, tmp_path: Path
) -> None:
    rules = "gates.accuracy=[{max_drop: 0.02}, {max_drop: 0.02, against: baseline}]"
    gate = "gates.latency={relative: {max_ratio: 1000, against: baseline}, runtime: onnxruntime, device: cpu}"
    for name, baseline in {"release": released, "onnx": released / "model.onnx"}.items():
        result = run(built, tmp_path / name, rules, gate, baseline=baseline)
        assert result.exit_code == Exit.OK
        assert verdicts(result)["contract"] == "pass"
        drops = [check.measured for check in result.findings.checks if check.hop.startswith("baseline")]
        assert drops[-1] == 0
        previous = json.loads((tmp_path / name / "manifest.json").read_bytes())["previous"]
        assert previous["kind"] == name


def test_another_tool_s_figures_are_a_baseline_too(built: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps({"accuracy": 0.5, "n": 2000, "p50_ms": 100000.0}))
    gate = "gates.latency={relative: {max_ratio: 1, against: baseline}, runtime: onnxruntime, device: cpu}"
    result = run(
        built, tmp_path / "release", "gates.accuracy={max_drop: 0.02, against: baseline}", gate, baseline=figures
    )
    assert (verdicts(result)["accuracy"], verdicts(result)["latency"], result.exit_code) == ("pass", "pass", Exit.OK)


def test_a_changed_interface_fails_and_lists_every_difference(built: Path, released: Path, tmp_path: Path) -> None:
    result = run(built, tmp_path / "release", "export.inputs={image: float32}", "export.batch=2", baseline=released)
    assert result.exit_code == Exit.CHECK
    (contract,) = [check for check in result.findings.checks if check.kind == "contract"]
    assert contract.verdict == "fail"
    assert "image" in contract.message


def test_a_gate_that_names_a_baseline_needs_one(built: Path, tmp_path: Path) -> None:
    with pytest.raises(SoupError, match="Add --baseline"):
        run(built, tmp_path / "release", "gates.accuracy={max_drop: 0.02, against: baseline}")
    assert not (tmp_path / "release").exists()


@pytest.mark.usefixtures("needs_rtx")
def test_an_engine_s_size_and_its_builder_s_memory_are_gates_and_int8_s_speed_waits_for_a_gpu(
    built: Path, tmp_path: Path
) -> None:
    project = Path(shutil.copytree(built, tmp_path / "project"))
    result = run(
        project, tmp_path / "release", "export.precision=[int8]", "quantization.samples=64", "gates.accuracy=null",
        "gates.engine_size={max_mb: 0.001}", "gates.memory={build_max_mb: 100000}", "gates.int8_speedup={}", trt=True,
    )  # fmt: skip
    assert result.exit_code == Exit.CHECK
    found = verdicts(result, "model.engine")
    assert (found["size"], found["memory"], found["speedup"]) == ("fail", "pass", "pending")
