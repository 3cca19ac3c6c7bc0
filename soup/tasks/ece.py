"""How far a model's confidence is from how often it is right: the expected calibration error of one class per image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.tasks import Task
from soup.tasks.classification import CLASSES, labels_of, logits, predictions
from soup.tasks.resamples import ROUNDING, once, ratio, sums_by

_MOST_BINS = 1000


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """The expected calibration error: Σ |right - confidence| over bins of equal width, summed in each bin, per image.

    The confidence is the highest softmax probability, its bin open below and closed above (Guo et al., "On Calibration
    of Modern Neural Networks", 2017, arXiv 1706.04599, section 2). It is biased upward where bins hold few images,
    since chance moves each bin's two means apart: compare models on the same images, and do not read a small value of
    a few hundred images as one of the model.
    """

    bins: int = 15
    name: str = "ece"
    task: Task = CLASSES
    higher_is_better: bool = False
    unit: str = "%"

    def per_sample(self, answers: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """{"confidence": float64 [n], NaN where the logits are not finite, "right": bool [n]}.

        Raises SoupError where a label has no logit.
        """
        scores = logits(answers).astype(np.float64)
        right = predictions(answers) == labels_of(targets, scores)
        finite = np.isfinite(scores).all(axis=1)
        scores[~finite] = 0
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        return {"confidence": np.where(finite, 1 / shares.sum(axis=1), np.nan), "right": right}

    def reduce(self, statistics: Arrays) -> float:
        """Over the images given; NaN where a confidence is."""
        return float(self.resampled(statistics, once(len(statistics["right"])))[0])

    def resampled(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """Of each resample."""
        lost = (counts[:, np.isnan(statistics["confidence"])] > 0).any(axis=1)
        error = ratio(np.abs(self._gaps(statistics, counts)).sum(axis=1), counts.sum(axis=1))
        return np.where(lost, np.nan, error)

    def resampled_by_class(self, statistics: Arrays, counts: np.ndarray) -> None:
        """As for `TopK`."""

    def class_images(self, statistics: Arrays) -> None:
        """As for `TopK`."""

    def known(self, targets: Arrays) -> dict[str, np.ndarray]:
        """Nothing is known of an image that was not asked."""
        return {}

    def upper_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """No lower value is in reach: unseen images close the gaps of bins where one image closes most.

        In a bin that is too sure a right image closes 1 less its lower edge; in one too unsure a wrong image closes its
        upper edge. Parts of an image count, so the bound may be a little below the best value.
        """
        if seen.all():
            return self.reduce(statistics)
        gaps, left = self._gaps(statistics, seen[None].astype(np.int64))[0], float((~seen).sum())
        edges = np.linspace(0, 1, self.bins + 1)
        closes = np.where(gaps < 0, 1 - edges[:-1], edges[1:])
        open_gaps = np.abs(gaps)
        for at in np.argsort(-closes, kind="stable"):
            used = min(left, open_gaps[at] / closes[at])
            open_gaps[at] -= used * closes[at]
            left -= used
        return self._bound(statistics, seen, float(open_gaps.sum()) / len(seen) - ROUNDING)

    def worst_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """Each unseen image opens a gap by less than 1."""
        if seen.all():
            return self.reduce(statistics)
        gaps = self._gaps(statistics, seen[None].astype(np.int64))[0]
        worst = float(np.abs(gaps).sum() + (~seen).sum()) / len(seen)
        return self._bound(statistics, seen, worst + ROUNDING)

    def difficulty(self, statistics: Arrays, answers: Arrays, targets: Arrays) -> np.ndarray:
        """The confidence of a wrong image, that of a right one less 1; 0 where it is no number."""
        hard: np.ndarray = np.nan_to_num(statistics["confidence"] - statistics["right"]).astype(np.float32)
        return hard

    def unsettled(self, outputs: Arrays, error: float) -> None:
        """Every error of a logit is one of the confidence."""

    def _gaps(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """float64 [B, bins]: right images less the sum of confidences in each bin; confidences of NaN are left out."""
        confidence = statistics["confidence"]
        edges = np.linspace(0, 1, self.bins + 1)
        bins = np.minimum(np.searchsorted(edges[1:], confidence, side="left"), self.bins - 1)
        gap = np.where(np.isnan(confidence), 0.0, statistics["right"] - np.nan_to_num(confidence))
        return sums_by(bins, counts, self.bins, gap)

    def _bound(self, statistics: Arrays, seen: np.ndarray, value: float) -> float:
        """Within 0 and 1; NaN once a confidence was."""
        return float("nan") if np.isnan(statistics["confidence"][seen]).any() else min(1.0, max(0.0, value))


def calibration_error(bins: int) -> CalibrationError:
    """The metric with so many bins. Raises SoupError for a number that is none of bins."""
    if not 1 <= bins <= _MOST_BINS:
        raise SoupError(f"metric: 'ece' with {bins} bins, expected 1 to {_MOST_BINS}. The usual number is 15.")
    return CalibrationError(bins)
