"""Average precision of each label over images, on any number of resamples: ranked once, then counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from soup.tasks.resamples import blocks, ratio, sums_by


@dataclass(frozen=True, slots=True)
class _Ranked:
    """One label's images by the step of the curve at which they come in; steps are the distinct scores of positives."""

    steps: int
    step: np.ndarray  # int [n], `steps` for those below the last positive
    positives: np.ndarray  # int: the rows of those that have the label

    @staticmethod
    def of(scores: np.ndarray, positive: np.ndarray) -> _Ranked:
        falling, positives = -scores, np.flatnonzero(positive)
        steps = np.unique(falling[positives])
        return _Ranked(len(steps), np.searchsorted(steps, falling), positives)

    def precision(self, counts: np.ndarray) -> np.ndarray:
        """float64 [B]."""
        found = sums_by(self.step, counts, self.steps + 1)[:, :-1].cumsum(axis=1)
        hits = sums_by(self.step[self.positives], counts[:, self.positives], self.steps)
        gained = hits * hits.cumsum(axis=1) / np.maximum(found, 1)
        return ratio(gained.sum(axis=1), hits.sum(axis=1))


def label_precisions(scores: np.ndarray, truth: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64 [B, C] of `scores` [n, C] (no NaN) and `truth` bool [n, C], image i counted counts[b, i] times.

    Σ (R_k - R_k-1) P_k over the distinct scores k, falling, without interpolation, as scikit-learn has it: images of
    one score are one step, so a repeated image is no better than one. NaN where a label has no image.
    """
    ranked = [_Ranked.of(scores[:, label], truth[:, label]) for label in range(scores.shape[1])]
    parts = [np.stack([one.precision(block) for one in ranked], axis=1) for block in blocks(counts)]
    return np.concatenate([np.empty((0, scores.shape[1])), *parts])


def extreme_scores(scores: np.ndarray, truth: np.ndarray, seen: np.ndarray, *, best: bool) -> np.ndarray:
    """`scores` [n, C] in float64, those of unseen images where they make every precision the best, or the worst.

    That is beyond all that float32 holds, and no two alike: a tie would gain or lose by itself.
    """
    limit = float(np.finfo(np.float32).max)
    beyond = limit * (2 + np.arange(len(seen))[:, None] / max(1, len(seen)))
    unseen = np.where(truth == best, beyond, -beyond)
    return np.where(seen[:, None], np.clip(scores.astype(np.float64), -limit, limit), unseen)
