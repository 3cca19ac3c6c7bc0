"""torchvision's detectors without their transform and their suppression: dense boxes and scores."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from soup import SoupError
from soup.adapters.instance import Forward
from soup.adapters.raw_outputs import corners, lengths, one_of

WHERE = "adapter 'torchvision'"
_DENSE = "ssd, ssdlite, fcos, retinanet"


def torchvision_forward(model: nn.Module, *, background: str = "first") -> Forward:
    """A forward for a torchvision detector, of images [n, 3, h, w] as val.yaml's preprocessing makes them.

    ssd, ssdlite, fcos and retinanet give boxes [n, A, 4], clipped to the image, and scores [n, A, classes], for each
    anchor in torchvision's order: softmax (ssd), sigmoid (retinanet), or the root of class times centredness (fcos).
    Anchors are constants of each image size; they enter no state dict. faster_rcnn gives what its own suppression
    leaves: boxes [n, D, 4], scores [n, D] and labels [n, D], filled up with label -1 to D = box_detections_per_img.

    `background` says what column 0 of the head is: "first" is background, as torchvision's references train every
    family (`num_classes` counts it and labels begin at 1; fcos and retinanet never train that column), and is left out,
    so that column c is label c; "none" keeps it, for an fcos or retinanet that was trained with labels from 0.

    Raises SoupError for another network, and for `background: none` where the head's own loss gives column 0 to it.
    """
    one_of(background, ("first", "none"), name="background", where=WHERE)
    family = _family(model)
    if background == "none" and family in ("ssd", "rcnn"):
        raise SoupError(
            f"{WHERE}: background is 'none', but {type(model).__name__} has background in column 0 by its own loss. "
            "Remove it."
        )
    if family == "rcnn":
        return _proposals
    anchors = _Anchors(family)
    first = 1 if background == "first" else 0

    def forward(self: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        features = _features(self, images)
        head = self.head(features)
        scale, centers, sizes, limit = anchors.of(self, images, features)
        boxes = _decode(self, family, head["bbox_regression"], scale, centers, sizes)
        return torch.minimum(boxes.clamp(min=0), limit), _scores(family, head)[..., first:]

    return forward


def transform_note(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> str | None:
    """A sentence where torchvision's own transform in the model normalises otherwise than val.yaml; else None.

    The adapter leaves that transform out. `mean` and `std` are of pixels scaled to 0..1, for each channel or for all.
    """
    transform: Any = getattr(model, "transform", None)
    if not hasattr(transform, "image_mean"):
        return None
    own = (list(transform.image_mean), list(transform.image_std))
    differ = []
    for name, asked, trained in zip(("mean", "std"), (mean, std), own, strict=True):
        wide = [*asked] * (len(trained) if len(asked) == 1 else 1)
        close = len(wide) == len(trained) and all(abs(a - b) <= 1e-4 for a, b in zip(wide, trained, strict=True))
        if not close:
            differ.append(f"preprocess.{name} is {_numbers(wide)}, the model's own is {_numbers(trained)}")
    if not differ:
        return None
    return f"{'; '.join(differ)}: the model's transform is left out, so set in val.yaml what it was trained with."


def refuse_tensorrt(model: nn.Module) -> str | None:
    """Why no TensorRT engine can be built of this torchvision detector, in a sentence; None where one can."""
    if _family_or_none(model) != "rcnn":
        return None
    return (
        f"{type(model).__name__} has a suppression of proposals inside, whose number depends on the image; TensorRT "
        f"does not build that. Ship the ONNX file, or train a one-stage detector ({_DENSE})."
    )


class _Anchors:
    """Constants of an image size and device, made at the first call with them and outside of any trace."""

    def __init__(self, family: str) -> None:
        self._family = family
        self._kept: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def __deepcopy__(self, memo: object) -> _Anchors:
        return self  # they depend on no weight

    def of(self, model: Any, images: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scale [4] of the deltas, centres [A, 2], sizes [A, 2], and the largest coordinates [4]."""
        _, height, width = lengths(images)
        key = height, width, images.device
        if key not in self._kept:
            if type(images) is not Tensor or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
                raise SoupError(
                    f"{WHERE}: traced on images of {height} × {width}, for which the anchors are not known. "
                    "Run the model on such an image first."
                )
            with torch.inference_mode(False), torch.no_grad():
                shapes = [lengths(one)[1:] for one in features]
                self._kept[key] = self._made(model, (height, width), shapes, images.device)
        return self._kept[key]

    def _made(
        self, model: Any, size: tuple[int, int], shapes: Sequence[tuple[int, ...]], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from torchvision.models.detection.image_list import ImageList

        image_list = ImageList(torch.empty(1, 3, *size), [size])
        boxes: Tensor = model.anchor_generator(image_list, [torch.empty(1, 1, *shape) for shape in shapes])[0]
        boxes = boxes.float()
        sizes = boxes[:, 2:] - boxes[:, :2]
        # As torchvision rounds: its coders find the centre in two ways.
        middle = (boxes[:, :2] + boxes[:, 2:]) * 0.5 if self._family == "fcos" else boxes[:, :2] + 0.5 * sizes
        weights = getattr(model.box_coder, "weights", (1.0, 1.0, 1.0, 1.0))
        limit = torch.tensor([*size[::-1]] * 2, dtype=torch.float32)
        constants = torch.tensor(weights, dtype=torch.float32), middle, sizes, limit
        return constants[0].to(device), middle.to(device), sizes.to(device), limit.to(device)


def _decode(model: Any, family: str, deltas: Tensor, scale: Tensor, centers: Tensor, sizes: Tensor) -> Tensor:
    coder = model.box_coder
    if family == "fcos":
        # Distances to the four sides: Tian et al., FCOS, arXiv 1904.01355, section 3.1.
        spans = torch.cat([sizes, sizes], dim=-1) if coder.normalize_by_size else torch.ones_like(scale)
        distances = deltas * spans
        return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], dim=-1)
    # Shifts and logarithms of growth: Ren et al., Faster R-CNN, arXiv 1506.01497, section 3.1.2.
    deltas = deltas / scale
    growth = deltas[..., 2:].clamp(max=coder.bbox_xform_clip)
    return corners(deltas[..., :2] * sizes + centers, growth.exp() * sizes)


