"""How much memory a build may take where the user did not say: a share of what is free where the GPU works."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

WORKSPACE_SHARE = 0.5  # the other half is for the weights, their copies, and the rest of the machine
_INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED: the GPU has no memory but the host's, as on every Jetson


def default_workspace_bytes() -> int | None:
    """`WORKSPACE_SHARE` of the free memory in whole MiB; None where nothing tells how much that is."""
    free = gpu_free_bytes() or available_bytes()
    return int(free * WORKSPACE_SHARE) >> 20 << 20 or None if free else None


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory of the host that a new program can have without swapping (Linux's MemAvailable); 0 where not told."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) * 1024 if match else 0


def gpu_free_bytes(driver: Any = None) -> int:
    """Free memory of the first GPU where that has its own; 0 where it shares the host's, or there is no driver.

    Makes and leaves the device's primary context for the answer (cuMemGetInfo needs one): call it in a process that
    uses the GPU anyway. `driver` is libcuda.
    """
    if driver is None:
        try:
            driver = ctypes.CDLL("libcuda.so.1")
        except OSError:
            return 0
    device, integrated, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return 0
    if driver.cuDeviceGetAttribute(ctypes.byref(integrated), _INTEGRATED, device) != 0 or integrated.value:
        return 0
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) != 0:
        return 0
    try:
        if driver.cuCtxPushCurrent_v2(context) != 0:
            return 0
        told = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)
    return free.value if told else 0
