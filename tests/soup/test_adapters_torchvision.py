from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import batched_nms

from soup import SoupError
from soup.adapters import adapt, refuse_tensorrt, transform_note

CLASSES = 4
DENSE = ["ssdlite320_mobilenet_v3_large", "ssd300_vgg16", "fcos_resnet50_fpn", "retinanet_resnet50_fpn"]
SIZES = {"ssdlite320_mobilenet_v3_large": 320, "ssd300_vgg16": 300}


def detector(name: str, **options: object) -> nn.Module:
    """torchvision's own, at a small size where it has a choice, with heads whose scores and boxes differ."""
    torch.manual_seed(0)
    if name not in SIZES:
        options = {"min_size": 64, "max_size": 64, **options}
    if name.startswith("fcos"):
        options = {"score_thresh": 0.05, **options}  # its scores begin low
    model = detection.__dict__[name](weights=None, weights_backbone=None, num_classes=CLASSES, **options).eval()
    with torch.no_grad():
        parts = [model.roi_heads.box_predictor.cls_score] if name.startswith("faster") else model.modules()
        for module in parts:
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
    return model


def images_for(name: str, count: int = 2) -> Tensor:
    size = SIZES.get(name, 64)
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def normalized(model: nn.Module, images: Tensor) -> Tensor:
    values = (model.transform.image_mean, model.transform.image_std)
    mean, std = (torch.tensor(one).reshape(-1, 1, 1) for one in values)
    return (images - mean) / std


def adapted(model: nn.Module, **args: object) -> nn.Module:
    return adapt(model, "torchvision", args, folder=Path())


def suppressed(model: nn.Module, parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """As torchvision's postprocess_detections: a threshold and the best of each part, then NMS per class."""
    picked = []
    for boxes, scores, labels in parts:
        rows = torch.where(scores > model.score_thresh)[0]
        rows = rows[scores[rows].topk(min(model.topk_candidates, len(rows))).indices]
        picked.append((boxes[rows], scores[rows], labels[rows]))
    boxes, scores, labels = (torch.cat(one) for one in zip(*picked, strict=True))
    keep = batched_nms(boxes, scores, labels, model.nms_thresh)[: model.detections_per_img]
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


def by_class(boxes: Tensor, scores: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """ssd picks the best of each class; column 0 is label 1."""
    for column, values in enumerate(scores.T):
        yield boxes, values, torch.full((len(values),), column + 1)


def by_level(boxes: Tensor, scores: Tensor, counts: list[int]) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """fcos and retinanet pick the best pairs of each feature map; column 0 is label 0."""
    for some, values in zip(boxes.split(counts), scores.split(counts), strict=True):
        labels = torch.arange(values.shape[1]).repeat(len(values))
        yield some.repeat_interleave(values.shape[1], 0), values.flatten(), labels


def anchors_by_level(model: nn.Module, images: Tensor) -> list[int]:
    maps = model.backbone(images).values()
    each = model.anchor_generator.num_anchors_per_location()
    return [count * one.shape[2] * one.shape[3] for count, one in zip(each, maps, strict=True)]


@pytest.mark.parametrize("name", [*DENSE, "retinanet_resnet50_fpn_v2"])
def test_after_torchvisions_own_suppression_the_dense_outputs_are_torchvisions_detections(name: str) -> None:
    model, images = detector(name), images_for(name, 1 if name == "ssd300_vgg16" else 2)
    ssd = name in SIZES
    with torch.no_grad():
        expected = model([*images])
        inputs = normalized(model, images)
        counts = [] if ssd else anchors_by_level(model, inputs)
        outputs = adapted(model, background="first" if ssd else "none")(inputs)
    for boxes, scores, want in zip(*outputs.values(), expected, strict=True):
        assert len(want["scores"]) > 20
        found = suppressed(model, by_class(boxes, scores) if ssd else by_level(boxes, scores, counts))
        for key, values in want.items():
            torch.testing.assert_close(found[key], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_column_0_which_torchvisions_labels_never_name_is_left_out_unless_it_is_asked_for(name: str) -> None:
    model, images = detector(name), images_for(name, 1)
    with torch.no_grad():
        default, whole = adapted(model)(images)["scores"], adapted(model, background="none")(images)["scores"]
    assert whole.shape[2] == CLASSES
    torch.testing.assert_close(default, whole[..., 1:], rtol=0, atol=0)


def test_other_image_sizes_get_anchors_of_their_own() -> None:
    model = adapted(detector("retinanet_resnet50_fpn"))
    with torch.no_grad():
        small, large = (model(torch.rand(1, 3, side, 64)) for side in (64, 128))
    assert large["boxes"].shape[1] > small["boxes"].shape[1]
    assert small["boxes"][..., 3].max() == 64
    assert large["boxes"][..., 3].max() == 128


def test_faster_rcnn_gives_its_own_detections_filled_up_with_label_minus_1() -> None:
    model = detector("fasterrcnn_resnet50_fpn", box_detections_per_img=300, box_score_thresh=0.5)
    images = images_for("faster_rcnn")
    with torch.no_grad():
        expected = model([*images])
        outputs = adapted(model)(normalized(model, images))
    assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == {
        "boxes": (2, 300, 4), "scores": (2, 300), "labels": (2, 300),
    }  # fmt: skip
    assert 0 < sum(len(one["labels"]) for one in expected) < 600
    for row, want in enumerate(expected):
        count = len(want["labels"])
        torch.testing.assert_close(outputs["boxes"][row][:count], want["boxes"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs["scores"][row][:count], want["scores"], rtol=1e-4, atol=1e-4)
        assert outputs["labels"][row].tolist() == [*(want["labels"] - 1).tolist(), *[-1] * (300 - count)]
        assert not outputs["scores"][row][count:].any()


def test_what_cannot_be_adapted_is_named() -> None:
    with pytest.raises(SoupError, match=r"the model is Linear, expected one of torchvision's detectors \(ssd"):
        adapted(nn.Linear(1, 1).eval())
    ssdlite = detector("ssdlite320_mobilenet_v3_large")
    with pytest.raises(SoupError, match="background is 'none', but SSD has background in column 0"):
        adapted(ssdlite, background="none")
    with pytest.raises(SoupError, match="background is 'last', expected first or none"):
        adapted(ssdlite, background="last")
    with pytest.raises(SoupError, match="argument 'scores' is not known, expected some of background"):
        adapted(ssdlite, scores="softmax")


def test_the_tensorrt_refusal_is_for_two_stage_detectors_alone() -> None:
    faster = detector("fasterrcnn_resnet50_fpn")
    assert (refuse_tensorrt(faster) or "").startswith("FasterRCNN has a suppression of proposals inside")
    assert refuse_tensorrt(detector("ssdlite320_mobilenet_v3_large")) is None
    assert refuse_tensorrt(nn.Linear(1, 1)) is None


def test_a_normalisation_other_than_the_models_own_is_told() -> None:
    ssdlite = detector("ssdlite320_mobilenet_v3_large")  # 0.5 and 0.5
    assert transform_note(ssdlite, (0.5,), (0.5,)) is None
    assert transform_note(ssdlite, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) is None
    assert transform_note(nn.Linear(1, 1), (0.5,), (0.5,)) is None
    note = transform_note(ssdlite, (0.485, 0.456, 0.406), (0.5,)) or ""
    assert note.startswith("preprocess.mean is (0.485, 0.456, 0.406), the model's own is (0.5, 0.5, 0.5): ")
    assert "std" not in note
    assert "preprocess.std is (1, 1)" in (transform_note(ssdlite, (0.5,), (1, 1)) or "")
