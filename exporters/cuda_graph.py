"""Work of one stream captured once and replayed: a CUDA graph by the driver's own functions, pycuda or not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from exporters import ExportError

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile


class CudaGraph:
    """A captured graph; `launch` queues it on the stream that it was captured on, `close` frees it.

    The driver's handles are the runtime's too (CUDA Driver API, "Interactions with the CUDA Driver API"), so that one
    implementation serves pycuda, which has no graphs, and cuda-bindings.
    """

    def __init__(self, work: Callable[[], bool], *, stream: int, driver: Any = None) -> None:
        """Capture what `work` queues on `stream`; it says whether it could. Raises ExportError where capture fails."""
        self._driver = driver or ctypes.CDLL("libcuda.so.1")
        self._stream = ctypes.c_void_p(stream)
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        self._check("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(_THREAD_LOCAL))
        try:
            queued = work()
        finally:  # a stream left capturing could do nothing else
            ended = self._driver.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        try:
            if not queued or ended != 0:
                raise ExportError(f"CUDA: the work cannot be captured (cuStreamEndCapture gave {ended}).")
            self._check("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            if graph:
                self._driver.cuGraphDestroy(graph)

    def launch(self) -> None:
        """Queue the captured work."""
        self._check("cuGraphLaunch", self._executable, self._stream)

    def close(self) -> None:
        """Free the graph; may be called again."""
        if self._executable:
            self._driver.cuGraphExecDestroy(self._executable)
            self._executable = ctypes.c_void_p()

    def _check(self, name: str, *arguments: object) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code != 0:
            raise ExportError(f"CUDA: {name} failed with error {code}.")
