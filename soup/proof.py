"""What an artifact is asked wherever it is opened, at export and on the device: its outputs, its latency."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from exporters.device_state import state_reader
from exporters.engine import open_engine
from exporters.interleaved import Pair, Turns, measure_pair
from exporters.latency import Contract, Latency, measure
from exporters.onnx_to_tensorrt import EngineBuild
from exporters.pacing import Timing
from exporters.parity import FP32_TOLERANCE, compare_outputs, quantile_abs
from exporters.precision import Precision
from exporters.runtimes import Arrays, Predict, Runtime, RuntimeInfo, TensorInfo, device_name, open_onnx
from soup.attempts import Attempt
from soup.build_folder import Hop
from soup.gates import Check, Place, Quantile, State, Subject, latency_gate, outputs_gate, verdict_of
from soup.tasks import Metric, Moves, Task

TIMING = Timing()  # 500 calls can bear a p99 (459 are needed); slow models stop by time
_TURNS = Turns(blocks=40, max_seconds=15.0)
BOXES_TOLERANCE = 0.01  # near ties of scores and overlaps fall the other way, by rounding alone
WITH_NMS = " + NMS"  # behind a file's name: its time with what follows in numpy
TIMED = f"{TIMING.iterations} calls or {TIMING.max_seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of a release that can run: `batch` is samples per call, static or (min, opt, max)."""

    file: str
    kind: Literal["onnx", "engine"]
    sha256: str
    batch: int | tuple[int, int, int]
    tolerance: float = FP32_TOLERANCE  # largest difference of outputs, as a share of max(1, their magnitude)
    precision: Precision = "fp32"
    boxes: bool = False  # NMS is inside: `tolerance` is then the share of boxes that may be others

    @property
    def label(self) -> str:
        """As a hop names it."""
        if self.kind == "engine":
            return "engine"
        return "ONNX" if self.precision == "fp32" else self.precision.upper()

    @property
    def timed_batch(self) -> int:
        """Samples per call when its latency is measured: the static batch, or `opt`."""
        return self.batch if isinstance(self.batch, int) else self.batch[1]


class Said(Protocol):
    """What a model gave for the same samples as another."""

    @property
    def outputs(self) -> Arrays | None:
        """All that it returned."""

    @property
    def answers(self) -> Arrays | None:
        """What they say, as its task has it."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was shown of an artifact, and where."""

    artifact: str
    runtime: str
    version: str
    provider: str
    device: str
    proved: tuple[str, ...]

    @property
    def ran(self) -> bool:
        """Whether it was executed, and not only built."""
        return "outputs" in self.proved


@dataclass(frozen=True, slots=True)
class LatencyRule:
    """`gates.latency`: limits in milliseconds by percentile (50, 90, 99), and the place that they hold for."""

    limits_ms: Mapping[int, float]
    wanted: Place


@dataclass(slots=True)
class Findings:
    """What an export or a verification has found so far; grows from step to step."""

    hops: list[Hop] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    verified: list[Proof] = field(default_factory=list)
    latency: dict[str, Latency] = field(default_factory=dict)  # by artifact
    values: dict[str, float | None] = field(default_factory=dict)  # the metric by artifact, on `split`
    done: dict[str, State] = field(default_factory=dict)  # what `gates.require` may name
    notes: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)  # precisions in the order in which they were tried
    cost: Pair | None = None  # the soup's time over the best single's

    def keep(self, files: Collection[str]) -> None:
        """Forget what was measured of other files: they do not ship."""
        self.verified = [proof for proof in self.verified if proof.artifact in files]
        self.latency = {name: one for name, one in self.latency.items() if name.removesuffix(WITH_NMS) in files}
        self.values = {name: value for name, value in self.values.items() if name in files}


def open_artifact(folder: Path, artifact: Artifact) -> AbstractContextManager[Runtime]:
    """The file as a runtime, its hash checked before a byte of it is used."""
    path = folder / artifact.file
    if artifact.kind == "engine":
        return open_engine(path, expected_sha256=artifact.sha256)
    return open_onnx(path, expected_sha256=artifact.sha256, batch=artifact.batch)


