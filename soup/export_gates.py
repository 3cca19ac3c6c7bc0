"""The gates of val.yaml on one file of an export, from what it answered to all of val and how long it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from exporters.interleaved import Pair
from exporters.latency import Latency
from exporters.runtimes import Runtime
from soup import Progress
from soup.answer_gates import Answers, OnVal, answer_checks
from soup.baseline import LABEL, Baseline, baseline_answers, open_runtime, refuse_missing
from soup.contract import Interface, contract_check
from soup.evaluate import Evaluation
from soup.export_source import Source
from soup.gate_sections import Against
from soup.gates import Check, Place, Subject
from soup.proof import Artifact, latency_checks
from soup.release_facts import latency_rule
from soup.time_gates import Ratio, ratio_gate, ratio_of_pair, ratio_to_figures, throughput_gate


@dataclass(frozen=True, slots=True)
class Held:
    """What an export is held against on val, by the names of `against`; the baseline, and the soup over best single."""

    against: Mapping[Against, Answers]
    baseline: Baseline | None = None
    cost: Pair | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a file took, and where; `beside` times it in turns with another runtime."""

    latency: Latency
    place: Place
    beside: Callable[[Runtime], Pair]


def hold(source: Source, baseline: Baseline | None, now: Interface, *, cost: Pair | None, progress: Progress) -> Held:
    """The references of all gates; the baseline is asked only where a gate names it.

    Raises SoupError where a gate names a baseline and there is none, or it cannot be compared with.
    """
    gates, record, val = source.config.gates, source.built.record, source.val
    refuse_missing(gates.against_baseline, baseline)
    best_single = source.built.per_sample("best_single", "val")
    against: dict[Against, Answers] = {
        "best_single": Answers("best single", best_single, None, record.best_single.val, len(val)),
        "soup": Answers.of(source.label, source.answers["val"]),
    }
    asked = [name for name in gates.against_baseline if name != "gates.latency.relative"]
    if baseline is not None and asked:
        task = source.config.task
        against["baseline"] = baseline_answers(baseline, val, source.metric, now=now, task=task, progress=progress)
    return Held(against, baseline, cost)


def interface_check(baseline: Baseline | None, now: Interface) -> tuple[Check, ...]:
    """What a device's code is written against, and what changed of it."""
    if baseline is None or baseline.interface is None:
        return ()
    return (contract_check(baseline.interface, now, Subject("interface", f"{LABEL} → release")),)


def gate_checks(
    source: Source, artifact: Artifact, answers: Evaluation, held: Held, timing: Timing
) -> tuple[Check, ...]:
    """Every gate that val.yaml sets and this file can answer."""
    where = str(timing.place)
    return (*answer_gates(source, artifact, answers, held, where=where), *_time_checks(source, artifact, held, timing))


def answer_gates(
    source: Source, artifact: Artifact, answers: Evaluation, held: Held, *, where: str | None
) -> tuple[Check, ...]:
    """What it answers against what the gates compare it with, on all of val."""
    val = source.val
    on = OnVal(source.metric, val.targets.get("label"), val.groups, val.class_names)
    after = Answers.of(artifact.label, answers)
    return answer_checks(source.config.gates, after, held.against, on=on, file=artifact.file, where=where)


def _time_checks(source: Source, artifact: Artifact, held: Held, timing: Timing) -> tuple[Check, ...]:
    gates, place = source.config.gates, timing.place
    subject = Subject(artifact.file, "gate", str(place))
    checks: list[Check] = []
    if (rule := latency_rule(gates)) is not None:
        checks += latency_checks(timing.latency, subject, rule=rule, actual=place)
    if gates.latency is not None and (relative := gates.latency.relative) is not None:
        wanted = Place(gates.latency.runtime, gates.latency.device)
        if (ratio := _ratio(held, timing, relative.against)) is not None:
            checks.append(
                ratio_gate(ratio, subject, max_ratio=relative.max_ratio, against=relative.against, wanted=wanted,
                           actual=place)
            )  # fmt: skip
    if (floor := gates.throughput) is not None:
        wanted = Place(floor.runtime, floor.device)
        checks.append(throughput_gate(timing.latency, subject, min_per_s=floor.min_per_s, wanted=wanted, actual=place))
    return tuple(checks)


def _ratio(held: Held, timing: Timing, against: str) -> Ratio | None:
    """The time over the reference's: of the FP32 graphs in turns for the best single; None where there is none."""
    if against == "best_single":
        return None if held.cost is None else ratio_of_pair(held.cost)
    assert held.baseline is not None
    if held.baseline.file is None:
        return ratio_to_figures(timing.latency, held.baseline.metrics)
    with open_runtime(held.baseline) as other:
        return ratio_of_pair(timing.beside(other))
