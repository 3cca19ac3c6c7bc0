"""A metric of the user's own: a function of answers and targets, in the place of the task's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.callables import call, resolve
from soup.metric_names import OWN_METRIC
from soup.statistics import resampled_by_rows
from soup.tasks import Metric, Settings, Task, metric_named
from soup.tasks.resamples import means


def metric_of(task: str, name: str, settings: Settings, *, folder: Path) -> Metric:
    """The metric that val.yaml names, a function of the user's included. Raises SoupError where there is none."""
    base = metric_named(task, name, settings)
    if not re.fullmatch(OWN_METRIC, name):
        return base
    function = resolve(name, folder=folder)
    reduce = getattr(function, "reduce", None)
    return OwnMetric(
        name, base, function, reduce if callable(reduce) else None,
        bool(getattr(function, "higher_is_better", True)), str(getattr(function, "unit", "")),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """`function(answers, targets)` gives one score per sample, whose mean it is, or statistics that `reduce` reads.

    What outputs say, and what moved between two models, is the task's own (`base`). The function's attributes
    `higher_is_better`, `unit` and `reduce` say the rest.
    """

    name: str
    base: Metric
    function: Callable[..., object]
    reader: Callable[..., object] | None
    higher_is_better: bool
    unit: str

    @property
    def task(self) -> Task:
        """The base's."""
        return self.base.task

    def per_sample(self, answers: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """What the function gives. Raises SoupError unless it is one row for each sample."""
        where = f"metric '{self.name}'"
        found = call(self.function, answers, targets, where=where)
        named = found if isinstance(found, dict) else {"score": found}
        arrays = {str(name): np.asarray(value) for name, value in named.items()}
        rows = len(next(iter(targets.values())))
        wrong = {name: array.shape for name, array in arrays.items() if array.shape[:1] != (rows,)}
        if wrong or not arrays:
            raise SoupError(f"{where}: gave {wrong or 'nothing'}, expected {rows} rows, one for each sample.")
        if other := {name: str(array.dtype) for name, array in arrays.items() if array.dtype.kind not in "biuf"}:
            raise SoupError(f"{where}: gave {other}, expected numbers.")
        if self.reader is None and (len(arrays) > 1 or next(iter(arrays.values())).ndim > 1):
            raise SoupError(f"{where}: gave more than one score per sample, expected also an attribute `reduce`.")
        return arrays

    def reduce(self, statistics: Arrays) -> float:
        """The function's own `reduce`, or the mean; NaN where that is not finite. Raises SoupError for no number."""
        if self.reader is not None:
            where = f"metric '{self.name}': reduce"
            value = call(self.reader, dict(statistics), where=where)
            number = float(cast("float", call(float, value, where=where)))
        else:
            scores = next(iter(statistics.values()))
            number = float(scores.astype(np.float64).mean()) if len(scores) else math.nan
        return number if math.isfinite(number) else math.nan

    def resampled(self, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
        """By repeated rows; a mean by its weights."""
        if self.reader is not None:
            return resampled_by_rows(self.reduce, statistics, counts)
        return means(next(iter(statistics.values())), counts)

    def resampled_by_class(self, statistics: Arrays, counts: np.ndarray) -> None:
        """It has no such parts."""

    def class_images(self, statistics: Arrays) -> None:
        """It has no such parts."""

    def known(self, targets: Arrays) -> dict[str, np.ndarray]:
        """Nothing."""
        return {}

    def upper_bound(self, statistics: Arrays, seen: np.ndarray) -> None:
        """Nobody knows what a sample can give."""

    def worst_bound(self, statistics: Arrays, seen: np.ndarray) -> None:
        """Nobody knows what a sample can cost."""

    def difficulty(self, statistics: Arrays, answers: Arrays, targets: Arrays) -> np.ndarray:
        """The task's."""
        return self.base.difficulty(self.base.per_sample(answers, targets), answers, targets)

    def unsettled(self, outputs: Arrays, error: float) -> None:
        """Any error may change it."""
