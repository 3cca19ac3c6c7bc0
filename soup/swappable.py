"""A network as an ONNX graph for one candidate after another: exported once, BatchNorm unfolded, weights exchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import nn

from exporters.quiet import quiet
from exporters.runtimes import Arrays
from soup import SoupError
from soup.models import named_outputs
from soup.tensors import StateDict

_OPSET = 17
_PROBE_SEED = 0
_PREFIX = "model."


@dataclass(frozen=True, slots=True)
class Swappable:
    """The exported network without its weights, what they are called, and its outputs by `torch_predict`'s names.

    `tensors` are the state dict's names with the dtypes that the graph has for them.
    `twins` are tensors that are not in the graph but equal one that is: tied, or merged by the exporter.
    """

    model: bytes
    tensors: Mapping[str, torch.dtype]
    twins: Sequence[tuple[str, str]]
    outputs: tuple[str, ...]


class Session:
    """One candidate in ONNX Runtime on the CPU; freed with its last reference."""

    def __init__(self, model: bytes, outputs: Sequence[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Only the last level lays convolutions out in blocks, 5 times as fast on depthwise networks as the one before.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch's threads want the cores next
        options.log_severity_level = 4  # what fails here is done in torch
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._outputs = tuple(outputs)

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray] | None:
        """The outputs for the one input, whatever its name; None where ONNX Runtime cannot run this batch."""
        (array,) = inputs.values()
        try:
            found = self._session.run(None, {"input": np.ascontiguousarray(array)})
        except _onnxruntime_errors():
            return None
        return dict(zip(self._outputs, found, strict=True))


def export_swappable(model: nn.Module, images: np.ndarray, *, outputs: Sequence[str]) -> Swappable:
    """The graph of a float32 network on the CPU, in evaluation mode, that takes `images` [n, ...], any number at once.

    Overwrites the floating-point tensors of `model` with values that no two of them share: the exporter would merge
    equal ones, and what it computes from them ahead would pass for a constant. Whether the graph follows its
    initialisers in everything has to be seen from its outputs. The tracing exporter is used, since it is ten times as
    fast as the other, and leaves BatchNorm and every name in place. Raises SoupError where there is no such graph.
    """
    import onnx

    file, names = BytesIO(), [f"output_{index}" for index in range(len(outputs))]
    _overwrite(model)
    try:
        with quiet():
            torch.onnx.export(
                _Flat(model).eval(),
                (torch.from_numpy(images[np.arange(2) % len(images)]),),
                file,  # type: ignore[arg-type]  # this route also takes a file object
                input_names=["input"],
                output_names=names,
                dynamic_axes={name: {0: "batch"} for name in ("input", *names)},
                opset_version=_OPSET,
                dynamo=False,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,  # asked for evaluation, other versions fold BatchNorm
            )
        proto = onnx.ModelProto.FromString(file.getvalue())
    # A faster way must not cost the build, and tracing runs the user's code.
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, SoupError) as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise SoupError(f"model: cannot be exported: {type(error).__name__}: {line}", kind="build") from error
    return _mapped(proto, model.state_dict(), outputs=tuple(outputs))


def open_session(graph: Swappable, state: StateDict) -> Session | None:
    """A candidate in the graph; None where the graph cannot hold or run it."""
    import onnx

    if not all(torch.equal(state[name], state[twin]) for name, twin in graph.twins):
        return None
    proto = onnx.ModelProto.FromString(graph.model)  # anew: protobuf keeps what is overwritten until the end
    for item in proto.graph.initializer:
        name = item.name.removeprefix(_PREFIX)
        if name in graph.tensors:
            item.raw_data = _raw(state[name].detach().to(graph.tensors[name]))
    try:
        return Session(proto.SerializeToString(), graph.outputs)
    except _onnxruntime_errors():
        return None


class _Flat(nn.Module):
    """The network with its outputs in a row, in the order and the dtype in which `torch_predict` gives them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.float() for tensor in named_outputs(self.model(images)).values())


@torch.no_grad()
def _overwrite(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():  # integers may be indices, which have to fit
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


def _mapped(proto: Any, probe: StateDict, *, outputs: tuple[str, ...]) -> Swappable:
    found = {item.name.removeprefix(_PREFIX): item for item in proto.graph.initializer}
    tensors = {name: tensor.dtype for name, tensor in probe.items() if name in found}
    for name in tensors:
        if found[name].raw_data != _raw(probe[name]):
            raise SoupError(f"model: cannot be exported: the graph holds '{name}' in another form", kind="build")
        found[name].ClearField("raw_data")
    present = {_content(probe[name]): name for name in tensors}
    absent = [(name, _content(probe[name])) for name in probe if name not in found]
    twins = [(name, present[content]) for name, content in absent if content in present]
    return Swappable(proto.SerializeToString(), tensors, twins, outputs)


def _content(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, _raw(tensor)


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    """They have no common base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception))
