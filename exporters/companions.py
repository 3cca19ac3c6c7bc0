"""Files that other pipelines ask for beside a release, each from the same facts: facts in, text out."""

from __future__ import annotations

from exporters.companion_commands import (
    Batches,
    HardwareCompatibility,
    Model,
    TrtexecOptions,
    polygraphy_line,
    precision_flags,
    shape_flags,
    timing_flags,
    trtexec_line,
)
from exporters.companion_configs import (
    Normalisation,
    Platform,
    nvinfer_config,
    nvinfer_labels,
    nvinfer_obstacle,
    triton_config,
)

__all__ = [
    "Batches", "HardwareCompatibility", "Model", "Normalisation", "Platform", "TrtexecOptions", "nvinfer_config",
    "nvinfer_labels", "nvinfer_obstacle", "polygraphy_line", "precision_flags", "shape_flags", "timing_flags",
    "triton_config", "trtexec_line",
]  # fmt: skip
