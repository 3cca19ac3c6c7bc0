"""The process that builds one engine: a request in, events out as JSON lines, and at its end all memory is free.

Run by `exporters.build_process` as `python -m exporters.engine_builder`, the request on its standard input.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from exporters import ExportError
from exporters.build_request import Request, read_request
from exporters.builder_config import add_profiles, apply_settings
from exporters.dla import Placement, placement
from exporters.engine_files import unwritable, write_all
from exporters.engine_settings import EngineSettings
from exporters.flavours import Flavour, Record, explain, import_flavour, make_logger, plain_reason
from exporters.memory import default_workspace_bytes
from exporters.onnx_wire import refuse_external_data
from exporters.operators import parser_error
from exporters.plan import Layer, dtype_counts, parse_inspector, parse_layers
from exporters.read_back import ReadBack, read_back
from exporters.timing_cache import attach_cache, cache_content
from exporters.trt_api import has, require, uses_timing_cache
from exporters.trt_network import check_graph, create_network, set_precision, typing_of

Emit = Callable[[dict[str, object]], None]
_HEADER_BYTES = 64
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(line: str) -> None:
    """Build what the request asks for; the last event is a result or an error, or there is a bug."""
    request = read_request(line)
    _die_with(request.parent)
    with os.fdopen(os.dup(1), "w", buffering=1) as events:
        os.dup2(2, 1)  # what native libraries print must not mix with the events

        def emit(event: dict[str, object]) -> None:
            events.write(json.dumps(event) + "\n")

        try:
            emit({"result": build(request, emit)})
        except ExportError as error:
            emit({"error": str(error), "kind": error.kind})
        except MemoryError:
            message = f"{request.onnx_path}: the builder ran out of memory. Allow a smaller workspace."
            emit({"error": message, "kind": "build"})
        except OSError as error:
            where = error.filename or request.engine_path
            emit({"error": unwritable(where, error), "kind": "input"})


def build(request: Request, emit: Emit) -> dict[str, object]:
    """Parse, configure, build, write, read back. Raises ExportError with the reasons that TensorRT logged, OSError."""
    trt = import_flavour(request.flavour)
    require(trt, request.settings, flavour=request.flavour, has_gpu=request.has_gpu)
    settings = _with_workspace(request.settings)
    model = _read_onnx(request.onnx_path)
    check_graph(trt, model, settings, where=request.onnx_path)
    records: list[Record] = []

    def on_record(severity: str, message: str) -> None:
        records.append((severity, message))
        emit({"log": message})

    logger = make_logger(trt, on_record)
    builder = _create(trt.Builder, logger, records)
    typing = typing_of(trt, settings)
    network = create_network(trt, builder, typing)
    # Both are held until the end: the parser refers to the network, and the network to weights that the parser holds.
    parser = trt.OnnxParser(network, logger)
    _parse(trt, parser, network, model, request.onnx_path)
    config = builder.create_builder_config()
    _watch_progress(trt, config, emit)
    apply_settings(trt, builder, config, settings)
    calibrator = set_precision(trt, network, config, model, settings, typing=typing)
    cached = _attach_cache(config, request, records)
    add_profiles(builder, config, request.profiles, records, where=request.onnx_path)
    names = [network.get_layer(index).name for index in range(network.num_layers)]
    plan = builder.build_serialized_network(network, config)
    del calibrator  # the configuration refers to it without holding it
    if plan is None:
        raise _failure(request, records)
    back = _read_back(trt, logger, plan, request, records)
    placed = placement((text for _, text in records), names) if settings.dla_core is not None else None
    record = layer_record(request.flavour, records, back, placed)
    hashes = write_all(request, plan, record, cache_content(config) if cached else b"")
    _check_header(trt, logger, Path(request.engine_path))
    facts = {"typing": typing, "workspace_bytes": settings.workspace_bytes, "size_bytes": plan.nbytes, **hashes}
    return {"version": str(trt.__version__), **facts, **_summary(records, record, back, placed)}


def _summary(
    records: Sequence[Record], record: dict[str, Any], back: ReadBack | None, placed: Placement | None
) -> dict[str, object]:
    layers = record["layers"] if record["readable"] else None
    return {
        "peak_memory_bytes": peak_memory_bytes("self"),
        "warnings": list(dict.fromkeys(plain_reason(text) for severity, text in records if severity == "WARNING")),
        "layers": None if layers is None else len(layers),
        "dtypes": {} if layers is None else dtype_counts(layers),
        "corners": back.corners if back else None,
        "dla_layers": placed.dla if placed else None,
        "gpu_layers": placed.gpu if placed else None,
    }


def peak_memory_bytes(process: int | str) -> int:
    """The greatest resident memory of a running process so far (Linux's VmHWM); 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def layer_record(
    flavour: Flavour, records: Sequence[Record], back: ReadBack | None, placed: Placement | None
) -> dict[str, Any]:
    """What the builder's log or else the engine's inspector tells of the layers, or why that cannot be read.

    {"readable": true, "layers": [plan.Layer, …]} or {"readable": false, "reason": …}, with flavour, source, and under
    "dla" the layers' placement where a DLA was asked for.
    """
    text = next((text for _, text in records if text.startswith("Layers:")), "")
    facts: dict[str, Any] = {"schema_version": 1, "flavour": flavour, "source": "builder log"}
    if back is not None and not text:
        facts["source"] = "engine inspector"
    if placed is not None:
        facts["dla"] = {"dla": placed.dla, "gpu": placed.gpu, "share": placed.share}
    try:
        layers: list[Layer] = parse_inspector(back.inspector) if back is not None and not text else parse_layers(text)
    except ValueError as error:
        return facts | {"readable": False, "reason": str(error)}
    return facts | {"readable": True, "layers": layers}


