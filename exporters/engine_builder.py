"""The process that builds one engine: a request in, events out as JSON lines, and at its end all memory is free.

Run by `onnx_to_tensorrt` as `python -m exporters.engine_builder REQUEST`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from exporters import ExportError
from exporters.flavours import Flavour, Record, explain, import_flavour, make_logger, plain_reason
from exporters.onnx_wire import has_external_data
from exporters.plan import dtype_counts, parse_layers

Emit = Callable[[dict[str, object]], None]
_HEADER_BYTES = 64


@dataclass(frozen=True, slots=True)
class Request:
    """What to build; JSON on the way in. `profile` is the batch (min, opt, max), None for a static graph."""

    onnx_path: str
    engine_path: str
    layers_path: str
    flavour: Flavour
    profile: tuple[int, int, int] | None
    workspace_bytes: int | None
    compute_capabilities: tuple[str, ...]


def main(argument: str) -> None:
    """Build what the JSON `argument` asks for; the last event is a result or an error, or there is a bug."""
    with os.fdopen(os.dup(1), "w", buffering=1) as events:
        os.dup2(2, 1)  # what native libraries print must not mix with the events

        def emit(event: dict[str, object]) -> None:
            events.write(json.dumps(event) + "\n")

        request = Request(**json.loads(argument))
        try:
            emit({"result": build(request, emit)})
        except ExportError as error:
            emit({"error": str(error), "kind": error.kind})
        except MemoryError:
            message = f"{request.onnx_path}: the builder ran out of memory. Allow a smaller workspace."
            emit({"error": message, "kind": "build"})
        except OSError as error:
            where = error.filename or request.engine_path  # a full disk names no file
            message = f"{where}: cannot be read or written: {error.strerror}. Check the disk and its free space."
            emit({"error": message, "kind": "input"})


def build(request: Request, emit: Emit) -> dict[str, object]:
    """Parse, configure, build, write, read back. Raises ExportError with the reasons that TensorRT logged, OSError."""
    trt = import_flavour(request.flavour)
    records: list[Record] = []

    def on_record(severity: str, message: str) -> None:
        records.append((severity, message))
        emit({"log": message})

    logger = make_logger(trt, on_record)
    builder = _create(trt.Builder, logger, records)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    # Both are held until the end: the parser refers to the network, and the network to weights that the parser holds.
    parser = trt.OnnxParser(network, logger)
    _parse(parser, network, request.onnx_path)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = _progress_monitor(trt, emit)
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    _set_compute_capabilities(trt, config, request)
    _add_profile(builder, network, config, request, records)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(request, records)
    sha256 = _write(Path(request.engine_path), plan)
    _check_header(trt, logger, Path(request.engine_path))
    return {
        "version": str(trt.__version__),
        "size_bytes": plan.nbytes,
        "sha256": sha256,
        "peak_memory_bytes": peak_memory_bytes("self"),
        "warnings": list(dict.fromkeys(plain_reason(text) for severity, text in records if severity == "WARNING")),
        **_record_layers(Path(request.layers_path), request.flavour, records),
    }


def peak_memory_bytes(process: int | str) -> int:
    """The greatest resident memory of a running process so far (Linux's VmHWM); 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _create(builder_class: Any, logger: Any, records: list[Record]) -> Any:
    try:
        return builder_class(logger)
    except (TypeError, RuntimeError) as error:  # pybind11's words for a factory that returned null
        message = f"TensorRT: no builder could be made: {explain(records)}. Check the NVIDIA driver."
        raise ExportError(message, kind="environment") from error


def _parse(parser: Any, network: Any, onnx_path: str) -> None:
    model = Path(onnx_path).read_bytes()
    _check_onnx(model, onnx_path)
    if not parser.parse(model):
        failures = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ExportError(f"{onnx_path}: TensorRT cannot take the graph: {'; '.join(failures)}.")
    if network.num_outputs == 0:
        raise ExportError(f"{onnx_path}: no graph with an output, expected an ONNX model.", kind="input")


def _check_onnx(model: bytes, onnx_path: str) -> None:
    """TensorRT takes any bytes for a graph, an empty one if need be, and reads weights from where the model says."""
    try:
        external = has_external_data(memoryview(model))
    except ValueError as error:
        raise ExportError(f"{onnx_path}: not an ONNX file ({error}).", kind="input") from error
    if external:
        message = f"{onnx_path}: keeps weights in other files, expected all inside. Save it with external_data=False."
        raise ExportError(message, kind="input")


def _parser_error(failure: Any) -> str:
    reason = str(failure.desc())
    if reason == "false":  # a bare assertion: its function is all there is
        reason = f"not supported ({failure.code().name}, {failure.func()})"
    elif quoted := re.search(r'&& "(.+)"', reason):  # an assertion with its explanation
        reason = quoted[1]
    if not failure.node_operator():
        return reason
    return f"node '{failure.node_name()}' ({failure.node_operator()}): {reason}"


def _add_profile(builder: Any, network: Any, config: Any, request: Request, records: list[Record]) -> None:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in tensors}
    dynamic = {name: shape for name, shape in shapes.items() if -1 in shape}
    for name, shape in dynamic.items():
        if -1 in shape[1:]:
            raise ExportError(
                f"{request.onnx_path}: input '{name}' has shape {shape}, expected only its first axis to be dynamic.",
                kind="input",
            )
    if bool(dynamic) != (request.profile is not None):
        have, got = ("a dynamic", "no profile") if dynamic else ("a static", "a profile")
        raise ExportError(
            f"{request.onnx_path}: the graph has {have} batch, but {got} (min, opt, max) was given. "
            "Export it again with the batch that the engine is to have.",
            kind="input",
        )
    if request.profile is None:
        return
    profile = builder.create_optimization_profile()
    for name, shape in dynamic.items():
        profile.set_shape(name, *((batch, *shape[1:]) for batch in request.profile))
    if config.add_optimization_profile(profile) < 0:
        raise _failure(request, records)