def place_of(info: RuntimeInfo, *, device: str | None = None) -> Place:
    """Runtime and device as gates name them; `device` is what the user calls it, where they said so."""
    name = f"cpu ({info.device})" if info.provider == "CPUExecutionProvider" else info.device
    return Place(info.runtime, device or name)


def proof_of(artifact: Artifact, info: RuntimeInfo, *, proved: tuple[str, ...]) -> Proof:
    """A line of the manifest's `verified` list."""
    return Proof(artifact.file, info.runtime, info.version, info.provider, info.device, proved)


def built_proof(file: str, engine: EngineBuild) -> Proof:
    """What a build alone shows of an engine."""
    layers = "layers not readable" if engine.layers is None else f"{engine.layers} layers read back"
    proved = (f"built for {_target(engine)}", layers)
    return Proof(file, engine.flavour, engine.version, "ahead of time", device_name(), proved)


def built_check(engine: EngineBuild) -> Check:
    """The build as a check that passed, with its figures."""
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in engine.dtypes.items())
    layers = "layers not readable" if engine.layers is None else f"{engine.layers} layers ({dtypes})"
    message = (
        f"{engine.flavour} {engine.version} built it for {_target(engine)}: {layers}, "
        f"{engine.size_bytes / 1e6:.1f} MB, {engine.seconds:.1f} s, "
        f"peak memory {engine.peak_memory_bytes / 1e6:.0f} MB"
    )
    return Check("engine", "ONNX → engine", "build", "pass", message, where=engine.flavour)


def as_fed(inputs: Arrays, expected: Sequence[TensorInfo]) -> dict[str, np.ndarray]:
    """A network's inputs under the graph's names and in its dtypes, by position."""
    pairs = zip(expected, inputs.values(), strict=True)
    return {info.name: array.astype(info.dtype, copy=False) for info, array in pairs}


def fed(runtime: Runtime) -> Predict:
    """The runtime as a Predict that takes the network's own inputs."""
    return lambda inputs: runtime(as_fed(inputs, runtime.inputs))


def parity_check(
    before: Said, after: Said, task: Task, subject: Subject, *, boxes: bool, limit: float
) -> Check:  # fmt: skip
    """The `outputs_check` of two models; where a graph ends in `boxes` that NMS left, their `boxes_check`."""
    if boxes:
        return boxes_check(task.moves(before.answers or {}, after.answers or {}), subject, limit=limit)
    return outputs_check(before.outputs or {}, after.outputs or {}, subject, limit=limit, turned=task.turned)


def outputs_check(
    reference: Arrays, outputs: Arrays, subject: Subject, *, limit: float = FP32_TOLERANCE, turned: float = 0.0
) -> Check:
    """The largest difference of any output, as a share of max(1, the reference's largest magnitude); NaN fails.

    Outputs are compared by position: an export may rename them, never reorder them. A share `turned` of an output's
    values may differ by more: a graph that decides (is this a peak?) turns a near tie by rounding alone.
    """
    renamed = dict(zip(reference, outputs.values(), strict=True))
    differences = compare_outputs(reference, renamed)
    shares = [one.max_abs / max(1.0, one.scale) if one.finite else math.nan for one in differences]
    worst = math.nan if any(map(math.isnan, shares)) else max(shares)
    if turned and worst > limit:
        pairs = zip(differences, reference.values(), renamed.values(), strict=True)
        kept = max(quantile_abs(a, b, 1 - turned) / max(1.0, one.scale) for one, a, b in pairs)
        check = outputs_gate(kept, subject, limit=limit)
        told = f"{check.message} but for {turned:.2%} of the values, whose largest is {worst:.2e}"
        return replace(check, message=told)
    return outputs_gate(worst, subject, limit=limit)


def boxes_check(moves: Moves, subject: Subject, *, limit: float) -> Check:
    """The share of boxes that are lost, new or moved between two sets of answers; fails beyond `limit`."""
    changed = sum(moves.figures[key] for key in ("lost", "new", "moved"))
    share = changed / max(1.0, moves.figures["boxes"])
    verdict = verdict_of(share <= limit, False)
    side = "within" if verdict == "pass" else "beyond"
    message = f"{moves.text}: {share:.2%} of the boxes are others, {side} the limit of {limit:.2%}"
    return Check(subject.name, subject.hop, "outputs", verdict, message, share, limit, "", subject.where)


