"""ONNX to a TensorRT engine, built in a process of its own, so that its memory is freed and its death is told."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporters import ExportError
from exporters.build_process import Progress, run_child
from exporters.build_request import Request
from exporters.engine_settings import EngineSettings, check_settings
from exporters.flavours import Flavour
from exporters.gpu import Gpu, find_gpu
from exporters.onnx_facts import inspect_onnx
from exporters.profiles import Profile, resolve_profiles
from exporters.trt_api import FEATURES, uses_timing_cache


@dataclass(frozen=True, slots=True)
class Builder:
    """What would build here: classic TensorRT for `gpu`, or tensorrt_rtx, ahead of time where there is none."""

    flavour: Flavour
    version: str
    gpu: Gpu | None


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """A built engine, hashed as it lies on disk.

    `compute_capabilities` is empty for a portable tensorrt_rtx engine (Ampere and later). `dtypes` counts layers by
    TensorRT's name of the type they compute on. Where no record of the layers was readable, `layers` is None.
    `typing` is "strong", or "weak" where the graph's types were held by flags. `timing_cache_sha256` is of the cache as
    written after the build. `corners` counts the profile corners that the engine took, None where it was not opened.
    `dla_layers` and `gpu_layers` name the network's layers by where they run, None without a DLA or where the log does
    not tell. `notes` says what was asked and is not so, in sentences.
    """

    path: Path
    layers_path: Path
    flavour: Flavour
    version: str
    compute_capabilities: tuple[str, ...]
    seconds: float
    peak_memory_bytes: int
    size_bytes: int
    sha256: str
    layers: int | None
    dtypes: Mapping[str, int]
    log_warnings: tuple[str, ...]
    typing: str = "strong"
    workspace_bytes: int | None = None
    timing_cache_sha256: str | None = None
    corners: int | None = None
    dla_layers: tuple[str, ...] | None = None
    gpu_layers: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def dla_share(self) -> float | None:
        """Layers on the DLA over all that were placed, for a gate; None where that is not known."""
        if self.dla_layers is None or self.gpu_layers is None:
            return None
        placed = len(self.dla_layers) + len(self.gpu_layers)
        return len(self.dla_layers) / placed if placed else 0.0


def find_builder() -> Builder | None:
    """Classic TensorRT where it is installed and has the GPU that it needs, else tensorrt_rtx, else None.

    Neither is imported: their libraries would stay in memory.
    """
    gpu = find_gpu()
    flavours: tuple[Flavour, ...] = ("tensorrt", "tensorrt_rtx") if gpu else ("tensorrt_rtx",)
    for flavour in flavours:
        spec = importlib.util.find_spec(flavour)
        if spec is not None and spec.origin is not None:  # a stray folder of that name has no origin
            distributions = importlib.metadata.packages_distributions().get(flavour, [])
            version = importlib.metadata.version(distributions[0]) if distributions else "unknown"
            return Builder(flavour, version, gpu)
    return None


def onnx_to_tensorrt(
    onnx_path: Path,
    engine_path: Path,
    *,
    profile: tuple[int, int, int] | None = None,
    profiles: Sequence[Profile] = (),
    workspace_bytes: int | None = None,
    compute_capabilities: Sequence[str] = (),
    settings: EngineSettings | None = None,
    must_take: int | None = None,
    timeout_s: float | None = None,
    progress: Progress | None = None,
) -> EngineBuild:
    """Build an engine with the graph's own types and write it with its layer record (`<engine stem>.layers.json`).

    A profile is the batch (min, opt, max) of every dynamic input, or whole shapes by input; `profile` is one of
    `profiles`, a static graph has none. `must_take` is a batch that one of them has to take. `workspace_bytes` and
    `compute_capabilities` go before the same fields of `settings`. `progress` gets a phase, its steps done, and its
    steps in all, 0 where not known. Files have their names only when they are whole, the engine last.

    Raises ExportError: input (file, profile, setting), environment (no builder that could), build (everything else).
    """
    settings = settings or EngineSettings()
    if workspace_bytes is not None:
        settings = replace(settings, workspace_bytes=workspace_bytes)
    if compute_capabilities:
        settings = replace(settings, compute_capabilities=tuple(dict.fromkeys(compute_capabilities)))
    check_settings(settings)
    if not onnx_path.is_file():
        raise ExportError(f"{onnx_path}: not found, expected an ONNX model.", kind="input")
    asked = (*((profile,) if profile is not None else ()), *profiles)
    shapes = resolve_profiles(inspect_onnx(onnx_path).inputs, asked, must_take=must_take, where=str(onnx_path))
    builder = _required_builder()
    layers_path = engine_path.with_suffix(".layers.json")
    request = Request(
        onnx_path=str(onnx_path.resolve()),
        engine_path=str(engine_path.resolve()),
        layers_path=str(layers_path.resolve()),
        flavour=builder.flavour,
        profiles=shapes,
        settings=_for_builder(builder, settings),
        has_gpu=builder.gpu is not None,
        parent=os.getpid(),
    )
    started = time.monotonic()
    result = run_child(request, timeout_s=timeout_s, progress=progress)
    return _engine_build(engine_path, layers_path, builder, request, result, seconds=time.monotonic() - started)


def _engine_build(
    path: Path, layers_path: Path, builder: Builder, request: Request, result: Mapping[str, Any], *, seconds: float
) -> EngineBuild:
    return EngineBuild(
        path=path,
        layers_path=layers_path,
        flavour=builder.flavour,
        version=result["version"],
        compute_capabilities=_built_for(builder, request),
        seconds=seconds,
        peak_memory_bytes=result["peak_memory_bytes"],
        size_bytes=result["size_bytes"],
        sha256=result["sha256"],
        layers=result["layers"],
        dtypes=result["dtypes"],
        log_warnings=tuple(result["warnings"]),
        typing=result["typing"],
        workspace_bytes=result["workspace_bytes"],
        timing_cache_sha256=result["timing_cache_sha256"],
        corners=result["corners"],
        dla_layers=_names(result["dla_layers"]),
        gpu_layers=_names(result["gpu_layers"]),
        notes=_notes(request, result),
    )


def _for_builder(builder: Builder, settings: EngineSettings) -> EngineSettings:
    """Paths made whole; no capability where classic TensorRT is asked for the very GPU that it has."""
    own = (builder.gpu.compute_capability,) if builder.gpu and builder.flavour == "tensorrt" else None
    capabilities = () if settings.compute_capabilities == own else settings.compute_capabilities
    cache = settings.timing_cache.resolve() if settings.timing_cache else None
    return replace(settings, compute_capabilities=capabilities, timing_cache=cache)


def _built_for(builder: Builder, request: Request) -> tuple[str, ...]:
    if builder.flavour == "tensorrt" and builder.gpu:
        return (builder.gpu.compute_capability,)
    return request.settings.compute_capabilities


def _names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    return tuple(names) if names is not None else None


def _notes(request: Request, result: Mapping[str, Any]) -> tuple[str, ...]:
    settings, notes = request.settings, []
    if settings.timing_cache is not None and not uses_timing_cache(request.flavour):
        reason = FEATURES["timing_cache"].rtx
        notes.append(f"no timing cache was read or written: {request.flavour} {result['version']}: {reason}")
    if request.profiles and result["corners"] is None:
        notes.append("the corners of the profiles were accepted by the builder; the engine was not opened for them")
    if settings.strip_weights:
        notes.append("the engine has no weights: it has to be refitted from the ONNX file before it runs")
    if settings.dla_core is not None and result["dla_layers"] is None:
        notes.append("which layers run on the DLA is not known: the builder's log does not tell")
    if result["gpu_layers"]:
        layers = ", ".join(f"'{name}'" for name in result["gpu_layers"])
        notes.append(f"{len(result['gpu_layers'])} layers fell back to the GPU: {layers}")
    return tuple(notes)


def _required_builder() -> Builder:
    if builder := find_builder():
        return builder
    here = "no tensorrt or tensorrt_rtx" if find_gpu() else "no NVIDIA GPU and no tensorrt_rtx"
    raise ExportError(
        f"TensorRT: nothing here can build an engine ({here}). Install a builder: pip install 'edgesoup[rtx]' "
        "(builds ahead of time, also without a GPU), or build on the device, from the release folder.",
        kind="environment",
    )
