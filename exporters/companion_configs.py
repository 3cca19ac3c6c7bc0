"""The configuration files of DeepStream's Gst-nvinfer and of Triton for what a release holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from exporters import ExportError
from exporters.companion_commands import Model, widest
from exporters.precision import Precision
from exporters.runtimes import TensorInfo

Platform = Literal["tensorrt_plan", "onnxruntime_onnx"]

_TRITON_TYPES = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "float64": "TYPE_FP64", "bool": "TYPE_BOOL", "int8": "TYPE_INT8",
    "int16": "TYPE_INT16", "int32": "TYPE_INT32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32", "uint64": "TYPE_UINT64",
}  # fmt: skip
_NVINFER_MODES: dict[Precision, int] = {"fp32": 0, "int8": 1, "fp16": 2}
_NVINFER_COLORS = {"rgb": 0, "bgr": 1, "gray": 2}


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What the graph's input is made of: (pixel / 255 - mean) / std per channel, in `color` order."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    color: Literal["rgb", "bgr", "gray"] = "rgb"


def nvinfer_obstacle(model: Model, normalisation: Normalisation | None) -> str | None:
    """Why DeepStream's Gst-nvinfer cannot feed this graph right, with what to do; None where it can.

    It makes float planes by y = net-scale-factor · (x - offset[c]), one factor for all channels (DeepStream guide,
    Gst-nvinfer). `normalisation` is None where the samples were made elsewhere.
    """
    serve = "serve it through Gst-nvinferserver with the config.pbtxt of this release"
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
        return f"Gst-nvinfer feeds one image input [n, c, h, w]. Make its tensors upstream, or {serve}."
    if model.inputs[0].dtype == "uint8":
        return f"Gst-nvinfer makes float planes, and this graph takes uint8 frames; {serve}, normalisation off."
    if model.inputs[0].dtype != "float32":
        return f"Gst-nvinfer makes float32 planes, and this graph takes {model.inputs[0].dtype}; {serve}."
    if normalisation is None:
        return f"how its input is normalised is not known here. Make its tensors upstream, or {serve}."
    if len(set(normalisation.std)) > 1:
        return (
            f"Gst-nvinfer has one net-scale-factor, and std is {list(normalisation.std)} per channel. Export with "
            f"export.preprocess: in_graph, and {serve}."
        )
    return None


def nvinfer_config(
    model: Model,
    normalisation: Normalisation | None,
    *,
    labels: str | None,
    threshold: float = 0.0,
    dla_core: int | None = None,
) -> str:
    """A DeepStream Gst-nvinfer file for a classifier; `labels` is a file as `nvinfer_labels` writes it.

    The engine is to be built first (trtexec line): by itself Gst-nvinfer builds a weakly typed one.

    Raises:
        ExportError: "input" with `nvinfer_obstacle`.
    """
    obstacle = nvinfer_obstacle(model, normalisation)
    if obstacle is not None or normalisation is None:
        raise ExportError(f"nvinfer: {obstacle}", kind="input")
    batch = widest(model.profiles)[2]
    keys = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        "network-type": 1,
        "network-mode": _NVINFER_MODES[model.precision],
        "onnx-file": model.onnx,
        "model-engine-file": model.engine,
        "batch-size": batch,
        "infer-dims": ";".join(str(axis) for axis in model.inputs[0].shape[1:]),
        "net-scale-factor": f"{1 / (255 * normalisation.std[0]):.12g}",
        "offsets": ";".join(f"{255 * mean:.9g}" for mean in normalisation.mean),
        "model-color-format": _NVINFER_COLORS[normalisation.color],
        "maintain-aspect-ratio": 0,
        "output-blob-names": ";".join(tensor.name for tensor in model.outputs),
        **({"labelfile-path": labels} if labels is not None else {}),
        "classifier-threshold": f"{threshold:g}",
        **({"enable-dla": 1, "use-dla-core": dla_core} if dla_core is not None else {}),
    }
    comments = (
        "# Gst-nvinfer scales the whole frame to infer-dims; the resize and crop of the training are not its own.",
        "# classifier-threshold is compared with the output as it is: a graph that ends in logits gives logits.",
    )
    return "\n".join([*comments, "[property]", *(f"{key}={value}" for key, value in keys.items())]) + "\n"


def nvinfer_labels(names: Sequence[str]) -> str:
    """The label file of a classifier, all names on one line. Raises ExportError (input) for a name with a semicolon."""
    split = [name for name in names if ";" in name or "\n" in name]
    if split:
        raise ExportError(
            f"nvinfer: label '{split[0]}' holds what separates labels (';'). Rename the class.", kind="input"
        )
    return ";".join(names) + "\n"


def triton_config(model: Model, *, name: str, platform: Platform) -> str:
    """A Triton config.pbtxt; the file it serves stands in NAME/1/ under its own name.

    A dynamic batch gives max_batch_size, dims without the batch, and dynamic batching; a static one stands in the dims
    with max_batch_size 0.

    Raises:
        ExportError: "input" for a dtype that Triton does not have.
    """
    most = widest(model.profiles)[2] if model.dynamic else 0
    served = model.engine if platform == "tensorrt_plan" else model.onnx
    lines = [
        f"name: {json.dumps(name)}",
        f"platform: {json.dumps(platform)}",
        f"default_model_filename: {json.dumps(served.rpartition('/')[2])}",
        f"max_batch_size: {most}",
        *_triton_tensors("input", model.inputs, dynamic=model.dynamic),
        *_triton_tensors("output", model.outputs, dynamic=model.dynamic),
    ]
    if most > 1:
        best = sorted({profile[1] for profile in model.profiles})
        lines.append(f"dynamic_batching {{ preferred_batch_size: [ {', '.join(map(str, best))} ] }}")
    if platform == "tensorrt_plan" and len(model.profiles) > 1:
        profiles = ", ".join(f'"{index}"' for index in range(len(model.profiles)))
        lines.append(f"instance_group [ {{ kind: KIND_GPU, profile: [ {profiles} ] }} ]")
    return "\n".join(lines) + "\n"


def _triton_tensors(kind: str, tensors: Sequence[TensorInfo], *, dynamic: bool) -> list[str]:
    lines = []
    for tensor in tensors:
        if tensor.dtype not in _TRITON_TYPES:
            raise ExportError(
                f"triton: {kind} '{tensor.name}' has dtype {tensor.dtype}, which Triton lacks.", kind="input"
            )
        axes = tensor.shape[1:] if dynamic else tensor.shape
        dims = ", ".join(str(axis if isinstance(axis, int) else -1) for axis in axes)
        entry = f"name: {json.dumps(tensor.name)}, data_type: {_TRITON_TYPES[tensor.dtype]}, dims: [ {dims} ]"
        lines.append(f"{kind} [ {{ {entry} }} ]")
    return lines
