"""A network's graph in each precision, by this project and by others, from the same calibration images."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.precision_networks import INPUT, LARGEST_BATCH, Subject
from calib.ranges import Method, measure_ranges
from calib.real_images import refuse_unreal
from exporters.audit import audit_onnx, int8_share
from exporters.onnx_to_int8 import calibration_tensors, onnx_to_int8
from exporters.runtimes import Arrays, OnnxRuntime
from exporters.tapped import tapped
from soup.attempts import Raised
from soup.export_sections import Quantization
from soup.files import sha256_bytes
from soup.ladder import SENSITIVITY_SAMPLES
from soup.sensitivity import Judged, Loss, Problem, raise_layers
from soup.tasks.classification import margins
from soup.variants import Forge, Images, Rules

Backend = Literal["onnxruntime", "modelopt"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile", "mse")
THEIRS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}  # onnxruntime has no MSE
DEFAULTS = Quantization()  # what a user who sets nothing gets
# What TensorRT can parse, which is not what quantize_static makes by default.
FOR_TENSORRT: Mapping[str, Any] = {
    "per_channel": True,
    "op_types_to_quantize": ["Conv", "Gemm", "MatMul"],
    "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
}
ALLOWED_POINTS, STRICT_POINTS = 0.5, 0.1  # of accuracy on val, below FP32; the second is there to make the pass work


def forge(subject: Subject, method: Method, *, count: int | None = None, backend: Backend = "onnxruntime") -> Forge:
    """What `soup export` makes variants with, for as many calibration images as its default or the first of them."""
    chosen = subject.calibration[: count or DEFAULTS.samples]
    rules = Rules(method=method, percentile=DEFAULTS.percentile, backend=backend, rest=DEFAULTS.rest)
    images = Images(chosen, sha256_bytes(chosen.tobytes()), "train")
    return Forge(subject.graph, lambda: images, rules, subject.name)


def quantized(subject: Subject, method: Method, *, count: int) -> bytes:
    """The graph that the forge makes, by the functions of calib and exporters, in one pass over the images."""
    inputs = subject.calibration[:count]
    refuse_unreal(inputs, where=subject.name)
    names = calibration_tensors(subject.graph)
    measured = measure_ranges(
        lambda: tapped(subject.graph, names, subject.batches(count), where=subject.name),
        method=method, percentile=DEFAULTS.percentile, unclipped=[INPUT],
    )  # fmt: skip
    return onnx_to_int8(subject.graph, measured, where=subject.name).model


def by_modelopt(subject: Subject, method: Method) -> bytes:
    """NVIDIA ModelOpt's graph, by the same door; in a process of its own, as it changes onnxruntime for all.

    (modelopt 0.47 replaces functions of onnxruntime.quantization: quantize_static fails after it.)
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_by_modelopt, subject, method).result()


def _by_modelopt(subject: Subject, method: Method) -> bytes:
    return forge(subject, method, backend="modelopt").make("int8").graph


def static(subject: Subject, method: Method, *, count: int | None = None, **settings: Any) -> bytes:
    """onnxruntime's quantize_static with its own defaults, but for the calibration method and `settings`."""
    from onnxruntime.quantization import CalibrationMethod, quantize_static

    with tempfile.TemporaryDirectory() as folder, silence():
        given, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        given.write_bytes(subject.graph)
        reader = Reader(subject.batches(count or DEFAULTS.samples))
        quantize_static(given, made, reader, calibrate_method=CalibrationMethod[THEIRS[method]], **settings)
        return made.read_bytes()


class Reader:
    """Batches as onnxruntime's CalibrationDataReader hands them out (it goes by these names, not by its class)."""

    def __init__(self, batches: Iterable[Arrays]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None after the last."""
        return next(map(dict, self._left), None)

    def __iter__(self) -> Iterator[Arrays]:
        return self._left


def raised(subject: Subject, made: Forge, before: np.ndarray, *, allowed: float) -> Raised:
    """The accuracy-aware pass as `soup export` runs it, with a gate of a loss of `allowed` points on val.

    `before` are the FP32 graph's logits on val; single layers are measured where their margins are smallest.
    """
    inputs, labels = subject.splits["val"]
    rows = np.sort(np.argsort(margins({"logits": before}), kind="stable")[:SENSITIVITY_SAMPLES])

    def measure(graph: bytes) -> Loss:
        after = answers(graph, inputs[rows], where=subject.name)
        error = np.square(after - before[rows]).sum() / np.square(before[rows]).sum()
        return Loss(-compared(after, before[rows], labels[rows])["points"] / 100, float(error))

    def judge(graph: bytes) -> Judged:
        lost = -compared(answers(graph, inputs, where=subject.name), before, labels)["points"]
        return Judged("pass" if lost <= allowed else "fail", lost / 100)

    def make(*, keep: Collection[str] = (), only: Collection[str] | None = None) -> bytes:
        return made.make("int8", keep=keep, only=only).graph

    macs, kept = {layer.name: layer.macs or 0 for layer in made.layers}, made.make("int8").kept
    candidates = {name: count for name, count in macs.items() if name not in kept}
    problem = Problem(candidates, sum(macs.values()), make, measure, judge, len(rows), len(labels))
    return raise_layers(problem, budget=DEFAULTS.budget)


def share(model: bytes, *, where: str) -> float:
    """The part of the multiply-adds that is in INT8."""
    return int8_share(audit_onnx(model, asked="int8", kept=(), where=where))


def answers(model: bytes, inputs: np.ndarray, *, where: str) -> np.ndarray:
    """Logits float32 (n, classes) by ONNX Runtime on one thread."""
    with OnnxRuntime(model, where=where, threads=1, batch=(1, 8, LARGEST_BATCH)) as runtime:
        name = runtime.inputs[0].name
        return next(iter(runtime({name: inputs}).values()))


def compared(after: np.ndarray, before: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy in %, its change in points, and the images whose answer flips: in all, to right and to wrong."""
    new, old = after.argmax(1), before.argmax(1)
    right, was = new == labels, old == labels
    return {
        "accuracy": 100 * float(right.mean()),
        "points": 100 * (float(right.sum()) - float(was.sum())) / len(labels),
        "flips": int((new != old).sum()),
        "to_right": int((right & ~was).sum()),
        "to_wrong": int((~right & was).sum()),
        "images": len(labels),
    }


def proto(model: bytes) -> Any:
    """An onnx.ModelProto, of which there are no types."""
    import onnx

    return onnx.ModelProto.FromString(model)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What other tools print, log and warn is not part of the tables."""
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
