"""Test-time augmentation as a reference: what several views of each image give together, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import interpolate

from exporters.runtimes import Arrays, Predict
from soup import SoupError
from soup.config import Config
from soup.evaluate import evaluate
from soup.files import finite
from soup.preprocess import scaled_sides
from soup.score import Kitchen
from soup.search_records import Reference
from soup.task_sections import Detection
from soup.tasks.fusion import Fusion, fuse_answers
from soup.weights import Weights

View = float | str  # a scale of the sides, or "flip"


def views_of(config: Config, kitchen: Kitchen, weights: Weights, policy: str) -> Iterator[Reference]:
    """The winner asked about every view of `explain.views` beside the image itself, and their answers merged.

    Class scores and masks are averaged as probabilities, boxes are fused as `detection.fusion` says.
    The cost is in forward passes, a scaled view's by its area; one that rounds to no other size is left out, and told.
    """
    shape = kitchen.val.inputs(np.arange(1)).shape[2:]
    views, same = _different(config.explain.views, shape)
    if same:
        told, size = ", ".join(f"× {view}" for view in same), "×".join(map(str, shape))
        yield Reference(f"views: {told} of {size} pixels is the image itself, or another view", None, 1.0)
    if not views:
        return
    predict = kitchen.predict(weights, "own" if len(weights) == 1 else policy)  # type: ignore[arg-type]
    cost = 1.0 + sum(math.prod(sides) / math.prod(shape) for sides in views.values())
    told = ", ".join(_named(view, sides[0] / shape[0]) for view, sides in views.items())
    label = f"{len(views) + 1} views (the image, {told})"
    if config.task == "detection":
        votes = config.detection.fusion.votes
        rules = replace(fusion_of(config.detection), min_votes=votes if votes and votes <= len(views) + 1 else None)
        value = _boxes(kitchen, predict, list(views), rules)
    else:
        several = config.task == "classification" and config.classification.multilabel
        averaged = _averaged(predict, list(views), _LABELS if several else _ONE_CLASS)
        merged = evaluate(averaged, kitchen.val, kitchen.metric, batch=kitchen.batch)
        value = float("nan") if merged.value is None else merged.value
    kitchen.images["explaining"] += (len(views) + 1) * len(kitchen.val)
    yield Reference(label, finite(value), cost)


def fusion_of(detection: Detection) -> Fusion:
    """As val.yaml has it, of models or views of equal weight; how many must agree is left to its users."""
    asked, suppression = detection.fusion, detection.suppression
    iou = suppression.iou if asked.iou is None else asked.iou
    return Fusion(asked.method, iou, score=asked.score, max_detections=suppression.max_detections)


def seen_as(images: np.ndarray, view: View) -> np.ndarray:
    """Images float32 [n, c, h, w] mirrored left to right, or resized by a factor (bilinear)."""
    if view == "flip":
        return np.ascontiguousarray(images[..., ::-1])
    height, width = scaled_sides(images.shape[2:], float(view))
    resized = interpolate(torch.from_numpy(np.ascontiguousarray(images)), (height, width), mode="bilinear")
    return resized.numpy()


def boxes_back(boxes: np.ndarray, view: View, *, shape: tuple[int, ...], seen: tuple[int, ...]) -> np.ndarray:
    """Boxes [n, A, 4] found on a view of shape `seen` (height, width), in pixels of the image of `shape`."""
    if view == "flip":
        x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
        return np.stack([shape[1] - x2, y1, shape[1] - x1, y2], axis=-1)
    factors = np.array([shape[1] / seen[1], shape[0] / seen[0]] * 2, boxes.dtype)
    return np.asarray(boxes * factors)


def _boxes(
    kitchen: Kitchen, predict: Predict, views: Sequence[View], rules: Fusion
) -> float:  # fmt: skip
    statistics: list[dict[str, np.ndarray]] = []
    for _, inputs, targets in kitchen.val.batches(kitchen.batch):
        (image,) = inputs.values()
        parts = [kitchen.metric.task.answers(predict(inputs), targets)]
        for view in views:
            seen = seen_as(image, view)
            boxes, *rest = predict({"input": seen}).values()
            boxes = boxes_back(boxes, view, shape=image.shape[2:], seen=seen.shape[2:])
            named = {str(at): array for at, array in enumerate((boxes, *rest))}
            parts.append(kitchen.metric.task.answers(named, targets))
        merged = fuse_answers(parts, rules)
        statistics.append(kitchen.metric.per_sample(merged, targets))
    return kitchen.metric.reduce({name: np.concatenate([one[name] for one in statistics]) for name in statistics[0]})


def _averaged(predict: Predict, views: Sequence[View], kind: _Kind) -> Predict:
    """Scores of the mean probability over the views, classes in the second axis: what any metric of scores takes."""

    def merged(inputs: Arrays) -> Arrays:
        (image,) = inputs.values()
        name, first = next(iter(predict(inputs).items()))
        if first.dtype.kind != "f":
            raise SoupError(f"output '{name}' holds class numbers, which cannot be averaged")
        total = kind.probability(first)
        for view in views:
            scores = next(iter(predict({"input": seen_as(image, view)}).values()))
            if scores.ndim == 4:
                scores = seen_as(scores, "flip") if view == "flip" else _resized(scores, first.shape[2:])
            total = total + kind.probability(scores)
        with np.errstate(divide="ignore"):
            return {name: kind.score(total / (len(views) + 1)).astype(np.float32)}

    return merged


@dataclass(frozen=True, slots=True)
class _Kind:
    """From scores to probabilities and back."""

    probability: Callable[[np.ndarray], np.ndarray]
    score: Callable[[np.ndarray], np.ndarray]


def _softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    exponents: np.ndarray = np.exp(shifted)
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(scores.astype(np.float64) / 2)))


_ONE_CLASS = _Kind(_softmax, np.log)
_LABELS = _Kind(_sigmoid, lambda p: np.log(p) - np.log1p(-p))


def _resized(scores: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return interpolate(torch.from_numpy(np.ascontiguousarray(scores)), list(size), mode="bilinear").numpy()


def _different(views: Sequence[View], shape: tuple[int, ...]) -> tuple[dict[View, tuple[int, ...]], list[View]]:
    """The sides of each view; and the views that show what the image does, or one before them: a scale is rounded."""
    found: dict[View, tuple[int, ...]] = {}
    same: list[View] = []
    for view in views:
        sides = shape if view == "flip" else tuple(scaled_sides(shape, float(view)))
        if view != "flip" and sides in (shape, *found.values()):
            same.append(view)
        else:
            found[view] = sides
    return found, same


def _named(view: View, scale: float) -> str:
    return "mirrored" if view == "flip" else f"× {scale:.3g}"
