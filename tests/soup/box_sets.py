"""Random answers and truth of a detection split, and what pycocotools' COCOeval makes of them."""

from __future__ import annotations

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

RANGES = ("all", "small", "medium", "large")


def listed(truths, found, *, places=None):
    """(answers, targets) of hand-made images: truths (box, label[, crowd[, area]]), found (box, score, label)."""
    depth = max([1, *(len(one) for one in found)]) if places is None else places
    width = max([1, *(len(one) for one in truths)])
    n = len(truths)
    answers = {
        "boxes": np.zeros((n, depth, 4), np.float32),
        "scores": np.full((n, depth), -1, np.float32),
        "labels": np.full((n, depth), -1, np.int32),
    }
    targets = {
        "boxes": np.zeros((n, width, 4), np.float32),
        "labels": np.full((n, width), -1, np.int32),
        "crowd": np.zeros((n, width), bool),
        "area": np.zeros((n, width), np.float32),
        "size": np.full((n, 2), 300, np.int32),
        "placement": np.tile([1.0, 1.0, 0.0, 0.0], (n, 1)),
    }
    for image in range(n):
        for place, (box, score, label) in enumerate(found[image]):
            answers["boxes"][image, place] = box
            answers["scores"][image, place], answers["labels"][image, place] = score, label
        for place, (box, label, *rest) in enumerate(truths[image]):
            x1, y1, x2, y2 = box
            targets["boxes"][image, place], targets["labels"][image, place] = box, label
            targets["crowd"][image, place] = rest[0] if rest else False
            targets["area"][image, place] = rest[1] if len(rest) > 1 else (x2 - x1) * (y2 - y1)
    return answers, targets


def scene(seed, *, images=5, classes=3, truths=6, found=12, crowd=0.15, ties=True, step=4.0):
    """A random set: empty images, crowds, boxes on a grid (equal IoU, no area), equal scores, all sizes.

    Of padding, some is in the middle.
    """
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 160, (images, truths, 2))
    sides = rng.choice([0.0, 8.0, 20.0, 32.0, 60.0, 96.0, 120.0], (images, truths, 2), p=[0.04] + [0.16] * 6)
    boxes = np.round(np.concatenate([corners, corners + sides], axis=2) / step) * step
    labels = np.where(rng.random((images, truths)) < rng.choice([0.0, 0.7, 1.0], (images, 1)),
                      rng.integers(0, classes, (images, truths)), -1)  # fmt: skip
    source = rng.integers(0, truths, (images, found))
    guesses = np.take_along_axis(boxes, source[..., None], axis=1) + rng.normal(0, 4, (images, found, 4))
    guesses = np.where(rng.random((images, found, 1)) < 0.3, np.take_along_axis(boxes, source[..., None], 1), guesses)
    guesses[..., 2:] = np.maximum(guesses[..., 2:], guesses[..., :2])
    there = np.take_along_axis(labels, source, axis=1)
    wrong = rng.random((images, found)) < 0.2
    guessed = np.where(wrong | (there < 0), rng.integers(0, classes, (images, found)), there)
    guessed[rng.random((images, found)) < rng.choice([0.1, 0.6, 1.0], (images, 1), p=[0.6, 0.3, 0.1])] = -1
    scores = -np.sort(-rng.random((images, found)), axis=1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(axis=2) * rng.choice([1.0, 0.7], (images, truths))
    answers = {
        "boxes": np.where(guessed[..., None] >= 0, guesses, 0).astype(np.float32),
        "scores": np.where(guessed >= 0, np.round(scores, 1) if ties else scores, -1).astype(np.float32),
        "labels": guessed.astype(np.int32),
    }
    return answers, {
        "boxes": np.where(labels[..., None] >= 0, boxes, 0).astype(np.float32),
        "labels": labels.astype(np.int32),
        "crowd": (rng.random((images, truths)) < crowd) & (labels >= 0),
        "area": np.where(labels >= 0, area, 0).astype(np.float32),
        "size": np.full((images, 2), 300, np.int32),
        "placement": np.tile([1.0, 1.0, 0.0, 0.0], (images, 1)),
    }


def coco_eval(answers, targets, classes):
    """COCOeval after evaluate and accumulate, and its `stats`."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image, "width": 300, "height": 300} for image in range(len(targets["labels"]))],
        "categories": [{"id": label, "name": str(label)} for label in range(classes)],
        "annotations": [
            {"id": number + 1, "image_id": int(image), "category_id": int(targets["labels"][image, place]),
             "bbox": corner_and_size(targets["boxes"][image, place]), "area": float(targets["area"][image, place]),
             "iscrowd": int(targets["crowd"][image, place])}
            for number, (image, place) in enumerate(np.argwhere(targets["labels"] >= 0))
        ],
    }  # fmt: skip
    found = [
        {"image_id": int(image), "category_id": int(answers["labels"][image, place]),
         "bbox": corner_and_size(answers["boxes"][image, place]), "score": float(answers["scores"][image, place])}
        for image, place in np.argwhere(answers["labels"] >= 0)
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found) if found else nothing(truth), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def nothing(truth):
    """Results without a detection, which `loadRes` refuses."""
    empty = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def corner_and_size(box):
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]
