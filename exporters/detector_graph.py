"""A detector's graph of boxes and scores, while nodes are put at its end: names, lengths and the new outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from exporters import ExportError
from exporters.onnx_facts import onnx_facts
from exporters.onnx_graph import clean_bytes
from exporters.onnx_proto import read_proto

if TYPE_CHECKING:
    import onnx

NMS = "nms/"  # what the names of the nodes begin with that suppress

_LEAST_OPSET = 13  # Unsqueeze with its axes as an input
_FLOAT, _INT32 = 1, 6  # TensorProto.DataType


class DetectorGraph:
    """A graph that gives boxes and scores, while nodes are put at its end; `finish` makes them its outputs."""

    def __init__(self, model: bytes, *, where: str) -> None:
        """Raises ExportError: input where the outputs are not boxes [n, A, 4] and scores [n, A, C] of known A and C."""
        self.proto = read_proto(model, where=where, need="which changes the graph")
        self.where = where
        self._refuse_opset()
        self.anchors, self.classes = self._lengths()
        names = [value.name for value in self.proto.graph.output]
        axis = self.proto.graph.output[0].type.tensor_type.shape.dim[0]
        self.batch = type(axis).FromString(axis.SerializeToString())  # the outputs go
        self.names = (names[0], names[1])
        self.boxes, self.scores = (self._renamed(name) for name in names)
        self._constants: list[onnx.TensorProto] = []

    def constant(self, values: np.ndarray | Sequence[int] | float, name: str) -> str:
        """The name of a new initializer; plain integers become int64, a plain float float32."""
        import onnx

        dtype = None if isinstance(values, np.ndarray) else np.float32 if isinstance(values, float) else np.int64
        array = np.asarray(values, dtype)
        self._constants.append(onnx.numpy_helper.from_array(array, f"{NMS}{name}"))
        return f"{NMS}{name}"

    def node(
        self, op: str, inputs: Sequence[str], output: str, *more: str, domain: str = "", **attributes: object
    ) -> str:
        """The name of the first output of a new node."""
        import onnx

        outputs = [f"{NMS}{name}" for name in (output, *more)]
        made = onnx.helper.make_node(op, inputs, outputs, name=f"{NMS}{output}_{op}", domain=domain, **attributes)
        self.proto.graph.node.append(made)
        return outputs[0]

    def use_domain(self, domain: str, *, version: int) -> None:
        """Let nodes be of another domain, of which nothing is checked."""
        import onnx

        self.proto.opset_import.append(onnx.helper.make_opsetid(domain, version))

    def declare(self, tensor: str, code: int, axes: Sequence[int]) -> None:
        """Say what a tensor [n, axes] is, where shape inference cannot."""
        self.proto.graph.value_info.append(self._value(tensor, code, axes))

    def finish(self, boxes: str, scores: str, labels: str, *, rows: int) -> bytes:
        """The model with these tensors as its outputs: boxes and scores under the names they had, and "labels"."""
        import onnx

        graph = self.proto.graph
        graph.initializer.extend(self._constants)
        del graph.output[:]
        outputs = {self.names[0]: (boxes, _FLOAT, [rows, 4]), self.names[1]: (scores, _FLOAT, [rows])}
        outputs["labels"] = labels, _INT32, [rows]
        for name, (tensor, code, shape) in outputs.items():
            graph.node.append(onnx.helper.make_node("Identity", [tensor], [name], name=f"{NMS}{name}_Identity"))
            graph.output.append(self._value(name, code, shape))
        metadata = {item.key: item.value for item in self.proto.metadata_props}
        return clean_bytes(self.proto.SerializeToString(), metadata=metadata, where=self.where)

    def _value(self, name: str, code: int, axes: Sequence[int]) -> onnx.ValueInfoProto:
        import onnx

        value = onnx.helper.make_tensor_value_info(name, code, [1, *axes])
        value.type.tensor_type.shape.dim[0].CopyFrom(self.batch)
        return value

    def _refuse_opset(self) -> None:
        opset = max((item.version for item in self.proto.opset_import if item.domain in ("", "ai.onnx")), default=0)
        if opset < _LEAST_OPSET:
            message = f"{self.where}: has opset {opset}, expected {_LEAST_OPSET} or later for NMS in the graph."
            raise ExportError(f"{message} Export it at a later opset.", kind="input")

    def _lengths(self) -> tuple[int, int]:
        """(anchors, classes); where the outputs do not tell them, shape inference may."""
        import onnx

        inferred = onnx.shape_inference.infer_shapes(self.proto, data_prop=True).graph.output
        axes = [[axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in inferred]
        kinds = [value.type.tensor_type.elem_type for value in inferred]
        if kinds == [_FLOAT] * 2 and [len(one) for one in axes] == [3, 3] and axes[0][2] in (0, 4):
            anchors, classes = max(axes[0][1], axes[1][1]), axes[1][2]
            if anchors and classes and {axes[0][1], axes[1][1]} <= {0, anchors}:
                return anchors, classes
        infos = onnx_facts(self.proto.SerializeToString(), where=self.where).outputs
        found = ", ".join(f"{info.dtype} '{info.name}' {info.shape}" for info in infos)
        message = f"{self.where}: the graph gives {found}, expected float32 boxes (n, A, 4) and scores (n, A, C)"
        raise ExportError(
            f"{message} with A and C known. Export it with a static batch, or leave NMS out.", kind="input"
        )

    def _renamed(self, name: str) -> str:
        """Give the tensor another name, in place, so that the output's is free."""
        graph = self.proto.graph
        if "labels" in {tensor for node in graph.node for tensor in node.output}:
            raise ExportError(f"{self.where}: the graph has a tensor 'labels' already, expected none.", kind="input")
        new = f"{NMS}raw_{name}"
        for node in graph.node:
            node.output[:] = [new if tensor == name else tensor for tensor in node.output]
            node.input[:] = [new if tensor == name else tensor for tensor in node.input]
        return new
