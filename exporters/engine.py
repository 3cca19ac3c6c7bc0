"""A TensorRT engine as a Runtime: page-locked buffers, one stream, events around the execution."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from exporters import ExportError
from exporters.cuda import Cuda, open_cuda
from exporters.flavours import Flavour, Record, explain, import_flavour, make_logger
from exporters.gpu import find_gpu
from exporters.plan import plan_flavour
from exporters.runtimes import Arrays, RuntimeInfo, TensorInfo, check_inputs, in_batches


@dataclass(frozen=True, slots=True)
class _Buffer:
    """One tensor's memory on both sides at the greatest batch; `host` is page-locked, [batch, …]."""

    host: np.ndarray
    device: int


def open_engine(path: Path, *, expected_sha256: str) -> EngineRuntime:
    """Open an engine on the first GPU. It is native code: nothing is deserialised before its hash is the expected one.

    Raises ExportError: input (unreadable file, another hash), environment (GPU, driver, TensorRT or CUDA bindings are
    missing, or the engine is for another TensorRT or GPU).
    """
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}.", kind="input") from error
    sha256 = hashlib.sha256(plan).hexdigest()
    if sha256 != expected_sha256:
        message = f"{path}: SHA-256 is {sha256}, expected {expected_sha256}. It was not opened: get the recorded file."
        raise ExportError(message, kind="input")
    gpu = find_gpu()
    if gpu is None:
        message = (
            f"{path}: an engine needs an NVIDIA GPU and its driver, none found here. Run this on the target device."
        )
        raise ExportError(message, kind="environment")
    # An unknown tag is left to classic TensorRT, which says what it thinks of it.
    flavour = plan_flavour(plan) or "tensorrt"
    return EngineRuntime(plan, where=str(path), flavour=flavour, device=gpu.name)


class EngineRuntime:
    """An engine on a GPU as a Runtime and a context manager; made by `open_engine`. One thread at a time.

    `last_gpu_ms` is the GPU's own time of the last call, transfers not included, summed over its batches.
    """

    def __init__(self, plan: bytes, *, where: str, flavour: Flavour, device: str) -> None:
        """The engine of a whole plan in memory; `where` begins every error message."""
        self._where = where
        self._records: list[Record] = []
        self._cuda: Cuda | None = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self.last_gpu_ms = 0.0
        trt = import_flavour(flavour)
        try:
            self._cuda = open_cuda()
            self._open(trt, plan)
            self.inputs, self.outputs = (
                self._tensors(trt, trt.TensorIOMode.INPUT),
                self._tensors(trt, trt.TensorIOMode.OUTPUT),
            )
            self._least, self._most = self._batch_limits()
            self._buffers = self._allocate(self._cuda)
        except BaseException:
            self.close()
            raise
        self.info = RuntimeInfo(flavour, str(trt.__version__), self._cuda.name, device)

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Outputs by name for any number of samples.

        Raises ExportError: input where names, dtypes or shapes are not the engine's; build where it fails on them.
        """
        check_inputs(inputs, self.inputs, where=self._where)
        self.last_gpu_ms = 0.0
        cuda = self._cuda
        if cuda is None:
            raise ValueError(f"{self._where}: the engine is closed")
        return in_batches(
            lambda batch: self._run(cuda, batch), inputs, outputs=self.outputs, least=self._least, most=self._most
        )

    def close(self) -> None:
        """Free the engine, then its buffers; may be called again."""
        self._context = self._engine = self._runtime = None  # in this order, and before CUDA goes
        if self._cuda is not None:
            self._cuda.close()
            self._cuda = None

    def __enter__(self) -> EngineRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, trt: ModuleType, plan: bytes) -> None:
        """Deserialise; TensorRT gives None where it cannot, and says why only to its logger."""
        self._logger = make_logger(trt, lambda severity, message: self._records.append((severity, message)))
        self._runtime = runtime = trt.Runtime(self._logger)
        self._engine = engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ExportError(
                f"{self._where}: {trt.__name__} {trt.__version__} cannot open the engine: {explain(self._records)}. "
                "An engine runs on the TensorRT and the GPU that it was built for: build it here, from the ONNX file.",
                kind="environment",
            )
        self._context = engine.create_execution_context()
        if self._context is None:
            message = f"{self._where}: no execution context: {explain(self._records)}. Free some GPU memory."
            raise ExportError(message, kind="environment")

    def _tensors(self, trt: ModuleType, mode: Any) -> tuple[TensorInfo, ...]:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return tuple(
            TensorInfo(
                name=name,
                dtype=np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name,
                shape=tuple(
                    size if size >= 0 else ("batch" if axis == 0 else f"axis_{axis}")
                    for axis, size in enumerate(engine.get_tensor_shape(name))
                ),
            )
            for name in names
            if engine.get_tensor_mode(name) == mode
        )

    def _batch_limits(self) -> tuple[int, int]:
        """The samples that every input takes at once: the static batch, or the profile's minimum and maximum."""
        limits = []
        for info in self.inputs:
            if isinstance(info.shape[0], int):
                limits.append((info.shape[0], info.shape[0]))
            else:
                least, _, most = self._engine.get_tensor_profile_shape(info.name, 0)
                limits.append((least[0], most[0]))
        return max(least for least, _ in limits), min(most for _, most in limits)

    def _allocate(self, cuda: Cuda) -> dict[str, _Buffer]:
        """Memory for the greatest batch; a smaller one uses its beginning."""
        self._set_batch(self._most)
        buffers = {}
        for info in (*self.inputs, *self.outputs):
            shape = tuple(self._context.get_tensor_shape(info.name))
            if -1 in shape:
                message = (
                    f"{self._where}: tensor '{info.name}' has shape {shape}, expected only the batch to be dynamic."
                )
                raise ExportError(message, kind="input")
            size_bytes = int(np.prod(shape)) * np.dtype(info.dtype).itemsize
            buffers[info.name] = _Buffer(
                host=cuda.host(size_bytes).view(info.dtype).reshape(shape), device=cuda.device(size_bytes)
            )
            self._context.set_tensor_address(info.name, buffers[info.name].device)
        return buffers

    def _set_batch(self, count: int) -> None:
        for info in self.inputs:
            if not self._context.set_input_shape(info.name, (count, *info.shape[1:])):
                raise ExportError(f"{self._where}: a batch of {count} is refused: {explain(self._records)}.")

    def _run(self, cuda: Cuda, inputs: Arrays) -> dict[str, np.ndarray]:
        count = len(next(iter(inputs.values())))
        self._set_batch(count)
        for name, array in inputs.items():
            buffer = self._buffers[name]
            buffer.host[:count] = array
            cuda.upload(buffer.device, buffer.host[:count])
        cuda.record(cuda.start)
        if not self._context.execute_async_v3(cuda.stream):
            raise ExportError(f"{self._where}: the engine failed on a batch of {count}: {explain(self._records)}.")
        cuda.record(cuda.stop)
        for info in self.outputs:
            buffer = self._buffers[info.name]
            cuda.download(buffer.host[:count], buffer.device)
        self.last_gpu_ms += cuda.wait()
        return {info.name: self._buffers[info.name].host[:count].copy() for info in self.outputs}
