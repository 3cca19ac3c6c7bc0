"""Which runtime evaluates the candidates: torch, or ONNX Runtime with torch's own answer wherever it could differ."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import nn

from exporters.runtimes import Arrays, Predict
from soup import SoupError
from soup.evaluate import check_rows
from soup.models import load, torch_predict
from soup.swappable import Session, Swappable, export_swappable, open_session
from soup.tasks import Metric
from soup.tensors import StateDict

T = TypeVar("T")
SAFETY = 8.0  # the error that is reckoned with, over the largest that was measured
TOLERANCE = 1e-3  # the largest error that is taken for rounding, over the largest output
_CHECKED_ROWS = 16  # of each candidate, by both
_SMALL_BATCHES = (1, 3)
_WORTH_IT_S = 2.0  # a search that torch ends sooner gains nothing from an export
_GAIN = 0.9  # of torch's time: less is not worth the second runtime
_PROTOBUF_LIMIT = 2 * 1024**3 - 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be evaluated: about `samples` by each of `candidates`, at most `batch` at once."""

    candidates: int
    samples: int
    batch: int


@dataclass(slots=True)
class Backend:
    """What evaluates the candidates and why; `images` counts what each runtime has forwarded for them so far.

    `error` is SAFETY times the largest difference of an output from torch's on the trial, whose largest output was
    `magnitude`; larger outputs count on a larger error. `session_s` is the time that opening a candidate takes.
    """

    name: Literal["torch", "onnxruntime"]
    reason: str
    error: float = 0.0
    magnitude: float = 0.0
    images_per_second: Mapping[str, float] = field(default_factory=dict)
    session_s: float = 0.0
    images: dict[str, int] = field(default_factory=lambda: {"torch": 0, "onnxruntime": 0})
    graph: Swappable | None = None


def open_backend(
    model: nn.Module,
    inputs: Arrays,
    states: Sequence[StateDict],
    *,
    plan: Plan,
    metric: Metric,
    device: torch.device,
    wanted: Literal["auto", "torch", "onnxruntime"] = "auto",
    clock: Callable[[], float] = time.perf_counter,
) -> Backend:
    """The backend for candidates of `model`, tried on `inputs` (a batch or two) with the first two of `states`.

    It is ONNX Runtime where its outputs are torch's but for rounding, and for `auto` only where that is expected to
    save time. What is chosen never changes a statistic. The weights of `model` are other ones during the trial.
    """
    if reason := _refusal(model, inputs, states, device=device, wanted=wanted):
        return Backend("torch", reason)
    with _put_back(model):
        reference = torch_predict(model, device=device)
        load(model, states[0])
        reference(_first(inputs, plan.batch))  # the first call is slow
        outputs, slow_s = _timed(reference, _first(inputs, plan.batch), clock=clock)
        check_rows(outputs, min(plan.batch, _rows(inputs)))
        search_s = plan.candidates * plan.samples * slow_s / min(plan.batch, _rows(inputs))
        if metric.unsettled(outputs, 0.0) is None:
            return Backend("torch", f"any rounding changes {metric.name}")
        if wanted == "auto" and search_s < _WORTH_IT_S:
            return Backend("torch", f"the search takes about {search_s:.1f} s in torch")
        try:
            graph = export_swappable(model, next(iter(inputs.values())), outputs=tuple(outputs))
        except SoupError as error:
            return Backend("torch", str(error))
        trial = _Trial(graph, metric, reference, plan.batch, clock)
        for state in states[:2]:
            load(model, state)
            if problem := trial.run(state, inputs):
                return Backend("torch", problem)
    return trial.chosen(plan, wanted=wanted)


def predict_with(backend: Backend, state: StateDict, reference: Predict, *, metric: Metric) -> Predict:
    """`reference`, which must be torch with `state` loaded when it is called, or what gives its statistics sooner.

    Rows that `metric` calls unsettled, or that are not finite, are the reference's, made in the batch they came in:
    torch rounds batches of a few rows differently. The first rows are compared with the reference's; a larger error
    than in the trial is reckoned with from then on, and one that is no rounding leaves all rows to the reference.
    """
    session = open_session(backend.graph, state) if backend.graph is not None else None
    counted = _Counted(backend.images, reference)
    return counted if session is None else _Repeated(backend, session, counted, metric)


