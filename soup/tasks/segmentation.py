"""Semantic segmentation: a class per pixel; the first output is logits [n, classes, h, w] or class ids [n, h, w].

Answers are {"classes": uint8 or int16 [n, H, W]} on the pixels of the truth, `classes` where a logit is NaN (no class,
which is wrong) and `classes + 1` where nothing counts: truth of `ignore_index`, and what a crop kept from the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.tasks import Metric, Moves
from soup.tasks.mask_resampling import Grid, highest, inside, leads, nearest, placed, resized, shown_on
from soup.tasks.resamples import ratio, sums

ScoreAt = Literal["image", "input"]
_PERCENTILE = 1  # of the margins of an image's pixels: a golden sample should not hang on one pixel


@dataclass(frozen=True, slots=True)
class Masks:
    """What a network says of each pixel that counts.

    Targets: "mask" [n, H, W]. With `score_at` "image" also "size" int [n, 2] (masks are padded to one H, W),
    "placement" float64 [n, 4] and "canvas" int [n, 2], the (height, width) that the network is fed: logits go to the
    canvas, then to each image's own pixels, both bilinear, before the argmax.
    """

    classes: int
    ignore_index: int
    score_at: ScoreAt
    turned: float = 0.0

    def answers(self, outputs: Arrays, targets: Arrays) -> Arrays:
        """{"classes": …}, with `placement` and `canvas` where those said how. Raises SoupError for other outputs."""
        found = self._maps(outputs)
        counted = self.counted(targets)
        kind = np.dtype(np.uint8 if self.classes + 1 <= np.iinfo(np.uint8).max else np.int16)
        whole = np.full(counted.shape, self.classes + 1, kind)
        for row, scores in enumerate(found):
            if scores.ndim == 3:
                ids = highest(scores, self._grids(scores.shape[1:], targets, row), dtype=kind, none=self.classes)
            else:
                ids = scores
                for grid in self._grids(scores.shape, targets, row):
                    ids = nearest(ids, grid)
            height, width = ids.shape
            np.copyto(whole[row, :height, :width], ids, where=counted[row, :height, :width], casting="unsafe")
        if self.score_at == "input":
            return {"classes": whole}
        return {"classes": whole, "placement": targets["placement"], "canvas": targets["canvas"]}

    def margins(self, answers: Arrays, outputs: Arrays) -> np.ndarray:
        """float64 [n]: how far the top logit leads where it leads least: the 1st percentile over the logits' pixels.

        Those over counted pixels alone, infinite where there are none; 0 where ids are all that is given.
        """
        found = self._maps(outputs)
        if found.ndim == 3:
            return np.zeros(len(found))
        margins = np.full(len(found), np.inf)
        for row, scores in enumerate(found):
            cells = self._cells(scores.shape[1:], answers, row)
            chosen = (nearest(answers["classes"][row], cells) <= self.classes) & inside(cells)
            lead = np.nan_to_num(leads(scores)[chosen], nan=0.0, posinf=np.inf).astype(np.float64)
            place = (len(lead) - 1) * _PERCENTILE // 100
            margins[row] = np.partition(lead, place)[place] if len(lead) else np.inf
        return margins

    def moves(self, before: Arrays, after: Arrays) -> Moves:
        """Pixels whose class is another, or is none in either; `worst_image` is the index of the first worst one."""
        old, new = before["classes"], after["classes"]
        counted = (old <= self.classes) | (new <= self.classes)
        moved = counted & ((old != new) | (old == self.classes))
        pixels, changed = counted.sum(axis=(1, 2)), moved.sum(axis=(1, 2))
        shares = changed / np.maximum(1, pixels)
        worst = int(shares.argmax()) if len(shares) else -1
        figures = {
            "changed": float(changed.sum() / max(1, pixels.sum())),
            "worst": float(shares[worst]) if len(shares) else 0.0,
            "worst_image": float(worst),
        }
        text = f"{figures['changed'] * 100:.2f} % of {pixels.sum():,} pixels have another class"
        if changed.any():
            text += f", {figures['worst'] * 100:.2f} % in the worst image"
        return Moves(changed > 0, figures, text, worst if changed.any() else None)

    def counted(self, targets: Arrays) -> np.ndarray:
        """bool [n, H, W]: pixels that have a truth and that the network saw."""
        counted: np.ndarray = targets["mask"] != self.ignore_index
        if self.score_at == "image":
            for row, (height, width) in enumerate(targets["size"].tolist()):
                grid = placed((height, width), targets["placement"][row], targets["canvas"][row])
                counted[row, :height, :width] &= inside(grid)
        return counted

    def _maps(self, outputs: Arrays) -> np.ndarray:
        """The first output, [n, classes, h, w] or [n, h, w]."""
        if not outputs:
            raise SoupError("model: it has no outputs, expected logits (images, classes, height, width).")
        name, found = next(iter(outputs.items()))
        if found.ndim == 4 and found.shape[1] == self.classes and found.dtype.kind == "f" and 0 not in found.shape[2:]:
            return found
        if found.ndim != 3 or found.dtype.kind not in "iub":
            raise SoupError(
                f"model: output '{name}' is {found.dtype} {found.shape}, expected logits (images, {self.classes}, "
                "height, width), one per class, or class ids (images, height, width). Return them first, and check "
                "segmentation.classes."
            )
        if found.size and not (found.min() >= 0 and found.max() < self.classes):
            raise SoupError(
                f"model: output '{name}' has class ids {found.min()} to {found.max()}, expected 0 to "
                f"{self.classes - 1}. Check the classes of the split and the model's arguments."
            )
        return found

    def _grids(self, size: Sequence[int], targets: Arrays, row: int) -> list[Grid]:
        """The resizes from an output of `size` to the pixels of the truth."""
        if self.score_at == "input":
            return [resized(size, targets["mask"].shape[1:])]
        canvas = targets["canvas"][row].tolist()
        return [resized(size, canvas), placed(targets["size"][row], targets["placement"][row], canvas)]

    def _cells(self, size: Sequence[int], answers: Arrays, row: int) -> Grid:
        """The answer at the centre of each of an output's cells."""
        have = answers["classes"].shape[1:]
        if self.score_at == "input":
            return resized(have, size)
        return shown_on(answers["canvas"][row], size, answers["placement"][row], have)


