"""A TensorRT engine as a Runtime: page-locked buffers, one stream, events around the execution, optionally a graph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from exporters import ExportError
from exporters.cuda import Cuda, open_cuda
from exporters.cuda_graph import CudaGraph
from exporters.engine_tensors import Profile, engine_profiles, engine_tensors, profile_for
from exporters.flavours import Flavour, Record, explain, import_flavour, make_logger
from exporters.gpu import find_gpu
from exporters.output_allocator import GrowingOutput, make_output_allocator
from exporters.plan import inspect_engine, plan_flavour, preflight
from exporters.runtimes import Arrays, RuntimeInfo, TensorInfo, check_inputs, check_one_call, filled_up, in_batches


@dataclass(frozen=True, slots=True)
class _Buffer:
    """One tensor's memory on both sides at the greatest batch; `host` is page-locked, [batch, …]."""

    host: np.ndarray
    device: int


def open_engine(path: Path, *, expected_sha256: str, cuda_graph: bool = False) -> EngineRuntime:
    """Open an engine on the first GPU. It is native code: nothing is deserialised before its hash is the expected one.

    With `cuda_graph` the execution of a batch size is captured at its second call, and replayed from then on; where
    that cannot be done the runtime's `notes` say why, and it runs as without.

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
    # What the header tells is told before TensorRT is loaded. Versions are left to it: a compatible engine may run.
    reasons = preflight(inspect_engine(path), flavour=None, version=None, compute_capability=gpu.compute_capability)
    if reasons:
        message = f"{path}: cannot run here: {'; '.join(reasons)}. Build it here: soup verify RELEASE --finish -o KIT."
        raise ExportError(message, kind="environment")
    flavour = plan_flavour(plan) or "tensorrt"
    return EngineRuntime(plan, where=str(path), flavour=flavour, device=gpu.name, cuda_graph=cuda_graph)


class EngineRuntime:
    """An engine on a GPU as a Runtime and a context manager; made by `open_engine`. One thread at a time.

    `last_gpu_ms` is the GPU's own time of the last call, transfers not included, summed over its batches. Each batch
    runs under the optimisation profile that is built for the nearest size. An engine with outputs whose size the data
    decides takes one batch per call, since nothing tells which of their rows belongs to which sample.
    """

    def __init__(self, plan: bytes, *, where: str, flavour: Flavour, device: str, cuda_graph: bool = False) -> None:
        """The engine of a whole plan in memory; `where` begins every error message."""
        self._where = where
        self._records: list[Record] = []
        self._cuda: Cuda | None = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._graph: CudaGraph | None = None
        self._wants_graph = cuda_graph
        self._ran: tuple[int, int] | None = None  # profile and batch of the last execution
        self._profile = 0
        self._growing: dict[str, GrowingOutput] = {}
        self._allocators: list[Any] = []  # TensorRT keeps no reference to them
        self.last_gpu_ms: float | None = None
        self.notes: tuple[str, ...] = ()
        trt = import_flavour(flavour)
        try:
            self._cuda = open_cuda()
            self._open(trt, plan)
            self.inputs = engine_tensors(self._engine, trt, trt.TensorIOMode.INPUT)
            self.outputs = engine_tensors(self._engine, trt, trt.TensorIOMode.OUTPUT)
            self._profiles = engine_profiles(self._engine, self.inputs, where=where)
            self._least = min(profile.least for profile in self._profiles)
            self._most = max(profile.most for profile in self._profiles)
            self._buffers = self._allocate(trt, self._cuda)
            if self._growing and cuda_graph:  # such an execution waits for the data, which no graph can
                self._without_graph("the data decides the size of an output")
        except BaseException:
            self.close()
            raise
        self.info = RuntimeInfo(flavour, str(trt.__version__), self._cuda.name, device)

    @property
    def cuda_graph(self) -> bool:
        """Whether the next call of the same batch size replays a captured graph."""
        return self._graph is not None

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Outputs by name for any number of samples.

        Raises ExportError: input where names, dtypes or shapes are not the engine's; build where it fails on them.
        """
        check_inputs(inputs, self.inputs, where=self._where)
        self.last_gpu_ms = 0.0
        cuda = self._opened()
        if self._growing:
            check_one_call(inputs, least=self._least, most=self._most, where=self._where)
            return self._run(cuda, inputs)

        def run(batch: Arrays) -> Arrays:
            profile = profile_for(self._profiles, len(next(iter(batch.values()))))
            return filled_up(lambda filled: self._run(cuda, filled), batch, profile.least)

        return in_batches(run, inputs, outputs=self.outputs, most=self._most)

    def resident(self, inputs: Arrays) -> Callable[[], object]:
        """One batch whose inputs are copied to the device now, and never again; its outputs stay there.

        Raises ExportError: input where names, dtypes or shapes are not the engine's, or the batch is not one call's.
        """
        check_inputs(inputs, self.inputs, where=self._where)
        cuda, count = self._opened(), len(next(iter(inputs.values())))
        profile = profile_for(self._profiles, min(count, self._most))
        check_one_call(inputs, least=profile.least, most=profile.most, where=self._where)
        self._upload(cuda, inputs)

        def run() -> None:
            self._execute(cuda, profile, count)
            self.last_gpu_ms = cuda.wait()

        return run

    def close(self) -> None:
        """Free the graph, the engine, then its buffers; may be called again."""
        self._drop_graph()
        self._context = self._engine = self._runtime = None  # in this order, and before CUDA goes
        self._allocators = []
        if self._cuda is not None:
            self._cuda.close()
            self._cuda = None

    def __enter__(self) -> EngineRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> Cuda:
        if self._cuda is None:
            raise ValueError(f"{self._where}: the engine is closed")
        return self._cuda

    def _open(self, trt: ModuleType, plan: bytes) -> None:
        """Deserialise; TensorRT gives None where it cannot, and says why only to its logger."""
        self._logger = make_logger(trt, lambda severity, message: self._records.append((severity, message)))
        self._runtime = runtime = trt.Runtime(self._logger)
        if hasattr(runtime, "engine_host_code_allowed"):  # a version-compatible engine has code of its own, hashed too
            runtime.engine_host_code_allowed = True
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

    def _allocate(self, trt: ModuleType, cuda: Cuda) -> dict[str, _Buffer]:
        """Memory for the greatest batch; a smaller one uses its beginning. What only the data decides grows later."""
        greatest = max(self._profiles, key=lambda profile: profile.most)
        self._set_batch(cuda, greatest, greatest.most)
        buffers = {}
        for info in (*self.inputs, *self.outputs):
            shape = tuple(self._context.get_tensor_shape(info.name))
            if -1 in shape:
                self._grow(trt, cuda, info)
                continue
            size_bytes = int(np.prod(shape)) * np.dtype(info.dtype).itemsize
            buffers[info.name] = _Buffer(
                host=cuda.host(size_bytes).view(info.dtype).reshape(shape), device=cuda.device(size_bytes)
            )
            self._context.set_tensor_address(info.name, buffers[info.name].device)
        return buffers

    def _grow(self, trt: ModuleType, cuda: Cuda, info: TensorInfo) -> None:
        output = self._growing[info.name] = GrowingOutput(cuda)
        allocator = make_output_allocator(trt, reallocate=output.reallocate, on_shape=output.told)
        self._allocators.append(allocator)
        if not self._context.set_output_allocator(info.name, allocator):
            raise ExportError(f"{self._where}: output '{info.name}' takes no allocator: {explain(self._records)}.")

    def _set_batch(self, cuda: Cuda, profile: Profile, count: int) -> None:
        if profile.index != self._profile:
            if not self._context.set_optimization_profile_async(profile.index, cuda.stream):
                raise ExportError(f"{self._where}: profile {profile.index} is refused: {explain(self._records)}.")
            self._profile = profile.index
        for info in self.inputs:
            if not self._context.set_input_shape(info.name, (count, *info.shape[1:])):
                raise ExportError(f"{self._where}: a batch of {count} is refused: {explain(self._records)}.")

    def _run(self, cuda: Cuda, inputs: Arrays) -> dict[str, np.ndarray]:
        count = len(next(iter(inputs.values())))
        self._upload(cuda, inputs)
        self._execute(cuda, profile_for(self._profiles, count), count)
        downloaded = {info.name: self._download(cuda, info, count) for info in self.outputs}
        self.last_gpu_ms = (self.last_gpu_ms or 0.0) + cuda.wait()
        return {name: array.copy() for name, array in downloaded.items()}

    def _upload(self, cuda: Cuda, inputs: Arrays) -> None:
        for name, array in inputs.items():
            buffer, count = self._buffers[name], len(array)
            buffer.host[:count] = array
            cuda.upload(buffer.device, buffer.host[:count])

    def _download(self, cuda: Cuda, info: TensorInfo, count: int) -> np.ndarray:
        """Queue the copy of one output; the array holds it after `wait`."""
        if info.name in self._growing:
            return self._growing[info.name].download(info.dtype)
        buffer = self._buffers[info.name]
        cuda.download(buffer.host[:count], buffer.device)
        return buffer.host[:count]

    def _execute(self, cuda: Cuda, profile: Profile, count: int) -> None:
        """Queue one execution between the two events: plainly the first time, later by a graph where one is wanted."""
        again = self._ran == (profile.index, count)
        if not again:
            self._drop_graph()
            self._set_batch(cuda, profile, count)
        if again and self._wants_graph and self._graph is None:
            self._capture(cuda)
        cuda.record(cuda.start)
        if self._graph is not None:
            self._graph.launch()
        elif not self._context.execute_async_v3(cuda.stream):
            failures = [output.failure for output in self._growing.values() if output.failure is not None]
            if failures:
                raise failures[0]
            raise ExportError(f"{self._where}: the engine failed on a batch of {count}: {explain(self._records)}.")
        cuda.record(cuda.stop)
        self._ran = (profile.index, count)

    def _capture(self, cuda: Cuda) -> None:
        """What is captured is one execution with these shapes and addresses; a change of either drops it."""
        try:
            self._graph = CudaGraph(lambda: bool(self._context.execute_async_v3(cuda.stream)), stream=cuda.stream)
        except ExportError as error:
            self._without_graph(str(error).rstrip("."))

    def _without_graph(self, reason: str) -> None:
        self._wants_graph = False
        self.notes = (*self.notes, f"no CUDA graph: {reason}; it runs without one")

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