@dataclass(frozen=True, slots=True)
class _Counted:
    images: dict[str, int]
    reference: Predict

    def __call__(self, inputs: Arrays) -> Arrays:
        self.images["torch"] += _rows(inputs)
        return self.reference(inputs)


@dataclass(slots=True)
class _Repeated:
    """A candidate's session, with the reference's rows where they could decide."""

    backend: Backend
    session: Session
    reference: Predict
    metric: Metric
    error: float | None = None  # this candidate's, from its first rows on; infinite where it is more than rounding

    def __call__(self, inputs: Arrays) -> Arrays:
        fast = None if self.error == math.inf else self.session(inputs)
        if fast is None:
            return self.reference(inputs)
        self.backend.images["onnxruntime"] += _rows(inputs)
        if self.error is None:
            self.error = self._measured(inputs, fast)
        error = self.error * max(1.0, _largest(fast) / self.backend.magnitude)
        unsettled = self.metric.unsettled(fast, error) if error < math.inf else None
        if unsettled is None:
            return self.reference(inputs)
        repeated = unsettled | ~_finite(fast)
        if not repeated.any():
            return fast
        return {name: _where(repeated, slow, fast[name]) for name, slow in self.reference(inputs).items()}

    def _measured(self, inputs: Arrays, fast: Arrays) -> float:
        error, magnitude = _difference(self.reference(_first(inputs, _CHECKED_ROWS)), _first(fast, _CHECKED_ROWS))
        rounding = error <= TOLERANCE * max(magnitude, self.backend.magnitude)
        return max(self.backend.error, SAFETY * error) if rounding else math.inf


@dataclass(slots=True)
class _Trial:
    """The graph beside torch: how far apart their outputs are, how often that matters, and the seconds of each."""

    graph: Swappable
    metric: Metric
    reference: Predict
    batch: int
    clock: Callable[[], float]
    error: float = 0.0
    magnitude: float = 0.0
    session_s: float = math.inf
    fast_s: float = math.inf  # an image
    slow_s: float = math.inf
    outputs: list[Arrays] = field(default_factory=list)

    def run(self, state: StateDict, inputs: Arrays) -> str:
        """Try one state, which must be loaded in the reference; what is wrong with the graph, or nothing."""
        started = self.clock()
        session = open_session(self.graph, state)
        self.session_s = min(self.session_s, self.clock() - started)
        if session is None:
            return "ONNX Runtime cannot open the exported graph with these weights"
        for rows in _parts(_rows(inputs), self.batch):
            part = {name: array[rows] for name, array in inputs.items()}
            slow, slow_s = _timed(self.reference, part, clock=self.clock)
            fast, fast_s = _timed(session, part, clock=self.clock)
            if fast is None:
                return f"ONNX Runtime cannot run the exported graph on a batch of {_rows(part)}"
            if [array.shape for array in fast.values()] != [array.shape for array in slow.values()]:
                return f"the exported graph gives other shapes for a batch of {_rows(part)}"
            error, magnitude = _difference(slow, fast)
            if not error <= TOLERANCE * magnitude:
                return f"the exported graph's outputs are off by {error:.2g}, the largest is {magnitude:.2g}"
            self.error, self.magnitude = max(self.error, error), max(self.magnitude, magnitude)
            self.slow_s = min(self.slow_s, slow_s / _rows(part))
            self.fast_s = min(self.fast_s, fast_s / _rows(part))
            self.outputs.append(fast)
        return "" if self.magnitude > 0 else "all outputs are 0"

    def chosen(self, plan: Plan, *, wanted: str) -> Backend:
        """By the seconds that a candidate is expected to take in each."""
        error = SAFETY * max(self.error, float(np.finfo(np.float32).eps) * self.magnitude)
        unsettled = [self.metric.unsettled(fast, error) for fast in self.outputs if _rows(fast) not in _SMALL_BATCHES]
        repeated = float(np.mean([rows is None or bool(rows.any()) for rows in unsettled])) if unsettled else 1.0
        fast_s = plan.samples * (self.fast_s + repeated * self.slow_s) + self.session_s + _CHECKED_ROWS * self.slow_s
        slow_s = plan.samples * self.slow_s
        reason = (
            f"{fast_s:.3g} s a candidate, {repeated:.0%} of the batches repeated in torch, which takes {slow_s:.3g} s"
        )
        rates = {"torch": 1 / max(self.slow_s, 1e-9), "onnxruntime": 1 / max(self.fast_s, 1e-9)}
        if wanted == "auto" and not fast_s < _GAIN * slow_s:
            return Backend("torch", f"ONNX Runtime would take {reason}", error, self.magnitude, rates, self.session_s)
        reason = f"ONNX Runtime takes {reason}"
        return Backend("onnxruntime", reason, error, self.magnitude, rates, self.session_s, graph=self.graph)


