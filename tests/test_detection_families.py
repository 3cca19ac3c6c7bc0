"""Every family that has an adapter goes the whole way: decoded, exported, the same in ONNX Runtime, and an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection, segmentation
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.ssd import SSD
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from calib.batchnorm import recalibrate
from exporters import ExportError
from exporters.nms_graph import with_nms
from exporters.onnx_to_tensorrt import find_builder, onnx_to_tensorrt
from exporters.parity import compare_outputs, within
from exporters.runtimes import Arrays, open_onnx
from exporters.torch_to_onnx import OnnxExport, torch_to_onnx
from soup.adapters import adapt, adapt_segmentation

pytestmark = pytest.mark.slow
needs_rtx = pytest.mark.skipif(
    (builder := find_builder()) is None or builder.flavour != "tensorrt_rtx", reason="tensorrt_rtx builds these engines"
)
CLASSES = 4
BARE: Mapping[str, object] = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
DETECTIONS = {"boxes": "float32", "scores": "float32"}


@dataclass(frozen=True)
class Family:
    """How a network of it is built, at what size it is tried, and how its outputs are decoded ("" for masks)."""

    build: Callable[[], nn.Module]
    size: int
    adapter: str = ""
    args: Mapping[str, object] | None = None


class Stem(nn.Module):
    """Three strided convolutions with BatchNorm: [n, 3, h, w] → [n, 16, h / 8, w / 8]."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 8, 16, 16]
        self.body = nn.Sequential(*[
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.SiLU())
            for a, b in pairwise(widths)
        ])  # fmt: skip


class CenterNet(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Conv2d(16, wide, 1) for name, wide in (("hm", 3), ("wh", 2), ("reg", 2))})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images)
        return {name: head(features) for name, head in self.heads.items()}


class Yolo(Stem):
    """Two scales of distributed distances and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.heads = nn.ModuleList([nn.Conv2d(16, 4 * 8 + 3, 1) for _ in range(2)])

    def forward(self, images: Tensor) -> list[Tensor]:
        near = self.body(images)
        return [head(one) for head, one in zip(self.heads, (near, self.down(near).relu()), strict=True)]


class Decoded(Stem):
    """Boxes as centre and size in pixels, then `others` probabilities: [n, 4 + others, A], or its transpose."""

    def __init__(self, others: int, *, transposed: bool) -> None:
        super().__init__()
        self.head, self.transposed = nn.Conv2d(16, 4 + others, 1), transposed

    def forward(self, images: Tensor) -> Tensor:
        columns = self.head(self.body(images)).sigmoid()
        side = torch.arange(columns.shape[-1], dtype=columns.dtype)
        centres = torch.stack(torch.meshgrid(side, side, indexing="xy")) + columns[:, :2]
        rows = torch.cat([8 * centres, 32 * columns[:, 2:4], columns[:, 4:]], 1).flatten(2)
        return rows.transpose(1, 2) if self.transposed else rows


class TwoScales(Stem):
    """What an SSD is put on: strides 8 and 16."""

    out_channels = (16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        near = self.body(images)
        return {"0": near, "1": self.down(near).relu()}


class Detr(Stem):
    """One encoder and one decoder layer over the cells, 10 queries."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(64, 16))
        self.queries = nn.Parameter(torch.randn(10, 16))
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
        self.classes, self.boxes = nn.Linear(16, CLASSES), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        cells = self.encoder(self.body(images).flatten(2).transpose(1, 2) + self.places)
        found = self.decoder(self.queries.expand(cells.shape[0], -1, -1), cells)
        return {"pred_logits": self.classes(found), "pred_boxes": self.boxes(found).sigmoid()}


def pyramid() -> nn.Module:
    """torchvision's own for fcos and retinanet, on the smallest ResNet."""
    extra = LastLevelP6P7(256, 256)
    return resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=extra, trainable_layers=5
    )


FAMILIES = {
    "ssd": Family(lambda: SSD(TwoScales(), DefaultBoxGenerator([[2], [2]]), (64, 64), CLASSES), 64, "torchvision"),
    "ssdlite": Family(lambda: detection.ssdlite320_mobilenet_v3_large(**BARE), 96, "torchvision"),
    "fcos": Family(lambda: detection.FCOS(pyramid(), CLASSES), 64, "torchvision"),
    "retinanet": Family(lambda: detection.RetinaNet(pyramid(), CLASSES), 64, "torchvision"),
    "centernet": Family(CenterNet, 64, "centernet", {"heatmap": "hm", "size": "wh", "offset": "reg"}),
    "yolo": Family(Yolo, 64, "yolo", {"layout": "dfl", "strides": [8, 16], "reg_max": 8}),
    "yolo v8": Family(lambda: Decoded(3, transposed=False), 64, "yolo", {"layout": "v8"}),
    "yolox": Family(lambda: Decoded(4, transposed=True), 64, "yolo", {"layout": "yolox"}),
    "detr": Family(Detr, 64, "detr"),
    "lraspp": Family(lambda: segmentation.lraspp_mobilenet_v3_large(**BARE), 64),
    "deeplabv3": Family(lambda: segmentation.deeplabv3_mobilenet_v3_large(**BARE, aux_loss=True), 64),
    "fcn": Family(lambda: segmentation.fcn_resnet50(**BARE, aux_loss=True), 64),
}


