"""A model as the onnx package has it: read, or refused in one sentence; its constants in one place; its types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporters import ExportError
from exporters.onnx_facts import onnx_facts

if TYPE_CHECKING:
    import onnx


def read_proto(model: bytes, *, where: str, need: str) -> onnx.ModelProto:
    """The model's protobuf; `need` says what for, as in "which FP16 needs".

    Raises ExportError: "environment" without onnx, "input" for what is no model.
    """
    try:
        import onnx
    except ImportError as error:
        message = f"{where}: onnx is not installed, {need}. Run: pip install 'edgesoup[build]'"
        raise ExportError(message, kind="environment") from error
    onnx_facts(model, where=where)  # raises for what is no model
    return onnx.ModelProto.FromString(model)


def constants_to_initializers(proto: onnx.ModelProto) -> None:
    """Turn Constant nodes that hold a tensor into initializers of that name, in place."""
    nodes = [type(node).FromString(node.SerializeToString()) for node in proto.graph.node]
    del proto.graph.node[:]
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = proto.graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            proto.graph.node.append(node)


def proto_types(proto: onnx.ModelProto) -> dict[str, int]:
    """TensorProto.DataType by tensor; 0 for one that holds a sequence or the like."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    constants = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    return {**{value.name: value.type.tensor_type.elem_type for value in values}, **constants}
