"""A TensorRT network whose types are the graph's own: strongly typed from 10 on, by flags and constraints before."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal

from exporters import ExportError
from exporters.calibration_cache import cache_calibrator, calibration_cache
from exporters.engine_settings import EngineSettings
from exporters.onnx_types import DEQUANTIZE, FLOAT, FLOAT16, QUANTIZE, graph_precisions, nodes, opset, tensor_types
from exporters.trt_api import NEWEST_OLD_OPSET, has

Typing = Literal["strong", "weak"]


def typing_of(trt: ModuleType, settings: EngineSettings) -> Typing:
    """ "weak" on 8.6, and for a DLA wherever there still are precision flags: NVIDIA documents it with those only.

    Strong typing on a DLA is documented from 11.4.1 on (inference-library/dla-strongly-typed-networks.html).
    """
    weak = not has(trt, "strong_typing") or (settings.dla_core is not None and has(trt, "weak_typing"))
    return "weak" if weak else "strong"


def create_network(trt: ModuleType, builder: Any, typing: Typing) -> Any:
    """An empty network; 10 and later ignore EXPLICIT_BATCH, 11 also the typing flag."""
    if typing == "strong":
        return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))


def check_graph(trt: ModuleType, model: bytes, settings: EngineSettings, *, where: str) -> None:
    """Raise ExportError where this TensorRT, or its DLA, cannot hold what the graph asks for."""
    version, precisions = str(trt.__version__), graph_precisions(model)
    if not has(trt, "strong_typing") and (number := opset(model)) > NEWEST_OLD_OPSET:
        raise ExportError(
            f"{where}: has opset {number}, expected {NEWEST_OLD_OPSET} or less: TensorRT {version} reads no newer one. "
            f"Export it with opset {NEWEST_OLD_OPSET}.",
            kind="environment",
        )
    if settings.dla_core is None:
        return
    if settings.int8_ranges is not None:
        if precisions:
            message = f"{where}: holds {', '.join(sorted(precisions))}, expected the FP32 graph beside INT8 ranges."
            raise ExportError(message, kind="input")
    elif "int8" in precisions and has(trt, "weak_typing"):
        raise ExportError(
            f"{where}: quantizes with Q/DQ nodes, which no DLA takes before TensorRT 11 (here {version}): INT8 there "
            "comes from a calibration cache. Build the FP32 graph with its INT8 ranges.",
            kind="environment",
        )
    elif not precisions:
        message = f"{where}: is an FP32 graph, expected FP16, or FP32 with INT8 ranges: a DLA computes in nothing else."
        raise ExportError(message, kind="input")


def set_precision(
    trt: ModuleType, network: Any, config: Any, model: bytes, settings: EngineSettings, *, typing: Typing
) -> Any:
    """Weakly typed: set the flags of the graph's own precisions, and hold its types; gives what must stay alive.

    FP32 needs no flag. Where there is FP16 every layer that the ONNX names is held to its type with
    OBEY_PRECISION_CONSTRAINTS, by which the build fails otherwise (docs.nvidia.com, TensorRT 8.6, BuilderFlag). Layers
    at Q/DQ nodes are left alone: there explicit quantization decides. With ranges, what has none computes in FP16, as a
    DLA must.
    """
    if typing == "strong":
        return None
    if settings.int8_ranges is not None:
        config.set_flag(trt.BuilderFlag.INT8)
        config.set_flag(trt.BuilderFlag.FP16)
        cache = calibration_cache(settings.int8_ranges, version=str(trt.__version__))
        config.int8_calibrator = calibrator = cache_calibrator(trt, cache)
        return calibrator
    precisions = graph_precisions(model)
    if "int8" in precisions:
        config.set_flag(trt.BuilderFlag.INT8)
    if "fp16" in precisions:
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        _hold_types(trt, network, model)
    return None


def _hold_types(trt: ModuleType, network: Any, model: bytes) -> None:
    types = tensor_types(model)
    free = _around_quantization(model)
    dtype_of = {FLOAT: trt.DataType.FLOAT, FLOAT16: trt.DataType.HALF}
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type in (trt.LayerType.CONSTANT, trt.LayerType.SHAPE):
            continue
        for index in range(layer.num_outputs):
            tensor = layer.get_output(index)
            name = tensor.name
            dtype = dtype_of.get(types.get(name, 0))
            if dtype is not None and name not in free:
                layer.precision = dtype
                layer.set_output_type(index, dtype)


def _around_quantization(model: bytes) -> set[str]:
    """Outputs of Q/DQ nodes, of what reads a dequantized tensor, and of what a quantizer reads."""
    found = nodes(model)
    dequantized = {name for node in found if node.op == DEQUANTIZE for name in node.outputs}
    free = {name for node in found if node.op == QUANTIZE for name in node.inputs[:1]}
    for node in found:
        if node.op in (QUANTIZE, DEQUANTIZE) or dequantized & set(node.inputs):
            free |= set(node.outputs)
    return free
