"""mAP of the smallest detection project by other libraries alone: torch, torchvision's NMS and pycocotools."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file
from torchvision.ops import batched_nms

from tests.soup.detection_project import MODELS, SIDE, STRIDE, training_maps


def torch_map(folder: Path, weights: Path, split: str, *, score: float = 0.05, iou: float = 0.5) -> float:
    """Of these weights on a split, its boxes decoded and thinned out one image at a time."""
    namespace: dict[str, Any] = {}
    exec(MODELS, namespace)
    model = namespace["build"]().eval()
    model.load_state_dict(load_file(weights))
    images, *_ = training_maps(folder, split)
    rows = []
    with torch.no_grad():
        heat, size, offset = (one.double() for one in model(images))
    for place in range(len(images)):
        probabilities = heat[place].sigmoid()
        pooled = torch.nn.functional.max_pool2d(probabilities[None], 3, 1, 1)[0]
        labels, ys, xs = torch.nonzero((probabilities >= pooled - 1e-5) & (probabilities > score), as_tuple=True)
        centers = torch.stack([xs + offset[place, 0, ys, xs], ys + offset[place, 1, ys, xs]], 1) * STRIDE
        half = size[place][:, ys, xs].T * STRIDE / 2
        boxes, scores = torch.cat([centers - half, centers + half], 1), probabilities[labels, ys, xs]
        kept = batched_nms(boxes, scores, labels, iou)
        boxes[:] = boxes.clamp(0, SIDE)
        for row in kept.tolist():
            x1, y1, x2, y2 = boxes[row].tolist()
            found = {"image_id": place, "category_id": int(labels[row]) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            rows.append({**found, "score": float(scores[row])})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "data" / f"{split}.json"))
        for one in truth.dataset["annotations"]:
            one["iscrowd"] = 0
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(rows), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return float(judged.stats[0])
