"""A detector goes the whole way through the real commands: checked, built, exported, proved again without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from soup.files import sha256_file
from soup.manifest import read_manifest, seal
from soup.proof import WITH_NMS
from tests.soup.commands import document
from tests.soup.detection_judge import torch_map
from tests.soup.detection_project import (
    SPLITS,
    built_detector,
    detector,
    released_detector,
    training_maps,
)

ALL_GOLDEN = ("--set", "release.golden.count=all")
WITHOUT_TORCH = """
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} is not on this device")


sys.meta_path.insert(0, Refuse())
from soup.cli import app

app(sys.argv[1:])
"""


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the project, its build and its release are made once."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def project(base: Path, tmp_path: Path) -> Path:
    """A copy of the project that a test may change."""
    return Path(shutil.copytree(detector(base), tmp_path / "project"))


@pytest.fixture
def built(base: Path, tmp_path: Path) -> Path:
    """A copy of the project with a finished build in soup-out/."""
    return Path(shutil.copytree(built_detector(base), tmp_path / "built"))


@pytest.fixture
def release(base: Path, tmp_path: Path) -> Path:
    """A copy of the release, all of val as golden samples."""
    return Path(shutil.copytree(released_detector(base), tmp_path / "release"))


def soup(*arguments: object, code: int = 0) -> Any:
    """What a command's JSON document has as its result, of one that ends with `code`."""
    return document(*arguments, code=code)


def checks(result: Mapping[str, Any], **wanted: str) -> list[dict[str, Any]]:
    """Those of an export or a verification that have these values."""
    found = result["findings"]["checks"]
    return [one for one in found if all(one[key] == value for key, value in wanted.items())]


def test_a_check_of_a_detector_finds_nothing_and_tells_the_cost(project: Path) -> None:
    result = soup("check", "--val", project / "val.yaml")
    assert result["refused"] == []
    assert result["estimate"]["evaluations"] >= 3
    assert {name: split["classes"] for name, split in result["splits"].items()} == dict.fromkeys(SPLITS, 2)


def test_a_trainers_figure_that_is_missed_is_told_with_what_would_explain_it(project: Path) -> None:
    expect = ("--set", "expect={checkpoint: runs/step-300.pt, value: 0.9, tolerance: 0.003}")
    comparison = soup("check", "--val", project / "val.yaml", *expect, code=1)["comparison"]
    assert comparison["verdict"] == "fail"
    assert 0.1 < comparison["measured"] < 0.9
    assert any(one["change"].startswith("color: bgr") for one in comparison["attempts"])


def test_the_soup_scores_what_pycocotools_says_of_plain_torch(base: Path) -> None:
    folder = built_detector(base)
    record = json.loads((folder / "soup-out/build.json").read_bytes())
    assert record["task"] == "detection"
    assert record["class_names"] == ["blue", "red"]
    assert 0.1 < record["winner"]["val"] < 0.9
    for split in ("val", "test"):
        expected = torch_map(folder, folder / "soup-out/soup.safetensors", split)
        assert record["winner"][split] == pytest.approx(expected, abs=1e-6)


def test_a_build_tells_what_its_ingredients_give_together_and_otherwise_thinned_out(base: Path) -> None:
    record = json.loads((built_detector(base) / "soup-out/build.json").read_bytes())
    labels = {one["label"]: one["value"] for one in record["explanation"]["references"]}
    assert {
        "union of the ingredients' boxes", "class-agnostic NMS", "soft-NMS, linear", "soft-NMS, Gaussian",
        "NMS with box voting", "weighted boxes fusion",
    } <= labels.keys()  # fmt: skip
    assert "NMS" not in labels  # that is the model itself
    assert all(0 < value < 1 for value in labels.values())
    markdown = (built_detector(base) / "soup-out/report.md").read_text(encoding="utf-8")
    assert all(label.replace("'", "’") in markdown or label in markdown for label in labels)


