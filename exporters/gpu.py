"""Which GPU the NVIDIA driver shows, asked of the driver itself: a builder needs neither pycuda nor cuda-bindings."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device as the driver names it, with its compute capability ("8.7")."""

    name: str
    compute_capability: str


def find_gpu() -> Gpu | None:
    """The driver's first device; None where there is no driver, no device, or a driver that does not start."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    started = driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
    if not started or driver.cuDeviceGetName(name, len(name), device) != 0:
        return None
    for value, attribute in ((major, 75), (minor, 76)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")
