"""What this machine can do: versions, runtimes, a GPU or none, and which pip command brings what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from exporters.gpu import find_gpu
from exporters.runtimes import device_name

_ORT = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_LIBRARIES = (
    "edgesoup", "numpy", "pydantic", "safetensors", "torch", "torchvision", "timm", "pycocotools", "onnx", "onnxscript",
    "onnxslim", *_ORT, "tensorrt", "tensorrt-rtx-cu13", "pycuda", "cuda-bindings", "opencv-python-headless",
    "opencv-python", "pillow",
)  # fmt: skip
_RTX, _TENSORRT, _CUDA = ("tensorrt-rtx-cu13",), ("tensorrt",), ("pycuda", "cuda-bindings")
_NEEDED_BY = {  # what → one library of each group, whether a GPU, and what brings the libraries
    "soup init, check, build": ((("torch",),), False, "pip install 'edgesoup[build]'"),
    "soup export": ((("torch",), ("onnx",), ("onnxscript",), _ORT), False, "pip install 'edgesoup[build]'"),
    "soup verify and bench on ONNX Runtime": ((_ORT,), False, "pip install 'edgesoup[ort]'"),
    "mAP of boxes": ((("pycocotools",),), False, "pip install 'edgesoup[detection]'"),
    "backend: cv2": ((("opencv-python-headless", "opencv-python"),), False, "pip install 'edgesoup[cv2]'"),
    "export --trt ahead of time, without a GPU": ((_RTX,), False, "pip install 'edgesoup[rtx]'"),
    "export --trt for this GPU": (((*_TENSORRT, *_RTX),), True, "pip install 'edgesoup[trt]' (on a Jetson: JetPack)"),
    "running engines": (((*_TENSORRT, *_RTX), _CUDA), True, "pip install 'edgesoup[trt]' or 'edgesoup[pycuda]'"),
}


@dataclass(frozen=True, slots=True)
class Ability:
    """Something the tool can or cannot do here; `remedy` is the command that brings it, where a command does."""

    name: str
    state: Literal["yes", "no"]
    detail: str
    remedy: str | None


@dataclass(frozen=True, slots=True)
class Facts:
    """`soup doctor`'s answer. Sizes in bytes."""

    python: str
    system: str
    device: str
    cores: int
    memory_bytes: int
    free_disk_bytes: int
    gpu: str | None
    versions: Mapping[str, str]
    abilities: tuple[Ability, ...]


def versions() -> dict[str, str]:
    """Installed versions of Python and of every library whose version can change a result."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def examine(folder: Path) -> Facts:
    """Look at this machine; `folder` is where output would go."""
    installed, gpu = versions(), find_gpu()
    return Facts(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        device=device_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_disk_bytes=shutil.disk_usage(folder).free,
        gpu=f"{gpu.name}, compute capability {gpu.compute_capability}" if gpu else None,
        versions=installed,
        abilities=tuple(
            _ability(name, groups, remedy, installed=installed, gpu_missing=needs_gpu and gpu is None)
            for name, (groups, needs_gpu, remedy) in _NEEDED_BY.items()
        ),
    )


def _ability(
    name: str, groups: tuple[tuple[str, ...], ...], remedy: str, *, installed: Mapping[str, str], gpu_missing: bool
) -> Ability:
    """Possible with one library of each group, and a GPU where one is needed, which no command brings."""
    lacking = [" or ".join(group) for group in groups if not installed.keys() & set(group)]
    reasons = [*(["no GPU here"] if gpu_missing else []), *(f"{group} is not installed" for group in lacking)]
    if reasons:
        return Ability(name, "no", "; ".join(reasons), None if gpu_missing else remedy)
    there = dict.fromkeys(f"{one} {installed[one]}" for group in groups for one in group if one in installed)
    return Ability(name, "yes", ", ".join(there), None)
