"""Activation ranges as TensorRT's calibration cache: the only INT8 that a DLA takes before TensorRT 11."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from exporters import ExportError

# NVIDIA documents that such a cache is read (IInt8EntropyCalibrator2, "the required calibrator for DLA",
# docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-860-ea/api), not its text. The form is the one in which
# NVIDIA's TAO writes it (calibration_cache_from_dict in github.com/NVIDIA/tao_deploy): a line with TensorRT's
# version number, then `tensor: ` and the bits of the float32 scale, range / 127, as big-endian hexadecimal digits.
_GREATEST = 127.0


def calibration_cache(ranges: Mapping[str, tuple[float, float]], *, version: str) -> bytes:
    """The cache for one TensorRT version ("8.6.2", "10.3.0"); tensors in the order of their names.

    The scale is symmetric: the greater magnitude of a range over 127. Raises ExportError (input) for a range that is
    empty, not finite or all zero, and for a name that would not survive the text; a version that is none is ValueError.
    """
    bad = [name for name, (low, high) in ranges.items() if not (low <= high and 0 < _reach(low, high) < math.inf)]
    bad += [name for name in ranges if not name or name.splitlines() != [name]]
    if bad or not ranges:
        what = f"no usable range for {', '.join(map(repr, sorted(set(bad))))}" if bad else "no range at all"
        raise ExportError(f"calibration cache: {what}, expected finite ones that are not zero.", kind="input")
    lines = [f"{name}: {struct.pack('>f', _reach(*ranges[name]) / _GREATEST).hex()}" for name in sorted(ranges)]
    return "\n".join([f"TRT-{version_number(version)}-EntropyCalibration2", *lines, ""]).encode()


def version_number(version: str) -> int:
    """NV_TENSORRT_VERSION of NvInferVersion.h: 8.6.2 is 8602, and from 10 on 10.3.0 is 100300."""
    major, minor, patch = (int(part) for part in (*version.split("."), "0", "0")[:3])
    return (major * 100 + minor) * 100 + patch if major >= 10 else (major * 10 + minor) * 100 + patch


def cache_calibrator(trt: ModuleType, cache: bytes) -> Any:
    """A calibrator that has no images, only the cache: it measures nothing."""

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc, name-defined]  # a base known only at run time
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)  # pybind11 demands it by name

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: bytes) -> None:
            pass

    return Calibrator()


def _reach(low: float, high: float) -> float:
    return max(abs(low), abs(high))
