"""An ONNX Runtime session that runs on the provider that was asked for, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from exporters import ExportError
from exporters.onnx_wire import refuse_external_data

Provider = Literal["cpu", "cuda", "tensorrt"]

# In the order that ONNX Runtime tries them for each operator; the first is the one that was asked for.
_PROVIDERS: Mapping[Provider, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
_GPU_REMEDY = (
    "Install onnxruntime-gpu in place of onnxruntime (on a Jetson NVIDIA's own wheel), with the CUDA, cuDNN and "
    "TensorRT that it was built for, or choose provider cpu."
)


def open_session(model: bytes, *, where: str, provider: Provider, threads: int | None) -> Any:
    """An onnxruntime.InferenceSession, of which there are no types, that runs on the provider asked for."""
    try:
        import onnxruntime
    except ImportError as error:
        message = f"{where}: onnxruntime is not installed. Run: pip install 'edgesoup[ort]'"
        raise ExportError(message, kind="environment") from error
    refuse_external_data(model, where=where)
    wanted = _PROVIDERS[provider]
    available = onnxruntime.get_available_providers()
    if wanted[0] not in available:
        message = f"{where}: this ONNX Runtime has no {wanted[0]}, only {available}. {_GPU_REMEDY}"
        raise ExportError(message, kind="environment")
    options = onnxruntime.SessionOptions()
    # ENABLE_ALL crashed on an FP16 ViT (onnxruntime 1.31.1).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    chosen = [name for name in wanted if name in available]
    try:
        # Without `enable_fallback=0` it prints to stdout that it goes on without the provider.
        session = onnxruntime.InferenceSession(model, options, providers=chosen, enable_fallback=0)
    except onnxruntime_errors() as error:
        foreign = "is not a registered function/op" in str(error)  # TensorRT's plugin, say
        raise ExportError(
            f"{where}: ONNX Runtime cannot load it: {error}", kind="environment" if foreign else "input"
        ) from error
    # Read back: a provider that cannot start is left out, and nothing but a log line says so.
    running = session.get_providers()
    if running[0] != wanted[0]:
        message = f"{where}: {wanted[0]} did not start, ONNX Runtime would run on {running[0]}. {_GPU_REMEDY}"
        raise ExportError(message, kind="environment")
    return session


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """They have no common base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception))
