"""Preprocessing moved into the graph, so that a device feeds camera frames: uint8 [n, height, width, channels]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from exporters import ExportError
from exporters.onnx_facts import onnx_facts
from exporters.onnx_graph import clean_bytes
from exporters.onnx_proto import read_proto

if TYPE_CHECKING:
    import onnx

Color = Literal["rgb", "bgr", "gray"]
PREPROCESS = "preprocess/"  # what the names of the nodes begin with that take frames to numbers

_FLOAT, _UINT8 = 1, 2  # TensorProto.DataType


def with_preprocess(
    model: bytes, *, mean: Sequence[float], std: Sequence[float], color: Color, source_color: Color, where: str
) -> bytes:
    """The graph with uint8 frames [n, height, width, channels] in `source_color` for its float32 [n, channels, h, w].

    It computes (frame / 255 - mean) / std in the model's `color`, up to float32's rounding; `mean` and `std` are of
    pixels scaled to 0..1, one per channel of `color` or one for all. The input keeps its name and its batch. Where it
    goes to one ungrouped Conv only, that Conv's weights take the scale and the order of the channels, and without
    padding its bias takes the shift, worked out in float64: the zeros around a padded frame would be shifted too, so
    that the shift is then a node. Elsewhere all of it is nodes, in the order and precision of the trainer's transforms.

    Raises:
        ExportError: "input" for no model, another input than one image of as many channels as the color has, a mean or
            std that does not fit it, or a color that cannot be made of the other; "environment" without onnx; "build"
            where ONNX's checker refuses the result.
    """
    proto = read_proto(model, where=where, need="which changes the graph")
    image = _image(proto, channels=1 if color == "gray" else 3, where=where)
    if color != source_color and "gray" in (color, source_color):
        message = f"{where}: frames in {source_color} cannot become {color}, only rgb and bgr each other."
        raise ExportError(f"{message} Set export.frames to what preprocess.color is.", kind="input")
    channels = image.type.tensor_type.shape.dim[1].dim_value
    means, stds = (_per_channel(values, channels, where=where) for values in (mean, std))
    swap = color != source_color
    steps: list[tuple[str, np.ndarray]] = [("Div", np.array([255.0])), ("Sub", means), ("Div", stds)]
    if conv := _only_conv(proto, image.name):
        padded, order = _padded(conv), slice(None, None, -1 if swap else 1)
        _fold(proto, conv, 1 / (255 * stds), None if padded else 255 * means, order=order)
        steps, swap = [("Sub", 255 * means[order])] if padded else [], False
    _put_before(proto, image, steps, swap=swap)
    metadata = {item.key: item.value for item in proto.metadata_props}
    return clean_bytes(proto.SerializeToString(), metadata=metadata, where=where)


def _image(proto: onnx.ModelProto, *, channels: int, where: str) -> onnx.ValueInfoProto:
    """The graph's input, if it is one float32 image of so many channels."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    types = [value.type.tensor_type for value in inputs]
    axes = [[axis.dim_value for axis in one.shape.dim] for one in types if one.elem_type == _FLOAT]
    if len(inputs) == len(axes) == 1 and len(axes[0]) == 4 and axes[0][1] == channels:
        return inputs[0]
    infos = [(info.name, info.dtype, info.shape) for info in onnx_facts(proto.SerializeToString(), where=where).inputs]
    expected = f"one float32 image (batch, {channels}, height, width)"
    message = f"{where}: the graph takes {infos}, expected {expected} to put preprocessing before."
    raise ExportError(f"{message} Leave export.preprocess outside.", kind="input")


def _per_channel(values: Sequence[float], channels: int, *, where: str) -> np.ndarray:
    if len(values) not in (1, channels):
        message = f"{where}: {len(values)} means or deviations, expected 1 or {channels}, one per channel."
        raise ExportError(f"{message} Correct preprocess.mean and std.", kind="input")
    return np.broadcast_to(np.asarray(values, np.float64), channels)


