"""One checkpoint against the figure that its trainer reported; where it misses, one thing is changed at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from soup import Progress, SoupError
from soup.checkpoint import Checkpoint, load_state, read_checkpoint, with_names
from soup.config import Config
from soup.data import Split
from soup.evaluate import Evaluation, evaluate
from soup.files import finite
from soup.larder import open_split
from soup.models import load, tensor_table, torch_predict
from soup.score import Kitchen
from soup.sections import Expect
from soup.suspects import Attempt, Suspect, advice, ranked, renumbered, suspects, verdict_of, within
from soup.trials import value_of


@dataclass(frozen=True, slots=True)
class Comparison:
    """A checkpoint's value on val and its trainer's; `attempts` are made only where they differ, nearest first."""

    checkpoint: str
    weights: str  # "raw" or "ema"
    metric: str
    measured: float | None
    expected: float
    difference: float | None
    tolerance: float
    verdict: Literal["pass", "fail"]
    attempts: tuple[Attempt, ...]
    advice: tuple[str, ...]  # what the attempts come to, in sentences


@dataclass(frozen=True, slots=True)
class _Case:
    """A checkpoint that missed its figure; it is loaded in the kitchen's network, and scored `evaluation` on val."""

    config: Config
    expect: Expect
    kitchen: Kitchen
    splits: Mapping[str, Split]
    checkpoint: Checkpoint
    evaluation: Evaluation
    cache: Path
    progress: Progress

    @property
    def val(self) -> Split:
        return self.splits["val"]


def compare(
    config: Config, expect: Expect, kitchen: Kitchen, splits: Mapping[str, Split], *, cache: Path, progress: Progress
) -> Comparison:
    """Evaluate `expect.checkpoint` on all of val; its weights stay in the kitchen's network.

    Raises SoupError for a figure in percent, a checkpoint that cannot be read, and one that does not fit the network.
    """
    if kitchen.metric.unit == "%" and not 0 <= expect.value <= 1:
        raise SoupError(f"val.yaml: expect.value is {expect.value:g}, expected a share of one: 0.883 and not 88.3.")
    checkpoint = _load(config, expect, kitchen, use=config.checkpoints.use)
    evaluation = _evaluate(kitchen, splits["val"], what=f"evaluating {expect.checkpoint}", progress=progress)
    measured = value_of(evaluation)
    passed = within(measured, expect.value, expect.tolerance)
    case = _Case(config, expect, kitchen, splits, checkpoint, evaluation, cache, progress)
    attempts = () if passed else ranked(tuple(_attempts(case)), expected=expect.value)
    return Comparison(
        checkpoint=expect.checkpoint, weights=checkpoint.weights, metric=kitchen.metric.name,
        measured=finite(measured), expected=expect.value, difference=finite(measured - expect.value),
        tolerance=expect.tolerance, verdict="pass" if passed else "fail",
        attempts=attempts, advice=() if passed else _advice(case, attempts),
    )  # fmt: skip


def _attempts(case: _Case) -> Iterator[Attempt]:
    yield from _other_numbers(case)
    yield from _other_split(case)
    yield from _other_weights(case)
    given = case.val.preprocess
    for suspect in suspects(given, case.val.images) if given else ():
        yield from _other_pixels(case, suspect)


def _other_numbers(case: _Case) -> Iterator[Attempt]:
    """Of classes; told only where each image has one."""
    if "label" not in case.val.targets:
        return
    labels, names, outputs = case.val.targets["label"], case.val.class_names, case.evaluation.answers or {}
    if (numbers := renumbered(outputs, labels)) is None:
        return
    metric = case.kitchen.metric
    value = metric.reduce(metric.per_sample(outputs, {"label": numbers}))
    place = np.flatnonzero(numbers != labels)[0]
    name = names[labels[place]] if names else labels[place]
    change = f"other class numbers (data.val's class '{name}' is output {numbers[place]} of the model)"
    yield _judged(case, change, "the trainer probably numbered the classes in another order", value)


def _other_split(case: _Case) -> Iterator[Attempt]:
    if "test" in case.splits:
        value = _score(case, case.splits["test"], "data.test")
        yield _judged(case, "data.test instead of data.val", "the figure is probably that of data.test", value)


def _other_weights(case: _Case) -> Iterator[Attempt]:
    """The raw ones where EMA was taken, or the other way round; nothing where the file holds one kind only."""
    other: Literal["raw", "ema"] = "raw" if case.checkpoint.weights == "ema" else "ema"
    try:
        _load(case.config, case.expect, case.kitchen, use=other)
    except SoupError:
        return
    change = f"checkpoints.use: {other}"
    value = _score(case, case.val, change)
    load(case.kitchen.model, load_state(case.checkpoint))
    yield _judged(case, change, f"the figure was probably reported for the {other} weights", value)


def _other_pixels(case: _Case, suspect: Suspect) -> Iterator[Attempt]:
    """Nothing where the change leaves every pixel as it was."""
    if suspect.pixels != "anew":
        images = case.val.images[..., ::-1] if suspect.pixels == "swapped" else case.val.images
        split = replace(case.val, images=images, preprocess=suspect.preprocess)
        yield _judged(case, suspect.change, suspect.conclusion, _score(case, split, suspect.change))
        return
    case.cache.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".soup-check-", dir=case.cache) as folder:
            split = open_split(
                case.config, "val", cache=Path(folder), progress=case.progress, preprocess=suspect.preprocess
            )
            if split.hashes != case.val.hashes:
                yield _judged(case, suspect.change, suspect.conclusion, _score(case, split, suspect.change))
    except SoupError as error:
        yield Attempt(suspect.change, suspect.conclusion, None, "untried", str(error))


def _advice(case: _Case, attempts: tuple[Attempt, ...]) -> tuple[str, ...]:
    sign = 1 if case.kitchen.metric.higher_is_better else -1
    if sign * value_of(case.evaluation) <= sign * case.expect.value:
        return advice(case.expect.checkpoint, attempts)
    caution = "it scores better than reported: a change that does nothing but harm can hit the figure by chance."
    return (*advice(case.expect.checkpoint, attempts), caution)


def _judged(case: _Case, change: str, conclusion: str, value: float) -> Attempt:
    expect, measured = case.expect, value_of(case.evaluation)
    verdict = verdict_of(value, measured=measured, expected=expect.value, tolerance=expect.tolerance)
    return Attempt(change, conclusion, finite(value), verdict)


def _load(config: Config, expect: Expect, kitchen: Kitchen, *, use: Literal["auto", "raw", "ema"]) -> Checkpoint:
    """Read the checkpoint and put its weights into the kitchen's network, in place."""
    read = read_checkpoint(config.resolve(expect.checkpoint), use=use, drop=config.checkpoints.drop)
    checkpoint = with_names(read, tensor_table(kitchen.model))
    load(kitchen.model, load_state(checkpoint))
    return checkpoint


def _score(case: _Case, split: Split, change: str) -> float:
    return value_of(_evaluate(case.kitchen, split, what=f"trying {change}", progress=case.progress))


def _evaluate(kitchen: Kitchen, split: Split, *, what: str, progress: Progress) -> Evaluation:
    return evaluate(
        torch_predict(kitchen.model, device=kitchen.device), split, kitchen.metric, batch=kitchen.batch,
        keep_outputs=True, progress=lambda done, total: progress(what, done, total),
    )  # fmt: skip
