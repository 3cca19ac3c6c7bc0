"""The precisions of an export in their order, on a real build: which ships, why others do not, and what is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from calib.ranges import read_ranges
from exporters.runtimes import open_onnx
from soup import SoupError
from soup.export_proof import Options
from soup.files import sha256_file
from soup.gates import Exit
from soup.manifest import read_manifest, verify_files
from soup.release import verify
from soup.ship import ExportResult, export

Folder = Path


def silent(what: str, done: int, total: int) -> None:
    pass


def run(project: Folder, out: Folder, *overrides: str, trt: bool = False) -> ExportResult:
    return export(project / "soup-out", out, overrides=overrides, options=Options(trt=trt), progress=silent)


def facts(release: Folder) -> dict[str, Any]:
    return dict(json.loads((release / "manifest.json").read_bytes()))


@pytest.fixture
def copy(built: Folder, tmp_path: Path) -> Folder:
    """The built project, to be changed."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


@pytest.fixture(scope="module")
def lowered(built: Folder, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A release with all three precisions, INT8 first. Read only."""
    folder = tmp_path_factory.mktemp("lowered")
    project = Path(shutil.copytree(built, folder / "project"))
    result = run(
        project, folder / "release", "export.precision=[int8, fp16, fp32]", "release.golden.count=all",
        "quantization={samples: 200, method: minmax}",
    )  # fmt: skip
    assert result.exit_code == Exit.OK
    return folder


def best_single_right_everywhere(project: Folder) -> None:
    """As if the best single had made no error on val: build.json's hashes follow."""
    out = project / "soup-out"
    arrays = load_file(out / "evaluations.safetensors")
    arrays["val/best_single/correct"] = np.ones_like(arrays["val/best_single/correct"])
    save_file(arrays, out / "evaluations.safetensors")
    record = json.loads((out / "build.json").read_bytes())
    record["files"]["evaluations.safetensors"] = sha256_file(out / "evaluations.safetensors")
    (out / "build.json").write_text(json.dumps(record))


def test_the_first_precision_that_passes_ships_and_the_others_wait_behind_it(lowered: Folder) -> None:
    attempts = facts(lowered / "release")["precision"]
    assert [(one["precision"], one["outcome"]) for one in attempts] == [
        ("int8", "ships"), ("fp16", "fallback"), ("fp32", "fallback"),
    ]  # fmt: skip
    assert [one["share"] for one in attempts] == [1.0, 1.0, 1.0]
    files = {one["file"] for one in facts(lowered / "release")["artifacts"]}
    assert files == {"model.onnx", "model.int8.onnx", "model.fp16.onnx"}
    recipe = facts(lowered / "release")["build"]
    assert [one["precision"] for one in recipe["candidates"]] == ["int8", "fp16", "fp32"]


def test_each_layer_is_recorded_with_what_it_computes_in(lowered: Folder) -> None:
    """Correctness 39, against the onnx package's own reading of the files."""
    attempts = {one["precision"]: one for one in facts(lowered / "release")["precision"]}
    assert [layer["found"] for layer in attempts["int8"]["layers"]] == ["int8"] * 3
    graph = onnx.load(lowered / "release/model.int8.onnx").graph
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert [made[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    half = onnx.load(lowered / "release/model.fp16.onnx").graph
    assert {item.data_type for item in half.initializer if len(item.dims) > 1} == {onnx.TensorProto.FLOAT16}


def test_hops_go_from_the_best_single_to_what_ships_and_agree_with_the_golden_answers(lowered: Folder) -> None:
    report = json.loads((lowered / "release/report.json").read_bytes())
    assert [hop["name"] for hop in report["hops"]][-3:] == ["soup → ONNX", "ONNX → simplified", "simplified → INT8"]
    golden = load_file(lowered / "release/golden.safetensors")
    before, after = golden["output.model.onnx.output"], golden["output.model.int8.onnx.output"]
    last = report["hops"][-1]
    assert last["flips"] == int((before.argmax(1) != after.argmax(1)).sum())
    assert last["outputs"][0]["max_abs"] == pytest.approx(float(np.abs(before - after).max()), rel=1e-5)
    assert last["after"] == pytest.approx((after.argmax(1) == golden["target.label"]).mean())


def test_a_tolerance_is_what_was_measured_and_a_margin_so_that_the_device_can_tell_a_wrong_answer(
    lowered: Folder,
) -> None:
    golden = load_file(lowered / "release/golden.safetensors")
    for one in facts(lowered / "release")["artifacts"]:
        before, after = golden["output.model.onnx.output"], golden[f"output.{one['file']}.output"]
        moved = float(np.abs(before - after).max()) / max(1.0, float(np.abs(before).max()))
        assert one["tolerance"] == pytest.approx(max(1e-3, 2 * moved), rel=0.05)
    assert verify(lowered / "release").exit_code == Exit.OK


def test_ranges_travel_with_the_release_and_are_used_again(lowered: Folder, tmp_path: Path) -> None:
    table = read_ranges(lowered / "release/ranges.json")
    assert (table.method, table.samples) == ("minmax", 200)
    assert table.graph_sha256 == sha256_file(lowered / "release/model.onnx")
    project = Path(shutil.copytree(lowered / "project", tmp_path / "project"))
    kept = project / "soup-out/ranges.json"
    assert kept.read_bytes() == (lowered / "release/ranges.json").read_bytes()
    same = ("export.precision=[int8]", "quantization={samples: 200, method: minmax}")
    before = kept.stat().st_mtime_ns
    result = run(project, tmp_path / "again", *same)
    assert kept.stat().st_mtime_ns >= before
    graph = "model.int8.onnx"
    assert sha256_file(tmp_path / "again" / graph) == sha256_file(lowered / "release" / graph)
    assert result.exit_code == Exit.OK
    kept.write_text("{}")
    run(project, tmp_path / "third", *same)
    assert kept.read_bytes() == (lowered / "release/ranges.json").read_bytes()


def test_a_precision_that_fails_names_the_layers_that_it_must_not_have(copy: Folder, tmp_path: Path) -> None:
    """One channel of the first layer is 2,000 times the others: per-tensor INT8 of what follows loses them."""
    (copy / "spoil.py").write_text(
        "import torch\n\n\ndef prepare(model):\n    with torch.no_grad():\n"
        "        model[1].weight[0] *= 2000\n        model[1].bias[0] *= 2000\n        model[4].weight[:, 0] /= 2000\n"
        "    return model\n"
    )
    asked = ("export.precision=[int8]", "quantization={samples: 200, method: minmax, budget: 40}")
    result = run(copy, tmp_path / "release", "export.prepare=./spoil.py:prepare", *asked)
    (attempt,) = result.findings.attempts
    assert attempt.raised is not None
    assert attempt.raised.passed
    assert attempt.raised.evaluations <= 40
    assert len(attempt.raised.layers) == 1
    assert attempt.kept.keys() == set(attempt.raised.layers)
    layers = {layer.name: layer for layer in attempt.layers}
    total = sum(layer.macs or 0 for layer in attempt.layers)
    assert {name for name, layer in layers.items() if layer.found == "fp32"} == set(attempt.raised.layers)
    assert attempt.share == pytest.approx(1 - sum(layers[one].macs or 0 for one in attempt.raised.layers) / total)
    worst = max(attempt.raised.sensitivities, key=lambda one: one.alone or 0.0)
    assert worst.layer in attempt.raised.layers
    assert "precision.svg" in result.files
    assert (result.exit_code, attempt.outcome) == (Exit.OK, "ships")


def test_without_a_budget_nothing_is_looked_for_and_the_next_precision_ships(copy: Folder, tmp_path: Path) -> None:
    (copy / "spoil.py").write_text(
        "import torch\n\n\ndef prepare(model):\n    with torch.no_grad():\n"
        "        model[1].weight[0] *= 2000\n        model[1].bias[0] *= 2000\n        model[4].weight[:, 0] /= 2000\n"
        "    return model\n"
    )
    asked = ("export.precision=[int8, fp32]", "quantization={samples: 200, method: minmax, budget: 0}")
    result = run(copy, tmp_path / "release", "export.prepare=./spoil.py:prepare", *asked)
    first, second = result.findings.attempts
    assert (first.outcome, second.outcome, result.exit_code) == ("failed", "ships", Exit.OK)
    assert "best single → INT8" in first.reason
    assert "model.int8.onnx" not in result.files
    assert first.raised is None
    assert {check.name for check in result.findings.checks} >= {"model.onnx"}
    assert "model.int8.onnx" not in {check.name for check in result.findings.checks}
    assert "best single → INT8" in (tmp_path / "release/report.md").read_text(encoding="utf-8").replace("\\", "")


def test_where_nothing_passes_every_verdict_is_listed_and_the_gate_s_code_is_the_command_s(
    copy: Folder, tmp_path: Path
) -> None:
    best_single_right_everywhere(copy)
    result = run(copy, tmp_path / "release", "export.precision=[fp16, fp32]", "quantization.budget=0")
    assert result.exit_code == Exit.ACCURACY
    assert [one.outcome for one in result.findings.attempts] == ["failed", "failed"]
    failed = [check.hop for check in result.findings.checks if check.verdict == "fail"]
    assert failed == ["best single → FP16", "best single → ONNX"]
    assert all(check.verdict == "pass" for check in verify_files(tmp_path / "release"))


def test_fp32_that_fails_too_is_no_reason_to_look_for_layers(copy: Folder, tmp_path: Path) -> None:
    best_single_right_everywhere(copy)
    result = run(copy, tmp_path / "release", "export.precision=[fp16]")
    assert result.findings.attempts[0].raised is None


@pytest.mark.usefixtures("needs_rtx")
def test_with_an_engine_fp16_is_tried_before_fp32_and_the_engine_holds_what_was_asked(
    built: Folder, tmp_path: Path
) -> None:
    result = run(built, tmp_path / "release", trt=True)
    assert [(one.precision, one.outcome) for one in result.findings.attempts] == [
        ("fp16", "ships"), ("fp32", "fallback"),
    ]  # fmt: skip
    found = {(check.name, check.kind): check for check in result.findings.checks}
    assert found["model.engine", "precision"].verdict == "pass"
    assert "3 fp16" in found["model.engine", "precision"].message
    engine = next(one for one in read_manifest(tmp_path / "release").facts["artifacts"] if one["kind"] == "engine")  # type: ignore[index, union-attr, attr-defined]
    assert engine["precision"] == "fp16"


def test_too_few_calibration_images_are_refused_and_nothing_is_written(built: Folder, tmp_path: Path) -> None:
    with pytest.raises(SoupError, match=r"quantization\.samples: expected 32 or more, got 31"):
        run(built, tmp_path / "release", "export.precision=[int8]", "quantization.samples=31")
    assert not (tmp_path / "release").exists()


def test_frames_are_normalised_in_the_graph_and_every_hop_says_the_same(copy: Folder, tmp_path: Path) -> None:
    result = run(
        copy, tmp_path / "release", "export.preprocess=in_graph", "export.precision=[int8, fp16]",
        "release.golden.count=all", "export.batch={min: 1, opt: 4, max: 8}", "quantization.samples=100",
    )  # fmt: skip
    assert result.exit_code == Exit.OK
    names = [hop.name for hop in result.findings.hops]
    assert names[-3:] == ["ONNX → simplified", "simplified → frames", "frames → INT8"]
    golden = load_file(tmp_path / "release/golden.safetensors")
    frames = np.load(copy / "val.npz")["images"]
    assert golden["input.input"].dtype == np.uint8
    np.testing.assert_array_equal(golden["input.input"], frames)
    with open_onnx(tmp_path / "release/model.onnx", batch=(1, 4, 8)) as runtime:
        assert (runtime.inputs[0].dtype, runtime.inputs[0].shape) == ("uint8", ("batch", 8, 8, 1))
        found = runtime({"input": frames[:50]})["output"]
    np.testing.assert_allclose(found, golden["output.torch.output"][:50], atol=1e-4)
    assert verify(tmp_path / "release").exit_code == Exit.OK


@pytest.mark.parametrize("batch", [9, 32])
def test_every_calibration_image_is_measured_whatever_the_static_batch(
    built: Folder, tmp_path: Path, batch: int
) -> None:
    """The same images in other batches give the same ranges, also where they fill no whole number of them."""
    asked = ("export.precision=[int8, fp16]", "quantization={samples: 100, method: minmax, budget: 0}")
    project = Path(shutil.copytree(built, tmp_path / "project"))
    run(project, tmp_path / "one", *asked)
    run(project, tmp_path / "many", *asked, f"export.batch={batch}")
    one, many = (read_ranges(tmp_path / name / "ranges.json") for name in ("one", "many"))
    assert {name: pytest.approx(ends, rel=1e-5) for name, ends in one.ranges.items()} == many.ranges


def test_int8_without_training_images_is_refused_before_any_work(copy: Folder, tmp_path: Path) -> None:
    record = json.loads((copy / "soup-out/build.json").read_bytes())
    record["config"]["data"]["train"] = None
    record["config"]["search"]["bn_policy"] = "averaged"
    (copy / "soup-out/build.json").write_text(json.dumps(record))
    with pytest.raises(SoupError, match=r"data\.train: not given"):
        run(copy, tmp_path / "release", "export.precision=[int8, fp32]")


def test_gates_on_an_engine_that_was_not_built_are_pending_and_none_is_forgotten(built: Folder, tmp_path: Path) -> None:
    result = run(built, tmp_path / "release", "gates.engine_size={max_mb: 1}", "gates.int8_speedup={}")
    found = {check.kind: check.verdict for check in result.findings.checks if check.name == "engine"}
    assert (found, result.exit_code) == ({"size": "pending", "speedup": "pending"}, Exit.OK)
