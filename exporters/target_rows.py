"""The table of devices: what is documented of each, where it was read, and which facts were not found there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

DlaInt8 = Literal["none", "implicit", "explicit"]
Runtime = Literal["tensorrt", "tensorrt_rtx"]


@dataclass(frozen=True, slots=True)
class Target:
    """One device with one software release; `tensorrt` is the version of `runtime`, `opset` the greatest it documents.

    `typed` is whether networks can be strongly typed (since TensorRT 10.0); else builder flags decide precision.
    `dla` counts accelerator cores that this TensorRT can build for, and `dla_int8` is how they take INT8: from a
    calibration cache ("implicit") or from Q/DQ nodes ("explicit"). `unverified` names the facts (fields) that were not
    read in the vendor's documentation; `source` is the page of the others.
    """

    name: str
    tensorrt: str
    cuda: str
    compute_capability: str
    opset: int
    python_version: str
    source: str
    jetpack: str | None = None
    dla: int = 0
    dla_int8: DlaInt8 = "none"
    typed: bool = True
    runtime: Runtime = "tensorrt"
    unverified: tuple[str, ...] = ()
    note: str = ""

    @property
    def version(self) -> tuple[int, ...]:
        """TensorRT's version as numbers, to compare."""
        return tuple(int(part) for part in self.tensorrt.split("."))

    @property
    def python(self) -> bool:
        """Whether edgesoup itself runs there: Python 3.10 or newer."""
        return tuple(int(part) for part in self.python_version.split(".")) >= (3, 10)


_DEVELOPER = "https://developer.nvidia.com"
_TENSORRT_DOCS = "https://docs.nvidia.com/deeplearning/tensorrt"
_TORCH_TENSORRT = "https://docs.pytorch.org/TensorRT"  # kept by NVIDIA; its JetPack pages name the versions
_RTX_MATRIX = "https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix-1/1.5.html"

