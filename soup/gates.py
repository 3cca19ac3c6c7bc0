"""Measurements become verdicts, and verdicts an exit code. Pure: nothing is measured here, nothing is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

from soup.files import finite
from soup.statistics import Interval, difference_text, interval_text, samples_needed

Verdict = Literal["pass", "fail", "inconclusive", "pending"]
Kind = Literal[
    "hash", "outputs", "contract", "precision", "size", "memory", "dla", "accuracy", "per_class", "flips", "gain",
    "latency", "throughput", "speedup", "require", "build",
]  # fmt: skip
State = Literal["done", "pending", "failed"]

ACCURACY_KINDS: tuple[Kind, ...] = ("accuracy", "per_class", "flips")  # what a graph answers to all of val
DEVICE_KINDS: tuple[Kind, ...] = (  # what a device can say for itself
    "outputs", "accuracy", "latency", "throughput", "speedup", "size", "memory", "dla", "precision", "build",
)  # fmt: skip
TAIL_CONFIDENCE = 0.99  # of a percentile's upper bound


_ROUNDING = 1e-9  # a gap that is smaller comes from floating point, and not from any number of samples


class Exit(IntEnum):
    """Every exit code of the command line."""

    OK = 0  # nothing failed and nothing that was required is open
    CHECK = 1  # a check without a code of its own: hash, outputs, precision, contract, size, memory, DLA
    INPUT = 2  # the user can fix it: configuration, input, a full disk
    ACCURACY = 3  # a gate of what the model answers failed: accuracy, gain, a class, flips
    LATENCY = 4  # a gate of time failed: latency, throughput, speedup of INT8
    UNDECIDED = 5  # a gate cannot be decided with these samples
    ENVIRONMENT = 6  # environment or target cannot do what was asked, or something required was not run
    BUILD = 7  # ONNX or engine could not be built
    BUG = 70
    INTERRUPTED = 130


PRIORITY = (Exit.INPUT, Exit.CHECK, Exit.BUILD, Exit.ENVIRONMENT, Exit.ACCURACY, Exit.LATENCY, Exit.UNDECIDED)
_FAILED: Mapping[Kind, Exit] = {
    "hash": Exit.CHECK, "outputs": Exit.CHECK, "precision": Exit.CHECK, "contract": Exit.CHECK, "size": Exit.CHECK,
    "memory": Exit.CHECK, "dla": Exit.CHECK, "build": Exit.BUILD, "require": Exit.ENVIRONMENT,
    "accuracy": Exit.ACCURACY, "per_class": Exit.ACCURACY, "flips": Exit.ACCURACY, "gain": Exit.ACCURACY,
    "latency": Exit.LATENCY, "throughput": Exit.LATENCY, "speedup": Exit.LATENCY,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """What a check is about: its name, its hop ("torch→onnx", "files", …), and the runtime and device it ran on."""

    name: str
    hop: str
    where: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One verdict and what it rests on; `measured` and `limit` are in `unit`, where "%" means a fraction of one.

    `measured` is None where nothing was, or where it is not a finite number.
    """

    name: str
    hop: str
    kind: Kind
    verdict: Verdict
    message: str
    measured: float | None = None
    limit: float | None = None
    unit: str = ""
    where: str | None = None
    samples_needed: int | None = None


