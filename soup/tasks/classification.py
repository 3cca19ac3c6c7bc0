"""Image classification: one class per image; outputs are logits [n, classes], the first output of the model.

Classes rank by logit, ties by the lower index; a row with NaN ranks nothing and is wrong. The answers are the outputs
themselves. Images with several labels are `soup.tasks.multilabel`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.tasks import Metric, Moves, Task
from soup.tasks.resamples import means

NO_CLASS = -1


@dataclass(frozen=True, slots=True)
class Classes:
    """What logits say of images with one class each."""

    turned: float = 0.0

    def answers(self, outputs: Arrays, targets: Arrays) -> Arrays:
        """The outputs."""
        return outputs

    def margins(self, answers: Arrays, outputs: Arrays) -> np.ndarray:
        """The highest logit less the second."""
        return margins(answers)

    def moves(self, before: Arrays, after: Arrays) -> Moves:
        """The `flips` between two models' outputs, their number and share."""
        changed = flips(before, after)
        count, total = int(changed.sum()), len(changed)
        figures = {"flips": float(count), "flipped_share": count / total if total else 0.0}
        return Moves(changed, figures, f"{count:,} of {total:,} images changed class")


CLASSES = Classes()


@dataclass(frozen=True, slots=True)
class TopK:
    """The share of images whose class is among the `k` highest logits."""

    name: str
    k: int
    task: Task = CLASSES
    higher_is_better: bool = True
    unit: str = "%"

    def per_sample(self, answers: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """{"correct": bool [n]}. Raises SoupError where a label has no logit."""
        scores = logits(answers)
        labels = labels_of(targets, scores)
        own = scores[np.arange(len(scores)), labels][:, None]
        earlier = np.arange(scores.shape[1]) < labels[:, None]
        rank = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
        return {"correct": (rank < self.k) & ~np.isnan(scores).any(axis=1)}

    def reduce(self, statistics: Arrays) -> float:
        """Correct images over all images."""
        correct = statistics["correct"]
        return int(np.count_nonzero(correct)) / len(correct) if len(correct) else float("nan")

    def resampled(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """Exactly `reduce` of the repeated images."""
        return means(statistics["correct"], counts)

    def resampled_by_class(self, statistics: Arrays, counts: np.ndarray) -> None:
        """Labels are no statistic here: `soup.per_class` takes them from the targets."""

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
        """By how much the best other class beats the image's own; below zero where the image is right."""
        return -margins_of_labels(answers, targets)

    def unsettled(self, outputs: Arrays, error: float) -> np.ndarray:
        """As `unsettled_ranks`."""
        return unsettled_ranks(outputs, self.k, error=error)


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """The mean of -log softmax(logits)[label], in nats."""

    name: str = "cross_entropy"
    task: Task = CLASSES
    higher_is_better: bool = False
    unit: str = ""

    def per_sample(self, answers: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """{"loss": float64 [n]}, NaN where the logits are not finite. Raises SoupError where a label has no logit."""
        scores = logits(answers).astype(np.float64)
        labels = labels_of(targets, scores)
        finite = np.isfinite(scores).all(axis=1)
        scores[~finite] = 0
        scores -= scores.max(axis=1, keepdims=True)
        loss = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(scores)), labels]
        return {"loss": np.where(finite, loss, np.nan)}

    def reduce(self, statistics: Arrays) -> float:
        """The mean loss."""
        loss = statistics["loss"]
        return float(loss.sum() / len(loss)) if len(loss) else float("nan")

    def resampled(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """The mean loss of each resample."""
        return means(statistics["loss"], counts)

    def resampled_by_class(self, statistics: Arrays, counts: np.ndarray) -> None:
        """As for `TopK`."""

    def class_images(self, statistics: Arrays) -> None:
        """As for `TopK`."""

    def known(self, targets: Arrays) -> dict[str, np.ndarray]:
        """Nothing is known of an image that was not asked."""
        return {}

    def upper_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if every unseen image cost nothing; summed in the same order, so rounding cannot put it above."""
        return self.reduce({"loss": np.where(seen, statistics["loss"], 0.0)})

    def worst_bound(self, statistics: Arrays, seen: np.ndarray) -> float | None:
        """A single image may cost any amount."""
        return self.reduce(statistics) if seen.all() else None

    def difficulty(self, statistics: Arrays, answers: Arrays, targets: Arrays) -> np.ndarray:
        """The loss itself."""
        loss: np.ndarray = statistics["loss"].astype(np.float32)
        return loss

    def unsettled(self, outputs: Arrays, error: float) -> None:
        """Every error of a logit is one of the loss."""


METRICS: Mapping[str, Metric] = {one.name: one for one in (TopK("accuracy", k=1), TopK("top5", k=5), CrossEntropy())}


def metric(
    name: str,
    *,
    classes: int | None = None,
    multilabel: bool = False,
    weights: Sequence[float] | None = None,
    threshold: float = 0.5,
    bins: int = 15,
) -> Metric:
    """The metric `name` of images with one class each, or with any number of labels where `multilabel`.

    `classes` is their number, where it is known. `weights`, one per class, are read by `weighted_accuracy` alone,
    `bins` by `ece`, `threshold` by the metrics of several labels.
    Raises SoupError for a name that is not known, and for a setting that its metric cannot have.
    """
    from soup.tasks import balanced, ece  # here, since they need the functions below
    from soup.tasks import multilabel as several

    if multilabel:
        return _made(several.makers(threshold), name, "classification with several labels")
    makers: dict[str, Callable[[], Metric]] = {
        "accuracy": lambda: METRICS["accuracy"],
        "cross_entropy": lambda: METRICS["cross_entropy"],
        "balanced_accuracy": lambda: balanced.Recall("balanced_accuracy", classes=classes),
        "weighted_accuracy": lambda: balanced.weighted_accuracy(weights, classes=classes),
        "ece": lambda: ece.calibration_error(bins),
        "f1": lambda: balanced.F1(classes=classes),
    }
    if match := re.fullmatch("top([1-9][0-9]*)", name):
        return TopK(name, k=int(match[1]))
    return _made(makers, name, "classification", more=("top5 (or any number)",))


def logits(outputs: Arrays) -> np.ndarray:
    """The first output. Raises SoupError unless it is [n, classes]."""
    if not outputs:
        raise SoupError("model: it has no outputs, expected logits (images, classes).")
    name, scores = next(iter(outputs.items()))
    if scores.ndim != 2 or not scores.shape[1]:
        raise SoupError(
            f"model: output '{name}' has shape {scores.shape}, expected logits (images, classes). Return them first."
        )
    return scores


def predictions(outputs: Arrays) -> np.ndarray:
    """The highest-ranked class of each image, int64 [n]; -1 where a logit is NaN."""
    scores = logits(outputs)
    best: np.ndarray = scores.argmax(axis=1)
    best[np.isnan(scores).any(axis=1)] = NO_CLASS
    return best


def flips(reference: Arrays, outputs: Arrays) -> np.ndarray:
    """bool [n]: where the two predict different classes, or either of them none."""
    before, after = predictions(reference), predictions(outputs)
    flipped: np.ndarray = (before != after) | (before == NO_CLASS)
    return flipped


def margins(outputs: Arrays) -> np.ndarray:
    """float64 [n]: the highest logit less the second; 0 where they do not rank, infinite where there is one class."""
    scores: np.ndarray = np.sort(logits(outputs).astype(np.float64), axis=1)
    if scores.shape[1] == 1:
        return np.full(len(scores), np.inf)
    with np.errstate(invalid="ignore"):  # Inf less Inf
        margin = scores[:, -1] - scores[:, -2]
    return np.where(np.isnan(margin), 0.0, margin)


def margins_of_labels(outputs: Arrays, targets: Arrays) -> np.ndarray:
    """float32 [n]: the logit of the image's class less the highest other; 0 where that is no number."""
    scores = logits(outputs).astype(np.float32)
    rows = np.arange(len(scores))
    labels = labels_of(targets, scores)
    own = scores[rows, labels]
    others = scores.copy()
    others[rows, labels] = -np.inf
    with np.errstate(invalid="ignore"):
        margin = own - others.max(axis=1)
    finite: np.ndarray = np.where(np.isfinite(margin), margin, np.float32(0))
    return finite


def unsettled_ranks(outputs: Arrays, k: int, *, error: float) -> np.ndarray:
    """bool [n]: where the k-th and the next logit are nearer than twice the error, or a logit is NaN."""
    scores = logits(outputs)
    if scores.shape[1] <= k:
        return np.array(np.isnan(scores).any(axis=1))
    ranked = np.partition(scores.astype(np.float64), (-k - 1, -k), axis=1)
    with np.errstate(invalid="ignore"):  # Inf less Inf
        gap = ranked[:, -k] - ranked[:, -k - 1]
    unsettled: np.ndarray = ~(gap > 2 * error) | np.isnan(scores).any(axis=1)
    return unsettled


def labels_of(targets: Arrays, scores: np.ndarray) -> np.ndarray:
    """The class of each image, int [n]. Raises SoupError where `scores` [n, classes] have no column for one."""
    labels = targets["label"]
    if labels.size and labels.max() >= scores.shape[1]:
        raise SoupError(
            f"data: label {labels.max()}, expected 0 to {scores.shape[1] - 1}, the outputs of the model. "
            "Check the classes of the split and the model's arguments."
        )
    return labels


def _made(makers: Mapping[str, Callable[[], Metric]], name: str, task: str, *, more: Sequence[str] = ()) -> Metric:
    if name not in makers:
        names = ", ".join(sorted([*makers, *more]))
        raise SoupError(f"metric: '{name}' is not known for {task}, expected one of {names}.")
    return makers[name]()
