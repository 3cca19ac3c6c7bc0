"""Memory for outputs whose size only the data decides: TensorRT asks for it while it runs."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from exporters import ExportError
from exporters.cuda import Cuda


class GrowingOutput:
    """One output's device memory, as large as was ever asked for, and the shape that the last run gave it.

    `failure` is kept instead of raised: an exception must not cross TensorRT's own frames.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.address = 0
        self.size_bytes = 0
        self.shape: tuple[int, ...] | None = None
        self.failure: ExportError | None = None
        self._host: np.ndarray | None = None

    def told(self, shape: tuple[int, ...]) -> None:
        """Keep the shape that the running execution has found."""
        self.shape = shape

    def download(self, dtype: str) -> np.ndarray:
        """Queue the copy of the output, in the shape that was told, to a page-locked buffer that grows too."""
        if self.shape is None:
            raise ExportError("TensorRT told no shape of an output whose size the data decides.")
        size_bytes = int(np.prod(self.shape)) * np.dtype(dtype).itemsize
        if self._host is None or self._host.nbytes < size_bytes:
            self._host = self._cuda.host(max(2 * size_bytes, 1))  # twice: those outgrown are only freed in the end
        host = self._host[:size_bytes].view(dtype).reshape(self.shape)
        if size_bytes:
            self._cuda.download(host, self.address)
        return host

    def reallocate(self, size_bytes: int) -> int:
        """An address with room for that many bytes; 0, as TensorRT demands, where there is no memory."""
        if size_bytes > self.size_bytes or not self.address:
            try:
                if self.address:
                    self._cuda.free_device(self.address)
                    self.address = 0
                self.address = self._cuda.device(max(size_bytes, 1))  # an empty output has an address too
            except ExportError as error:
                self.failure = error
                return 0
            self.size_bytes = max(size_bytes, 1)
        return self.address


def make_output_allocator(
    trt: ModuleType, *, reallocate: Callable[[int], int], on_shape: Callable[[tuple[int, ...]], None]
) -> Any:
    """A TensorRT output allocator of one tensor (IOutputAllocator, from 8.5 on; the asynchronous method from 10 on).

    cudaMalloc aligns to 256 bytes at least (CUDA C++ Programming Guide, "Device Memory Accesses"), which is what
    TensorRT asks for.
    """

    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]  # a base known only at run time
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)  # pybind11 demands it by name

        def reallocate_output(self, tensor_name: str, memory: object, size: int, alignment: int) -> int:
            return reallocate(size)

        def reallocate_output_async(
            self, tensor_name: str, memory: object, size: int, alignment: int, stream: int
        ) -> int:
            return reallocate(size)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            on_shape(tuple(int(axis) for axis in shape))

    return OutputAllocator()