def _refusal(
    model: nn.Module, inputs: Arrays, states: Sequence[StateDict], *, device: torch.device, wanted: str
) -> str:
    """Why ONNX Runtime is not even tried, or nothing."""
    tensors = [*model.parameters(), *model.buffers()]
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    # ENABLE_ALL crashed on a network in FP16 (onnxruntime 1.31.1).
    others = {str(tensor.dtype) for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()}
    others -= {str(torch.float32)}
    reasons = {
        "it was asked for": wanted == "torch",
        f"the network runs on {device.type}": device.type != "cpu",
        f"not installed: {', '.join(missing)}": bool(missing),
        f"the network has {len(inputs)} inputs": len(inputs) != 1,
        "there is nothing to try ONNX Runtime with": not states or not inputs or not _rows(inputs),
        "the inputs are not float32": any(array.dtype != np.float32 for array in inputs.values()),
        f"the network holds {', '.join(sorted(others))}": bool(others),
        "the weights take more than an ONNX file holds": sum(tensor.nbytes for tensor in tensors) > _PROTOBUF_LIMIT,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        yield
    finally:
        load(model, before)


def _timed(run: Callable[[Arrays], T], inputs: Arrays, *, clock: Callable[[], float]) -> tuple[T, float]:
    """The outputs and the seconds."""
    started = clock()
    outputs = run(inputs)
    return outputs, clock() - started


def _parts(rows: int, batch: int) -> list[slice]:
    """The small batches that a search also asks for, while a session warms up; then whole ones and the rest."""
    small = [slice(size) for size in _SMALL_BATCHES if size < min(rows, batch)]
    return small + [slice(start, start + batch) for start in range(0, rows, batch)]


def _first(arrays: Arrays, rows: int) -> Arrays:
    return {name: array[:rows] for name, array in arrays.items()}


def _rows(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _finite(arrays: Arrays) -> np.ndarray:
    """bool [n]: rows with neither NaN nor Inf."""
    finite = np.ones(_rows(arrays), bool)
    for array in arrays.values():
        finite &= np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return finite


def _largest(arrays: Arrays) -> float:
    """The largest absolute value that is finite."""
    finite = (array[np.isfinite(array)] for array in arrays.values())
    return max(float(np.abs(values).max(initial=0)) for values in finite)


def _difference(reference: Arrays, arrays: Arrays) -> tuple[float, float]:
    """The largest absolute difference and value, of the rows that are finite in the reference."""
    finite = _finite(reference)
    pairs = [(reference[name][finite].astype(np.float64), array[finite]) for name, array in arrays.items()]
    apart = [np.abs(slow - fast).max(initial=0) for slow, fast in pairs]
    return float(np.max(apart)), max(float(np.abs(slow).max(initial=0)) for slow, _ in pairs)


def _where(rows: np.ndarray, chosen: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.where(rows.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, other)