@dataclass(frozen=True, slots=True)
class Quantile:
    """A measured percentile of latency and its order-statistic upper bound (None where there were too few samples).

    `invalid` says why it counts for nothing: the device was throttled meanwhile.
    """

    percent: float
    value_ms: float
    upper_ms: float | None
    samples: int
    invalid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A runtime and a device, by name; None means any."""

    runtime: str | None
    device: str | None

    def __str__(self) -> str:
        return f"{self.runtime or 'any runtime'} on {self.device or 'any device'}"


def accuracy_gate(
    interval: Interval, subject: Subject, *, max_drop: float, higher_is_better: bool, unit: str = "%", basis: str = ""
) -> Check:
    """Pass where a drop beyond `max_drop` is excluded, fail where it is shown, inconclusive between; NaN fails.

    `basis` says in words where the limit comes from, as in "1 % of 93.00 %".
    """
    drop = reversed_interval(interval) if higher_is_better else interval
    verdict = verdict_of(drop.high <= max_drop, drop.low <= max_drop)
    limit = difference_text(max_drop, unit=unit).lstrip("+") + (f" ({basis})" if basis else "")
    reason = {
        "pass": f"a drop beyond {limit} is excluded",
        "fail": f"the drop is beyond the limit of {limit}",
    }.get(verdict, f"a drop beyond {limit} is neither shown nor excluded")
    needed = would_decide(drop, max_drop) if verdict == "inconclusive" else None
    message = _sentence(interval, reason, unit=unit, needed=needed)
    measured = finite(drop.estimate)
    return Check(
        subject.name, subject.hop, "accuracy", verdict, message, measured, max_drop, unit, subject.where, needed
    )


def gain_gate(
    interval: Interval, subject: Subject, *, min_gain: float, higher_is_better: bool, unit: str = "%"
) -> Check:
    """Pass where a gain of at least `min_gain` is shown, fail where it is excluded, inconclusive between; NaN fails."""
    gain = interval if higher_is_better else reversed_interval(interval)
    verdict = verdict_of(gain.low >= min_gain, gain.high >= min_gain)
    limit = difference_text(min_gain, unit=unit).lstrip("+")
    reason = {
        "pass": f"a gain of at least {limit} is shown",
        "fail": f"the gain is below the {limit} asked for",
    }.get(verdict, f"a gain of at least {limit} is neither shown nor excluded")
    needed = would_decide(gain, min_gain) if verdict == "inconclusive" else None
    message = _sentence(interval, reason, unit=unit, needed=needed)
    measured = finite(gain.estimate)
    return Check(subject.name, subject.hop, "gain", verdict, message, measured, min_gain, unit, subject.where, needed)


def compare(interval: Interval, *, higher_is_better: bool) -> Literal["better", "worse", "undecided"]:
    """Whether zero lies outside the interval, and on which side; undecided where it is NaN."""
    gain = interval if higher_is_better else reversed_interval(interval)
    if gain.low > 0:
        return "better"
    return "worse" if gain.high < 0 else "undecided"


def outputs_gate(
    measured: float, subject: Subject, *, limit: float, what: str = "largest difference of outputs"
) -> Check:
    """Pass where `measured <= limit`; NaN fails."""
    verdict = verdict_of(measured <= limit, False)
    message = f"{what} {measured:.2e}, {'within' if verdict == 'pass' else 'beyond'} the limit of {limit:.2e}"
    return Check(subject.name, subject.hop, "outputs", verdict, message, finite(measured), limit, "", subject.where)


def latency_gate(quantile: Quantile, subject: Subject, *, limit_ms: float, wanted: Place, actual: Place) -> Check:
    """Pass where the percentile's upper bound is within the limit, fail where its estimate is beyond it.

    Inconclusive between the two, with fewer samples than `samples_for` the percentile, and where the measurement is
    invalid. Pending where it was measured on another runtime or device than the gate names (`same_place`). NaN fails.
    """
    value, upper = quantile.value_ms, math.inf if quantile.upper_ms is None else quantile.upper_ms
    label, needed = f"p{quantile.percent:g}", samples_for(quantile.percent)
    message = f"{label} {value:.2f} ms on {actual} from {quantile.samples:,} samples"
    check = Check(
        subject.name, subject.hop, "latency", "pending", message, finite(value), limit_ms, "ms", subject.where
    )
    if not same_place(wanted, actual):
        return replace(check, message=f"{message}, but the gate of {limit_ms:g} ms names {wanted}")
    if quantile.invalid and math.isfinite(value):
        return replace(check, verdict="inconclusive", message=f"{message}, {invalid_text(quantile.invalid)}")
    if quantile.samples < needed and math.isfinite(value):
        message += f": too few, {label} needs {needed}"
        return replace(check, verdict="inconclusive", message=message, samples_needed=needed)
    message += f", at most {upper:.2f} ms with {TAIL_CONFIDENCE * 100:g} % confidence; limit {limit_ms:g} ms"
    return replace(check, verdict=verdict_of(upper <= limit_ms, value <= limit_ms), message=message)


def invalid_text(reasons: Sequence[str]) -> str:
    """Why a measurement of time cannot judge."""
    return f"which counts for nothing, since the device was slowed down meanwhile: {'; '.join(reasons)}"


def samples_for(percent: float) -> int:
    """The fewest samples whose maximum bounds a percentile at TAIL_CONFIDENCE: 459 for p99, 44 for p90, 7 for p50."""
    return math.ceil(math.log(1 - TAIL_CONFIDENCE) / math.log(percent / 100))


def same_place(wanted: Place, actual: Place) -> bool:
    """Whether a gate for `wanted` may judge what was measured on `actual`.

    "tensorrt" stands for TensorRT-RTX too. Every word of the wanted device must stand together in the actual name, as
    "orin-nano" does in "NVIDIA Jetson Orin Nano Developer Kit" and "cpu" in "cpu (AMD EPYC 7B13)".
    """
    runtime = actual.runtime or ""
    runtimes = {runtime, "tensorrt"} if runtime.startswith("tensorrt") else {runtime}
    device = wanted.device is None or f"-{_slug(wanted.device)}-" in f"-{_slug(actual.device or '')}-"
    return device and (wanted.runtime is None or wanted.runtime in runtimes)


def require_gates(required: Sequence[str], done: Mapping[str, State]) -> tuple[Check, ...]:
    """One check per name in `gates.require`: pending where it was not run, fail where it was tried without success."""
    outcomes: Mapping[State, tuple[Verdict, str]] = {
        "done": ("pass", "required by gates.require, was done"),
        "pending": ("pending", "required by gates.require, was not run here"),
        "failed": ("fail", "required by gates.require, did not succeed"),
    }
    found = [(name, *outcomes[done.get(name, "pending")]) for name in required]
    return tuple(Check(name, "gate", "require", verdict, f"'{name}' {text}") for name, verdict, text in found)


def exit_code(checks: Iterable[Check], *, allow_inconclusive: bool = False) -> Exit:
    """The code that these checks end with; of several, the first in PRIORITY.

    A pending latency gate is open but nobody required it: 0. A check is only ever made for what the user set.
    """
    return first_exit(_exit_of(check, allow_inconclusive=allow_inconclusive) for check in checks)


def stopping(checks: Iterable[Check], *, allow_inconclusive: bool = False) -> Check | None:
    """What keeps a file from shipping: the first check that fails, else the first that is undecided; None lets it ship.

    What nobody here could run or build is open, and does not: the device will tell.
    """
    may = (Exit.OK, Exit.ENVIRONMENT)
    found = [check for check in checks if _exit_of(check, allow_inconclusive=allow_inconclusive) not in may]
    return min(found, key=lambda check: check.verdict != "fail", default=None)


def why_not(checks: Iterable[Check], *, allow_inconclusive: bool = False) -> str | None:
    """`stopping` in words."""
    check = stopping(checks, allow_inconclusive=allow_inconclusive)
    return None if check is None else f"{check.name}, {check.hop}: {check.message}"


def first_exit(codes: Iterable[Exit]) -> Exit:
    """The code that wins when several things went wrong at once."""
    found = set(codes)
    return next((code for code in PRIORITY if code in found), Exit.OK)


def _exit_of(check: Check, *, allow_inconclusive: bool) -> Exit:
    if check.verdict == "fail":
        return _FAILED[check.kind]
    if check.verdict == "pending":
        return Exit.ENVIRONMENT if check.kind == "require" else Exit.OK
    return Exit.UNDECIDED if check.verdict == "inconclusive" and not allow_inconclusive else Exit.OK


def verdict_of(certainly: bool, possibly: bool) -> Verdict:
    """Pass, fail or inconclusive from two comparisons: NaN makes both false, and so fails."""
    if certainly:
        return "pass"
    return "inconclusive" if possibly else "fail"


def reversed_interval(interval: Interval) -> Interval:
    """Of before - after."""
    return Interval(
        0.0 - interval.estimate, 0.0 - interval.high, 0.0 - interval.low,
        interval.confidence, interval.method, interval.n, interval.groups,
    )  # fmt: skip


def would_decide(interval: Interval, limit: float) -> int | None:
    """About how many samples would decide; None where the estimate is the limit but for rounding, and none would."""
    return None if abs(interval.estimate - limit) < _ROUNDING else samples_needed(interval, limit)


def rounded(count: int) -> int:
    """A number of samples, rounded up: two digits are all that "about" may claim."""
    step: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step


def _sentence(interval: Interval, reason: str, *, unit: str, needed: int | None) -> str:
    if math.isnan(interval.estimate):
        return f"the difference is not a number: {interval.method}"
    hint = "" if needed is None else f"; about {rounded(needed):,} samples would decide"
    return f"{interval_text(interval, unit=unit)}: {reason}{hint}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
