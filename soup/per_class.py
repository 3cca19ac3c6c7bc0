"""Which class lost most between two models, and whether any class lost more than it may."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from soup.files import finite
from soup.gates import Check, Subject, Verdict, reversed_interval, rounded, verdict_of, would_decide
from soup.statistics import Interval, bootstrap_interval, difference_text, interval_text, paired_difference

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class ClassDrop:
    """One class under two models: its mean score under each, and the interval of after - before over its images."""

    label: int
    name: str
    before: float
    after: float
    interval: Interval


class ByClass(Protocol):
    """What a class is judged by, under two models."""

    @property
    def higher_is_better(self) -> bool:
        """Of the scores."""

    @property
    def counts(self) -> np.ndarray:
        """int [classes]: images by class, also of a class that has none."""

    @property
    def losses(self) -> np.ndarray:
        """float64 [classes]: by how much each class got worse; NaN without images."""

    def of(self, label: int, *, confidence: float) -> ClassDrop:
        """One class with its paired interval."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One score per image under two models, [n] each, with the class of each image and its group where it has one.

    For right-or-wrong scores the mean over a class is its recall. `names` are of all classes, by label.
    """

    after: np.ndarray
    before: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None
    names: Sequence[str] | None = None
    higher_is_better: bool = True

    @property
    def counts(self) -> np.ndarray:
        """int [classes]: images by label, also of a class that has none."""
        return np.bincount(self.labels, minlength=len(self.names or ()))

    @property
    def losses(self) -> np.ndarray:
        """float64 [classes]: by how much each class got worse in the mean; NaN without images."""
        gains = self.after.astype(np.float64) - self.before.astype(np.float64)
        sums = np.bincount(self.labels, weights=-gains if self.higher_is_better else gains, minlength=len(self.counts))
        with np.errstate(invalid="ignore"):
            losses: np.ndarray = sums / self.counts
        return losses

    def of(self, label: int, *, confidence: float) -> ClassDrop:
        """One class with its paired interval, by `paired_difference`."""
        rows = self.labels == label
        after, before = self.after[rows].astype(np.float64), self.before[rows].astype(np.float64)
        groups = None if self.groups is None else self.groups[rows]
        interval = paired_difference(after, before, groups=groups, confidence=confidence)
        was, now = (float(one.mean()) if len(one) else math.nan for one in (before, after))
        return ClassDrop(label, self.named(label), was, now, interval)

    def named(self, label: int) -> str:
        """The class's name, or its number."""
        return class_name(self.names, label)


@dataclass(frozen=True, slots=True)
class Parts:
    """A metric that has a value for each class (AP, IoU), under two models: [classes] each, NaN without truth.

    `draws` float64 [B, classes] are the differences after - before on the same B resamples of whole `units` of images.
    """

    after: np.ndarray
    before: np.ndarray
    draws: np.ndarray
    counts: np.ndarray
    units: int
    grouped: bool
    names: Sequence[str] | None = None
    higher_is_better: bool = True

    @property
    def losses(self) -> np.ndarray:
        """float64 [classes]: by how much each class got worse; NaN without truth."""
        losses: np.ndarray = self.before - self.after if self.higher_is_better else self.after - self.before
        return losses

    def of(self, label: int, *, confidence: float) -> ClassDrop:
        """One class with the percentile interval of `paired_bootstrap`; open where some resample lacks the class."""
        after, before = float(self.after[label]), float(self.before[label])
        interval = bootstrap_interval(
            after - before, self.draws[:, label], n=int(self.counts[label]), units=self.units, grouped=self.grouped,
            confidence=confidence,
        )  # fmt: skip
        return ClassDrop(label, class_name(self.names, label), before, after, interval)


def class_name(names: Sequence[str] | None, label: int) -> str:
    """Of a label: its name, or its number."""
    return names[label] if names is not None and label < len(names) else str(label)


def bonferroni(classes: int) -> float:
    """The confidence of each of so many intervals that hold all at once at CONFIDENCE (Dunn, JASA 56, 1961)."""
    return 1 - (1 - CONFIDENCE) / max(1, classes)


def worst_class(scores: ByClass) -> ClassDrop | None:
    """The class that lost most, the lowest label of several; None where none got worse.

    It was picked for being the worst of all, so its interval is `bonferroni`'s.
    """
    losses, counts = scores.losses, scores.counts
    losses = np.where(np.isnan(losses), np.where(counts > 0, np.inf, -np.inf), losses)
    if not len(losses) or not losses.max() > 0:
        return None
    return scores.of(int(losses.argmax()), confidence=bonferroni(int((counts > 0).sum())))


