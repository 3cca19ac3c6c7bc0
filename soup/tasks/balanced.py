"""Metrics of one class per image in which classes count by themselves, not by their number of images.

Balanced and weighted accuracy are means of recalls; F1 joins recall with precision. Conventions of scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.tasks import Task
from soup.tasks.classification import (
    CLASSES,
    NO_CLASS,
    labels_of,
    logits,
    margins_of_labels,
    predictions,
    unsettled_ranks,
)
from soup.tasks.resamples import ROUNDING, mean_of_classes, once, ratio, sums_by


@dataclass(frozen=True, slots=True)
class Recall:
    """The mean of the classes' recalls, over the classes that have images: balanced accuracy (Brodersen et al. 2010).

    With `weights`, by class, the weighted mean Σ w·recall / Σ w: the accuracy of images that weigh w of their class
    over its number of images. A class of one image counts as much as any other, so few images make it unsure.
    """

    name: str
    classes: int | None = None
    weights: tuple[float, ...] | None = None
    task: Task = CLASSES
    higher_is_better: bool = True
    unit: str = "%"

    def per_sample(self, answers: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """{"right": bool [n], "label": int64 [n]}. Raises SoupError where a label has no logit, or no weight."""
        labels = labels_of(targets, logits(answers))
        return {"right": predictions(answers) == labels, **self.known(targets)}

    def reduce(self, statistics: Arrays) -> float:
        """Over the classes of the images given."""
        return float(self.resampled(statistics, once(len(statistics["label"])))[0])

    def resampled(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """Over the classes of each resample."""
        recalls = self.resampled_by_class(statistics, counts)
        weights = np.ones(recalls.shape[1]) if self.weights is None else np.array(self.weights)
        return mean_of_classes(recalls, weights)

    def resampled_by_class(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """float64 [B, classes]: each class's recall on each resample, NaN where it has no image there."""
        labels = statistics["label"]
        size = self._size(statistics)
        return ratio(sums_by(labels, counts, size, statistics["right"]), sums_by(labels, counts, size))

    def class_images(self, statistics: Arrays) -> np.ndarray:
        """int64 [classes]: images of each."""
        return np.bincount(statistics["label"], minlength=self._size(statistics))

    def known(self, targets: Arrays) -> dict[str, np.ndarray]:
        """The labels."""
        labels = targets["label"].astype(np.int64)
        if self.weights is not None and labels.size and labels.max() >= len(self.weights):
            raise SoupError(
                f"data: label {labels.max()}, expected 0 to {len(self.weights) - 1}, the classes that have a weight. "
                "Give one weight per class."
            )
        return {"label": labels}

    def upper_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if every unseen image were right."""
        return self.reduce({**statistics, "right": statistics["right"] | ~seen})

    def worst_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if every unseen image were wrong."""
        return self.reduce({**statistics, "right": statistics["right"] & seen})

    def difficulty(self, statistics: Arrays, answers: Arrays, targets: Arrays) -> np.ndarray:
        """By how much the best other class beats the image's own; below zero where the image is right."""
        return -margins_of_labels(answers, targets)

    def unsettled(self, outputs: Arrays, error: float) -> np.ndarray:
        """Where the first class could be another."""
        return unsettled_ranks(outputs, 1, error=error)

    def _size(self, statistics: Arrays) -> int:
        return len(self.weights) if self.weights is not None else _classes(statistics["label"], self.classes)


