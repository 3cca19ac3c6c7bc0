"""`soup export` on a real build: what is in the release, what was proved, and what gates and failures end with."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from exporters.runtimes import open_onnx
from soup import SoupError
from soup.config import load_config
from soup.files import sha256_file
from soup.gates import Exit
from soup.manifest import read_manifest, verify_files
from soup.pipeline import build
from soup.release import verify
from soup.ship import ExportResult, Options, export

REPORTS = {"report.md", "report.html", "report.json", "junit.xml", "waterfall.svg"}
COMPANIONS = {
    f"companions/{name}" for name in ("trtexec.sh", "polygraphy.sh", "config.pbtxt", "nvinfer.txt", "labels.txt")
}
CHANGED_MODEL = """
import torch
from torch import nn


class Changed(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return {expression}


def prepare(model):
    return Changed(model)
"""


def silent(what: str, done: int, total: int) -> None:
    pass


def run(built: Path, out: Path, *overrides: str, options: Options = Options()) -> ExportResult:  # noqa: B008
    return export(built / "soup-out", out, overrides=overrides, options=options, progress=silent)


def prepared(project: Path, expression: str) -> str:
    """The override that exports the network with its answer changed."""
    (project / "changed.py").write_text(CHANGED_MODEL.replace("{expression}", expression))
    return "export.prepare=./changed.py:prepare"


def checks(result: ExportResult) -> dict[tuple[str, str], str]:
    return {(check.name, check.kind): check.verdict for check in result.findings.checks}


def report(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_bytes()))


def cases(folder: Path) -> dict[str, str]:
    """Verdict by "class.name" of junit.xml."""
    root = ET.parse(folder / "junit.xml").getroot()
    properties: Callable[[ET.Element], Iterator[ET.Element]] = lambda case: case.iter("property")  # noqa: E731
    return {
        f"{case.get('classname')}.{case.get('name')}": next(
            str(one.get("value")) for one in properties(case) if one.get("name") == "verdict"
        )
        for case in root.iter("testcase")
    }


def snapshot(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """The built project, to be changed."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


def rewrite_best_single(project: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """As if the best single had scored otherwise on val: build.json's hashes follow."""
    out = project / "soup-out"
    arrays = load_file(out / "evaluations.safetensors")
    arrays["val/best_single/correct"] = change(arrays["val/best_single/correct"])
    save_file(arrays, out / "evaluations.safetensors")
    record = json.loads((out / "build.json").read_bytes())
    record["files"]["evaluations.safetensors"] = sha256_file(out / "evaluations.safetensors")
    (out / "build.json").write_text(json.dumps(record))


def test_a_release_holds_the_design_s_files_and_the_manifest_lists_each(released: Path, shipped: Any) -> None:
    assert set(snapshot(released)) == {"model.onnx", "golden.safetensors", "manifest.json"} | REPORTS
    listed = read_manifest(released).files
    assert {name: one.sha256 for name, one in listed.items()} == {
        name: sha for name, sha in snapshot(released).items() if name != "manifest.json"
    }
    assert set(shipped.manifest["files"]) >= {"model.onnx", "golden.safetensors"} | REPORTS
    assert (released / "manifest.json").stat().st_mode & 0o777 == 0o644


def test_a_static_model_has_the_default_names_one_sample_a_call_and_its_weights_inside(released: Path) -> None:
    """Correctness 35, 36."""
    model = onnx.load(released / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("input", "output")
    assert [axis.dim_value for axis in image.type.tensor_type.shape.dim] == [1, 1, 8, 8]
    assert image.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert all(one.data_location == onnx.TensorProto.DEFAULT for one in model.graph.initializer)


def test_a_dynamic_model_has_the_names_and_dtypes_that_were_configured(shipped: Any) -> None:
    """Correctness 34: the same answers at min, opt and max of the batch, and beyond it in several calls."""
    golden = load_file(shipped.folder / "golden.safetensors")
    expected = golden["output.torch.logits"]
    with open_onnx(shipped.folder / "model.onnx", batch=(1, 2, 4)) as runtime:
        (image,), (logits,) = runtime.inputs, runtime.outputs
        assert (image.name, image.dtype, image.shape) == ("image", "float32", ("batch", 1, 8, 8))
        assert (logits.name, logits.dtype, logits.shape) == ("logits", "float16", ("batch", 10))
        for count in (1, 2, 4, 11):
            found = runtime({"image": golden["input.image"][:count]})["logits"]
            np.testing.assert_allclose(found.astype(np.float32), expected[:count], rtol=2e-3, atol=2e-3)


def test_the_graph_carries_labels_preprocessing_and_the_recipe_it_comes_from(built: Path, released: Path) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(released / "model.onnx").metadata_props}
    assert set(metadata) == {"soup.task", "soup.labels", "soup.preprocess", "soup.recipe_sha256"}
    assert metadata["soup.recipe_sha256"] == sha256_file(built / "soup-out" / "recipe.json")
    assert metadata["soup.recipe_sha256"] == read_manifest(released).facts["recipe_sha256"]
    preprocess = json.loads(metadata["soup.preprocess"])
    assert (preprocess["color"], preprocess["mean"], preprocess["std"]) == ("gray", [0.3], [0.35])
    assert json.loads(metadata["soup.labels"]) is None  # an .npz numbers its classes


def test_no_file_of_a_release_names_a_folder_of_this_machine(
    built: Path, released: Path, shipped: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Correctness 36, and the same for reports, engine, layer record and manifest."""
    here = [built, shipped.folder.parent, tmp_path_factory.getbasetemp(), Path(__file__).parents[2], Path(sys.prefix)]
    local = [str(path.resolve()).encode() for path in here] + [b".soup-tmp-", f"{Path.home()}/".encode()]
    for file in (*released.rglob("*"), *shipped.folder.rglob("*")):
        content = file.read_bytes() if file.is_file() else b""
        assert [path for path in local if path in content] == [], file.name


def test_every_hop_is_recorded_on_all_of_val(built: Path, shipped: Any) -> None:
    """Correctness 31, 34, 40: the figures agree with what the golden samples, all of val here, say by themselves."""
    hops = report(shipped.folder)["hops"]
    names = [hop["name"].split(" → ") for hop in hops]
    assert (names[0][0], names[-1][-1]) == ("best single", "simplified")
    assert all(earlier[1] == later[0] for earlier, later in itertools.pairwise(names))
    golden = load_file(shipped.folder / "golden.safetensors")
    labels = np.load(built / "val.npz")["labels"]
    assert golden["target.label"].tolist() == labels.tolist()

    torch_logits, onnx_logits = golden["output.torch.logits"], golden["output.model.onnx.logits"].astype(np.float32)
    moved = np.abs(torch_logits.astype(np.float64) - onnx_logits)
    last = hops[-2]  # the last of all simplified that very graph, to the same answers
    assert hops[-1]["flips"] == 0
    assert last["difference"]["n"] == len(labels) == 400
    assert last["after"] == pytest.approx((onnx_logits.argmax(1) == labels).mean())
    assert last["flips"] == int((onnx_logits.argmax(1) != torch_logits.argmax(1)).sum())
    assert last["outputs"][0]["max_abs"] == pytest.approx(moved.max(), rel=1e-4)
    assert last["outputs"][0]["mean_abs"] == pytest.approx(moved.mean(), rel=1e-4)
    assert last["outputs"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert last["difference"]["low"] < last["difference"]["estimate"] < last["difference"]["high"]
    assert golden["best_single.correct"].mean() == pytest.approx(hops[0]["before"])


def test_a_release_that_keeps_its_accuracy_passes_and_says_so_everywhere(released: Path) -> None:
    found = report(released)
    assert (found["exit_code"], found["schema_version"]) == (0, 1)
    gate = next(check for check in found["checks"] if check["kind"] == "accuracy")
    assert (gate["verdict"], gate["hop"], gate["limit"]) == ("pass", "best single → ONNX", 0.02)
    junit = cases(released)
    assert set(junit.values()) == {"pass"}
    hops = [name for name in junit if name.startswith("soup.hop.")]
    assert len(hops) == len(found["hops"])
    assert len(junit) == len(found["hops"]) + len(found["checks"])
    assert "excluded" in (released / "report.md").read_text(encoding="utf-8")


def test_a_drop_that_is_shown_fails_the_gate_and_the_release_is_written_all_the_same(
    copy: Path, tmp_path: Path
) -> None:
    rewrite_best_single(copy, np.ones_like)
    result = run(copy, tmp_path / "release")
    assert result.exit_code == Exit.ACCURACY
    assert checks(result)["model.onnx", "accuracy"] == "fail"
    assert all(check.verdict == "pass" for check in verify_files(tmp_path / "release"))
    assert cases(tmp_path / "release")["soup.best single → ONNX.model.onnx"] == "fail"
    assert report(tmp_path / "release")["exit_code"] == 3
    again = verify(tmp_path / "release")
    assert again.exit_code == Exit.ACCURACY
    assert [check.hop for check in again.findings.checks if check.verdict == "fail"] == [
        "at export: best single → ONNX"
    ]


def test_a_drop_that_the_samples_cannot_decide_is_inconclusive_and_may_be_allowed(built: Path, tmp_path: Path) -> None:
    """Correctness 45."""
    strict = "gates.accuracy.max_drop=0"
    result = run(built, tmp_path / "release", strict)
    assert result.exit_code == Exit.UNDECIDED
    gate = next(check for check in result.findings.checks if check.kind == "accuracy")
    assert gate.verdict == "inconclusive"
    assert gate.samples_needed is not None
    assert gate.samples_needed > 400
    assert "about" in gate.message
    assert "samples would decide" in gate.message
    assert cases(tmp_path / "release")["soup.best single → ONNX.model.onnx"] == "inconclusive"
    assert verify(tmp_path / "release").exit_code == Exit.UNDECIDED
    assert verify(tmp_path / "release", allow_inconclusive=True).exit_code == Exit.OK


def test_several_open_gates_end_with_the_first_code_and_are_all_listed(copy: Path, tmp_path: Path) -> None:
    rewrite_best_single(copy, np.ones_like)
    gates = "gates={accuracy: {max_drop: 0.02}, require: [onnx, engine, device],"
    gates += " latency: {p50_ms: 0.000001, p99_ms: 9999, runtime: onnxruntime, device: cpu}}"
    result = run(copy, tmp_path / "release", gates)
    assert result.exit_code == Exit.ENVIRONMENT
    found = [(check.kind, check.verdict) for check in result.findings.checks]
    assert found == [
        ("outputs", "pass"), ("outputs", "pass"), ("accuracy", "fail"), ("latency", "fail"), ("latency", "pass"),
        ("require", "pass"), ("require", "pending"), ("require", "pending"),
    ]  # fmt: skip
    verdicts = cases(tmp_path / "release")
    assert (verdicts["soup.gate.engine"], verdicts["soup.gate.onnx"]) == ("pending", "pass")


def test_a_latency_gate_for_another_device_is_recorded_and_pending(shipped: Any) -> None:
    gate = next(check for check in report(shipped.folder)["checks"] if check["kind"] == "latency")
    assert gate["verdict"] == "pending"
    assert gate["measured"] > 0
    assert "the gate of 9 ms names tensorrt on orin-nano" in gate["message"]
    assert cases(shipped.folder)["soup.gate.model.onnx"] == "pending"
    latency = report(shipped.folder)["latency"]["model.onnx"]
    assert latency["samples"] == 500
    assert latency["p99_upper_ms"] >= latency["p99_ms"] >= latency["p50_ms"] > 0
    assert latency["contract"]["batch"] == 2
    assert latency["contract"]["loop"] == "closed"


@pytest.mark.usefixtures("needs_rtx")
def test_an_engine_is_built_ahead_of_time_and_the_manifest_says_that_it_did_not_run(shipped: Any) -> None:
    """Correctness 38, 39: what was proved where; precision read back from the layers."""
    manifest = shipped.manifest
    engine = next(one for one in manifest["artifacts"] if one["kind"] == "engine")
    assert (
        engine["sha256"] == manifest["files"]["model.engine"]["sha256"] == sha256_file(shipped.folder / engine["file"])
    )
    layers = json.loads((shipped.folder / "model.layers.json").read_bytes())
    assert layers["readable"]
    by_artifact = {proof["artifact"]: proof for proof in manifest["verified"]}
    assert by_artifact["model.onnx"]["proved"] == ["outputs", "metric", "latency"]
    built = by_artifact["model.engine"]
    assert built["runtime"] == "tensorrt_rtx"
    assert built["proved"] == ["built for 8.6, 8.9", f"{len(layers['layers'])} layers read back", "not run"]
    notes = report(shipped.folder)["notes"]
    assert "the engine was built but not run here: model.engine: an engine needs an NVIDIA GPU" in notes[-1]
    assert "not run" in (shipped.folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.gpu
def test_on_a_gpu_the_very_engine_that_ships_is_run_and_judged(built: Path, tmp_path: Path) -> None:
    result = run(built, tmp_path / "release", "gates.require=[onnx, engine, device]", options=Options(trt=True))
    assert result.exit_code == Exit.OK
    assert result.findings.hops[-1].name == "FP16 → engine"
    assert checks(result)["model.engine", "outputs"] == checks(result)["model.engine", "accuracy"] == "pass"
    ran = {"model.onnx", "model.fp16.onnx", "model.engine"}
    assert {proof.artifact for proof in result.findings.verified if proof.ran} == ran
    assert "output.model.engine.output" in load_file(tmp_path / "release" / "golden.safetensors")
    assert {proof.artifact for proof in verify(tmp_path / "release").findings.verified} == ran


def test_a_baseline_is_named_by_its_digest(built: Path, released: Path, tmp_path: Path) -> None:
    run(built, tmp_path / "release", options=Options(baseline=released))
    previous = json.loads((tmp_path / "release/manifest.json").read_bytes())["previous"]
    assert (previous["kind"], previous["digest"]) == ("release", read_manifest(released).self_sha256)
    assert read_manifest(released).facts["previous"] is None


def test_a_baseline_that_is_no_release_is_refused_before_anything_is_done(built: Path, tmp_path: Path) -> None:
    with pytest.raises(SoupError, match=r"manifest\.json: not found"):
        run(built, tmp_path / "release", options=Options(baseline=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_without_a_builder_the_onnx_release_is_whole_and_the_command_that_brings_one_is_named(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt_rtx", "tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run(built, tmp_path / "release", options=Options(trt=True))
    assert result.exit_code == Exit.ENVIRONMENT
    engine = next(check for check in result.findings.checks if check.name == "engine")
    assert engine.verdict == "pending"
    assert "pip install 'edgesoup[rtx]'" in engine.message
    assert "\n" not in engine.message
    whole = {"model.onnx", "model.fp16.onnx", "golden.safetensors", "manifest.json"} | REPORTS | COMPANIONS
    assert set(result.files) == whole
    assert verify(tmp_path / "release").exit_code == Exit.OK  # nobody required an engine: the ONNX release holds


@pytest.mark.usefixtures("needs_rtx")
def test_an_operator_that_tensorrt_lacks_is_a_failed_build_and_the_onnx_release_is_whole(
    copy: Path, tmp_path: Path
) -> None:
    lacking = prepared(copy, "self.model(x) + 1e-12 * torch.linalg.det(x)")
    result = run(copy, tmp_path / "release", lacking, "export.precision=[fp32]", options=Options(trt=True))
    assert result.exit_code == Exit.BUILD
    engine = next(check for check in result.findings.checks if check.name == "engine")
    assert (engine.verdict, engine.kind) == ("fail", "build")
    assert engine.message.startswith("model.onnx: TensorRT cannot take the graph: node '")
    assert "(Det)" in engine.message
    assert checks(result)["model.onnx", "outputs"] == "pass"
    assert set(result.files) == {"model.onnx", "golden.safetensors", "manifest.json"} | REPORTS | COMPANIONS
    assert verify(tmp_path / "release").exit_code == Exit.BUILD


@pytest.mark.parametrize("expression", ["self.model(x) + 0.1", "self.model(x) / torch.zeros(1)"])
def test_answers_that_moved_or_are_no_numbers_fail_their_hop(copy: Path, tmp_path: Path, expression: str) -> None:
    """Correctness 34; NaN must fail a check and not the program."""
    result = run(copy, tmp_path / "release", prepared(copy, expression))
    assert result.exit_code == Exit.CHECK
    failed = [(check.hop, check.kind) for check in result.findings.checks if check.verdict == "fail"]
    assert failed[0] == ("soup → ONNX", "outputs")  # the hop that lost, and not those after it
    assert verify(tmp_path / "release").exit_code == Exit.CHECK


def test_a_loss_that_is_no_number_is_null_in_every_record(project: Path, tmp_path: Path) -> None:
    overrides = ("metric=cross_entropy", "gates.accuracy=null", "search.methods=[uniform]")
    build(load_config(project / "val.yaml", overrides=overrides), project / "soup-out", progress=silent)
    result = run(project, tmp_path / "release", prepared(project, "self.model(x) * torch.nan"))
    assert (result.exit_code, result.metric_unit) == (Exit.CHECK, "")
    assert report(tmp_path / "release")["values"] == {"model.onnx": None}
    assert report(tmp_path / "release")["hops"][-1]["difference"]["estimate"] is None
    again = verify(tmp_path / "release")
    assert again.exit_code == Exit.CHECK
    assert again.golden_values["model.onnx"] is None
    assert again.golden_values["torch"] == pytest.approx(0.3, abs=0.3)


def test_golden_samples_hold_inputs_targets_and_every_answer(built: Path, released: Path) -> None:
    golden = load_file(released / "golden.safetensors")
    assert {name: array.shape for name, array in golden.items()} == {
        "input.input": (64, 1, 8, 8), "target.label": (64,), "best_single.correct": (64,),
        "output.torch.output": (64, 10), "output.model.onnx.output": (64, 10),
    }  # fmt: skip
    images = np.load(built / "val.npz")["images"]
    fed = ((images.transpose(0, 3, 1, 2) / 255 - 0.3) / 0.35).astype(np.float32)
    for sample in golden["input.input"]:
        assert np.isclose(fed, sample, atol=1e-6).all(axis=(1, 2, 3)).any()


def test_a_folder_with_somebody_s_files_is_refused_and_left_alone(released: Path, built: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_text('{"name": "a web app"}')
    added = Path(shutil.copytree(released, tmp_path / "added"))
    (added / "notes.txt").write_text("mine")
    device = Path(shutil.copytree(released, tmp_path / "device"))
    (device / "device" / "orin").mkdir(parents=True)
    for folder, name in {mine: "notes.txt", app: "manifest.json", added: "notes.txt", device: "device"}.items():
        before = snapshot(folder)
        with pytest.raises(SoupError, match=f"holds '{name}'"):
            run(built, folder)
        assert snapshot(folder) == before
    with pytest.raises(SoupError, match="is a file, expected a folder"):
        run(built, mine / "notes.txt")
    with pytest.raises(SoupError, match="cannot be written"):
        run(built, Path("/proc/release"))


def test_an_export_of_nothing_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match=r"no finished build here .* Run: soup build"):
        export(tmp_path / "absent", tmp_path / "absent" / "release", overrides=(), options=Options(), progress=silent)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_earlier_release_as_it_was(copy: Path, released: Path, tmp_path: Path) -> None:
    earlier = Path(shutil.copytree(released, tmp_path / "out" / "release"))
    before = snapshot(earlier)
    (copy / "changed.py").write_text("def prepare(model):\n    return 1\n")
    with pytest.raises(SoupError, match=r"export\.prepare './changed\.py:prepare'.*returned"):
        run(copy, earlier, "export.prepare=./changed.py:prepare")
    assert snapshot(earlier) == before
    assert [path.name for path in earlier.parent.iterdir()] == ["release"]


@pytest.mark.parametrize("stage", ["torch on val", "model.onnx on val"])
def test_an_interrupted_export_leaves_no_temporary_folder(
    built: Path, released: Path, tmp_path: Path, stage: str
) -> None:
    earlier = Path(shutil.copytree(released, tmp_path / "out" / "release"))
    before = snapshot(earlier)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(built / "soup-out", earlier, overrides=(), options=Options(), progress=interrupt)
    assert snapshot(earlier) == before
    assert [path.name for path in earlier.parent.iterdir()] == ["release"]


def test_the_same_build_gives_the_same_model_and_replaces_the_earlier_release(
    built: Path, released: Path, tmp_path: Path
) -> None:
    """Correctness 44, 46."""
    earlier = Path(shutil.copytree(released, tmp_path / "release"))
    result = run(built, earlier, "release.golden.from=test", "release.golden.count=8")
    assert sha256_file(earlier / "model.onnx") == sha256_file(released / "model.onnx")
    golden = load_file(earlier / "golden.safetensors")
    assert len(golden["target.label"]) == 8
    facts: Mapping[str, Any] = read_manifest(earlier).facts
    assert facts["golden"] == {"split": "test", "count": 8, "of": 600, "groups": None}
    assert result.digest == read_manifest(earlier).self_sha256
