"""A torch module becomes one ONNX file with the names, dtypes, batch and opset that were asked for, read back."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exporters import ExportError
from exporters.onnx_facts import OnnxFacts, inspect_onnx, onnx_facts
from exporters.onnx_graph import clean_bytes, slim_bytes
from exporters.quiet import quiet
from exporters.runtimes import Arrays, TensorInfo

_DYNAMO_LEAST_OPSET = 18  # asked for less, it gives 18 and only logs it
_PROTOBUF_LIMIT = 2 * 1024**3
_GRAPH_ALLOWANCE = 64 * 1024**2  # nodes, names and folded constants beside the weights
_NAMES = ("float32", "float16", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES}


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """What came out, read back from the file; `notes` say which way it went and why."""

    path: Path
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    sha256: str
    simplified: bool
    notes: tuple[str, ...]
    plain: bytes | None = None  # the graph before it was simplified, where it was


def torch_to_onnx(
    model: nn.Module,
    example: Arrays,
    path: Path,
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    batch: int | tuple[int, int, int],
    opset: int,
    metadata: Mapping[str, str],
    simplify: bool = True,
) -> OnnxExport:
    """Write the model as ONNX with all weights inside, and nothing in it that names this machine.

    `example` holds the model's positional arguments in order, two samples or more each. `inputs` and `outputs` are
    final names -> dtypes in order, the outputs flattened (tensor; tuple or list; values of a dict), cast at the edges
    where the model has others. Empty means "input" and "output" (then "output_1", …), floats as float32. `batch` is
    static, or (min, opt, max). The same model gives the same bytes.

    Raises:
        ExportError: "input" for a model in training mode or names that do not fit it; "environment" without onnx and
            onnxscript; "build" where it cannot be exported, or what came out is not what was asked for.
    """
    _refuse(model, where=path)
    limits = (batch, batch) if isinstance(batch, int) else (batch[0], batch[2])
    edges, arguments, asked = _edges(model, example, inputs=inputs, outputs=outputs, batch=limits, where=path)
    exported, notes = _export(edges, arguments, asked, opset=opset, where=path)
    final = clean_bytes(exported, metadata=metadata, where=str(path))
    slimmed = None
    if simplify:
        slimmed, note = slim_bytes(final, example=_feed(example, asked), batches=sorted(set(limits)), where=str(path))
        notes.append(note)
    plain = final if slimmed is not None else None
    if slimmed is not None:
        final = clean_bytes(slimmed, metadata=metadata, where=str(path))
    path.write_bytes(final)
    facts = inspect_onnx(path)
    _assert_as_asked(facts, asked, opset=opset, metadata=metadata, where=path)
    return OnnxExport(
        path, facts.opset, facts.inputs, facts.outputs, facts.sha256, slimmed is not None, tuple(notes), plain
    )


@dataclass(frozen=True, slots=True)
class _Interface:
    """What was asked for; the first axis of every shape is "batch" where the (least, most) samples per call differ."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    batch: tuple[int, int]

    @property
    def dynamic(self) -> bool:
        return self.batch[0] < self.batch[1]


class _Edges(nn.Module):
    """The model with its inputs and outputs cast, and its outputs flattened."""

    def __init__(self, model: nn.Module, *, takes: Sequence[torch.dtype], gives: Sequence[torch.dtype]) -> None:
        super().__init__()
        self.model = model
        self.takes = tuple(takes)
        self.gives = tuple(gives)
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = _flatten(self.model(*map(_cast, inputs, self.takes)))
        return tuple(map(_cast, outputs, self.gives))


