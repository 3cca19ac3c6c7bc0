"""CenterNet's targets, losses and decoding (Zhou et al. 2019, arXiv 1904.07850), for training and what it prints."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from models import STRIDE
from torch import nn
from voc import Sample

TOP = 100  # detections of an image


def targets(samples: Sequence[Sample], classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Heat maps float32 (n, classes, h/4, w/4), and all boxes float32 (m, 7), in cells: image, row, column, width,
    height, offset x and y of the centre in its cell.

    A heat map is 1 at the cell of a box's centre and falls as a Gaussian whose deviations are 0.09 of the box's sides
    (Liu et al. 2019, arXiv 1909.00700, section 3.2), at least half a cell.
    """
    height, width = (side // STRIDE for side in samples[0].image.shape[:2])
    heat = np.zeros((len(samples), classes, height, width), np.float32)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    found = []
    for number, sample in enumerate(samples):
        cells = sample.boxes / STRIDE
        centres, sides = (cells[:, :2] + cells[:, 2:]) / 2, cells[:, 2:] - cells[:, :2]
        whole = np.minimum(centres.astype(int), (width - 1, height - 1))
        for label, side, (x, y) in zip(sample.labels, sides, whole, strict=True):
            spread = 2 * np.maximum(0.09 * side, 0.5) ** 2
            near = np.exp(-((columns - x) ** 2) / spread[0] - (rows - y) ** 2 / spread[1])
            np.maximum(heat[number, label], near, out=heat[number, label])
        found.append(np.column_stack([np.full(len(cells), number), whole[:, ::-1], sides, centres - whole]))
    return torch.from_numpy(heat), torch.from_numpy(np.concatenate(found).astype(np.float32))


def loss(outputs: Sequence[torch.Tensor], heat: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Focal loss of the centres, and L1 of sizes (× 0.1) and offsets at them, each by the number of boxes."""
    logits, size, offset = outputs
    count = max(1, len(boxes))
    log_yes, log_no = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
    yes, no = log_yes.exp(), log_no.exp()
    centre = heat == 1
    focal = -torch.where(centre, log_yes * no**2, log_no * yes**2 * (1 - heat) ** 4).sum() / count
    image, row, column = boxes[:, :3].long().T
    size_loss = (size[image, :, row, column] - boxes[:, 3:5]).abs().sum() / count
    offset_loss = (offset[image, :, row, column] - boxes[:, 5:]).abs().sum() / count
    return focal + 0.1 * size_loss + offset_loss


def decode(outputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The TOP highest peaks of an image: boxes (n, TOP, 4) in pixels, scores (n, TOP), labels (n, TOP)."""
    logits, size, offset = outputs
    peaks = logits.sigmoid()
    peaks = peaks * (nn.functional.max_pool2d(peaks, 3, 1, 1) == peaks)
    height, width = logits.shape[2:]
    scores, places = peaks.flatten(1).topk(min(TOP, peaks[0].numel()))
    labels, cells = places // (height * width), places % (height * width)
    at = cells[:, None].expand(-1, 2, -1)
    sides, inner = size.flatten(2).gather(2, at), offset.flatten(2).gather(2, at)
    centres = torch.stack([cells % width, cells // width], 1) + inner
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], 1).transpose(1, 2) * STRIDE
    return boxes, scores, labels


@torch.inference_mode()
def mean_ap(model: nn.Module, samples: Sequence[Sample], images: torch.Tensor, classes: int) -> float:
    """COCO's mean average precision (IoU 0.50 to 0.95), by pycocotools, of boxes in the image and after NMS at 0.5."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    model.eval()
    found = [answer for batch in images.split(50) for answer in _detections(model, batch)]
    truth = [
        {"image_id": number, "category_id": int(label), "bbox": _corner_and_sides(box), "iscrowd": 0}
        | {"area": float(np.prod(box[2:] - box[:2]))}
        for number, sample in enumerate(samples)
        for box, label in zip(sample.boxes, sample.labels, strict=True)
    ]
    answers = [
        {"image_id": number, "category_id": int(label), "bbox": _corner_and_sides(box), "score": float(score)}
        for number, answer in enumerate(found)
        for box, score, label in zip(*answer, strict=True)
    ]
    if not answers:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "images": [{"id": number} for number in range(len(samples))],
            "categories": [{"id": label} for label in range(classes)],
            "annotations": [{"id": number, **item} for number, item in enumerate(truth, start=1)],
        }
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(answers), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def _detections(model: nn.Module, images: torch.Tensor) -> Iterator[tuple[np.ndarray, ...]]:
    """Boxes, scores and labels of each image: inside of it, after NMS, of scores above 0.05, as val.yaml asks."""
    from torchvision.ops import batched_nms, clip_boxes_to_image

    for boxes, scores, labels in zip(*decode(model(images)), strict=True):
        kept = batched_nms(boxes, scores, labels, 0.5)
        kept = kept[scores[kept] > 0.05]
        inside = clip_boxes_to_image(boxes[kept], images.shape[2:])
        yield inside.numpy(), scores[kept].numpy(), labels[kept].numpy()


def _corner_and_sides(box: np.ndarray) -> list[float]:
    return [*map(float, box[:2]), *map(float, box[2:] - box[:2])]
