"""The gates on what a model answers to val (accuracy, classes, flips, outputs), each against whom it names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from exporters.parity import compare_outputs
from exporters.runtimes import Arrays
from soup.evaluate import Evaluation
from soup.files import finite
from soup.gate_sections import AccuracyGate, Against, FlipsGate, Gates, OutputsGate, PerClassGate
from soup.gates import Check, Kind, Subject, Verdict, accuracy_gate, outputs_gate, verdict_of
from soup.judge import class_scores, paired, renamed_as
from soup.per_class import per_class_gate
from soup.statistics import Interval
from soup.tasks import Metric
from soup.unpaired import design_effect, share_difference, wilson


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model answered to all of val, as far as it is known; `label` is its name in a hop.

    `per_sample` are the metric's statistics, `outputs` the model's (of the first samples, where they are large),
    `answers` what they say of all, first axis the sample. A figure that another tool states has none of them, only
    `value`, and `n` where it says on how many images.
    """

    label: str
    per_sample: Arrays | None = None
    outputs: Arrays | None = None
    value: float | None = None
    n: int | None = None
    answers: Arrays | None = None

    @staticmethod
    def of(label: str, evaluation: Evaluation) -> Answers:
        """Of an evaluation that went to its end."""
        n, outputs, answers = evaluation.n_total, evaluation.outputs, evaluation.answers
        return Answers(label, evaluation.per_sample, outputs, evaluation.value, n, answers)


@dataclass(frozen=True, slots=True)
class OnVal:
    """The split that all of them answered to, in the same order: labels and groups [n], where there are any."""

    metric: Metric
    labels: np.ndarray | None
    groups: np.ndarray | None
    class_names: Sequence[str] | None


def answer_checks(
    gates: Gates, after: Answers, against: Mapping[Against, Answers], *, on: OnVal, file: str, where: str | None
) -> tuple[Check, ...]:
    """One check for each limit that is set, of `after`, which answered to every image.

    Pending is what nobody in `against` was there to compare with, inconclusive what is not known of whom was.
    """
    rules: list[tuple[Kind, Against, Callable[[_Pair], tuple[Check, ...]]]] = []
    rules += [("accuracy", rule.against, partial(_accuracy, rule)) for rule in gates.accuracy]
    if gates.per_class_drop is not None:
        rules.append(("per_class", gates.per_class_drop.against, partial(_per_class, gates.per_class_drop)))
    if gates.flips is not None:
        rules.append(("flips", gates.flips.against, partial(_flips, gates.flips)))
    if gates.outputs is not None:
        rules.append(("outputs", gates.outputs.against, partial(_outputs, gates.outputs)))
    checks: list[Check] = []
    for kind, name, judge in rules:
        if (other := against.get(name)) is None:
            subject = Subject(file, f"{name.replace('_', ' ')} → {after.label}", where)
            checks.append(_open(subject, kind, f"the {name.replace('_', ' ')} is not here to compare with", "pending"))
        else:
            checks += judge(_Pair(after, other, on, Subject(file, f"{other.label} → {after.label}", where)))
    return tuple(checks)


def flips_gate(
    flipped: np.ndarray, subject: Subject, *, max_share: float | None, max_count: int | None, groups: np.ndarray | None
) -> tuple[Check, ...]:
    """One check per limit, from flipped: bool [n]. A count is held to the limit as it is, a share by Wilson's interval.

    Images in groups count for fewer (`design_effect`). No images fail both.
    """
    n, count = len(flipped), int(flipped.sum())
    share = count / n if n else math.nan
    told = f"{count:,} of {n:,} images change their answer"
    checks = []
    if max_count is not None:
        verdict = verdict_of(count <= max_count and n > 0, False)
        message = f"{told}, {'within' if verdict == 'pass' else 'beyond'} the limit of {max_count:,}"
        measured = finite(float(count))
        checks.append(
            Check(subject.name, subject.hop, "flips", verdict, message, measured, max_count, "images", subject.where)
        )
    if max_share is not None:
        low, high = wilson(share, n / design_effect(flipped, groups)) if n else (math.nan, math.nan)
        verdict = verdict_of(high <= max_share, low <= max_share)
        reason = {"pass": "more is excluded", "fail": "which is beyond it"}.get(verdict, "more is possible")
        interval = f"{_percent(share)} %, 95 % interval {_percent(low)} to {_percent(high)}"
        message = f"{told}: {interval}; limit {_percent(max_share)} %, {reason}"
        checks.append(
            Check(subject.name, subject.hop, "flips", verdict, message, finite(share), max_share, "%", subject.where)
        )
    return tuple(checks)


