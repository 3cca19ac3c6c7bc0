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

_LIBRARIES = (
    "edgesoup", "numpy", "pydantic", "safetensors", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxslim",
    "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "pycuda", "cuda-bindings", "opencv-python-headless",
    "pillow",
)  # fmt: skip
_NEEDED_BY = {
    "soup build, soup export": (("torch",), "pip install 'edgesoup[build]'"),
    "soup verify, soup bench with ONNX Runtime": (("onnxruntime", "onnxruntime-gpu"), "pip install 'edgesoup[ort]'"),
    "engines built ahead of time": (("tensorrt-rtx-cu13",), "pip install 'edgesoup[rtx]'"),
    "engines for this GPU with TensorRT": (("tensorrt",), "pip install 'edgesoup[trt]' (on a Jetson: from JetPack)"),
    "running engines": (("pycuda", "cuda-bindings"), "pip install 'edgesoup[pycuda]' or 'edgesoup[trt]'"),
}


@dataclass(frozen=True, slots=True)
class Ability:
    """Something the tool can or cannot do here; `remedy` is the command that brings it."""

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
    installed = versions()
    return Facts(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        device=device_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_disk_bytes=shutil.disk_usage(folder).free,
        gpu=f"{gpu.name}, compute capability {gpu.compute_capability}" if (gpu := find_gpu()) else None,
        versions=installed,
        abilities=tuple(_ability(name, any_of, remedy, installed) for name, (any_of, remedy) in _NEEDED_BY.items()),
    )


def _ability(name: str, any_of: tuple[str, ...], remedy: str, installed: Mapping[str, str]) -> Ability:
    there = [f"{library} {installed[library]}" for library in any_of if library in installed]
    if there:
        return Ability(name, "yes", ", ".join(there), None)
    return Ability(name, "no", f"{' or '.join(any_of)} is not installed", remedy)