def _refuse(model: nn.Module, *, where: Path) -> None:
    """Raise where missing packages or the model's state make an export impossible or wrong."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        message = f"{where}: {' and '.join(missing)} not installed. Run: pip install 'edgesoup[build]'"
        raise ExportError(message, kind="environment")
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        # Dropout would stay in the graph, and BatchNorm would use each batch's own statistics.
        message = f"{where}: {len(training)} modules are in training mode (first: '{training[0]}'). Call model.eval()."
        raise ExportError(message, kind="input")
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if size > _PROTOBUF_LIMIT - _GRAPH_ALLOWANCE:
        message = (
            f"{where}: the weights take {size / 1e9:.2f} GB, expected less than 2 GB as one ONNX file holds no more."
        )
        raise ExportError(f"{message} Export a smaller model, or one in half precision.")


def _edges(
    model: nn.Module,
    example: Arrays,
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    batch: tuple[int, int],
    where: Path,
) -> tuple[_Edges, tuple[Tensor, ...], _Interface]:
    """The module to export, the arguments to trace it with, and the interface that must come out."""
    count = min(max(batch[0], 2), batch[1])  # torch.export takes an axis of length 1 for a constant
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    own_inputs = [torch.from_numpy(array[np.arange(count) % len(array)]).to(device) for array in example.values()]
    with torch.no_grad():
        own_outputs = _flatten(model(*own_inputs))
    for index, tensor in enumerate(own_outputs):
        if tensor.shape[:1] != (count,):
            message = (
                f"{where}: output {index} has shape {tuple(tensor.shape)}, expected {count} samples in its first axis."
            )
            raise ExportError(message, kind="input")
    axis: int | str = "batch" if batch[0] < batch[1] else count
    asked = _Interface(
        _tensor_infos("input", inputs, own_inputs, axis=axis, where=where),
        _tensor_infos("output", outputs, own_outputs, axis=axis, where=where),
        batch,
    )
    takes = [tensor.dtype for tensor in own_inputs]
    edges = _Edges(model, takes=takes, gives=[_DTYPES[info.dtype] for info in asked.outputs])
    arguments = [_cast(tensor, _DTYPES[info.dtype]) for tensor, info in zip(own_inputs, asked.inputs, strict=True)]
    return edges, tuple(arguments), asked


def _tensor_infos(
    kind: str, asked: Mapping[str, str], tensors: Sequence[Tensor], *, axis: int | str, where: Path
) -> tuple[TensorInfo, ...]:
    names = asked or _default_names(kind, tensors)
    if len(names) != len(tensors):
        message = f"{where}: {len(names)} {kind} names are given ({', '.join(names)}), the model has {len(tensors)}."
        raise ExportError(message, kind="input")
    unknown = {name: dtype for name, dtype in names.items() if dtype not in _DTYPES}
    if unknown:
        raise ExportError(f"{where}: {kind} dtypes {unknown}, expected some of {', '.join(_DTYPES)}.", kind="input")
    pairs = zip(names.items(), tensors, strict=True)
    return tuple(TensorInfo(name, dtype, (axis, *tensor.shape[1:])) for (name, dtype), tensor in pairs)


def _default_names(kind: str, tensors: Sequence[Tensor]) -> dict[str, str]:
    names = {}
    for index, tensor in enumerate(tensors):
        dtype = "float32" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
        names[f"{kind}_{index}" if index else kind] = dtype
    return names


def _export(
    edges: _Edges, arguments: tuple[Tensor, ...], asked: _Interface, *, opset: int, where: Path
) -> tuple[bytes, list[str]]:
    """The exported bytes, at exactly this opset, and notes on any detour."""
    routes = {"dynamo": _dynamo, "legacy": _legacy}
    notes: list[str] = []
    cause: Exception | None = None
    if opset < _DYNAMO_LEAST_OPSET:
        del routes["dynamo"]
        notes.append(f"the dynamo exporter gives no opset below {_DYNAMO_LEAST_OPSET}")
    for name, route in routes.items():
        try:
            with quiet() as heard:
                exported = route(edges, arguments, asked, opset)
        except (RuntimeError, ValueError, TypeError) as error:
            cause = error
            notes.append(f"the {name} exporter failed: {_reason(error)}")
            continue
        found = onnx_facts(exported, where=str(where)).opset
        if found == opset:
            traced = [str(item.message) for item in heard if item.category.__name__ == "TracerWarning"]
            return exported, [*notes, f"exported by the {name} exporter", *dict.fromkeys(traced)]
        notes.append(f"the {name} exporter gave opset {found}")
    raise ExportError(f"{where}: cannot be exported at opset {opset}: {'; '.join(notes)}.") from cause


def _dynamo(edges: _Edges, arguments: tuple[Tensor, ...], asked: _Interface, opset: int) -> bytes:
    axis = torch.export.Dim("batch", min=asked.batch[0], max=asked.batch[1]) if asked.dynamic else None
    program = torch.onnx.export(
        edges,
        arguments,
        input_names=[info.name for info in asked.inputs],
        output_names=[info.name for info in asked.outputs],
        dynamic_shapes=(tuple({0: axis} for _ in arguments),) if asked.dynamic else None,
        opset_version=opset,
        external_data=False,
        verbose=False,
        dynamo=True,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    serialized: bytes = program.model_proto.SerializeToString()
    return serialized


def _legacy(edges: _Edges, arguments: tuple[Tensor, ...], asked: _Interface, opset: int) -> bytes:
    file = BytesIO()
    names = [info.name for info in (*asked.inputs, *asked.outputs)]
    torch.onnx.export(
        edges,
        arguments,
        file,  # type: ignore[arg-type]  # this route also takes a file object
        input_names=[info.name for info in asked.inputs],
        output_names=[info.name for info in asked.outputs],
        dynamic_axes={name: {0: "batch"} for name in names} if asked.dynamic else None,
        opset_version=opset,
        dynamo=False,
    )
    return file.getvalue()


def _assert_as_asked(
    facts: OnnxFacts, asked: _Interface, *, opset: int, metadata: Mapping[str, str], where: Path
) -> None:
    """Compare what was read back with what was asked for; of the shapes only the first axis is configured."""

    def ends(infos: Sequence[TensorInfo]) -> list[tuple[str, str, tuple[int | str, ...]]]:
        return [(info.name, info.dtype, info.shape[:1]) for info in infos]

    pairs = {
        "opset": (facts.opset, opset),
        "inputs": (ends(facts.inputs), ends(asked.inputs)),
        "outputs": (ends(facts.outputs), ends(asked.outputs)),
        "metadata": (facts.metadata, dict(metadata)),
        "external data": (facts.external_data, False),
    }
    problems = [
        f"{name} came out as {found}, expected {want}" for name, (found, want) in pairs.items() if found != want
    ]
    if problems:
        raise ExportError(f"{where}: {'; '.join(problems)}.")


def _feed(example: Arrays, asked: _Interface) -> Arrays:
    """The example under its final names, in the dtypes of the graph's inputs."""
    with np.errstate(invalid="ignore"):
        pairs = zip(asked.inputs, example.values(), strict=True)
        return {info.name: array.astype(info.dtype, copy=False) for info, array in pairs}


def _flatten(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _flatten(item)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _flatten(item)]
    message = f"the model returns a {type(value).__name__}, expected tensors, or tuples, lists or dicts of them."
    raise ExportError(message, kind="input")


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _reason(error: BaseException) -> str:
    """The first line of the error at the bottom of the chain: the exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
