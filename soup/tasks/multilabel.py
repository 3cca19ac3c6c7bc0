"""Images with any number of labels each: targets "labels" bool [n, C], outputs logits [n, C], the first of the model.

A label is predicted where its logit's sigmoid is above the threshold; a logit of NaN predicts none. The answers are
the outputs themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.tasks import Metric
from soup.tasks.classification import logits
from soup.tasks.label_precision import extreme_scores, label_precisions
from soup.tasks.labels import Labels, hardness, nearest, predicted_labels, truth_of
from soup.tasks.resamples import ROUNDING, mean_of_classes, means, once, ratio, sums


@dataclass(frozen=True, slots=True)
class MeanAveragePrecision:
    """The mean over classes of `label_precisions`, over the classes that have an image (scikit-learn's macro mean).

    Of the logits: they rank as their sigmoids do, without the ties of sigmoids that round to 1. NaN where one is NaN.
    """

    task: Labels
    name: str = "map"
    higher_is_better: bool = True
    unit: str = "%"

    def per_sample(self, answers: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """{"scores": float32 [n, C], "truth": bool [n, C]}. Raises SoupError where labels and logits differ in C."""
        scores = logits(answers)
        return {"scores": scores.astype(np.float32), "truth": truth_of(targets, scores)}

    def reduce(self, statistics: Arrays) -> float:
        """Over the classes of the images given."""
        return float(self.resampled(statistics, once(len(statistics["truth"])))[0])

    def resampled(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """Over the classes of each resample."""
        lost = (counts[:, np.isnan(statistics["scores"]).any(axis=1)] > 0).any(axis=1)
        return np.where(lost, np.nan, mean_of_classes(self.resampled_by_class(statistics, counts)))

    def resampled_by_class(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """float64 [B, C]: average precisions on each resample; NaN where a class has no image, or a logit of NaN."""
        scores, truth = statistics["scores"], statistics["truth"]
        lost = sums(np.isnan(scores), counts) > 0
        precisions = label_precisions(np.where(np.isnan(scores), -np.inf, scores), truth, counts)
        return np.where(lost, np.nan, precisions)

    def class_images(self, statistics: Arrays) -> np.ndarray:
        """int64 [C]: images that have each label."""
        images: np.ndarray = statistics["truth"].sum(axis=0)
        return images

    def known(self, targets: Arrays) -> dict[str, np.ndarray]:
        """The labels."""
        return {"truth": targets["labels"].astype(bool)}

    def upper_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if unseen images ranked first where they have the label, and last where not."""
        return self._with(statistics, seen, best=True) + ROUNDING

    def worst_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if unseen images ranked last, one after the other, where they have the label, else first."""
        return self._with(statistics, seen, best=False) - ROUNDING

    def difficulty(self, statistics: Arrays, answers: Arrays, targets: Arrays) -> np.ndarray:
        """As `hardness`."""
        return hardness(answers, targets, self.task.cut)

    def unsettled(self, outputs: Arrays, error: float) -> None:
        """Every error of a logit may change a rank."""

    def _with(self, statistics: Arrays, seen: np.ndarray, *, best: bool) -> float:
        scores = extreme_scores(statistics["scores"], statistics["truth"], seen, best=best)
        return self.reduce({**statistics, "scores": scores})


@dataclass(frozen=True, slots=True)
class F1:
    """2·hits / (labels + predictions): the mean over all C classes, or with `micro` over all labels together.

    A class without both is 0 in the mean, as scikit-learn has it, so that models count the same classes.
    """

    name: str
    micro: bool
    task: Labels
    higher_is_better: bool = True
    unit: str = "%"

    def per_sample(self, answers: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """{"predicted", "truth": bool [n, C]}. Raises SoupError where labels and logits differ in C."""
        scores = logits(answers)
        return {"predicted": predicted_labels(answers, self.task.cut), "truth": truth_of(targets, scores)}

    def reduce(self, statistics: Arrays) -> float:
        """Over the images given."""
        return float(self.resampled(statistics, once(len(statistics["truth"])))[0])

    def resampled(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """Of each resample."""
        hits, both = self._counted(statistics, counts)
        if self.micro:
            hits, both = hits.sum(axis=1, keepdims=True), both.sum(axis=1, keepdims=True)
        scores = np.nan_to_num(ratio(2 * hits, both)).mean(axis=1)
        return np.where(counts.sum(axis=1) > 0, scores, np.nan)

    def resampled_by_class(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """float64 [B, C]: each class's F1 on each resample, NaN where no image has it there."""
        hits, both = self._counted(statistics, counts)
        return np.where(sums(statistics["truth"], counts) > 0, ratio(2 * hits, both), np.nan)

    def class_images(self, statistics: Arrays) -> np.ndarray:
        """int64 [C]: images that have each label."""
        images: np.ndarray = statistics["truth"].sum(axis=0)
        return images

    def known(self, targets: Arrays) -> dict[str, np.ndarray]:
        """The labels."""
        return {"truth": targets["labels"].astype(bool)}

    def upper_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if every label of unseen images were right."""
        predicted = np.where(seen[:, None], statistics["predicted"], statistics["truth"])
        return self.reduce({**statistics, "predicted": predicted})

    def worst_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if every label of unseen images were wrong."""
        predicted = np.where(seen[:, None], statistics["predicted"], ~statistics["truth"])
        return self.reduce({**statistics, "predicted": predicted})

    def difficulty(self, statistics: Arrays, answers: Arrays, targets: Arrays) -> np.ndarray:
        """As `hardness`."""
        return hardness(answers, targets, self.task.cut)

    def unsettled(self, outputs: Arrays, error: float) -> np.ndarray:
        """Where a logit is no further than the error from the threshold's, or NaN."""
        unsettled: np.ndarray = ~(nearest(outputs, self.task.cut) > error)
        return unsettled

    def _counted(self, statistics: Arrays, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hits, and labels with predictions, of each class, float64 [B, C]."""
        predicted, truth = statistics["predicted"], statistics["truth"]
        return sums(predicted & truth, counts), sums(predicted.astype(np.int8) + truth, counts)


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """The share of images whose labels are all right (subset accuracy)."""

    task: Labels
    name: str = "exact_match"
    higher_is_better: bool = True
    unit: str = "%"

    def per_sample(self, answers: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """{"correct": bool [n]}, False where a logit is NaN. Raises SoupError where labels and logits differ in C."""
        scores = logits(answers)
        right = predicted_labels(answers, self.task.cut) == truth_of(targets, scores)
        return {"correct": right.all(axis=1) & ~np.isnan(scores).any(axis=1)}

    def reduce(self, statistics: Arrays) -> float:
        """Correct images over all images."""
        return float(self.resampled(statistics, once(len(statistics["correct"])))[0])

    def resampled(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """Of each resample."""
        return means(statistics["correct"], counts)

    def resampled_by_class(self, statistics: Arrays, counts: np.ndarray) -> None:
        """An image is right in all classes together."""

    def class_images(self, statistics: Arrays) -> None:
        """As `resampled_by_class`."""

    def known(self, targets: Arrays) -> dict[str, np.ndarray]:
        """Nothing is known of an image that was not asked."""
        return {}

    def upper_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if every unseen image were correct."""
        return self.reduce({"correct": statistics["correct"] | ~seen})

    def worst_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if every unseen image were wrong."""
        return self.reduce({"correct": statistics["correct"] & seen})

    def difficulty(self, statistics: Arrays, answers: Arrays, targets: Arrays) -> np.ndarray:
        """As `hardness`."""
        return hardness(answers, targets, self.task.cut)

    def unsettled(self, outputs: Arrays, error: float) -> np.ndarray:
        """As for `F1`."""
        unsettled: np.ndarray = ~(nearest(outputs, self.task.cut) > error)
        return unsettled


def makers(threshold: float) -> dict[str, Callable[[], Metric]]:
    """The metrics by name. Raises SoupError for a threshold that is no probability between 0 and 1."""
    if not 0 < threshold < 1:
        raise SoupError(f"metric: threshold {threshold}, expected a probability between 0 and 1. The usual one is 0.5.")
    task = Labels(threshold)
    return {
        "map": partial(MeanAveragePrecision, task),
        "f1": partial(F1, "f1", False, task),
        "f1_micro": partial(F1, "f1_micro", True, task),
        "exact_match": partial(ExactMatch, task),
    }
