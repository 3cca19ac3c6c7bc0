"""One file per task: what a target is, the statistics kept of each sample, and how a metric reads them. numpy only."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError


class Metric(Protocol):
    """An additive statistic per sample and a reader of it, so that batches, devices and machines all agree."""

    @property
    def name(self) -> str:
        """As written in val.yaml."""

    @property
    def higher_is_better(self) -> bool:
        """False for losses."""

    @property
    def unit(self) -> str:
        """How a report prints it: "%" (a fraction shown as percent) or "" (as it is)."""

    def per_sample(self, outputs: Arrays, targets: Arrays) -> dict[str, np.ndarray]:
        """Statistics of each sample of a batch; every array's first axis is the sample."""

    def reduce(self, statistics: Arrays) -> float:
        """The metric over the samples given; NaN for none."""

    def upper_bound(self, statistics: Arrays, seen: np.ndarray) -> float | None:
        """The best value in reach when only `seen` (bool, n_total) is known; None where there is no such bound."""

    def worst_bound(self, statistics: Arrays, seen: np.ndarray) -> float | None:
        """The worst value in reach when only `seen` is known; None where there is no such bound."""

    def difficulty(self, outputs: Arrays, targets: Arrays) -> np.ndarray:
        """float32 [n]: higher for samples that another model is likelier to lose, too."""

    def unsettled(self, outputs: Arrays, error: float) -> np.ndarray | None:
        """bool [n]: samples whose statistic could be another if each output were off by up to `error`.

        None where any error changes the statistic itself, as it does a loss.
        """


def metric_named(task: str, name: str) -> Metric:
    """The metric `name` of `task`, as val.yaml writes them. Raises SoupError where there is none."""
    from soup.tasks import classification  # here, since a task's file needs the protocol above

    metrics = {"classification": classification.METRICS}.get(task)
    if metrics is None:
        raise SoupError(f"task: '{task}' is not known, expected 'classification'.")
    if name not in metrics:
        raise SoupError(f"metric: '{name}' is not known for {task}, expected one of {', '.join(sorted(metrics))}.")
    return metrics[name]
