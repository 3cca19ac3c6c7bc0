"""Two models on the same samples: what moved, by how much, and is it more than chance. Runs on the device too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from exporters.parity import OutputDifference, compare_outputs
from exporters.runtimes import Arrays
from soup import SoupError
from soup.build_folder import Hop, Outputs, WorstClass
from soup.evaluate import Evaluation
from soup.files import finite
from soup.gates import compare
from soup.metric_names import names_of
from soup.per_class import ByClass, Parts, Scores, class_name, worst_class
from soup.search_records import ClassValue, OtherValue, difference_record
from soup.statistics import RESAMPLES, Interval, drawn_counts, drawn_units, paired_bootstrap, paired_difference
from soup.tasks import Metric, Moves, Settings, by_class, metric_named


def paired(metric: Metric, after: Arrays, before: Arrays, *, groups: np.ndarray | None) -> Interval:
    """The metric's difference after - before with its 95 % interval, by group where samples carry one.

    One statistic per sample is a mean, and compared as such; all else is resampled through the metric's own reader.
    """
    if _one_score(after):
        return paired_difference(*after.values(), *before.values(), groups=groups)
    return paired_bootstrap(metric.reduce, after, before, resampled=metric.resampled, groups=groups)


def hop(
    name: str,
    before: Evaluation,
    after: Evaluation,
    *,
    metric: Metric,
    groups: np.ndarray | None,
    split: str,
    where: str,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> tuple[Hop, Interval]:
    """One step of the way, from two full evaluations that kept their outputs (in the same order, under any names).

    With `labels`, int [n], it also tells the class that lost most, where the metric has one score per sample; with
    `ids`, the names of the samples, which of them moved most.
    """
    interval = paired(metric, after.per_sample, before.per_sample, groups=groups)
    differences: tuple[OutputDifference, ...] = ()
    moved: Moves | None = None
    if before.outputs is not None and after.outputs is not None and _alike(before.outputs, after.outputs):
        differences = compare_outputs(before.outputs, renamed_as(before.outputs, after.outputs))
    if before.answers is not None and after.answers is not None:
        moved = metric.task.moves(before.answers, renamed_as(before.answers, after.answers))
    record = difference_record(interval, compare(interval, higher_is_better=metric.higher_is_better))
    scores = class_scores(
        metric, after.per_sample, before.per_sample, labels=labels, groups=groups, class_names=class_names
    )
    found = Hop(
        name, _number(before.value), _number(after.value), tuple(outputs_record(item) for item in differences),
        None if moved is None else int(moved.changed.sum()), record, split, where,
        None if scores is None else _worst_class(scores, metric), _moved_text(moved, ids),
        {} if moved is None else {key: finite(value) for key, value in moved.figures.items()},
    )  # fmt: skip
    return found, interval


def _moved_text(moved: Moves | None, ids: Sequence[str] | None) -> str:
    if moved is None or moved.worst is None or ids is None:
        return "" if moved is None else moved.text
    return f"{moved.text} ({ids[moved.worst]})"


def class_scores(
    metric: Metric, after: Arrays, before: Arrays, *, labels: np.ndarray | None, groups: np.ndarray | None,
    class_names: Sequence[str] | None,
) -> ByClass | None:  # fmt: skip
    """What a class is judged by: the images of each label, or the metric's own value of each class; None without."""
    if labels is not None and _one_score(after):
        ((new,), (old,)) = after.values(), before.values()
        return Scores(new, old, labels, groups, class_names, metric.higher_is_better)
    now, was, images = by_class(metric, after), by_class(metric, before), metric.class_images(after)
    if now is None or was is None or images is None:
        return None
    units = drawn_units(len(next(iter(after.values()))), groups)
    blocks = [
        _class_draws(metric, after, counts) - _class_draws(metric, before, counts)
        for counts in drawn_counts(units, resamples=RESAMPLES, seed=0)
    ]
    return Parts(
        now, was, np.concatenate(blocks), images, int(units.max()) + 1, groups is not None, class_names,
        metric.higher_is_better,
    )  # fmt: skip


def class_values(
    metric: Metric, after: Arrays, before: Arrays, names: Sequence[str] | None
) -> tuple[ClassValue, ...]:  # fmt: skip
    """The metric of each class alone, `before` as the best single's; nothing where it has no such parts."""
    now, was, images = by_class(metric, after), by_class(metric, before), metric.class_images(after)
    if now is None or was is None or images is None:
        return ()
    return tuple(
        ClassValue(class_name(names, label), int(images[label]), finite(was[label]), finite(now[label]))
        for label in range(len(images))
    )


def other_values(
    after: Evaluation, before: Evaluation, targets: Arrays, *, task: str, settings: Settings, but: str
) -> tuple[OtherValue, ...]:  # fmt: skip
    """The task's metrics, but one, of the same answers: without those that lack a setting, or have no value for either.

    None where the answers were not kept.
    """
    if after.answers is None or before.answers is None:
        return ()
    found = []
    names = names_of(task, multilabel=bool(settings.get("multilabel")))
    for name in (one for one in names if one != but):
        with suppress(SoupError):  # weighted_accuracy without weights
            metric = metric_named(task, name, settings)
            values = [metric.reduce(metric.per_sample(one.answers or {}, targets)) for one in (before, after)]
            found.append(OtherValue(name, metric.unit, finite(values[0]), finite(values[1])))
    return tuple(one for one in found if {one.best_single, one.model} != {None})


def _class_draws(metric: Metric, statistics: Arrays, counts: np.ndarray) -> np.ndarray:
    found = metric.resampled_by_class(statistics, counts)
    assert found is not None  # as `by_class` is not
    return found


def renamed_as(reference: Arrays, outputs: Arrays) -> Arrays:
    """The same outputs under the reference's names, by position: an export may rename them, never reorder them."""
    return dict(zip(reference, outputs.values(), strict=True))


def _alike(one: Arrays, other: Arrays) -> bool:
    """Whether they can be compared number by number: a graph with NMS inside gives others than one without."""
    return [array.shape for array in one.values()] == [array.shape for array in other.values()]


def outputs_record(difference: OutputDifference) -> Outputs:
    """An OutputDifference as JSON can hold it."""
    return Outputs(difference.name, finite(difference.max_abs), finite(difference.mean_abs), finite(difference.cosine))


def prefixed(prefix: str, statistics: Arrays) -> Mapping[str, np.ndarray]:
    """The same arrays under `prefix/name`."""
    return {f"{prefix}/{name}": array for name, array in statistics.items()}


def _worst_class(scores: ByClass, metric: Metric) -> WorstClass | None:
    worst = worst_class(scores)
    if worst is None:
        return None
    verdict = compare(worst.interval, higher_is_better=metric.higher_is_better)
    record = difference_record(worst.interval, verdict)
    return WorstClass(worst.name, worst.interval.n, finite(worst.before), finite(worst.after), record)


def _one_score(statistics: Arrays) -> bool:
    return len(statistics) == 1 and all(array.ndim == 1 for array in statistics.values())


def _number(value: float | None) -> float | None:
    return None if value is None else finite(value)
