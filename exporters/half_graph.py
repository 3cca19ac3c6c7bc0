"""A graph's float arithmetic moved to FP16, node by node, with a Cast only where the type changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_FLOAT, _HALF = 1, 10  # TensorProto.FLOAT, TensorProto.FLOAT16
_SUFFIX = {_FLOAT: ":fp32", _HALF: ":fp16"}


@dataclass(frozen=True, slots=True)
class Sides:
    """Which inputs and outputs of a node would be FP16: those that are FP32 now and may be both by its operator."""

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]

    @property
    def any(self) -> bool:
        return any((*self.inputs, *self.outputs))


def half_sides(node: onnx.NodeProto, types: Mapping[str, int], opset: int) -> Sides:
    """By the operator's own schema at this opset; nothing where the schema is not known.

    An output follows the inputs that share its type variable; that of a Cast to FP32 becomes one to FP16. Others, as
    of ConstantOfShape, stay FP32 and are cast by their readers.
    """
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return Sides((False,) * len(node.input), (False,) * len(node.output))
    both = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if {"tensor(float)", "tensor(float16)"} <= set(constraint.allowed_type_strs)
    }
    takes = [_parameter(schema.inputs, index) for index in range(len(node.input))]
    inputs = tuple(
        variable in both and types.get(name) == _FLOAT for name, variable in zip(node.input, takes, strict=True)
    )
    bound = {variable for variable, half in zip(takes, inputs, strict=True) if half}
    if node.op_type == "Cast":
        bound = {schema.outputs[0].type_str}
    gives = [_parameter(schema.outputs, index) for index in range(len(node.output))]
    outputs = tuple(
        variable in bound and types.get(name) == _FLOAT for name, variable in zip(node.output, gives, strict=True)
    )
    return Sides(inputs, outputs)


def to_half(proto: onnx.ModelProto, sides: Mapping[str, Sides]) -> None:
    """Make the sides of the nodes named in `sides` FP16, in place; inputs and outputs of the graph stay FP32.

    Nodes have names of their own and stand in topological order, as they do afterwards. Two neighbours of one type hand
    over in it. A constant that nodes of both types read is there in both.
    """
    import onnx

    graph = proto.graph
    rewriting = _Rewriting(
        constants={tensor.name: tensor for tensor in graph.initializer if tensor.data_type == _FLOAT},
        kept_outputs=frozenset(value.name for value in graph.output),
        make_node=onnx.helper.make_node,
    )
    for node in graph.node:
        rewriting.add(node, sides.get(node.name, Sides((), ())))
    nodes = [type(node).FromString(node.SerializeToString()) for node in rewriting.nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | rewriting.kept_outputs
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    constants = [type(tensor).FromString(tensor.SerializeToString()) for tensor in constants]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    for name in rewriting.halved:
        values = onnx.numpy_helper.to_array(rewriting.constants[name])
        with np.errstate(over="ignore"):  # the caller has judged the values
            graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float16), name + _SUFFIX[_HALF]))


@dataclass(slots=True)
class _Rewriting:
    """The new nodes as they are put together; `there` says where else a tensor is in another type."""

    constants: Mapping[str, onnx.TensorProto]
    kept_outputs: frozenset[str]
    make_node: Callable[..., onnx.NodeProto]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    halved: dict[str, None] = field(default_factory=dict)
    half: set[str] = field(default_factory=set)  # computed tensors that are FP16 under their own name
    there: dict[tuple[str, int], str] = field(default_factory=dict)

    def add(self, node: onnx.NodeProto, sides: Sides) -> None:
        """The node with its inputs in the type that it wants, casts before and after it where need be; changes it."""
        for index, name in enumerate(node.input):
            node.input[index] = self._in_type(
                name, _HALF if index < len(sides.inputs) and sides.inputs[index] else _FLOAT
            )
        if node.op_type == "Cast" and any(sides.outputs):
            next(attribute for attribute in node.attribute if attribute.name == "to").i = _HALF
        self.nodes.append(node)
        for index, half in enumerate(sides.outputs):
            name = node.output[index]
            if half and name in self.kept_outputs:
                node.output[index] = self.there[name, _HALF] = name + _SUFFIX[_HALF]
                self._cast(node.output[index], name, _FLOAT)
            elif half:
                self.half.add(name)

    def _in_type(self, name: str, wanted: int) -> str:
        """Where to read a tensor that was FP32, or of no float type, before; a Cast is added at the first need."""
        if wanted == (_HALF if name in self.half else _FLOAT):
            return name
        if (name, wanted) not in self.there:
            self.there[name, wanted] = name + _SUFFIX[wanted]
            if name in self.constants:
                self.halved[name] = None
            else:
                self._cast(name, name + _SUFFIX[wanted], wanted)
        return self.there[name, wanted]

    def _cast(self, source: str, target: str, to: int) -> None:
        self.nodes.append(self.make_node("Cast", [source], [target], name=f"cast {target}", to=to))


def _parameter(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> str:
    """The type variable of an input or output; a variadic last one stands for all that follow."""
    variable: str = parameters[min(index, len(parameters) - 1)].type_str
    return variable