@dataclass(frozen=True, slots=True)
class F1:
    """The mean of the classes' F1 = 2·hits / (images + predictions), over the classes that have an image or prediction.

    A class that is predicted without having an image counts as 0; one that has neither is left out.
    """

    name: str = "f1"
    classes: int | None = None
    task: Task = CLASSES
    higher_is_better: bool = True
    unit: str = "%"

    def per_sample(self, answers: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """{"predicted": int64 [n], -1 for none, "label": int64 [n]}. Raises SoupError where a label has no logit."""
        labels_of(targets, logits(answers))
        return {"predicted": predictions(answers).astype(np.int64), **self.known(targets)}

    def reduce(self, statistics: Arrays) -> float:
        """Over the classes of the images given."""
        return float(self.resampled(statistics, once(len(statistics["label"])))[0])

    def resampled(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """Over the classes of each resample."""
        hits, images, predicted = self._counted(statistics, counts)
        return mean_of_classes(ratio(2 * hits, images + predicted))

    def resampled_by_class(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """float64 [B, classes]: each class's F1 on each resample, NaN where it has no image there."""
        hits, images, predicted = self._counted(statistics, counts)
        scores = np.where(images > 0, ratio(2 * hits, images + predicted), np.nan)
        return scores[:, : self._size(statistics)]  # as many of every model, whatever it predicts

    def class_images(self, statistics: Arrays) -> np.ndarray:
        """int64 [classes]: images of each."""
        return np.bincount(statistics["label"], minlength=self._size(statistics))

    def known(self, targets: Arrays) -> dict[str, np.ndarray]:
        """The labels."""
        return {"label": targets["label"].astype(np.int64)}

    def upper_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if every unseen image were right."""
        predicted = np.where(seen, statistics["predicted"], statistics["label"])
        return min(1.0, self.reduce({**statistics, "predicted": predicted}) + ROUNDING)

    def worst_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """As if each unseen image went to every class but its own; no model does, so the worst is not below."""
        if seen.all() or not len(seen):
            return self.reduce(statistics)
        predicted = np.where(seen, statistics["predicted"], NO_CLASS)
        hits, images, claimed = self._counted({**statistics, "predicted": predicted}, once(len(seen)))
        unseen = sums_by(statistics["label"], once(len(seen)), hits.shape[1], ~seen)
        scores = ratio(2 * hits, images + claimed + (~seen).sum() - unseen)
        named = int((images + claimed > 0).sum() + (~seen).sum())
        most = named if self.classes is None else min(named, max(self.classes, hits.shape[1]))
        return max(0.0, float(np.nansum(scores)) / most - ROUNDING)

    def difficulty(self, statistics: Arrays, answers: Arrays, targets: Arrays) -> np.ndarray:
        """By how much the best other class beats the image's own; below zero where the image is right."""
        return -margins_of_labels(answers, targets)

    def unsettled(self, outputs: Arrays, error: float) -> np.ndarray:
        """Where the first class could be another."""
        return unsettled_ranks(outputs, 1, error=error)

    def _size(self, statistics: Arrays) -> int:
        return _classes(statistics["label"], self.classes)

    def _counted(self, statistics: Arrays, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Right images, images and predictions of each class, float64 [B, classes]."""
        labels, predicted = statistics["label"], statistics["predicted"]
        size = max(self._size(statistics), _classes(predicted, None))
        hits = sums_by(labels, counts, size, labels == predicted)
        claimed = sums_by(predicted - NO_CLASS, counts, size - NO_CLASS)[:, -NO_CLASS:]
        return hits, sums_by(labels, counts, size), claimed


def weighted_accuracy(weights: Sequence[float] | None, *, classes: int | None) -> Recall:
    """`Recall` with one weight per class, by number.

    Raises SoupError where there are none, where they are not as many as `classes`, and for what is no weight: negative,
    not finite, or all 0.
    """
    given = tuple(float(weight) for weight in weights or ())
    if not given or (classes is not None and len(given) != classes):
        expected = "one per class" if classes is None else f"{classes}, one per class"
        raise SoupError(
            f"metric: 'weighted_accuracy' has {len(given)} weights, expected {expected}. Give the classes'."
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not sum(given) > 0:
        raise SoupError(
            f"metric: class weights {list(given)}, expected finite numbers from 0, and one above. Mend them."
        )
    return Recall("weighted_accuracy", classes, given)


def _classes(labels: np.ndarray, classes: int | None) -> int:
    return max(classes or 0, int(labels.max(initial=-1)) + 1)
