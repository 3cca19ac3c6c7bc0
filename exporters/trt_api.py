"""The one place where TensorRTs differ: which option exists since which version, and the sentence that refuses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from exporters import ExportError
from exporters.engine_settings import EngineSettings
from exporters.flavours import Flavour

NEWEST_OLD_OPSET = 17  # the greatest that TensorRT 8.6's parser takes (its release notes and onnx-tensorrt 8.6's table)


@dataclass(frozen=True, slots=True)
class Feature:
    """An option, the names it needs ("Class.name" or "Class"), and the classic versions that have them.

    `since` is the first and `gone` the first version without, of those whose bindings were read
    (tests/exporters/tensorrt_since.json); `since` None is never. `rtx` says why tensorrt_rtx cannot, "" where it can;
    with `rtx_on_gpu` it can where there is a GPU.
    """

    what: str
    names: tuple[str, ...]
    since: str | None
    gone: str | None = None
    rtx: str = ""
    rtx_on_gpu: bool = False


# What tensorrt_rtx makes of each was tried with 1.7.1 on a machine without a GPU.
_NO_DLA = "it is for RTX GPUs, which have no DLA"
_NEEDS_GPU = "without a GPU its build ends in an internal error"
FEATURES: Mapping[str, Feature] = {
    "strong_typing": Feature(
        "a strongly typed network", ("NetworkDefinitionCreationFlag.STRONGLY_TYPED",), since="10.0"
    ),
    "weak_typing": Feature(
        "a weakly typed network with precision flags",
        (
            "NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "BuilderFlag.FP16", "BuilderFlag.INT8",
            "BuilderFlag.OBEY_PRECISION_CONSTRAINTS", "ILayer.precision", "ILayer.set_output_type",
        ),
        since="8.6", gone="11.0", rtx="its networks are strongly typed",
    ),
    "calibration_cache": Feature(
        "INT8 from a calibration cache", ("IInt8EntropyCalibrator2", "IBuilderConfig.int8_calibrator"),
        since="8.6", gone="11.0", rtx=_NO_DLA,
    ),
    "progress": Feature("a progress monitor", ("IProgressMonitor", "IBuilderConfig.progress_monitor"), since="10.0"),
    "node_names": Feature("the node of a parser error", ("ParserError.node_name", "ParserError.node_operator"), "10.0"),
    "version_compatible": Feature(
        "version compatibility", ("BuilderFlag.VERSION_COMPATIBLE",), since="8.6",
        rtx="the lean runtime that it needs is not in its packages",
    ),
    "hardware_compatibility": Feature(
        "a hardware compatibility level",
        ("IBuilderConfig.hardware_compatibility_level", "HardwareCompatibilityLevel.AMPERE_PLUS"),
        since="8.6", rtx="it takes compute capabilities instead, and is portable from Ampere on without any",
    ),
    "same_compute_capability": Feature(
        "hardware compatibility within one compute capability",
        ("IBuilderConfig.hardware_compatibility_level", "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"),
        since="10.13", rtx="it takes compute capabilities instead",
    ),
    "refit": Feature("refit", ("BuilderFlag.REFIT",), since="8.6", rtx=_NEEDS_GPU, rtx_on_gpu=True),
    "strip_weights": Feature(
        "an engine without its weights", ("BuilderFlag.STRIP_PLAN",), since="10.0", rtx=_NEEDS_GPU, rtx_on_gpu=True
    ),
    "optimization_level": Feature("an optimisation level", ("IBuilderConfig.builder_optimization_level",), since="8.6"),
    "max_aux_streams": Feature("auxiliary streams", ("IBuilderConfig.max_aux_streams",), since="8.6"),
    "timing_cache": Feature(
        "a timing cache",
        ("IBuilderConfig.create_timing_cache", "IBuilderConfig.set_timing_cache", "ITimingCache.serialize"),
        since="8.6", rtx="its timing caches have been without effect since 1.2",
    ),
    "compute_capabilities": Feature(
        "compute capabilities other than its own GPU's",
        ("ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"),
        since=None,
    ),
    "dla": Feature(
        "a DLA",
        ("Builder.num_DLA_cores", "BuilderFlag.GPU_FALLBACK", "DeviceType.DLA", "IBuilderConfig.DLA_core",
         "IBuilderConfig.default_device_type"),
        since="8.6", rtx=_NO_DLA,
    ),
    "validity": Feature(
        "the check of a plan's header", ("Runtime.get_engine_validity", "EngineInvalidityDiagnostics"), since=None
    ),
}  # fmt: skip


def has(trt: ModuleType, feature: str) -> bool:
    """Whether this very module has every name that the feature needs; what rtx makes of it is not asked."""
    return all(_exists(trt, name) for name in FEATURES[feature].names)


def wanted(settings: EngineSettings) -> list[str]:
    """The features that the settings ask for, but for the timing cache, whose absence is told instead of refused."""
    asked = {
        "version_compatible": settings.version_compatible,
        "hardware_compatibility": settings.hardware == "ampere_plus",
        "same_compute_capability": settings.hardware == "same_compute_capability",
        "refit": settings.refit,
        "strip_weights": settings.strip_weights,
        "optimization_level": settings.optimization_level is not None,
        "max_aux_streams": settings.max_aux_streams is not None,
        "compute_capabilities": bool(settings.compute_capabilities),
        "dla": settings.dla_core is not None,
        "calibration_cache": settings.int8_ranges is not None,
    }
    return [feature for feature, yes in asked.items() if yes]


def require(trt: ModuleType, settings: EngineSettings, *, flavour: Flavour, has_gpu: bool) -> None:
    """Raise one ExportError (environment) that names every option that this TensorRT has not, and why."""
    version = str(trt.__version__)
    reasons = [reason for feature in wanted(settings) if (reason := _lacking(trt, feature, flavour, has_gpu))]
    if reasons:
        raise ExportError(f"{flavour} {version}: {'; '.join(reasons)}.", kind="environment")


def uses_timing_cache(flavour: Flavour) -> bool:
    """Whether a timing cache has any effect in this flavour."""
    return flavour == "tensorrt" or not FEATURES["timing_cache"].rtx


def _lacking(trt: ModuleType, name: str, flavour: Flavour, has_gpu: bool) -> str:
    feature = FEATURES[name]
    if flavour == "tensorrt_rtx" and feature.rtx and not (feature.rtx_on_gpu and has_gpu):
        return f"has not {feature.what}: {feature.rtx}"
    if has(trt, name):
        return ""
    if feature.since is None:
        return (
            f"has not {feature.what}: it builds for the GPU of its own machine only. "
            "Build there, or ahead of time with tensorrt_rtx: pip install 'edgesoup[rtx]'"
        )
    until = f" and before {feature.gone}" if feature.gone else ""
    return f"has not {feature.what}, which is in TensorRT {feature.since} or newer{until}"


def _exists(trt: Any, name: str) -> bool:
    owner = trt
    for part in name.split("."):
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True
