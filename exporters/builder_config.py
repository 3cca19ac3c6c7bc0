"""A builder's configuration from the settings; each option has been found to exist before (`trt_api.require`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from exporters import ExportError
from exporters.engine_settings import EngineSettings
from exporters.flavours import Record, explain
from exporters.profiles import Bounds


def apply_settings(trt: ModuleType, builder: Any, config: Any, settings: EngineSettings) -> None:
    """Set everything but profiles, types and timing cache. Raises ExportError (environment): what is not there."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.max_aux_streams is not None:
        config.max_aux_streams = settings.max_aux_streams
    for flag, asked in (("VERSION_COMPATIBLE", settings.version_compatible), ("REFIT", settings.refit)):
        if asked:
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if settings.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if settings.hardware != "none":
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, settings.hardware.upper())
    _set_compute_capabilities(trt, config, settings.compute_capabilities)
    _use_dla(trt, builder, config, settings)


def add_profiles(
    builder: Any, config: Any, profiles: Sequence[Mapping[str, Bounds]], records: Sequence[Record], *, where: str
) -> None:
    """Add each profile and read its corners back. Raises ExportError (build) with what TensorRT says of it."""
    for number, shapes in enumerate(profiles):
        profile = builder.create_optimization_profile()
        for name, bounds in shapes.items():
            profile.set_shape(name, *bounds)
            kept = tuple(tuple(shape) for shape in profile.get_shape(name))
            if kept != bounds:
                raise ExportError(f"{where}: TensorRT keeps profile {number} of '{name}' as {kept}, expected {bounds}.")
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(f"{where}: TensorRT refuses profile {number}: {explain(records)}.")


def _set_compute_capabilities(trt: ModuleType, config: Any, names: Sequence[str]) -> None:
    if not names or not hasattr(trt, "ComputeCapability"):
        return
    known = {_dotted(name): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ExportError(
            f"compute capabilities: {', '.join(unknown)} not known to {trt.__name__} {trt.__version__}, "
            f"expected some of {', '.join(sorted(known, key=float))}. Engines for a Jetson are built on it.",
            kind="environment",
        )
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(known[name], index)


def _use_dla(trt: ModuleType, builder: Any, config: Any, settings: EngineSettings) -> None:
    if settings.dla_core is None:
        return
    cores = builder.num_DLA_cores
    if settings.dla_core >= cores:
        have = f"has {cores} DLA cores" if cores else "has no DLA, or its TensorRT cannot use it"
        raise ExportError(
            f"DLA core {settings.dla_core}: this device {have}. Cores count from 0; build without one for the GPU.",
            kind="environment",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = settings.dla_core
    if settings.gpu_fallback:
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _dotted(name: str) -> str:
    """ "SM86" → "8.6"."""
    digits = name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}"