def test_a_release_tells_boxes_lost_and_new_and_both_latencies(base: Path) -> None:
    folder = released_detector(base)
    report = json.loads((folder / "report.json").read_bytes())
    assert {"model.onnx", "model.onnx" + WITH_NMS} == report["latency"].keys()
    assert report["latency"]["model.onnx" + WITH_NMS]["p50_ms"] > report["latency"]["model.onnx"]["p50_ms"]
    (to_onnx,) = [hop for hop in report["hops"] if hop["name"].endswith("→ ONNX")]
    assert (to_onnx["figures"]["lost"], to_onnx["figures"]["new"], to_onnx["figures"]["moved"]) == (0, 0, 0)
    assert to_onnx["figures"]["boxes"] > 16
    assert [one["name"] for one in read_manifest(folder).facts["onnx"]["outputs"]] == ["boxes", "scores"]
    text = (folder / "report.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith(("| model.onnx  ", f"| model.onnx{WITH_NMS} "))]
    assert len(rows) == 2
    assert all("| onnxruntime on " in row for row in rows)


def test_a_release_is_proved_where_there_is_no_torch(base: Path) -> None:
    """pycocotools computes the IoU there; torch and torchvision are not even looked for."""
    command = [sys.executable, "-c", WITHOUT_TORCH, "verify", str(released_detector(base)), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    record = json.loads((built_detector(base) / "soup-out/build.json").read_bytes())
    assert set(result["otherwise"]) >= {"class-agnostic NMS", "soft-NMS, linear", "weighted boxes fusion"}
    assert result["golden_values"] == pytest.approx(dict.fromkeys(("torch", "model.onnx"), record["winner"]["val"]))
    assert {check["verdict"] for check in checks(result)} == {"pass"}
    assert {"model.onnx", "model.onnx" + WITH_NMS} == result["findings"]["latency"].keys()


def test_nms_inside_the_graph_gives_the_boxes_that_numpy_gives(built: Path) -> None:
    folder = built / "soup-out"
    result = soup("export", folder, "--set", "export.nms=onnx", "--gate", "accuracy.max_drop=0.2", *ALL_GOLDEN)
    inside, dense = (result["findings"]["values"][name] for name in ("model.nms.onnx", "model.onnx"))
    assert inside == pytest.approx(dense, abs=1e-6)
    (check,) = [one for one in checks(result, kind="outputs", name="model.nms.onnx") if one["limit"] == 0.01]
    assert check["measured"] == 0
    assert set(result["findings"]["latency"]) == {"model.onnx", "model.onnx" + WITH_NMS, "model.nms.onnx"}
    session = onnxruntime.InferenceSession(folder / "release/model.nms.onnx", providers=["CPUExecutionProvider"])
    images, *_ = training_maps(built, "val")
    boxes, scores, labels = session.run(None, {session.get_inputs()[0].name: images[:1].numpy()})
    assert (boxes.shape, scores.shape, labels.shape) == ((1, 100, 4), (1, 100), (1, 100))
    assert set(labels[0].tolist()) <= {-1, 0, 1}
    verified = soup("verify", folder / "release")
    assert verified["golden_values"]["model.nms.onnx"] == pytest.approx(dense, abs=1e-6)
    assert {check["verdict"] for check in checks(verified)} == {"pass"}
    broken = spoiled(folder / "release", "model.nms.onnx")
    failed = soup("verify", broken, code=1)
    told = checks(failed, kind="outputs", verdict="fail")
    assert {one["name"] for one in told} == {"model.nms.onnx"}
    assert all("of the boxes are others, beyond the limit of 1.00%" in one["message"] for one in told)


def test_lower_precisions_of_a_detector_are_made_judged_and_verified(built: Path) -> None:
    folder = built / "soup-out"
    arguments = ("--precision", "int8,fp16", "--gate", "accuracy.max_drop=0.9", *ALL_GOLDEN)
    result = soup("export", folder, *arguments)
    attempts = {one["precision"]: one for one in result["findings"]["attempts"]}
    assert {name: one["outcome"] for name, one in attempts.items()} == {"int8": "ships", "fp16": "fallback"}
    assert attempts["int8"]["share"] > 0.5
    values = result["findings"]["values"]
    assert values["model.fp16.onnx"] == pytest.approx(values["model.onnx"], abs=0.02)
    assert values["model.int8.onnx"] > values["model.onnx"] / 2
    verified = soup("verify", folder / "release")
    assert verified["golden_values"]["model.int8.onnx"] == pytest.approx(values["model.int8.onnx"], abs=1e-6)
    assert {"model.int8.onnx" + WITH_NMS, "model.fp16.onnx" + WITH_NMS} <= verified["findings"]["latency"].keys()


def test_gates_on_boxes_pass_for_the_same_model_and_fail_for_another(built: Path) -> None:
    folder = built / "soup-out"
    gates = ("accuracy={max_drop: 0, against: soup}", "per_class_drop={max_drop: 0, against: soup, min_images: 1}",
             "flips={max_count: 0}", "outputs={max_error: 0.001, cosine: 0.9999}")  # fmt: skip
    asked = [part for gate in gates for part in ("--gate", gate)]
    same = soup("export", folder, *asked, *ALL_GOLDEN)
    verdicts = {(one["kind"], one["verdict"]) for one in checks(same, name="model.onnx")}
    assert {("accuracy", "pass"), ("per_class", "pass"), ("flips", "pass"), ("outputs", "pass")} <= verdicts
    again = soup("verify", folder / "release")
    assert {"accuracy", "per_class", "flips"} <= {one["kind"] for one in checks(again, verdict="pass")}
    (built / "prepare.py").write_text(BLIND_TO_RED)
    other = soup("export", folder, *asked, "--set", "export.prepare=./prepare.py:prepare", code=1)
    failed = {one["kind"] for one in checks(other, verdict="fail")}
    assert {"accuracy", "per_class", "flips", "outputs"} <= failed
    (worst,) = [one for one in checks(other, kind="per_class", verdict="fail") if one["name"] == "model.onnx"]
    assert "class 'red'" in worst["message"]
    assert "class 'blue'" not in worst["message"]


def test_a_network_that_prepare_rebuilt_or_wrapped_is_decoded_once(built: Path, tmp_path: Path) -> None:
    (built / "prepare.py").write_text(REBUILT)
    for name in ("rebuilt", "wrapped"):
        asked = ("--precision", "fp32", "--set", f"export.prepare=./prepare.py:{name}", "-o", tmp_path / name)
        hops = soup("export", built / "soup-out", *asked)["findings"]["hops"]
        figures = [one["figures"] for one in hops if "ONNX" in one["name"]]
        assert [(one["lost"], one["new"], one["moved"]) for one in figures] == [(0, 0, 0)] * 2


REBUILT = """
from torch import nn


def rebuilt(model):
    new = nn.Conv2d(6, model.heat.out_channels, 1)
    new.load_state_dict(model.heat.state_dict())
    model.heat = nn.Sequential(new, nn.Identity())
    return model


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images)


def wrapped(model):
    return Wrapped(model)
"""
BLIND_TO_RED = """
import torch


def prepare(model):
    with torch.no_grad():
        model.heat.bias[1] -= 20
    return model
"""


def test_a_release_and_its_graph_are_inspected_and_timed(release: Path) -> None:
    facts = soup("inspect", release)["facts"]
    assert facts["metric"] == "map"
    assert facts["artifacts"][0]["file"] == "model.onnx"
    golden = soup("inspect", release / "golden.safetensors")["facts"]
    assert golden["targets"] == ["area", "boxes", "crowd", "labels", "placement", "size"]
    assert golden["samples"] == SPLITS["val"]
    assert soup("bench", release)["latency"]["samples"] > 0


def test_a_release_whose_graph_answers_otherwise_is_not_believed(release: Path) -> None:
    """With hashes made anew, as someone would who wants to be believed: only answering again tells."""
    failed = soup("verify", spoiled(release, "model.onnx"), code=1)
    told = checks(failed, kind="outputs", verdict="fail")
    assert [one["hop"] for one in told] == ["torch at export → ONNX here", "model.onnx at export → ONNX here"]
    assert failed["golden_values"]["model.onnx"] < failed["golden_values"]["torch"]


def spoiled(release: Path, file: str) -> Path:
    """The release with the sizes of all boxes halved in one graph, sealed again."""
    graph = onnx.load(release / file)
    one = next(one for one in graph.graph.initializer if one.dims == [2, 6, 1, 1] and "size" in one.name)
    one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one) * np.float32(0.5), one.name))
    onnx.save(graph, release / file)
    facts = dict(read_manifest(release).facts)
    artifacts = [dict(artifact) for artifact in facts["artifacts"]]
    next(one for one in artifacts if one["file"] == file)["sha256"] = sha256_file(release / file)
    (release / "manifest.json").unlink()
    seal(release, {**facts, "artifacts": artifacts})
    return release