@dataclass(frozen=True, slots=True)
class MaskMetric:
    """One reader of the confusion matrix, summed over all images before anything is divided.

    miou, dice: the mean over classes in truth or prediction, as torchmetrics' macro average and scikit-learn have it;
    a class that is predicted and not there has 0. mean_accuracy: the mean recall of classes in the truth, as
    scikit-learn's balanced accuracy. pixel_accuracy: right pixels over all. `ignore_index` is never a class.
    """

    name: str
    task: Masks
    higher_is_better: bool = True
    unit: str = "%"

    def per_sample(self, answers: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """{"confusion": int32 [n, truth, prediction], "truth": int32 [n, classes]}: pixels.

        A pixel without a class is in "truth" alone. Raises SoupError for truth that is no class.
        """
        counted, width = self.task.counted(targets), self.task.classes + 2
        confusion = np.zeros((len(counted), self.task.classes, self.task.classes), np.int32)
        truth = np.zeros((len(counted), self.task.classes), np.int32)
        for row, chosen in enumerate(counted):
            own = self._truth(targets["mask"][row][chosen])
            pairs = np.bincount(own * width + answers["classes"][row][chosen], minlength=self.task.classes * width)
            table = pairs.reshape(self.task.classes, width)
            confusion[row], truth[row] = table[:, : self.task.classes], table.sum(axis=1)
        return {"confusion": confusion, "truth": truth}

    def reduce(self, statistics: Arrays) -> float:
        """The metric of the summed matrix; NaN without a counted pixel."""
        return float(self._value(*self._sums(statistics)))

    def resampled(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """float64 [B]; from sums of pixels below 2^53, so exactly `reduce` of the repeated rows."""
        return self._value(*_drawn(statistics, counts))

    def resampled_by_class(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """float64 [B, classes]: IoU, Dice, or recall (also of pixel_accuracy); NaN for a class without truth."""
        hits, predicted, truth = _drawn(statistics, counts)
        return np.where(truth > 0, self._scores(hits, predicted, truth), np.nan)

    def class_images(self, statistics: Arrays) -> np.ndarray:
        """int64 [classes]: images with a counted pixel of it in the truth."""
        images: np.ndarray = (statistics["truth"] > 0).sum(axis=0, dtype=np.int64)
        return images

    def known(self, targets: Arrays) -> dict[str, np.ndarray]:
        """{"truth"} of `per_sample`."""
        counted = self.task.counted(targets)
        rows = [
            np.bincount(self._truth(mask[chosen]), minlength=self.task.classes)
            for mask, chosen in zip(targets["mask"], counted, strict=True)
        ]
        return {"truth": np.array(rows, np.int32).reshape(-1, self.task.classes)}

    def upper_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if every pixel of unseen images were right, which no other answers surpass in any class."""
        hits, predicted, truth = self._sums(statistics)
        rest = statistics["truth"][~seen].sum(axis=0, dtype=np.int64)
        return float(self._value(hits + rest, predicted + rest, truth))

    def worst_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """A value that nothing falls below: exact for the accuracies.

        For miou and dice every class takes all pixels of the others in unseen images, and each class is there; no
        answers do both at once for all classes, so it may lie below what is in reach.
        """
        hits, predicted, truth = self._sums(statistics)
        rest = statistics["truth"][~seen].sum(axis=0, dtype=np.int64)
        if not rest.any() or self.name not in ("miou", "dice"):
            return float(self._value(hits, predicted, truth))
        scores = self._scores(hits, predicted + rest.sum() - rest, truth)
        return float(scores[self._judged()].mean())  # none is 0 / 0: every unseen pixel is below each class

    def difficulty(self, statistics: Arrays, answers: Arrays, targets: Arrays) -> np.ndarray:
        """float32 [n]: the share of wrong pixels; 0 where none counts."""
        right, _, truth = _parts(statistics)
        pixels = truth.sum(axis=1)
        share: np.ndarray = ((pixels - right.sum(axis=1)) / np.maximum(1, pixels)).astype(np.float32)
        return share

    def unsettled(self, outputs: Arrays, error: float) -> None:
        """Some pixel of an image nearly always is."""

    def _truth(self, labels: np.ndarray) -> np.ndarray:
        """The labels of counted pixels, checked, as they can be computed with."""
        if labels.size and not (labels.min() >= 0 and labels.max() < self.task.classes):
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise SoupError(
                f"data: a mask has class {wrong}, expected 0 to {self.task.classes - 1}, the outputs of the model, or "
                f"{self.task.ignore_index} to ignore. Check the classes of the split and the model's arguments."
            )
        return labels.astype(np.intp)

    def _judged(self) -> np.ndarray:
        """bool [classes]: what may have a part in a mean."""
        judged: np.ndarray = np.arange(self.task.classes) != self.task.ignore_index
        return judged

    def _sums(self, statistics: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        hits, predicted, truth = (part.sum(axis=0, dtype=np.int64) for part in _parts(statistics))
        return hits, predicted, truth

    def _scores(self, hits: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Of each class, over the last axis; NaN for 0 / 0."""
        if self.name == "miou":
            above, below = hits, truth + predicted - hits
        elif self.name == "dice":
            above, below = 2 * hits, truth + predicted
        else:
            above, below = hits, truth
        return ratio(above, below)

    def _value(self, hits: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Over the last axis, the classes."""
        if self.name == "pixel_accuracy":
            above, below = hits.sum(axis=-1), truth.sum(axis=-1)
        else:
            scores = self._scores(hits, predicted, truth)
            there = ~np.isnan(scores) & self._judged()
            above, below = np.where(there, scores, 0.0).sum(axis=-1), there.sum(axis=-1)
        return ratio(above, below)


def metrics(classes: int, ignore_index: int, score_at: ScoreAt) -> Mapping[str, Metric]:
    """All of them by name."""
    task = Masks(classes, ignore_index, score_at)
    return {name: MaskMetric(name, task) for name in ("miou", "pixel_accuracy", "dice", "mean_accuracy")}


def _parts(statistics: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[n, classes] each: right pixels, predicted ones, and those of the truth."""
    confusion = statistics["confusion"]
    return np.einsum("ncc->nc", confusion), confusion.sum(axis=1, dtype=np.int64), statistics["truth"]


def _drawn(statistics: Arrays, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same, float64 [B, classes], summed over each resample."""
    hits, predicted, truth = np.split(sums(np.concatenate(_parts(statistics), axis=1), counts), 3, axis=1)
    return hits, predicted, truth