@dataclass(frozen=True, slots=True)
class _Pair:
    after: Answers
    other: Answers
    on: OnVal
    subject: Subject

    @property
    def outputs(self) -> tuple[Arrays, Arrays] | None:
        """The other's and what ships, under the same names; None where one of them is not known."""
        before, after = self.other.outputs, self.after.outputs
        if before is None or after is None or len(before) != len(after):
            return None
        return before, renamed_as(before, after)


def _accuracy(rule: AccuracyGate, pair: _Pair) -> tuple[Check, ...]:
    metric, interval = pair.on.metric, _difference(pair)
    limits = [] if rule.max_drop is None else [(rule.max_drop, "")]
    if rule.max_drop_relative is not None:
        value = _value(pair.other, metric)
        shown = f"{_percent(value)} %" if metric.unit == "%" else f"{value:.4f}"
        basis = f"{rule.max_drop_relative * 100:g} % of the {shown} of the {pair.other.label}"
        limits.append((rule.max_drop_relative * abs(value), basis))
    return tuple(
        accuracy_gate(
            interval, pair.subject, max_drop=limit, higher_is_better=metric.higher_is_better, unit=metric.unit,
            basis=basis,
        )
        for limit, basis in limits
    )  # fmt: skip


def _per_class(gate: PerClassGate, pair: _Pair) -> tuple[Check, ...]:
    after, before, on = pair.after.per_sample, pair.other.per_sample, pair.on
    if after is None or before is None:
        return (_open(pair.subject, "per_class", f"the {pair.other.label} tells nothing of single images"),)
    scores = class_scores(on.metric, after, before, labels=on.labels, groups=on.groups, class_names=on.class_names)
    if scores is None:
        return (_open(pair.subject, "per_class", "there are no classes to tell apart"),)
    unit = on.metric.unit
    return (per_class_gate(scores, pair.subject, max_drop=gate.max_drop, min_images=gate.min_images, unit=unit),)


def _flips(gate: FlipsGate, pair: _Pair) -> tuple[Check, ...]:
    before, after = pair.other.answers, pair.after.answers
    if before is None or after is None:
        return (_open(pair.subject, "flips", f"the answers of the {pair.other.label} are not known"),)
    share, count = gate.max_share, gate.max_count
    changed = pair.on.metric.task.moves(before, renamed_as(before, after)).changed
    return flips_gate(changed, pair.subject, max_share=share, max_count=count, groups=pair.on.groups)


def _outputs(gate: OutputsGate, pair: _Pair) -> tuple[Check, ...]:
    if pair.outputs is None:
        return (_open(pair.subject, "outputs", f"the outputs of the {pair.other.label} are not known"),)
    found = compare_outputs(*pair.outputs)
    intact = all(one.finite for one in found)
    checks = []
    if gate.max_error is not None:
        error = max(one.max_abs for one in found) if intact else math.nan
        checks.append(outputs_gate(error, pair.subject, limit=gate.max_error))
    if gate.cosine is not None:
        cosine = min(one.cosine for one in found) if intact else math.nan
        checks.append(_cosine_gate(cosine, pair.subject, minimum=gate.cosine))
    return tuple(checks)


def _cosine_gate(cosine: float, subject: Subject, *, minimum: float) -> Check:
    verdict = verdict_of(cosine >= minimum, False)
    side = "not under" if verdict == "pass" else "under"
    message = f"smallest cosine of outputs {cosine:.6f}, {side} the limit of {minimum:g}"
    return Check(subject.name, subject.hop, "outputs", verdict, message, finite(cosine), minimum, "", subject.where)


def _difference(pair: _Pair) -> Interval:
    """In pairs where both are known image by image, else by the figures; open where these give no interval."""
    metric, after, other = pair.on.metric, pair.after, pair.other
    assert after.per_sample is not None
    if other.per_sample is not None:
        return paired(metric, after.per_sample, other.per_sample, groups=pair.on.groups)
    now, was = _value(after, metric), _value(other, metric)
    scores = next(iter(after.per_sample.values()))
    if metric.unit == "%" and other.n is not None:
        effect = design_effect(scores, pair.on.groups)
        return share_difference(now, was, n=(len(scores), other.n), design_effect=effect)
    lacking = "its number of images" if metric.unit == "%" else "what each image cost"
    return Interval(now - was, -math.inf, math.inf, 0.95, f"the {other.label} does not tell {lacking}", len(scores))


def _value(answers: Answers, metric: Metric) -> float:
    if answers.per_sample is not None:
        return metric.reduce(answers.per_sample)
    return math.nan if answers.value is None else answers.value


def _percent(share: float) -> str:
    return f"{share * 100:.2f}"


def _open(subject: Subject, kind: Kind, message: str, verdict: Verdict = "inconclusive") -> Check:
    return Check(subject.name, subject.hop, kind, verdict, message, where=subject.where)
