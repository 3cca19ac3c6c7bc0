"""From dense outputs to mean average precision: soup's suppression and metric beside torchvision's and torchmetrics'.

Both get the same outputs and the same truth, and take turns, so that what the machine does meanwhile falls on both.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import batched_nms, clip_boxes_to_image

from benchmarks.latency import ratio
from soup.tasks import Metric
from soup.tasks.detection import metrics
from soup.tasks.suppression import Suppression

RULES = Suppression(iou=0.5, score=0.05, candidates=1000, max_detections=100)
_STRONG = 6  # anchors on a thing that a detector is sure of, before suppression


@dataclass(frozen=True, slots=True)
class Setting:
    """A data set and a detector: how many images and classes, boxes in an image, anchors of the head."""

    name: str
    images: int
    classes: int
    boxes: int
    anchors: int
    side: int
    batch: int = 16


SETTINGS = (
    Setting("ssdlite 320, blood cells", images=87, classes=3, boxes=13, anchors=3234, side=320),
    Setting("anchor-free 640, 80 classes", images=200, classes=80, boxes=8, anchors=8400, side=640),
)
_QUICK = (Setting("small", images=8, classes=3, boxes=5, anchors=300, side=320),)
Arrays = Mapping[str, np.ndarray]


def run(*, quick: bool = False) -> dict[str, Any]:
    """`rows`: images per second of both, by setting and by what torchmetrics computes with; medians over the rounds.

    Timed is everything from dense outputs to the metric, and apart the suppression alone. The ratio is theirs over
    ours, time by time, with its 95 % interval over the rounds. torch has one thread.
    """
    rounds = 2 if quick else 6
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for setting in (_QUICK if quick else SETTINGS) for row in compare(setting, rounds=rounds)]
    finally:
        torch.set_num_threads(threads)
    facts = {"iou": RULES.iou, "score_above": RULES.score, "candidates": RULES.candidates}
    return {"setting": {"rounds": rounds, "threads": 1, "most_detections": RULES.max_detections, **facts}, "rows": rows}


def compare(setting: Setting, *, rounds: int) -> list[Mapping[str, object]]:
    """A row for each backend of torchmetrics."""
    batches = dense_outputs(setting)
    metric = metrics(RULES, setting.classes)["map"]
    ways: dict[str, Callable[[], Timed]] = {"soup": lambda: soup_loop(metric, batches)}
    for backend in ("pycocotools", "faster_coco_eval"):
        ways[backend] = lambda backend=backend: torchmetrics_loop(batches, backend)
    found: dict[str, list[Timed]] = {name: [] for name in ways}
    names = list(ways)
    for index in range(rounds + 1):
        for name in names[index % 3 :] + names[: index % 3]:  # each is first, second and third as often
            found[name].append(ways[name]())
    kept = {name: times[1:] for name, times in found.items()}  # the first round warms up
    return [row(setting, kept["soup"], kept[name], backend=name) for name in names[1:]]


@dataclass(frozen=True, slots=True)
class Timed:
    """One pass over all images: seconds in all, seconds of it in suppression, the mean average precision."""

    total_s: float
    suppression_s: float
    value: float


def row(setting: Setting, ours: Sequence[Timed], theirs: Sequence[Timed], *, backend: str) -> Mapping[str, object]:
    """Medians over the rounds."""

    def per_second(times: Sequence[float]) -> float:
        return setting.images / statistics.median(times)

    return {
        "outputs": setting.name,
        "torchmetrics_with": backend,
        "soup_images_per_s": per_second([one.total_s for one in ours]),
        "torchmetrics_images_per_s": per_second([one.total_s for one in theirs]),
        "torchmetrics_over_soup": ratio([one.total_s for one in theirs], [one.total_s for one in ours]),
        "soup_suppression_images_per_s": per_second([one.suppression_s for one in ours]),
        "torchvision_suppression_images_per_s": per_second([one.suppression_s for one in theirs]),
        "soup_map": f"{ours[0].value:.4f}",
        "torchmetrics_map": f"{theirs[0].value:.4f}",
    }


def soup_loop(metric: Metric, batches: Sequence[tuple[Arrays, Arrays]]) -> Timed:
    """What an evaluation does with each batch, and at the end."""
    start, suppression_s, parts = time.perf_counter(), 0.0, []
    for outputs, targets in batches:
        before = time.perf_counter()
        answers = metric.task.answers(outputs, targets)
        suppression_s += time.perf_counter() - before
        parts.append(metric.per_sample(answers, targets))
    value = metric.reduce({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    return Timed(time.perf_counter() - start, suppression_s, value)


def torchmetrics_loop(batches: Sequence[tuple[Arrays, Arrays]], backend: str) -> Timed:
    """Its usual use: boxes of each batch by torchvision's NMS, `update`, and `compute` at the end."""
    start, suppression_s = time.perf_counter(), 0.0
    metric = MeanAveragePrecision(backend=backend)
    for outputs, targets in batches:
        before = time.perf_counter()
        found = [suppressed(*arrays) for arrays in zip(*outputs.values(), targets["size"], strict=True)]
        suppression_s += time.perf_counter() - before
        metric.update(found, truths(targets))
    value = float(metric.compute()["map"])
    return Timed(time.perf_counter() - start, suppression_s, value)