def prove_latency(
    runtime: Runtime, artifact: Artifact, inputs: Arrays, findings: Findings, *,
    rule: LatencyRule | None, device: str | None,
) -> None:  # fmt: skip
    """Time the runtime and judge it by `gates.latency`, where one is set."""
    latency = findings.latency[artifact.file] = time_runtime(runtime, inputs, artifact)
    if rule is not None:
        actual = place_of(runtime.info, device=device)
        findings.checks += latency_checks(
            latency, Subject(artifact.file, "gate", str(actual)), rule=rule, actual=actual
        )


def time_runtime(
    runtime: Runtime, inputs: Arrays, artifact: Artifact, *, timing: Timing | None = None, transfers: bool = True,
    then: Callable[[Arrays], object] | None = None,
) -> Latency:  # fmt: skip
    """Latency of one call with `timed_batch` of the given inputs, invalid where the device was throttled meanwhile.

    `transfers` counts the copies to the device and back; else inputs lie there already and outputs stay. `then` is what
    follows on the outputs of each call, and is timed with it.
    """
    batch = _one_call(inputs, artifact)
    contract: Contract = {
        "batch": artifact.timed_batch,
        "runtime": runtime.info.runtime,
        "provider": runtime.info.provider,
        "cores": len(os.sched_getaffinity(0)),  # ONNX Runtime takes a thread for each
        "transfers_included": transfers,
    }
    latency = measure(
        _timed(runtime, batch, transfers, then), timing or TIMING, contract=contract,
        gpu_ms=lambda: runtime.last_gpu_ms, state=state_reader(),
    )  # fmt: skip
    return replace(latency, contract={**latency.contract, "cuda_graph": runtime.cuda_graph})  # captured meanwhile


def _timed(
    runtime: Runtime, batch: Arrays, transfers: bool, then: Callable[[Arrays], object] | None
) -> Callable[[], object]:  # fmt: skip
    if then is not None:
        return lambda: then(runtime(batch))
    return (lambda: runtime(batch)) if transfers else runtime.resident(batch)


def suppression_of(metric: Metric, targets: Arrays, artifact: Artifact) -> Callable[[Arrays], object]:
    """What is left to do after a detector whose NMS is not inside: boxes thinned out in numpy, for each timed call."""
    rows = np.arange(artifact.timed_batch) % len(next(iter(targets.values())))
    first = {name: array[rows] for name, array in targets.items()}
    return lambda outputs: metric.task.answers(outputs, first)


def time_in_turns(runtime: Runtime, other: Runtime, inputs: Arrays, artifact: Artifact) -> Pair:
    """The time of `runtime` over that of `other`, which is fed the same `timed_batch` of samples by position."""
    feed = _one_call(inputs, artifact)
    theirs = as_fed(feed, other.inputs)
    contract: Contract = {
        "batch": artifact.timed_batch,
        "runtime": runtime.info.runtime,
        "provider": runtime.info.provider,
    }
    return measure_pair(
        lambda: runtime(feed), lambda: other(theirs), turns=_TURNS, contract=contract, state=state_reader()
    )


def _one_call(inputs: Arrays, artifact: Artifact) -> dict[str, np.ndarray]:
    """As many samples as one timed call takes, from the beginning again where there are too few."""
    rows = np.arange(artifact.timed_batch)
    return {name: array[rows % len(array)] for name, array in inputs.items()}


def latency_checks(latency: Latency, subject: Subject, *, rule: LatencyRule, actual: Place) -> tuple[Check, ...]:
    """One check per limit of the rule."""
    measured = {
        50: (latency.p50_ms, latency.p50_upper_ms),
        90: (latency.p90_ms, latency.p90_upper_ms),
        99: (latency.p99_ms, latency.p99_upper_ms),
    }
    return tuple(
        latency_gate(
            Quantile(percent, *measured[percent], latency.samples, latency.throttled), subject,
            limit_ms=limit, wanted=rule.wanted, actual=actual,
        )
        for percent, limit in rule.limits_ms.items()
    )  # fmt: skip


def _target(engine: EngineBuild) -> str:
    return ", ".join(engine.compute_capabilities) or "any GPU from Ampere on"