OWN = """
import numpy as np


def miscounted(answers, targets):
    found, wanted = ((one["labels"] >= 0).sum(axis=1) for one in (answers, targets))
    return np.abs(found - wanted).astype(float)


miscounted.higher_is_better = False
"""


def test_a_metric_of_ones_own_chooses_and_judges_boxes(project: Path) -> None:
    (project / "own.py").write_text(OWN)
    out = project / "out"
    options = ("--set", "metric=./own.py:miscounted", "--set", "detection.suppression.score=0.3")
    soup("build", "--val", project / "val.yaml", "-o", out, *options)
    record = json.loads((out / "build.json").read_bytes())
    assert record["higher_is_better"] is False
    assert record["winner"]["val"] <= record["best_single"]["val"]
    exported = soup("export", out, "--gate", "accuracy={max_drop: 0, against: soup}")
    assert exported["findings"]["values"]["model.onnx"] == pytest.approx(record["winner"]["val"])


def test_another_metric_of_boxes_is_carried_to_the_release(project: Path) -> None:
    out = project / "out"
    options = ("--set", "metric=voc_map07", "--set", "search.methods=[uniform]")
    soup("build", "--val", project / "val.yaml", "-o", out, *options)
    value = json.loads((out / "build.json").read_bytes())["winner"]["val"]
    assert value > 0.3
    assert soup("export", out, *ALL_GOLDEN)["findings"]["values"]["model.onnx"] == pytest.approx(value)
    assert soup("verify", out / "release")["golden_values"]["model.onnx"] == pytest.approx(value)