def _only_conv(proto: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    """The ungrouped Conv of constant weights that alone reads the input, at most through Identity; else None."""
    constants = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == _FLOAT}
    while True:
        readers = [node for node in proto.graph.node if name in node.input]
        if len(readers) != 1 or name in {value.name for value in proto.graph.output}:
            return None
        node = readers[0]
        if node.op_type == "Identity":
            name = node.output[0]
            continue
        grouped = any(attribute.name == "group" and attribute.i != 1 for attribute in node.attribute)
        whole = node.op_type == "Conv" and not grouped and node.input[0] == name
        return node if whole and constants.issuperset(filter(None, node.input[1:])) else None


def _padded(conv: onnx.NodeProto) -> bool:
    attributes = {attribute.name: attribute for attribute in conv.attribute}
    if "auto_pad" in attributes and attributes["auto_pad"].s not in (b"NOTSET", b"VALID"):
        return True
    return "pads" in attributes and any(attributes["pads"].ints)


def _fold(
    proto: onnx.ModelProto, conv: onnx.NodeProto, scale: np.ndarray, offset: np.ndarray | None, *, order: slice
) -> None:
    """Conv((x - offset) · scale) as a Conv of x, its channels in `order`, in place; without `offset`, of x - offset."""
    import onnx

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    weight = onnx.numpy_helper.to_array(constants[conv.input[1]]).astype(np.float64)
    scaled = weight * scale.reshape(-1, *(1,) * (weight.ndim - 2))
    _give(proto, conv, 1, scaled[:, order])
    if offset is not None:
        old = conv.input[2] if len(conv.input) > 2 else ""
        bias = onnx.numpy_helper.to_array(constants[old]).astype(np.float64) if old else 0.0
        _give(proto, conv, 2, bias - np.tensordot(scaled.sum(axis=tuple(range(2, weight.ndim))), offset, axes=1))


def _give(proto: onnx.ModelProto, node: onnx.NodeProto, index: int, values: np.ndarray) -> None:
    """Let the node read `values` in place of its input, which goes where no other reads it."""
    import onnx

    old = node.input[index] if index < len(node.input) else ""
    name = f"{old or node.output[0] + '_bias'}:frames"
    node.input[index:] = [name, *node.input[index + 1 :]]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    if old and not any(old in other.input for other in proto.graph.node):
        proto.graph.initializer.remove(next(tensor for tensor in proto.graph.initializer if tensor.name == old))


def _put_before(
    proto: onnx.ModelProto, image: onnx.ValueInfoProto, steps: Sequence[tuple[str, np.ndarray]], *, swap: bool
) -> None:
    """Make the input uint8 frames, and what read it read them after a Cast, a Transpose and the steps; in place."""
    import onnx

    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def then(op: str, values: np.ndarray | None = None, **attributes: object) -> None:
        source = nodes[-1].output[0] if nodes else image.name
        name = f"{PREPROCESS}{len(nodes)}_{op}"
        if values is not None:
            constants.append(onnx.numpy_helper.from_array(values, f"{name}_by"))
        inputs = [source] if values is None else [source, f"{name}_by"]
        nodes.append(onnx.helper.make_node(op, inputs, [f"{name}_output"], name=name, **attributes))

    then("Cast", to=_FLOAT)  # TensorRT takes uint8 at the very input, and nothing but a Cast behind it
    then("Transpose", perm=[0, 3, 1, 2])
    if swap:
        then("Gather", np.array([2, 1, 0], np.int64), axis=1)
    for op, values in steps:
        then(op, values.astype(np.float32).reshape(1, -1, 1, 1))
    for node in proto.graph.node:
        node.input[:] = [nodes[-1].output[0] if name == image.name else name for name in node.input]
    graph = proto.graph
    copies = [type(node).FromString(node.SerializeToString()) for node in (*nodes, *graph.node)]
    del graph.node[:]
    graph.node.extend(copies)
    graph.initializer.extend(constants)
    kind = image.type.tensor_type
    axes = [type(axis).FromString(axis.SerializeToString()) for axis in kind.shape.dim]
    del kind.shape.dim[:]
    kind.shape.dim.extend([axes[0], axes[2], axes[3], axes[1]])
    kind.elem_type = _UINT8
