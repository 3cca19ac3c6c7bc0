"""Two models on the same samples: what moved, by how much, and is it more than chance. Runs on the device too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from exporters.parity import OutputDifference, compare_outputs
from exporters.runtimes import Arrays
from soup.build_folder import Hop, Outputs
from soup.evaluate import Evaluation
from soup.files import finite
from soup.gates import compare
from soup.search_records import difference_record
from soup.statistics import Interval, paired_bootstrap, paired_difference
from soup.tasks import Metric
from soup.tasks.classification import flips


def paired(metric: Metric, after: Arrays, before: Arrays, *, groups: np.ndarray | None) -> Interval:
    """The metric's difference after - before with its 95 % interval, by group where samples carry one.

    One statistic per sample is a mean, and compared as such; all else is resampled through the metric's own reader.
    """
    if len(after) == 1 and all(array.ndim == 1 for array in after.values()):
        return paired_difference(*after.values(), *before.values(), groups=groups)
    return paired_bootstrap(metric.reduce, after, before, groups=groups)


def hop(
    name: str,
    before: Evaluation,
    after: Evaluation,
    *,
    metric: Metric,
    groups: np.ndarray | None,
    split: str,
    where: str,
) -> tuple[Hop, Interval]:
    """One step of the way, from two full evaluations that kept their outputs (in the same order, under any names)."""
    interval = paired(metric, after.per_sample, before.per_sample, groups=groups)
    differences: tuple[OutputDifference, ...] = ()
    flipped = None
    if before.outputs is not None and after.outputs is not None:
        renamed = renamed_as(before.outputs, after.outputs)
        differences = compare_outputs(before.outputs, renamed)
        flipped = int(flips(before.outputs, renamed).sum())
    record = difference_record(interval, compare(interval, higher_is_better=metric.higher_is_better))
    outputs = tuple(outputs_record(item) for item in differences)
    return Hop(name, _number(before.value), _number(after.value), outputs, flipped, record, split, where), interval


def renamed_as(reference: Arrays, outputs: Arrays) -> Arrays:
    """The same outputs under the reference's names, by position: an export may rename them, never reorder them."""
    return dict(zip(reference, outputs.values(), strict=True))


def outputs_record(difference: OutputDifference) -> Outputs:
    """An OutputDifference as JSON can hold it."""
    return Outputs(difference.name, finite(difference.max_abs), finite(difference.mean_abs), finite(difference.cosine))


def prefixed(prefix: str, statistics: Arrays) -> Mapping[str, np.ndarray]:
    """The same arrays under `prefix/name`."""
    return {f"{prefix}/{name}": array for name, array in statistics.items()}


def _number(value: float | None) -> float | None:
    return None if value is None else finite(value)
