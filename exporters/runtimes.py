"""A file becomes a Predict: ONNX Runtime sessions and TensorRT engines behind one seam."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from exporters import ExportError
from exporters.ort_session import Provider, onnxruntime_errors, open_session

Arrays = Mapping[str, np.ndarray]
Predict = Callable[[Arrays], Arrays]

# ONNX Runtime's type names -> numpy's; what numpy lacks keeps ONNX Runtime's.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    **{
        f"tensor({name})": name
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
    },
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output: numpy dtype name, and shape with names where an axis is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What ran: "onnxruntime" | "tensorrt" | "tensorrt_rtx" | "torch", its version, the provider in use, the device."""

    runtime: str
    version: str
    provider: str
    device: str


class Runtime(Protocol):
    """An opened model. Call it with any number of samples: it splits and pads to its own batch size itself.

    `last_gpu_ms` is the GPU's own time of the last call, None where the runtime does not tell it. `cuda_graph` says
    whether calls replay a captured graph, `notes` what was asked for and could not be had.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    info: RuntimeInfo
    last_gpu_ms: float | None
    notes: tuple[str, ...]

    @property
    def cuda_graph(self) -> bool:
        """As above; it may become true from call to call."""

    def __call__(self, inputs: Arrays) -> Arrays:
        """Outputs by name, first axis as long as the inputs'."""

    def resident(self, inputs: Arrays) -> Callable[[], object]:
        """A call on one batch of inputs that lie on the device already, and whose outputs stay there."""

    def close(self) -> None:
        """Free everything; also on leaving `with`."""


class OnnxRuntime:
    """An ONNX Runtime session as a Runtime and a context manager; made by `open_onnx`."""

    def __init__(
        self,
        model: bytes,
        *,
        where: str,
        provider: Provider = "cpu",
        threads: int | None = None,
        batch: int | tuple[int, int, int] | None = None,
    ) -> None:
        """The session of a whole model in memory; `where` begins every error message."""
        self._where = where
        self._device = "cpu" if provider == "cpu" else "cuda"
        self.last_gpu_ms: float | None = None  # ONNX Runtime does not tell it
        self.cuda_graph = False
        self.notes: tuple[str, ...] = ()
        self._session = open_session(model, where=where, provider=provider, threads=threads)
        self.inputs = tuple(_tensor_info(node) for node in self._session.get_inputs())
        self.outputs = tuple(_tensor_info(node) for node in self._session.get_outputs())
        self._least, self._most = _batch_limits(self.inputs, batch)
        import onnxruntime

        self.info = RuntimeInfo("onnxruntime", onnxruntime.__version__, self._session.get_providers()[0], device_name())

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Outputs by name for any number of samples.

        Raises:
            ExportError: "input" where names, dtypes or shapes are not the model's; "build" where it fails on them.
        """
        check_inputs(inputs, self.inputs, where=self._where)
        return in_batches(self._run, inputs, outputs=self.outputs, least=self._least, most=self._most)

    def resident(self, inputs: Arrays) -> Callable[[], object]:
        """One batch by I/O binding: inputs are copied to the provider's device once, outputs stay there.

        Raises ExportError: input where names, dtypes or shapes are not the model's, or the batch is not one call's.
        """
        check_inputs(inputs, self.inputs, where=self._where)
        check_one_call(inputs, least=self._least, most=self._most, where=self._where)
        import onnxruntime

        binding = self._session.io_binding()
        for name, array in inputs.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0)
            binding.bind_ortvalue_input(name, value)
        for info in self.outputs:
            binding.bind_output(info.name, self._device)
        return lambda: self._session.run_with_iobinding(binding)

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def __enter__(self) -> OnnxRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        names = [info.name for info in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        except onnxruntime_errors() as error:
            shapes = {name: array.shape for name, array in inputs.items()}
            raise ExportError(f"{self._where}: ONNX Runtime cannot run it on {shapes}: {error}") from error


def open_onnx(
    path: Path,
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
    expected_sha256: str | None = None,
    batch: int | tuple[int, int, int] | None = None,
) -> OnnxRuntime:
    """Open an ONNX file in whatever flavour of ONNX Runtime is installed.

    The file is read once; the bytes that are hashed are the bytes that run. `provider` is the one that runs it, with
    the CPU only for operators that it lacks. `batch` limits the calls of a model with a dynamic batch: samples per
    call (filled up by repetition), or (min, opt, max).

    Raises:
        ExportError: "input" for a file that cannot be read, has another hash, is no ONNX or keeps weights outside
            of itself; "environment" without onnxruntime, or where the provider did not start.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}.", kind="input") from error
    sha256 = hashlib.sha256(model).hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise ExportError(
            f"{path}: SHA-256 is {sha256}, expected {expected_sha256}. The file is not the one that was recorded.",
            kind="input",
        )
    return OnnxRuntime(model, where=str(path), provider=provider, threads=threads, batch=batch)