def _scores(family: str, head: dict[str, Tensor]) -> Tensor:
    logits = head["cls_logits"]
    if family == "ssd":
        return logits.softmax(-1)
    if family == "fcos":
        return (logits.sigmoid() * head["bbox_ctrness"].sigmoid()).sqrt()
    return logits.sigmoid()


def _features(model: Any, images: Tensor) -> list[Tensor]:
    features = model.backbone(images)
    return [features] if isinstance(features, Tensor) else list(features.values())


def _proposals(model: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from torchvision.models.detection.image_list import ImageList

    features = model.backbone(images)
    features = {"0": features} if isinstance(features, Tensor) else features
    _, height, width = lengths(images)
    sizes = [(height, width)] * _count(images)
    proposals, _ = model.rpn(ImageList(images, sizes), features, None)
    found, _ = model.roi_heads(features, proposals, sizes, None)
    wide = model.roi_heads.detections_per_img
    fillers = images.new_zeros(wide, 4), images.new_zeros(wide), images.new_full((wide,), -1, dtype=torch.int64)
    columns = [[one["boxes"] for one in found], [one["scores"] for one in found], [one["labels"] - 1 for one in found]]
    # All the filling, then a cut: a number of rows to fill would be the traced image's in the exported graph.
    boxes, scores, labels = (
        torch.stack([torch.cat([rows, filler])[:wide] for rows in column])
        for column, filler in zip(columns, fillers, strict=True)
    )
    return boxes, scores, labels


def _count(images: Tensor) -> int:
    with warnings.catch_warnings():  # the legacy exporter's tracer: one length for good, which the export has to be of
        warnings.simplefilter("ignore")
        return int(images.shape[0])


def _family(model: nn.Module) -> str:
    family = _family_or_none(model)
    if family is None:
        raise SoupError(
            f"{WHERE}: the model is {type(model).__name__}, expected one of torchvision's detectors ({_DENSE}, "
            "faster_rcnn). Choose the adapter of its family."
        )
    return family


def _family_or_none(model: nn.Module) -> str | None:
    from torchvision.models import detection

    kinds = {"ssd": detection.ssd.SSD, "fcos": detection.FCOS, "retinanet": detection.RetinaNet}
    kinds["rcnn"] = detection.FasterRCNN
    return next((name for name, kind in kinds.items() if isinstance(model, kind)), None)


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"
