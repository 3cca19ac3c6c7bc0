"""What an engine needs of CUDA: buffers, async copies, a stream and two events, by pycuda or cuda-bindings."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from exporters import ExportError

_NEEDS_BINDINGS = (
    "CUDA: neither pycuda nor cuda-bindings can be imported ({reason}), expected one of them to run an engine. "
    "Install one: pip install 'edgesoup[pycuda]' (needs a CUDA toolkit) or pip install cuda-bindings."
)


def open_cuda() -> Cuda:
    """pycuda where it imports, else cuda-bindings, on the first device.

    Raises ExportError (environment) with neither of them, or without a driver.
    """
    try:
        return PyCuda(importlib.import_module("pycuda.driver"))
    except ImportError:  # not installed, or no libcuda.so.1: cuda-bindings then says which
        pass
    try:
        return CudaBindings(importlib.import_module("cuda.bindings.runtime"))
    except ImportError as error:
        raise ExportError(_NEEDS_BINDINGS.format(reason=error), kind="environment") from error


class CudaBindings:
    """NVIDIA's cuda-bindings, runtime API; every call's error code is checked."""

    name = "cuda-bindings"

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._release: list[tuple[Any, Any]] = []
        kinds = runtime.cudaMemcpyKind
        self._to_device, self._to_host = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        try:
            self._stream = self._own(runtime.cudaStreamCreate, runtime.cudaStreamDestroy)
            self.start = self._own(runtime.cudaEventCreate, runtime.cudaEventDestroy)
            self.stop = self._own(runtime.cudaEventCreate, runtime.cudaEventDestroy)
        except ExportError:
            self.close()
            raise
        self.stream = int(self._stream)

    def host(self, size_bytes: int) -> np.ndarray:
        """A page-locked buffer as uint8 [size_bytes]; gone after `close`."""
        address = self._own(self._runtime.cudaMallocHost, self._runtime.cudaFreeHost, size_bytes)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(int(address)))

    def device(self, size_bytes: int) -> int:
        """The address of a device buffer; gone after `close`."""
        return int(self._own(self._runtime.cudaMalloc, self._runtime.cudaFree, size_bytes))

    def free_device(self, address: int) -> None:
        """Free one device buffer before `close` does; it waits for what is queued (cudaFree)."""
        kept = next(pair for pair in self._release if pair[0] is self._runtime.cudaFree and int(pair[1]) == address)
        self._release.remove(kept)
        self._call(self._runtime.cudaFree, kept[1])

    def upload(self, address: int, host: np.ndarray) -> None:
        """Queue a copy of a page-locked buffer to the device."""
        self._call(self._runtime.cudaMemcpyAsync, address, host.ctypes.data, host.nbytes, self._to_device, self._stream)

    def download(self, host: np.ndarray, address: int) -> None:
        """Queue a copy from the device to a page-locked buffer."""
        self._call(self._runtime.cudaMemcpyAsync, host.ctypes.data, address, host.nbytes, self._to_host, self._stream)

    def record(self, event: Any) -> None:
        """Queue one of the two events, `start` or `stop`, between which `wait` measures."""
        self._call(self._runtime.cudaEventRecord, event, self._stream)

    def wait(self) -> float:
        """Wait for everything queued; milliseconds of GPU time between the two events."""
        self._call(self._runtime.cudaStreamSynchronize, self._stream)
        return float(self._call(self._runtime.cudaEventElapsedTime, self.start, self.stop))

    def close(self) -> None:
        """Free every buffer, the events and the stream."""
        while self._release:
            release, handle = self._release.pop()
            release(handle)

    def _own(self, make: Any, release: Any, *arguments: object) -> Any:
        handle = self._call(make, *arguments)
        self._release.append((release, handle))
        return handle

    def _call(self, function: Any, *arguments: object) -> Any:
        code, *values = function(*arguments)
        if code != self._runtime.cudaError_t.cudaSuccess:
            _, label = self._runtime.cudaGetErrorName(code)
            raise ExportError(
                f"CUDA: {function.__name__} failed with {label.decode()}. "
                "Check the NVIDIA driver (nvidia-smi) and that the device has free memory.",
                kind="environment",
            )
        return values[0] if values else None


class PyCuda:
    """pycuda on the device's primary context, the one that TensorRT uses too; the same methods as `CudaBindings`."""

    name = "pycuda"

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._hosts: list[np.ndarray] = []
        self._devices: list[Any] = []
        self._context: Any = None
        with self._told("no usable device"):
            driver.init()
            context = driver.Device(0).retain_primary_context()
            context.push()
            self._context = context
        try:
            with self._told("no stream"):
                self._queue, self.start, self.stop = driver.Stream(), driver.Event(), driver.Event()
        except ExportError:
            self.close()
            raise
        self.stream = int(self._queue.handle)

    def host(self, size_bytes: int) -> np.ndarray:
        self._hosts.append(self._allocate(self._driver.pagelocked_empty, size_bytes, np.uint8))
        return self._hosts[-1]

    def device(self, size_bytes: int) -> int:
        self._devices.append(self._allocate(self._driver.mem_alloc, size_bytes))
        return int(self._devices[-1])

    def free_device(self, address: int) -> None:
        kept = next(buffer for buffer in self._devices if int(buffer) == address)
        self._devices = [buffer for buffer in self._devices if buffer is not kept]
        with self._told("a buffer is not freed"):
            kept.free()

    def upload(self, address: int, host: np.ndarray) -> None:
        with self._told("no copy to the device"):
            self._driver.memcpy_htod_async(address, host, self._queue)

    def download(self, host: np.ndarray, address: int) -> None:
        with self._told("no copy from the device"):
            self._driver.memcpy_dtoh_async(host, address, self._queue)

    def record(self, event: Any) -> None:
        with self._told("no event"):
            event.record(self._queue)

    def wait(self) -> float:
        with self._told("the work queued did not end"):
            self._queue.synchronize()
            return float(self.start.time_till(self.stop))

    def close(self) -> None:
        for buffer in self._devices + [host.base for host in self._hosts]:
            buffer.free()
        self._devices, self._hosts = [], []
        if self._context is not None:
            self._queue = self.start = self.stop = None  # their destructors need the context
            self._context.pop()
            self._context = None

    def _allocate(self, make: Any, *arguments: object) -> Any:
        with self._told(f"no memory for {arguments[0]} bytes"):
            return make(*arguments)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """pycuda's errors have their own base class; its MemoryError and RuntimeError are not Python's."""
        try:
            yield
        except self._driver.Error as error:
            raise ExportError(
                f"CUDA: {what}: {error}. Check the NVIDIA driver (nvidia-smi) and that the device has free memory.",
                kind="environment",
            ) from error


Cuda = CudaBindings | PyCuda
