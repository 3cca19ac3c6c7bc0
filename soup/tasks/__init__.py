"""One file per task: what a target is, the statistics kept of each sample, and how a metric reads them. numpy only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from pydantic import JsonValue

from exporters.runtimes import Arrays
from soup import SoupError
from soup.metric_names import OWN_METRIC, names_of
from soup.tasks.resamples import once

Settings = Mapping[str, JsonValue]  # how outputs are decoded and scored: `soup.task_settings`, and in a manifest


@dataclass(frozen=True, slots=True)
class Moves:
    """What differs between two models' answers to the same images: bool [n] of those that changed, and figures."""

    changed: np.ndarray
    figures: Mapping[str, float]
    text: str  # the figures as one sentence, for reports
    worst: int | None = None  # the image that `text` ends with, for a reader who knows its name


class Task(Protocol):
    """What the outputs of its networks say, whichever metric then scores it."""

    @property
    def turned(self) -> float:
        """The share of output values that a decision inside of the graph (is this a peak?) may turn by rounding."""

    def answers(self, outputs: Arrays, targets: Arrays) -> Arrays:
        """What a model's outputs say, compact: class scores, the boxes that are left, a class per pixel."""

    def margins(self, answers: Arrays, outputs: Arrays) -> np.ndarray:
        """float64 [n]: how far each sample is from another answer; where it is little, a small error shows first."""

    def moves(self, before: Arrays, after: Arrays) -> Moves:
        """What changed between two models' answers to the same samples."""


class Metric(Protocol):
    """An additive statistic per sample and a reader of it, so that batches, devices and machines all agree."""

    @property
    def name(self) -> str:
        """As written in val.yaml."""

    @property
    def task(self) -> Task:
        """Whose answers it scores."""

    @property
    def higher_is_better(self) -> bool:
        """False for losses."""

    @property
    def unit(self) -> str:
        """How a report prints it: "%" (a fraction shown as percent) or "" (as it is)."""

    def per_sample(self, answers: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """Statistics of each sample of a batch; every array's first axis is the sample, the others are fixed."""

    def reduce(self, statistics: Arrays) -> float:
        """The metric over the samples given; NaN for none."""

    def resampled(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """float64 [B]: the metric with sample i counted counts[b, i] times (int [B, n])."""

    def resampled_by_class(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray | None:
        """float64 [B, classes]: the metric of each class alone, NaN without truth; None where it has no such parts."""

    def class_images(self, statistics: Arrays) -> np.ndarray | None:
        """int64 [classes]: samples that hold something of each class; None as `resampled_by_class`."""

    def known(self, targets: Arrays) -> dict[str, np.ndarray]:
        """The statistics that targets alone decide, of all samples: what `upper_bound` may read of unseen ones."""

    def upper_bound(self, statistics: Arrays, seen: np.ndarray) -> float | None:
        """The best value in reach when only `seen` (bool, n_total) is known; None where there is no such bound."""

    def worst_bound(self, statistics: Arrays, seen: np.ndarray) -> float | None:
        """The worst value in reach when only `seen` is known; None where there is no such bound."""

    def difficulty(self, statistics: Arrays, answers: Arrays, targets: Arrays) -> np.ndarray:
        """float32 [n]: higher for samples that another model is likelier to lose, too; of what `per_sample` gave."""

    def unsettled(self, outputs: Arrays, error: float) -> np.ndarray | None:
        """bool [n]: samples whose statistic could be another if each output were off by up to `error`.

        None where any error changes the statistic itself, as it does a loss.
        """


def metric_named(task: str, name: str, settings: Settings | None = None) -> Metric:
    """The metric `name` of `task`, as val.yaml writes them; the task's own where that is a function of the user's.

    Raises SoupError where there is none.
    """
    from soup.tasks import by_task  # here, since a task's file needs the protocol above

    settings = settings or {}
    if re.fullmatch(OWN_METRIC, name):
        name = names_of(task, multilabel=bool(settings.get("multilabel")))[0]
    if task not in by_task.METRIC_OF:
        raise SoupError(f"task: '{task}' is not known, expected {' or '.join(by_task.METRIC_OF)}.")
    return by_task.METRIC_OF[task](name, settings)


def by_class(metric: Metric, statistics: Arrays) -> np.ndarray | None:
    """float64 [classes]: the metric of each class alone, NaN without truth; None where it has no such parts."""
    found = metric.resampled_by_class(statistics, once(len(next(iter(statistics.values())))))
    return None if found is None else found[0]


def chosen(metrics: Mapping[str, Metric], name: str, *, task: str) -> Metric:
    """One of a task's metrics. Raises SoupError that lists them."""
    if name not in metrics:
        raise SoupError(f"metric: '{name}' is not known for {task}, expected one of {', '.join(sorted(metrics))}.")
    return metrics[name]