def _die_with(parent: int | None) -> None:
    """Let the system kill this process when its parent ends, also where that is killed and can tell nobody (Linux)."""
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before
        raise SystemExit(1)


def _with_workspace(settings: EngineSettings) -> EngineSettings:
    if settings.workspace_bytes is not None:
        return settings
    return replace(settings, workspace_bytes=default_workspace_bytes())


def _create(builder_class: Any, logger: Any, records: list[Record]) -> Any:
    try:
        return builder_class(logger)
    except (TypeError, RuntimeError) as error:  # pybind11's words for a factory that returned null
        message = f"TensorRT: no builder could be made: {explain(records)}. Check the NVIDIA driver."
        raise ExportError(message, kind="environment") from error


def _read_onnx(onnx_path: str) -> bytes:
    """TensorRT takes any bytes for a graph, an empty one if need be, and reads weights from where the model says."""
    model = Path(onnx_path).read_bytes()
    refuse_external_data(model, where=onnx_path)
    return model


def _parse(trt: ModuleType, parser: Any, network: Any, model: bytes, onnx_path: str) -> None:
    if not parser.parse(model):
        failures = [parser_error(trt, parser.get_error(index), model) for index in range(parser.num_errors)]
        raise ExportError(f"{onnx_path}: TensorRT cannot take the graph: {'; '.join(failures)}.")
    if network.num_outputs == 0:
        raise ExportError(f"{onnx_path}: no graph with an output, expected an ONNX model.", kind="input")


def _failure(request: Request, records: list[Record]) -> ExportError:
    why = explain(records)
    advice = " Allow a larger workspace." if "workspace" in why.lower() else ""
    return ExportError(f"{request.onnx_path}: {request.flavour} could not build an engine: {why}.{advice}")


def _attach_cache(config: Any, request: Request, records: list[Record]) -> bool:
    settings = request.settings
    if settings.timing_cache is None or not uses_timing_cache(request.flavour):
        return False
    attach_cache(config, settings.timing_cache, expected_sha256=settings.timing_cache_sha256, records=records)
    return True


def _read_back(trt: ModuleType, logger: Any, plan: Any, request: Request, records: list[Record]) -> ReadBack | None:
    """Classic TensorRT has the GPU that it built for; an engine without weights, or of tensorrt_rtx, is not opened."""
    if request.flavour != "tensorrt" or not request.has_gpu or request.settings.strip_weights:
        return None
    allowed = request.settings.version_compatible
    return read_back(
        trt, logger, plan, request.profiles, records=records, where=request.onnx_path, host_code_allowed=allowed
    )


def _check_header(trt: ModuleType, logger: Any, path: Path) -> None:
    """Where the flavour can judge a plan without a GPU: refuse one that it calls malformed."""
    if not has(trt, "validity"):
        return
    with path.open("rb") as file:
        _, diagnostics = trt.Runtime(logger).get_engine_validity(file.read(_HEADER_BYTES))
    if diagnostics & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE):
        raise ExportError(f"{path}: {trt.__name__} does not recognise the plan that it has just built. Build it again.")


def _watch_progress(trt: ModuleType, config: Any, emit: Emit) -> None:
    """Steps of phases as events; TensorRT 8 has no such thing, and tells one phase of unknown length."""
    if not has(trt, "progress"):
        emit({"phase": "Building engine", "done": 0, "total": 0})
        return

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # a base known only at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            emit({"phase": phase, "done": 0, "total": steps})

        def step_complete(self, phase: str, step: int) -> bool:
            emit({"phase": phase, "done": step + 1, "total": self.steps.get(phase, 0)})
            return True

        def phase_finish(self, phase: str) -> None:
            total = self.steps.pop(phase, 0)  # some phases end before their last step
            emit({"phase": phase, "done": total, "total": total})

    config.progress_monitor = Monitor()


if __name__ == "__main__":
    main(sys.stdin.read())