def per_class_gate(scores: ByClass, subject: Subject, *, max_drop: float, min_images: int, unit: str = "%") -> Check:
    """Pass where a drop beyond `max_drop` is excluded in every class, fail where it is shown in any; NaN fails.

    To pass, each class's own interval is held to the limit: that all are within needs no correction (an
    intersection-union test, Berger, Technometrics 24, 1982). To fail, it is the interval at the level of all classes
    together, since one of many drops by chance (`bonferroni`; Holm's procedure rejects some class exactly where
    Bonferroni's does). A class of fewer than `min_images` images is not judged: the gate is then inconclusive, unless
    another class fails it.
    """
    counts = scores.counts
    judged = [label for label in range(len(counts)) if counts[label] >= min_images]
    found = {label: _judged(scores, label, max_drop=max_drop, classes=len(judged)) for label in judged}
    few = [scores.of(label, confidence=CONFIDENCE) for label in range(len(counts)) if label not in found]
    by_verdict = {one: [drop for verdict, drop in found.values() if verdict == one] for one in ("pass", "fail")}
    open_ones = [*few, *(drop for verdict, drop in found.values() if verdict == "inconclusive")]
    check = Check(subject.name, subject.hop, "per_class", "inconclusive", "", None, max_drop, unit, subject.where)
    limit = difference_text(max_drop, unit=unit).lstrip("+")
    if by_verdict["fail"]:
        return _fails(check, by_verdict["fail"], scores, limit=limit, classes=len(judged))
    if open_ones or not judged:
        return _open(check, open_ones, scores, limit=limit, min_images=min_images)
    shown = _worst(by_verdict["pass"], scores)
    message = f"a drop beyond {limit} is excluded in each of {_classes(len(judged))}; the worst is {_told(shown, unit)}"
    return replace(check, verdict="pass", message=message, measured=finite(_drop(shown, scores).estimate))


def _judged(scores: ByClass, label: int, *, max_drop: float, classes: int) -> tuple[Verdict, ClassDrop]:
    """The verdict on one class, and the interval that it rests on."""
    alone = scores.of(label, confidence=CONFIDENCE)
    drop = _drop(alone, scores)
    if verdict_of(drop.high <= max_drop, drop.low <= max_drop) != "fail":
        return verdict_of(drop.high <= max_drop, True), alone
    together = scores.of(label, confidence=bonferroni(classes))
    return verdict_of(False, _drop(together, scores).low <= max_drop), together


def _fails(check: Check, failed: Sequence[ClassDrop], scores: ByClass, *, limit: str, classes: int) -> Check:
    shown = _worst(failed, scores)
    others = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    level = f" (Bonferroni over {_classes(classes)})" if classes > 1 else ""
    message = f"{_told(shown, check.unit)}: the drop is beyond the limit of {limit}{level}{others}"
    return replace(check, verdict="fail", message=message, measured=finite(_drop(shown, scores).estimate))


def _open(check: Check, found: Sequence[ClassDrop], scores: ByClass, *, limit: str, min_images: int) -> Check:
    """Inconclusive; of the classes that keep it open, the one that lost most is told."""
    if not found:
        return replace(check, message="there is no class with an image")
    shown, drop_limit = _worst(found, scores), check.limit or 0.0
    drop = _drop(shown, scores)
    needed = would_decide(drop, drop_limit)
    if shown.interval.n < min_images:
        reason, needed = f"too few, the gate asks for {min_images}", max(min_images, needed or 0)
    else:
        reason = f"a drop beyond {limit} is neither shown nor excluded"
    hint = "" if needed is None else f"; about {rounded(needed):,} of its images would decide"
    others = f"; as open in {_classes(len(found) - 1)} more" if len(found) > 1 else ""
    message = f"{_told(shown, check.unit)}: {reason}{hint}{others}"
    return replace(check, message=message, measured=finite(drop.estimate), samples_needed=needed)


def _drop(one: ClassDrop, scores: ByClass) -> Interval:
    return reversed_interval(one.interval) if scores.higher_is_better else one.interval


def _worst(found: Sequence[ClassDrop], scores: ByClass) -> ClassDrop:
    """The one that lost most; NaN is more than any, and a class without images less."""

    def lost(one: ClassDrop) -> float:
        drop = _drop(one, scores).estimate
        return (math.inf if one.interval.n else -math.inf) if math.isnan(drop) else drop

    return max(found, key=lost)


def _told(one: ClassDrop, unit: str) -> str:
    count = f"{one.interval.n:,} image{'' if one.interval.n == 1 else 's'}"
    if math.isnan(one.interval.estimate):
        return f"class '{one.name}' ({f'{count}: {one.interval.method}' if one.interval.n else count})"
    return f"class '{one.name}' ({count}) {interval_text(one.interval, unit=unit)}"


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count:,} classes"