def _set_compute_capabilities(trt: ModuleType, config: Any, request: Request) -> None:
    if not request.compute_capabilities:
        return
    if not hasattr(config, "set_compute_capability"):
        raise ExportError(
            f"compute capabilities {', '.join(request.compute_capabilities)}: {request.flavour} builds for "
            "the GPU of its own machine only. "
            "Build there, or ahead of time with tensorrt_rtx: pip install 'edgesoup[rtx]'.",
            kind="environment",
        )
    known = {_dotted(name): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    unknown = [name for name in request.compute_capabilities if name not in known]
    if unknown:
        raise ExportError(
            f"compute capabilities: {', '.join(unknown)} not known to {request.flavour} {trt.__version__}, "
            f"expected some of {', '.join(sorted(known, key=float))}. Engines for a Jetson are built on it.",
            kind="environment",
        )
    config.num_compute_capabilities = len(request.compute_capabilities)
    for index, name in enumerate(request.compute_capabilities):
        config.set_compute_capability(known[name], index)


def _dotted(name: str) -> str:
    """ "SM86" → "8.6"."""
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}"


def _failure(request: Request, records: list[Record]) -> ExportError:
    why = explain(records)
    advice = " Allow a larger workspace." if "workspace" in why.lower() else ""
    return ExportError(f"{request.onnx_path}: {request.flavour} could not build an engine: {why}.{advice}")


def _write(path: Path, plan: Any) -> str:
    meant = hashlib.sha256(plan).hexdigest()
    path.write_bytes(plan)
    written = hashlib.sha256(path.read_bytes()).hexdigest()
    if written != meant:
        raise ExportError(f"{path}: reads back as {written}, expected {meant} as built. Check the disk.", kind="input")
    return written


def _check_header(trt: ModuleType, logger: Any, path: Path) -> None:
    """Where the flavour can judge a plan without a GPU: refuse one that it calls malformed."""
    if not hasattr(trt.Runtime, "get_engine_validity"):
        return
    with path.open("rb") as file:
        _, diagnostics = trt.Runtime(logger).get_engine_validity(file.read(_HEADER_BYTES))
    if diagnostics & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE):
        raise ExportError(f"{path}: {trt.__name__} does not recognise the plan that it has just built. Build it again.")


def _record_layers(path: Path, flavour: Flavour, records: list[Record]) -> dict[str, object]:
    """Write what the builder logged of the engine's layers, or why it cannot be read; return a summary."""
    facts: dict[str, object] = {"schema_version": 1, "flavour": flavour, "source": "builder log"}
    try:
        layers = parse_layers(next((text for _, text in records if text.startswith("Layers:")), ""))
        facts |= {"readable": True, "layers": layers}
        summary: dict[str, object] = {"layers": len(layers), "dtypes": dtype_counts(layers)}
    except ValueError as error:
        facts |= {"readable": False, "reason": str(error)}
        summary = {"layers": None, "dtypes": {}}
    path.write_text(json.dumps(facts, sort_keys=True, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def _progress_monitor(trt: ModuleType, emit: Emit) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # a base known only at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            emit({"phase": phase})

        def step_complete(self, phase: str, step: int) -> bool:
            return True

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()


if __name__ == "__main__":
    main(sys.argv[1])
