"""A TensorRT and a CUDA made of numpy, with the names and rules that exporters.engine relies on; no GPU is needed.

The network multiplies its input by 2 and, with `dynamic_output`, gives the positive rows' sums besides, as many as the
data has: an output of a data-dependent shape. Device memory is a dict of arrays by address.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

WIDTH = 3


@dataclass
class Memory:
    """What lies on the device, and everything that happened, in order."""

    buffers: dict[int, np.ndarray] = field(default_factory=dict)
    log: list[Any] = field(default_factory=list)
    next_address: int = 256
    limit_bytes: int | None = None

    def take(self, size_bytes: int) -> int:
        address, self.next_address = self.next_address, self.next_address + 256 * (1 + size_bytes // 256)
        self.buffers[address] = np.zeros(size_bytes, np.uint8)
        return address

    def view(self, address: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.buffers[address][:size].view(dtype).reshape(shape)


class FakeCuda:
    """exporters.cuda's methods on a Memory. Each execution takes 1.5 ms of the GPU."""

    name, stream, start, stop = "fake", 7, "start", "stop"

    def __init__(self, memory: Memory) -> None:
        self.memory, self.closed = memory, 0

    def host(self, size_bytes: int) -> np.ndarray:
        return np.zeros(size_bytes, np.uint8)

    def device(self, size_bytes: int) -> int:
        from exporters import ExportError

        assert size_bytes > 0, "cudaMalloc gives no address for nothing"
        if self.memory.limit_bytes is not None and size_bytes > self.memory.limit_bytes:
            raise ExportError(f"CUDA: no memory for {size_bytes} bytes", kind="environment")
        return self.memory.take(size_bytes)

    def free_device(self, address: int) -> None:
        del self.memory.buffers[address]
        self.memory.log.append("free")

    def upload(self, address: int, host: np.ndarray) -> None:
        self.memory.log.append("upload")
        self.memory.buffers[address][: host.nbytes] = np.ascontiguousarray(host).view(np.uint8).ravel()

    def download(self, host: np.ndarray, address: int) -> None:
        self.memory.log.append("download")
        host[...] = self.memory.view(address, host.dtype.name, host.shape)

    def record(self, event: str) -> None:
        self.memory.log.append(event)

    def wait(self) -> float:
        self.memory.log.append("wait")
        return 1.5

    def close(self) -> None:
        self.closed += 1
        self.memory.buffers.clear()
        self.memory.log.append("cuda closed")


class FakeContext:
    """An execution context: shapes must be set anew after a change of profile, and addresses are needed to run."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.memory = engine, engine.memory
        self.profile, self.shape = 0, None
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.refuses_capture = False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.memory.log.append(("profile", index))
        self.profile, self.shape = index, None
        return 0 <= index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.profiles[self.profile]
        if not least <= shape[0] <= most:
            return False
        self.shape = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None
        return (-1,) if name == "found" else self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocators[name] = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == FakeCuda.stream
        assert self.shape is not None, "the shape was not set after the profile"
        if self.memory.log and self.memory.log[-1] == "begin capture":
            if self.refuses_capture:
                return False
            self.memory.log.append("captured")
            self.engine.replay = (self.profile, self.shape)
            return True
        self.memory.log.append(("execute", self.profile, self.shape[0]))
        return self.run(self.shape)

    def run(self, shape: tuple[int, ...]) -> bool:
        data = self.memory.view(self.addresses["input"], "float32", shape)
        self.memory.view(self.addresses["output"], "float32", shape)[...] = data * 2
        for name, allocator in self.allocators.items():
            found = data.sum(axis=1)[data.sum(axis=1) > 0].astype(np.float32)
            address = allocator.reallocate_output_async(name, None, found.nbytes, 256, 7)
            if not address:
                return False
            allocator.notify_shape(name, found.shape)
            self.memory.view(address, "float32", found.shape)[...] = found
        return True


@dataclass
class FakeEngine:
    """An engine with `profiles` of (least, opt, most); a static batch where all three of the only one are equal."""

    memory: Memory
    profiles: tuple[tuple[int, int, int], ...]
    dynamic_output: bool = False
    wide: bool = False  # more than the batch of the input is dynamic
    replay: tuple[int, tuple[int, ...]] | None = None
    contexts: list[FakeContext] = field(default_factory=list)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    @property
    def names(self) -> list[str]:
        return ["input", "output", *(["found"] if self.dynamic_output else [])]

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "input" else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        static = len(self.profiles) == 1 and len(set(self.profiles[0])) == 1
        batch = self.profiles[0][0] if static else -1
        return (-1,) if name == "found" else (batch, -1 if self.wide else WIDTH)

    def get_tensor_profile_shape(self, name: str, index: int) -> tuple[tuple[int, ...], ...]:
        return tuple((batch, WIDTH) for batch in self.profiles[index])

    def create_execution_context(self) -> FakeContext:
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


def fake_trt(engine: FakeEngine) -> Any:
    """The module's names that the engine's runtime uses."""

    class Base:
        def __init__(self) -> None:
            self.told = True

    class Runtime:
        def __init__(self, logger: object) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine:
            return engine

    return SimpleNamespace(
        __name__="tensorrt", __version__="10.13.3", ILogger=Base, IOutputAllocator=Base, Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"), nptype=np.dtype,
    )  # fmt: skip


class FakeDriver:
    """libcuda's functions for graphs; launching replays what the engine captured. `failing` names those that fail."""

    def __init__(self, engine: FakeEngine, *failing: str) -> None:
        self.engine, self.log, self.failing = engine, engine.memory.log, failing
        self.graphs = self.executables = 0

    def _code(self, name: str) -> int:
        return 900 if name in self.failing else 0

    def cuStreamBeginCapture_v2(self, stream: Any, mode: Any) -> int:  # noqa: N802
        assert stream.value == FakeCuda.stream
        self.log.append("begin capture")
        return self._code("begin")

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:  # noqa: N802
        self.log.append("end capture")
        if not self._code("end"):
            self.graphs += 1
            _point(graph, 11)
        return self._code("end")

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:  # noqa: N802
        if not self._code("instantiate"):
            self.executables += 1
            _point(executable, 12)
        return self._code("instantiate")

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:  # noqa: N802
        assert executable.value == 12
        self.log.append("launch")
        assert self.engine.replay is not None
        self.engine.contexts[-1].run(self.engine.replay[1])
        return self._code("launch")

    def cuGraphDestroy(self, graph: Any) -> int:  # noqa: N802
        self.graphs -= 1
        return 0

    def cuGraphExecDestroy(self, executable: Any) -> int:  # noqa: N802
        self.executables -= 1
        self.log.append("graph closed")
        return 0


def _point(reference: Any, value: int) -> None:
    ctypes.cast(reference, ctypes.POINTER(ctypes.c_void_p))[0] = value


Opener = Callable[..., Any]