def suppressed(boxes: np.ndarray, scores: np.ndarray, size: np.ndarray) -> dict[str, torch.Tensor]:
    """One image's detections, by the steps of torchvision's RetinaNet and FCOS and the same rules."""
    corners, dense = torch.from_numpy(boxes), torch.from_numpy(scores).flatten()
    above = dense > RULES.score
    values, pairs = dense[above], torch.where(above)[0]
    values, best = values.topk(min(RULES.candidates, len(values)))
    anchors = torch.div(pairs[best], scores.shape[1], rounding_mode="floor")
    labels = pairs[best] % scores.shape[1]
    kept = batched_nms(corners[anchors], values, labels, RULES.iou)[: RULES.max_detections]
    height, width = size.tolist()
    inside = clip_boxes_to_image(corners[anchors[kept]], (height, width))
    return {"boxes": inside, "scores": values[kept], "labels": labels[kept]}


def truths(targets: Arrays) -> list[dict[str, torch.Tensor]]:
    """A batch's truth as torchmetrics takes it."""
    return [
        {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels).long()}
        for boxes, labels in zip(targets["boxes"], targets["labels"], strict=True)
    ]


def dense_outputs(setting: Setting, seed: int = 0) -> list[tuple[Arrays, Arrays]]:
    """Batches of (outputs, targets): sure anchors on most boxes, unsure ones around, and a background of low scores."""
    rng = np.random.default_rng(seed)
    return [
        batch_of(rng, setting, min(setting.batch, setting.images - start))
        for start in range(0, setting.images, setting.batch)
    ]


def batch_of(rng: np.random.Generator, setting: Setting, images: int) -> tuple[Arrays, Arrays]:
    """One batch; an anchor is near the box that it belongs to, and its scores fall with its distance."""
    sides = rng.uniform(0.06, 0.25, (images, setting.boxes, 2)) * setting.side
    corners = rng.uniform(0, 1, (images, setting.boxes, 2)) * (setting.side - sides)
    truth = np.concatenate([corners, corners + sides], axis=2)
    labels = rng.integers(0, setting.classes, (images, setting.boxes))
    owner = rng.integers(0, setting.boxes, (images, setting.anchors))
    sure = np.arange(setting.anchors) < _STRONG * setting.boxes
    spread = np.where(sure, 0.04, 0.3)[:, None] * setting.side * 0.15
    boxes = (
        np.take_along_axis(truth, owner[..., None], axis=1) + rng.normal(0, 1, (images, setting.anchors, 4)) * spread
    )
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    scores = rng.beta(0.2, 200, (images, setting.anchors, setting.classes))
    own = np.where(sure, rng.beta(4, 2, (images, setting.anchors)), rng.beta(0.2, 10, (images, setting.anchors)))
    np.put_along_axis(scores, np.take_along_axis(labels, owner, axis=1)[..., None], own[..., None], axis=2)
    targets = {
        "boxes": truth.astype(np.float32),
        "labels": labels.astype(np.int32),
        "crowd": np.zeros(labels.shape, bool),
        "area": sides.prod(axis=2).astype(np.float32),
        "size": np.full((images, 2), setting.side, np.int32),
        "placement": np.tile([1.0, 1.0, 0.0, 0.0], (images, 1)),
    }
    order = rng.permutation(setting.anchors)
    return {"boxes": boxes[:, order].astype(np.float32), "scores": scores[:, order].astype(np.float32)}, targets


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
