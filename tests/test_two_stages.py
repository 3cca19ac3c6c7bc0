"""A detector of two stages: a soup and a graph with its own suppression inside, and no engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from exporters.interleaved import Turns
from exporters.pacing import Timing
from soup import proof
from soup.manifest import read_manifest
from tests.soup.commands import document
from tests.soup.detection_project import write_scenes

RCNN_ARGS = {
    "num_classes": 3, "weights_backbone": None, "min_size": 64, "max_size": 64, "box_detections_per_img": 5,
    "rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 5,
}  # fmt: skip
RCNN = """
model: torchvision:fasterrcnn_mobilenet_v3_large_320_fpn
checkpoints: {files: ["runs/*.pt"]}
task: detection
data: {val: data/val.json}
detection: {classes: [blue, red], suppression: {method: none, score: 0.0, max_detections: 5}}
preprocess: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], resize: [64, 64]}
search: {methods: [uniform], bn_policy: averaged}
explain: {ensemble: false}
"""


@pytest.mark.slow
def test_two_stages_give_a_soup_and_a_graph_and_say_that_no_engine_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of no meaning: what matters is that ONNX Runtime gives torch's boxes, and what --trt says."""
    monkeypatch.setattr(proof, "TIMING", Timing(warmup=1, iterations=5))
    monkeypatch.setattr(proof, "_TURNS", Turns(blocks=6, max_seconds=1.0))
    write_scenes(tmp_path)
    torch.manual_seed(0)
    model = get_model("fasterrcnn_mobilenet_v3_large_320_fpn", weights=None, **RCNN_ARGS)
    (tmp_path / "runs").mkdir()
    for epoch in range(2):
        torch.save(model.state_dict(), tmp_path / f"runs/{epoch}.pt")
        with torch.no_grad():
            for one in model.parameters():
                one.add_(torch.randn_like(one) * 1e-4)
    (tmp_path / "val.yaml").write_text(f"{RCNN}model_args: {json.dumps(RCNN_ARGS)}\n")
    document("build", "--val", tmp_path / "val.yaml", "-o", tmp_path / "out")
    result = document("export", tmp_path / "out", "--trt", "--precision", "fp32", code=7)
    checks = result["findings"]["checks"]
    (failed,) = [one for one in checks if one["verdict"] == "fail"]
    assert (failed["name"], failed["kind"]) == ("engine", "build")
    assert failed["message"].startswith("FasterRCNN has a suppression of proposals inside, whose number depends on")
    assert "Ship the ONNX file, or train a one-stage detector" in failed["message"]
    assert {one["verdict"] for one in checks if one["kind"] == "outputs"} == {"pass"}
    names = [one["name"] for one in read_manifest(tmp_path / "out/release").facts["onnx"]["outputs"]]
    assert names == ["boxes", "scores", "labels"]
    verified = document("verify", tmp_path / "out/release", code=7)  # the export's word on the engine
    assert {one["verdict"] for one in verified["findings"]["checks"] if one["kind"] == "outputs"} == {"pass"}
