"""What logits [n, C] say of images with any number of labels each, and what between two models changed in that.

A label is predicted where its logit is above `cut`, the threshold's own; a logit of NaN predicts none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.tasks import Moves
from soup.tasks.classification import logits


@dataclass(frozen=True, slots=True)
class Labels:
    """What logits say of images with any number of labels each."""

    threshold: float = 0.5
    turned: float = 0.0

    @property
    def cut(self) -> float:
        """The logit whose sigmoid is the threshold."""
        return math.log(self.threshold) - math.log1p(-self.threshold)

    def answers(self, outputs: Arrays, targets: Arrays) -> Arrays:
        """The outputs."""
        return outputs

    def margins(self, answers: Arrays, outputs: Arrays) -> np.ndarray:
        """As `nearest`."""
        return nearest(answers, self.cut)

    def moves(self, before: Arrays, after: Arrays) -> Moves:
        """Labels that one of two models predicts and the other does not, or that either has NaN for."""
        lost = np.isnan(logits(before)) | np.isnan(logits(after))
        moved = (predicted_labels(before, self.cut) != predicted_labels(after, self.cut)) | lost
        changed, labels = moved.any(axis=1), int(moved.sum())
        images = int(changed.sum())
        share = images / len(changed) if len(changed) else 0.0
        figures = {"flips": float(images), "flipped_share": share, "labels": float(labels)}
        text = f"{images:,} of {len(changed):,} images, {labels:,} of {moved.size:,} labels changed"
        return Moves(changed, figures, text)


def truth_of(targets: Arrays, scores: np.ndarray) -> np.ndarray:
    """bool [n, C]. Raises SoupError unless `scores` [n, C] have a column for each class."""
    truth = targets["labels"]
    if truth.shape[1] != scores.shape[1]:
        raise SoupError(
            f"data: {truth.shape[1]} classes, expected {scores.shape[1]}, the outputs of the model. "
            "Check the classes of the split and the model's arguments."
        )
    return truth.astype(bool)


def predicted_labels(outputs: Arrays, cut: float) -> np.ndarray:
    """bool [n, C]: logits above `cut`; False for NaN."""
    predicted: np.ndarray = logits(outputs).astype(np.float64) > cut
    return predicted


def nearest(outputs: Arrays, cut: float) -> np.ndarray:
    """float64 [n]: how far the logit that is nearest to `cut` is from it; 0 where one is NaN."""
    apart = np.abs(logits(outputs).astype(np.float64) - cut).min(axis=1)
    return np.where(np.isnan(apart), 0.0, apart)


def hardness(outputs: Arrays, targets: Arrays, cut: float) -> np.ndarray:
    """float32 [n]: how far an image's worst logit is on the wrong side of `cut`; below zero where all are right."""
    scores = logits(outputs).astype(np.float64)
    wrong = np.where(truth_of(targets, scores), cut - scores, scores - cut).max(axis=1)
    hard: np.ndarray = np.where(np.isfinite(wrong), wrong, 0.0).astype(np.float32)
    return hard