@dataclass(frozen=True)
class Exported:
    model: nn.Module
    onnx: OnnxExport
    size: int


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """With statistics recalibrated on noise, without which a network of random weights gives nothing but zeros."""
    family = FAMILIES[request.param]
    torch.manual_seed(0)
    model = family.build().eval()
    for module in model.head.modules() if hasattr(model, "head") else ():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # by itself a detector begins with scores that are all alike
    if family.adapter:
        args = family.args or {}
        adapt(model, family.adapter, args, folder=Path(), input_size=(family.size, family.size))
    else:
        adapt_segmentation(model)
    recalibrate(model, [noise(4, family.size, seed=seed) for seed in range(2)])
    path = tmp_path_factory.mktemp("families") / f"{request.param}.onnx"
    onnx = torch_to_onnx(
        model, {"image": noise(3, family.size)}, path, inputs={}, outputs=DETECTIONS if family.adapter else {},
        batch=(1, 2, 4), opset=18, metadata={}, simplify=False,
    )  # fmt: skip
    return Exported(model, onnx, family.size)


def noise(count: int, size: int, *, seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, size, size)).astype(np.float32)


def by_torch(model: nn.Module, images: np.ndarray) -> Arrays:
    with torch.no_grad():
        outputs = model(torch.from_numpy(images))
    return {"output": outputs.numpy()} if isinstance(outputs, Tensor) else {k: v.numpy() for k, v in outputs.items()}


def test_the_graph_says_what_torch_says_at_each_batch(exported: Exported) -> None:
    assert exported.onnx.notes == ("exported by the dynamo exporter",)
    with open_onnx(exported.onnx.path, threads=1) as runtime:
        for count in (1, 4):
            images = noise(count, exported.size, seed=count)
            expected = by_torch(exported.model, images)
            assert all(np.ptp(array) > 1e-3 for array in expected.values())
            assert within(compare_outputs(expected, runtime({"input": images})))


@needs_rtx
def test_tensorrt_rtx_builds_an_engine_of_it(exported: Exported, tmp_path: Path) -> None:
    built = onnx_to_tensorrt(exported.onnx.path, tmp_path / "model.engine", profile=(1, 2, 4))
    assert built.layers
    assert built.size_bytes > 0


@pytest.mark.parametrize("exported", ["centernet"], indirect=True)
def test_with_nms_inside_onnx_runtime_gives_rows_and_tensorrt_rtx_has_no_such_operator(
    exported: Exported, tmp_path: Path
) -> None:
    rules = {"iou": 0.5, "score": 0.05, "max_detections": 20, "candidates": 100, "class_agnostic": False}
    path = tmp_path / "nms.onnx"
    path.write_bytes(with_nms(exported.onnx.path.read_bytes(), where="test", **rules))
    with open_onnx(path, threads=1) as runtime:
        found = runtime({"input": noise(3, exported.size)})
    assert [array.shape for array in found.values()] == [(3, 20, 4), (3, 20), (3, 20)]
    assert (found["labels"] >= 0).any()
    if (here := find_builder()) is not None and here.flavour == "tensorrt_rtx":
        with pytest.raises(ExportError, match=r"NonMaxSuppression.* has no runners that implement it"):
            onnx_to_tensorrt(path, tmp_path / "nms.engine", profile=(1, 2, 4))


def test_faster_rcnn_gives_the_same_detections_in_onnx_runtime_with_a_static_batch(tmp_path: Path) -> None:
    """By the legacy exporter: the other refuses a length that depends on the image."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    model = detection.FasterRCNN(backbone, CLASSES, box_detections_per_img=50, box_score_thresh=0.5).eval()
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(3)  # by itself all scores are alike
    adapt(model, "torchvision", {}, folder=tmp_path, input_size=(96, 96))
    onnx = torch_to_onnx(
        model, {"image": noise(2, 96)}, tmp_path / "m.onnx", inputs={}, outputs={**DETECTIONS, "labels": "int64"},
        batch=2, opset=17, metadata={}, simplify=False,
    )  # fmt: skip
    images = noise(4, 96, seed=3)
    expected = by_torch(model, images)
    with open_onnx(onnx.path, threads=1) as runtime:
        found = runtime({"input": images})
    counts = (expected["labels"] >= 0).sum(1)
    assert counts.min() < 50
    assert counts.max() > 0
    assert within(compare_outputs(expected, found))
