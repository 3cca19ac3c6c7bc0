"""Settings of a detector that nobody meant, through the commands: adapters, metrics and suppressions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.soup.detection_project import built_detector, detector, edit_json

from .conftest import Refused


@pytest.fixture
def boxed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the detection project that a test may change."""
    return Path(shutil.copytree(detector(tmp_path_factory.getbasetemp()), tmp_path / "boxed"))


@pytest.fixture
def built_boxed(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it with a finished build in soup-out/."""
    return Path(shutil.copytree(built_detector(tmp_path_factory.getbasetemp()), tmp_path / "built-boxed"))


OWN = """
import torch


def decode(raw, images):
    heat, size, offset = raw
    boxes, scores = images.new_zeros(len(images), 64, 4), images.new_zeros(len(images), 64, 2)
    return {}
"""


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            "centrenet",
            "detection.adapter: expected one of torchvision, centernet, yolo, detr, none, or './file.py:name'",
        ),
        ("./own.py:absent", "'./own.py:absent': "),
        ("./gone.py:decode", "'./gone.py:decode': cannot read "),
        ("torchvision", "adapter 'torchvision': the model is Detector, expected one of torchvision's detectors"),
        ("yolo", "adapter 'yolo': "),
        ("detr", "adapter 'detr': "),
        ("none", "adapter 'none': gave boxes (n, 2, 8, 8), scores (n, 2, 8, 8), labels (n, 2, 8, 8), expected "),
    ],
)
def test_an_adapter_that_is_none_or_of_another_network_is_refused(
    boxed: Path, refused: Refused, adapter: str, message: str
) -> None:
    (boxed / "own.py").write_text(OWN.format("boxes, scores"))
    told = refused(boxed, "build", "--set", f"detection.adapter={adapter}")
    assert message in told


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("{'scores': scores}", "gave a dict of 'scores', expected the tensors boxes and scores, as a dict or in this"),
        ("boxes", "gave Tensor, expected the tensors boxes and scores, as a dict or in this order."),
        ("None", "gave NoneType, expected the tensors boxes and scores, as a dict or in this order."),
        ("boxes[..., :3], scores", "gave boxes (n, 64, 3), scores (n, 64, 2), expected (n, A, 4) and (n, A, classes)."),
        ("boxes, scores[..., 0]", "gave boxes (n, 64, 4), scores (n, 64), expected (n, A, 4) and (n, A, classes)."),
        ("boxes, scores[:, :9]", "gave boxes (n, 64, 4), scores (n, 9, 2), expected (n, A, 4) and (n, A, classes)."),
        ("boxes, scores.fail()", "raised AttributeError"),
    ],
)
def test_an_adapter_of_ones_own_that_gives_something_else_is_refused(
    boxed: Path, refused: Refused, returned: str, message: str
) -> None:
    (boxed / "own.py").write_text(OWN.format(returned))
    told = refused(boxed, "build", "--set", "detection.adapter=./own.py:decode")
    assert message in told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["metric=miou"], "metric: 'miou' is not known for detection. Expected one of map, map50, map75, "),
        (["metric=accuracy"], "metric: 'accuracy' is not known for detection. Expected one of map, "),
        (["task=classification", "metric=map"], "metric: 'map' is not known for classification. Expected one of "),
        (["detection.suppression.iou=1.5"], "detection.suppression.iou: "),
        (["detection.suppression.iou=-0.1"], "detection.suppression.iou: "),
        (["detection.suppression.score=2"], "detection.suppression.score: "),
        (["detection.suppression.score=.nan"], "detection.suppression.score: "),
        (["detection.suppression.max_detections=0"], "detection.suppression.max_detections: "),
        (["detection.suppression.candidates=-1"], "detection.suppression.candidates: "),
        (["detection.suppression.sigma=0"], "detection.suppression.sigma: "),
        (["detection.suppression.voting_iou=7"], "detection.suppression.voting_iou: "),
        (["detection.suppression.method=nmms"], "detection.suppression.method: "),
        (["detection.suppression={treshold: 0.5}"], "detection.suppression.treshold: "),
        (
            ["search={methods: [ranked], budget: {evaluations: 9}}"],
            "search: 'ranked' averages class scores, and the task is detection. Leave it ",
        ),
        (["search.methods=[learned]"], "search: 'learned' learns from one label per image, and the task is detection"),
        (
            ["export.nms=onnx", "detection.suppression.method=soft_gaussian"],
            "export: export.nms: onnx does plain NMS, and detection.suppression asks for soft_gaussian. Use one and",
        ),
        (
            ["export.nms=efficientnms_trt", "detection.suppression.method=soft_linear"],
            "export: export.nms: efficientnms_trt does plain NMS, and detection.suppression asks for soft_linear.",
        ),
        (
            ["export.nms=onnx", "detection.suppression.voting_iou=0.7"],
            "export: export.nms: onnx does plain NMS, and detection.suppression asks for box voting. Use one and the",
        ),
        (["export.nms=onnx", "task=classification"], "export: export.nms is onnx, and the task is classification. "),
        (["export.nms=yes"], "export.nms: "),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_any_work(
    boxed: Path, refused: Refused, overrides: list[str], message: str
) -> None:
    told = refused(boxed, "build", *[part for one in overrides for part in ("--set", one)])
    assert message in told


def test_soft_nms_is_not_put_into_a_graph_at_the_export_either(built_boxed: Path, refused: Refused) -> None:
    edit_json(
        built_boxed / "soup-out/build.json",
        lambda record: record["config"]["detection"]["suppression"].update(method="soft_linear"),
    )
    told = refused(built_boxed, "export", "--set", "export.nms=onnx")
    assert "export.nms: onnx does plain NMS, and detection.suppression asks for soft_linear." in told
