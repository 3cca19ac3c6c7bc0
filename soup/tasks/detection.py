"""Object detection: average precision as COCO and as Pascal VOC define it, and how the boxes of two models differ.

Answers are what `soup.tasks.suppression` leaves of the outputs, in pixels of the original images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.tasks import Metric, Moves
from soup.tasks.average_precision import Reading, average_precisions
from soup.tasks.box_moves import box_moves
from soup.tasks.matching import COCO_LIMIT, coco_matches, limited, positives, voc_matches
from soup.tasks.resamples import ROUNDING, mean_of_classes, once
from soup.tasks.suppression import Suppression, detections

_EVERY = (0.0, 1e10)  # COCO's "all", in pixels² of the annotation's area
_COCO = tuple(np.linspace(0.5, 0.95, 10).tolist())


@dataclass(frozen=True, slots=True)
class Boxes:
    """What a detector's outputs say, thinned out by `rules`."""

    rules: Suppression
    turned: float = 1e-4

    def answers(self, outputs: Arrays, targets: Arrays) -> Arrays:
        """{"boxes" [n, D, 4], "scores" [n, D], "labels" [n, D]}, D as the rules' `max_detections`."""
        return detections(outputs, targets, self.rules)

    def margins(self, answers: Arrays, outputs: Arrays) -> np.ndarray:
        """The smallest change of one score that drops, adds or reorders a detection; infinite where none does.

        That is the least of each detection's score above `rules.score`, its lead over the next of its class, and,
        where nothing was detected, what the highest score of the outputs lacks.
        """
        return score_margins(answers, outputs, self.rules.score)

    def moves(self, before: Arrays, after: Arrays) -> Moves:
        """Boxes lost, new and moved; see `soup.tasks.box_moves`."""
        return box_moves(before, after)


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """The mean over classes, and over IoU `thresholds`, of average precision; classes without truth are left out.

    "coco" is COCOeval's (boxes out of the `area` range are ignored), "voc" the Pascal VOC devkit's.
    """

    name: str
    task: Boxes
    classes: int
    match: Literal["coco", "voc"] = "coco"
    thresholds: tuple[float, ...] = _COCO
    area: tuple[float, float] = _EVERY
    reading: Reading = "101 points"
    higher_is_better: bool = True
    unit: str = "%"

    def per_sample(self, answers: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """`score`, `label`, `matched` and `ignored` [n, D] (bit t: at threshold t), `positives` [n, classes].

        Raises SoupError where a label is beyond the classes, and (environment) without pycocotools.
        """
        self._check(answers["labels"], "the model's outputs")
        counted = self._counted(answers)
        if self.match == "coco":
            matched, ignored = coco_matches(counted, targets, thresholds=np.array(self.thresholds), area=self.area)
        else:
            matched, ignored = voc_matches(counted, targets, threshold=self.thresholds[0])
        return {
            "score": counted["scores"].astype(np.float32),
            "label": counted["labels"].astype(np.int32),
            "matched": _bits(matched),
            "ignored": _bits(ignored),
            **self.known(targets),
        }

    def reduce(self, statistics: Arrays) -> float:
        """The mean of the classes that have truth; NaN without any."""
        return float(self.resampled(statistics, once(len(statistics["label"])))[0])

    def resampled(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """As `reduce` of rows repeated next to each other; classes whose truth was not drawn are left out."""
        return mean_of_classes(self.resampled_by_class(statistics, counts))

    def resampled_by_class(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """float64 [B, classes]: the AP of each class on each resample, NaN where its truth was not drawn."""
        return average_precisions(statistics, counts, thresholds=len(self.thresholds), reading=self.reading)

    def class_images(self, statistics: Arrays) -> np.ndarray:
        """int64 [classes]: images with truth of each that counts."""
        images: np.ndarray = (statistics["positives"] > 0).sum(axis=0)
        return images

    def known(self, targets: Arrays) -> dict[str, np.ndarray]:
        """The truth that counts. Raises SoupError where its label is beyond the classes."""
        self._check(targets["labels"], "the split")
        return {"positives": positives(targets, self.classes, area=self.area)}

    def upper_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if all truth of unseen images were found, ahead of all else, without a false alarm.

        Exact, but where an image has more truth than an answer has rows: then it cannot be reached.
        """
        unseen = statistics["positives"][~seen].sum(axis=0)
        return self._with_unseen(statistics, seen, found=unseen, added=unseen) + ROUNDING * (not seen.all())

    def worst_bound(self, statistics: Arrays, seen: np.ndarray) -> float:
        """The value if unseen images had as many false alarms of each class as fit, ahead of all else, and no match.

        Not below what can be reached, as an answer's rows are then used by each class; exact for a single class.
        """
        rows = statistics["label"].shape[1]
        alarms = int((~seen).sum()) * (min(rows, COCO_LIMIT) if self.match == "coco" else rows)
        nothing = np.zeros(self.classes, np.int64)
        return self._with_unseen(statistics, seen, found=nothing, added=nothing + alarms) - ROUNDING * (not seen.all())

    def difficulty(self, statistics: Arrays, answers: Arrays, targets: Arrays) -> np.ndarray:
        """Missed truth, and false alarms weighted by their scores, both as means over the thresholds."""
        bits = np.arange(len(self.thresholds))
        matched, ignored = (statistics[key][..., None] >> bits & 1 for key in ("matched", "ignored"))
        detected = (statistics["label"] >= 0)[..., None] & (ignored == 0)
        missed = statistics["positives"].sum(axis=1) - (detected & (matched == 1)).sum(axis=1).mean(axis=1)
        alarms = (statistics["score"] * (detected & (matched == 0)).mean(axis=2)).sum(axis=1)
        return np.asarray(missed + alarms, np.float32)

    def unsettled(self, outputs: Arrays, error: float) -> None:
        """Any error moves a box."""

    def _counted(self, answers: Arrays) -> Arrays:
        return limited(answers) if self.match == "coco" else answers

    def _with_unseen(self, statistics: Arrays, seen: np.ndarray, *, found: np.ndarray, added: np.ndarray) -> float:
        """The value with so many detections `added` (int [classes]) ahead of all others, matches where `found`.

        A row for each class holds one detection above all scores, and is counted as often as needed.
        """
        rows = np.zeros((self.classes, statistics["label"].shape[1]), np.int64)
        first = np.zeros(rows.shape, bool)
        first[:, 0] = True
        extra = {
            "score": np.where(first, np.inf, -1.0),
            "label": np.where(first, np.arange(self.classes)[:, None], -1),
            "matched": np.where(found[:, None] > 0, np.iinfo(np.uint16).max, rows),
            "ignored": rows,
            "positives": np.zeros((self.classes, self.classes), np.int64),
        }
        blank = {**statistics, "label": np.where(seen[:, None], statistics["label"], -1)}
        joined = {key: np.concatenate([blank[key], extra[key]]) for key in extra}
        counts = np.concatenate([np.ones(len(seen), np.int64), added])[None]
        return float(self.resampled(joined, counts)[0])

    def _check(self, labels: np.ndarray, where: str) -> None:
        if labels.size and labels.max() >= self.classes:
            raise SoupError(
                f"{where}: class {labels.max()}, expected 0 to {self.classes - 1}. "
                "Check the classes of the split and the model's arguments."
            )


def metrics(rules: Suppression, classes: int) -> Mapping[str, Metric]:
    """The metrics of a detector of so many classes, by the names of val.yaml."""
    task, half, seventy_five = Boxes(rules), (0.5,), (0.75,)
    every = (
        AveragePrecision("map", task, classes),
        AveragePrecision("map50", task, classes, thresholds=half),
        AveragePrecision("map75", task, classes, thresholds=seventy_five),
        AveragePrecision("map_small", task, classes, area=(0.0, 32.0**2)),
        AveragePrecision("map_medium", task, classes, area=(32.0**2, 96.0**2)),
        AveragePrecision("map_large", task, classes, area=(96.0**2, 1e10)),
        AveragePrecision("voc_map", task, classes, match="voc", thresholds=half, reading="area"),
        AveragePrecision("voc_map07", task, classes, match="voc", thresholds=half, reading="11 points"),
    )
    return {metric.name: metric for metric in every}


def score_margins(answers: Arrays, outputs: Arrays, threshold: float) -> np.ndarray:
    """float64 [n]: `Boxes.margins` for detections above the threshold."""
    labels, scores = answers["labels"], answers["scores"].astype(np.float64)
    margins = np.where(labels >= 0, scores - threshold, np.inf).min(axis=1, initial=np.inf)
    image, detection = np.nonzero(labels >= 0)
    order = np.lexsort((scores[image, detection], labels[image, detection], image))
    image, detection = image[order], detection[order]
    same = (image[1:] == image[:-1]) & (labels[image, detection][1:] == labels[image, detection][:-1])
    leads = np.diff(scores[image, detection])
    np.minimum.at(margins, image[1:][same], leads[same])
    raw = list(outputs.values())[1].astype(np.float64).reshape(len(margins), -1)
    lacking: np.ndarray = threshold - np.where(np.isfinite(raw), raw, -np.inf).max(axis=1, initial=-np.inf)
    nothing = ~(labels >= 0).any(axis=1)
    result: np.ndarray = np.where(nothing, np.abs(lacking), margins)
    return result


def _bits(flags: np.ndarray) -> np.ndarray:
    """uint16 [n, D] of bool [n, D, T]: bit t."""
    bits: np.ndarray = (flags.astype(np.uint16) << np.arange(flags.shape[2], dtype=np.uint16)).sum(axis=2)
    return bits.astype(np.uint16)