def check_inputs(inputs: Arrays, expected: Sequence[TensorInfo], *, where: str) -> None:
    """Raise one ExportError ("input") that lists every difference between the arrays and what a model takes."""
    names = [info.name for info in expected]
    problems = [f"input '{name}' is not one of the model's: {names}" for name in inputs if name not in names]
    for info in expected:
        if info.name not in inputs:
            problems.append(f"input '{info.name}' is missing")
            continue
        array = inputs[info.name]
        if array.dtype.name != info.dtype:
            problems.append(f"input '{info.name}' has dtype {array.dtype.name}, expected {info.dtype}")
        if not _fits(array.shape, info.shape):
            problems.append(f"input '{info.name}' has shape {array.shape}, expected {('n', *info.shape[1:])}")
    counts = {name: array.shape[0] for name, array in inputs.items() if array.ndim}
    if len(set(counts.values())) > 1:
        problems.append(f"inputs differ in their number of samples: {counts}")
    if problems:
        raise ExportError(f"{where}: {'; '.join(problems)}.", kind="input")


def check_one_call(inputs: Arrays, *, least: int, most: int | None, where: str) -> None:
    """Raise ExportError ("input") where the samples are not as many as one call takes."""
    count = len(next(iter(inputs.values())))
    if not (least <= count and (most is None or count <= most)):
        taken = f"at least {least}" if most is None else str(least) if least == most else f"{least} to {most}"
        raise ExportError(f"{where}: {count} samples, expected {taken} in one call.", kind="input")


def in_batches(
    run: Predict, inputs: Arrays, *, outputs: Sequence[TensorInfo], least: int = 1, most: int | None = None
) -> dict[str, np.ndarray]:
    """Outputs for any number of samples from a `run` that takes `least` to `most` (None: any number) at once.

    A short batch is filled up by repeating its last sample, and what belongs to the filling is dropped.
    No samples give empty outputs, with dynamic axes of length 0.
    """
    count = len(next(iter(inputs.values())))
    if not count:
        shapes = {info.name: tuple(axis if isinstance(axis, int) else 0 for axis in info.shape[1:]) for info in outputs}
        return {info.name: np.empty((0, *shapes[info.name]), dtype=info.dtype) for info in outputs}
    step = most or count
    starts = range(0, count, step)
    parts = [
        filled_up(run, {name: array[start : start + step] for name, array in inputs.items()}, least) for start in starts
    ]
    if len(parts) == 1:  # nothing to copy, which one that times it would pay for
        return {info.name: parts[0][info.name] for info in outputs}
    return {info.name: np.concatenate([part[info.name] for part in parts]) for info in outputs}


def filled_up(run: Predict, inputs: Arrays, least: int) -> Arrays:
    """Outputs of `count` samples from a `run` that takes no fewer than `least`: the last sample is repeated."""
    count = len(next(iter(inputs.values())))
    rows = np.minimum(np.arange(max(count, least)), count - 1)
    outputs = run(inputs if count >= least else {name: array[rows] for name, array in inputs.items()})
    for name, array in outputs.items():
        if array.shape[:1] != rows.shape:
            raise ExportError(
                f"output '{name}' has shape {array.shape}, expected {len(rows)} samples in the first axis."
            )
    return {name: array[:count] for name, array in outputs.items()}


def device_name(*, proc: Path = Path("/proc")) -> str:
    """The board's name on a Jetson or its like, else the CPU's."""
    board = proc / "device-tree" / "model"
    if board.is_file():
        return board.read_text(errors="replace").strip("\0 \n")
    cpu = proc / "cpuinfo"
    for line in cpu.read_text(errors="replace").splitlines() if cpu.is_file() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _tensor_info(node: Any) -> TensorInfo:
    shape = tuple(axis if isinstance(axis, int | str) else "?" for axis in node.shape)
    return TensorInfo(node.name, _DTYPES.get(node.type, node.type), shape)


def _batch_limits(inputs: Sequence[TensorInfo], batch: int | tuple[int, int, int] | None) -> tuple[int, int | None]:
    axis = inputs[0].shape[0] if inputs and inputs[0].shape else "?"
    if isinstance(axis, int):
        return axis, axis
    if isinstance(batch, tuple):
        return batch[0], batch[2]
    return batch or 1, batch


def _fits(shape: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    """Whether all axes after the batch are the expected ones."""
    return len(shape) == len(expected) > 0 and all(
        isinstance(want, str) or have == want for have, want in zip(shape[1:], expected[1:], strict=True)
    )