# What a JetPack brings to every module. DLA here is how its TensorRT treats the cores, counted by module below: 10.7
# was the last 10.x with DLA, and 11.4.1 has it again, on AGX Orin alone.
_JETPACKS = {
    "5.1": Target(
        name="", jetpack="5.1", tensorrt="8.5.2", cuda="11.4", python_version="3.8", typed=False, opset=17,
        compute_capability="", dla_int8="implicit", source=f"{_DEVELOPER}/embedded/jetpack-sdk-51",
    ),
    "6.0": Target(
        name="", jetpack="6.0", tensorrt="8.6.2", cuda="12.2", python_version="3.10", typed=False, opset=17,
        compute_capability="", dla_int8="implicit", unverified=("tensorrt", "cuda"),
        source="https://docs.nvidia.com/jetson/archives/jetpack-archived/jetpack-60/",
    ),
    "6.1": Target(
        name="", jetpack="6.1", tensorrt="10.3", cuda="12.6", python_version="3.10", opset=20,
        compute_capability="", dla_int8="implicit", unverified=("opset",),
        source=f"{_TORCH_TENSORRT}/v2.6.1/_sources/getting_started/jetpack.rst.txt",
    ),
    "6.2": Target(
        name="", jetpack="6.2", tensorrt="10.3", cuda="12.6", python_version="3.10", opset=20,
        compute_capability="", dla_int8="implicit", unverified=("opset",),
        source=f"{_TORCH_TENSORRT}/getting_started/jetpack.html",
    ),
    "7.0": Target(
        name="", jetpack="7.0", tensorrt="10.13", cuda="13.0", python_version="3.12", opset=24,
        compute_capability="", unverified=("tensorrt", "opset"),
        source=f"{_DEVELOPER}/embedded/jetpack/downloads/archive-7.0.md",
    ),
    "7.2": Target(
        name="", jetpack="7.2", tensorrt="10.16.2", cuda="13.2", python_version="3.12", opset=24,
        compute_capability="", unverified=("tensorrt", "cuda"), source=f"{_DEVELOPER}/EMBEDDED/jetpack.md",
        note="its TensorRT has no DLA: 10.7 was the last 10.x that had",
    ),
    "7.2.2": Target(
        name="", jetpack="7.2.2", tensorrt="11.4.1", cuda="13.2", python_version="3.12", opset=24,
        compute_capability="", dla_int8="explicit", unverified=("cuda", "dla_int8"),
        source=f"{_TENSORRT_DOCS}/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html",
        note="TensorRT 11.4.1 is the Linux SBSA package, on JetPack 7.2.2 or later",
    ),
}  # fmt: skip
_NO_DLA = {"7.0", "7.2"}
# Module -> compute capability, accelerator cores, the JetPacks it has here, and what to know of the count.
_MODULES: Mapping[str, tuple[str, int, tuple[str, ...], str]] = {
    "jetson-xavier": ("7.2", 2, ("5.1",), "AGX Xavier and Xavier NX"),
    "jetson-orin": ("8.7", 1, ("5.1", "6.0", "6.1", "6.2", "7.2"), "any Orin but Nano; AGX Orin has two DLA cores"),
    "jetson-agx-orin": ("8.7", 2, ("5.1", "6.0", "6.1", "6.2", "7.2", "7.2.2"), ""),
    "jetson-orin-nx": ("8.7", 1, ("5.1", "6.0", "6.1", "6.2", "7.2"), "the 16 GB module has two DLA cores"),
    "jetson-orin-nano": ("8.7", 0, ("5.1", "6.0", "6.1", "6.2", "7.2"), "no DLA"),
    "jetson-thor": ("11.0", 0, ("7.0", "7.2", "7.2.2"), "no DLA; earlier toolkits call it 10.1"),
}
_DLA_COUNT_NOT_READ = {"jetson-orin", "jetson-orin-nx", "jetson-orin-nano"}
# TensorRT for RTX builds for these ahead of time, without a GPU.
_RTX = {
    "rtx-2060": "7.5", "rtx-2070": "7.5", "rtx-2080": "7.5", "rtx-2080-ti": "7.5",
    "rtx-3060": "8.6", "rtx-3070": "8.6", "rtx-3080": "8.6", "rtx-3090": "8.6", "rtx-a2000": "8.6", "rtx-a4000": "8.6",
    "rtx-4050": "8.9", "rtx-4060": "8.9", "rtx-4070": "8.9", "rtx-4080": "8.9", "rtx-4090": "8.9",
    "rtx-5050": "12.0", "rtx-5060": "12.0", "rtx-5070": "12.0", "rtx-5080": "12.0", "rtx-5090": "12.0",
    "dgx-spark": "12.1",
}  # fmt: skip
# Read in copies of NVIDIA's list of compute capabilities, not in the list itself.
_CAPABILITY_NOT_READ = {"rtx-2060", "rtx-2070", "rtx-2080", "rtx-3060", "rtx-3070", "rtx-3080"}
_DATA_CENTER = {"t4": "7.5", "a100": "8.0", "a10": "8.6", "l4": "8.9", "l40": "8.9", "h100": "9.0", "h200": "9.0"}


def _jetson(module: str, jetpack: str) -> Target:
    capability, cores, _, note = _MODULES[module]
    row = _JETPACKS[jetpack]
    cores = 0 if jetpack in _NO_DLA else cores
    not_read = {*row.unverified, *(["dla"] if module in _DLA_COUNT_NOT_READ and jetpack not in _NO_DLA else [])}
    return replace(
        row,
        name=f"{module}-jp{jetpack}",
        compute_capability=capability,
        dla=cores,
        dla_int8=row.dla_int8 if cores else "none",
        unverified=tuple(sorted(not_read if cores else not_read - {"dla_int8"})),
        note="; ".join(text for text in (note, row.note) if text),
    )


def _rtx(name: str, capability: str) -> Target:
    note = "FP32 matrix products do not build: FP16, or INT8 with the rest in FP16" if capability == "7.5" else ""
    return Target(
        name, "1.5", "13.0", capability, 24, "3.10", _RTX_MATRIX, runtime="tensorrt_rtx", note=note,
        unverified=("compute_capability", "opset") if name in _CAPABILITY_NOT_READ else ("opset",),
    )  # fmt: skip


def _data_center(name: str, capability: str) -> Target:
    source = f"{_DEVELOPER}/cuda-gpus"
    return Target(
        name, "11.4.1", "13.2", capability, 24, "3.10", source,
        note="TensorRT is the user's choice there; 11.4.1 is assumed",
        unverified=("cuda",) if name not in {"a100", "t4"} else ("compute_capability", "cuda"),
    )  # fmt: skip


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            *(_jetson(module, jetpack) for module, row in _MODULES.items() for jetpack in row[2]),
            *(_rtx(name, capability) for name, capability in _RTX.items()),
            *(_data_center(name, capability) for name, capability in _DATA_CENTER.items()),
        )
    }
)
