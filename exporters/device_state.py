"""What a device's clocks, temperatures and power limits are at a moment, and whether it was slowed down between two."""

from __future__ import annotations

import contextlib
import importlib
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

# Bits of nvmlDeviceGetCurrentClocksEventReasons (NVML API Reference, "Clocks event reasons") that mean that the device
# protects itself. Idle clocks and the power cap are left out: the first is no load, the second is the power mode.
_NVML_SLOWDOWNS = {0x8: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
                   0x80: "power brake slowdown"}  # fmt: skip
_GPU_DEVFREQ = re.compile(r"gpu|ga10b|gv11b|gp10b|gm20b")  # Jetson's names of its GPU, by generation
_SLOWING = re.compile(r"cpufreq|devfreq|throttle|balanced|^Processor$", re.IGNORECASE)  # a fan is a cooling device too
_POWER_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_SECONDS = 5.0  # for nvpmodel, which answers at once


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One look at the device; None or empty is what it does not tell.

    `slowdowns` act now; `counts` only grow (events, or nanoseconds), and name what was counted. Clocks are in MHz (of
    the cores, the mean), temperatures in degrees Celsius by the sensor's name.
    """

    power_mode: str | None = None
    governor: str | None = None
    cpu_mhz: float | None = None
    gpu_mhz: float | None = None
    power_limit_w: float | None = None
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    slowdowns: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


def read_state(root: Path = Path("/"), *, nvml: ModuleType | None = None) -> DeviceState:
    """The state by sysfs below `root`, nvpmodel (Jetson) and NVML (`open_nvml` gives it; None leaves it out).

    Paths: Linux' Documentation/admin-guide/pm/cpufreq.rst and driver-api/thermal/sysfs-api.rst; x86 counts throttling
    in thermal_throttle/, Jetson its over-current events in hwmon*/oc*_event_cnt (Jetson Linux Developer Guide, Platform
    Power and Performance).
    """
    gpu = _nvml_facts(nvml) if nvml is not None else {}
    clocks = [value for path in _cores(root) if (value := _number(path / "cpufreq/scaling_cur_freq")) is not None]
    governors = {text for path in _cores(root) if (text := _text(path / "cpufreq/scaling_governor"))}
    return DeviceState(
        power_mode=_power_mode(root),
        governor=", ".join(sorted(governors)) or None,
        cpu_mhz=sum(clocks) / len(clocks) / 1e3 if clocks else None,
        gpu_mhz=gpu.get("mhz", _devfreq_mhz(root)),
        power_limit_w=gpu.get("watts"),
        temperatures_c=dict(_temperatures(root)) | gpu.get("temperatures", {}),
        slowdowns=tuple(_cooling(root)) + gpu.get("slowdowns", ()),
        counts=dict(_counts(root)) | gpu.get("counts", {}),
    )


def throttled(before: DeviceState, after: DeviceState) -> tuple[str, ...]:
    """Why the device was slower than it can be at some time from `before` to `after`; nothing where nothing was seen.

    A slowdown in either look counts, and every counter that grew. A device that tells nothing is not accused.
    """
    seen = list(dict.fromkeys((*before.slowdowns, *after.slowdowns)))
    grown = [
        f"{name} rose by {after.counts[name] - count}"
        for name, count in before.counts.items()
        if after.counts.get(name, count) > count
    ]
    return (*seen, *grown)


def state_reader(root: Path = Path("/")) -> Callable[[], DeviceState]:
    """`read_state` with NVML opened once, as one passes to `measure`."""
    nvml = open_nvml()
    return lambda: read_state(root, nvml=nvml)


def open_nvml() -> ModuleType | None:
    """NVIDIA's `pynvml` (pip install nvidia-ml-py) with its library started; None where either is missing."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _cores(root: Path) -> list[Path]:
    return sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))


def _power_mode(root: Path) -> str | None:
    """Jetson's power mode: nvpmodel's own answer, else the mode that it keeps, named by its configuration."""
    tool = root / "usr/sbin/nvpmodel"
    if tool.is_file():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run([str(tool), "-q"], capture_output=True, text=True, timeout=_SECONDS, check=True)
            found = re.search(r"NV Power Mode: *(\S+)", done.stdout)
            if found:
                return found[1]
    kept = re.search(r"pmode:0*(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    names = dict(_POWER_MODEL.findall(_text(root / "etc/nvpmodel.conf") or ""))
    return names.get(kept[1], f"mode {kept[1]}") if kept else None


def _devfreq_mhz(root: Path) -> float | None:
    for path in sorted((root / "sys/class/devfreq").glob("*")):
        hertz = _number(path / "cur_freq")
        if _GPU_DEVFREQ.search(path.name) and hertz is not None:
            return hertz / 1e6
    return None


def _temperatures(root: Path) -> Iterator[tuple[str, float]]:
    """In millidegrees; a sensor that sleeps gives an error, and is left out."""
    for path in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        milli = _number(path / "temp")
        if milli is not None:
            yield f"{_text(path / 'type') or 'zone'} ({path.name})", milli / 1e3


def _cooling(root: Path) -> Iterator[str]:
    """Cooling devices that act by lowering clocks, and do so now."""
    for path in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        name, state = _text(path / "type") or "", _number(path / "cur_state")
        if _SLOWING.search(name) and state is not None and state > 0:
            yield f"cooling by {name} ({path.name})"


def _counts(root: Path) -> Iterator[tuple[str, int]]:
    patterns = ("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count", "sys/class/hwmon/*/oc*_event_cnt")
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            count = _number(path)
            if count is not None:
                place = path.parents[1].name if path.parent.name == "thermal_throttle" else path.parent.name
                yield f"{place} {path.name}", int(count)


def _nvml_facts(nvml: Any) -> dict[str, Any]:
    """What the first GPU tells; each question may be one that it does not answer (NVMLError, Not Supported)."""
    facts: dict[str, Any] = {}
    with contextlib.suppress(nvml.NVMLError):
        gpu = nvml.nvmlDeviceGetHandleByIndex(0)
        with contextlib.suppress(nvml.NVMLError):
            facts["mhz"] = float(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM))
        with contextlib.suppress(nvml.NVMLError):
            facts["watts"] = nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3
        with contextlib.suppress(nvml.NVMLError):
            facts["temperatures"] = {"GPU": float(nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU))}
        with contextlib.suppress(nvml.NVMLError):
            bits = _reasons(nvml)(gpu)
            facts["slowdowns"] = tuple(f"GPU {name}" for bit, name in _NVML_SLOWDOWNS.items() if bits & bit)
        with contextlib.suppress(nvml.NVMLError):
            violation = nvml.nvmlDeviceGetViolationStatus(gpu, nvml.NVML_PERF_POLICY_THERMAL)
            facts["counts"] = {"GPU thermal violation (ns)": int(violation.violationTime)}
    return facts


def _reasons(nvml: Any) -> Callable[[Any], int]:
    """The function has had two names; nvidia-ml-py before 12.535 knows the second only."""
    name = "nvmlDeviceGetCurrentClocksEventReasons"
    function: Callable[[Any], int] = getattr(nvml, name, None) or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
    return function


def _text(path: Path) -> str | None:
    """The file's text; sysfs answers some reads with an error, as from a sleeping device."""
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None
