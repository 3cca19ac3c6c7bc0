"""The device's state from trees built as sysfs and Jetson lay them out, and from a made-up NVML."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from exporters.device_state import DeviceState, open_nvml, read_state, state_reader, throttled


def write(root: Path, path: str, text: str) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    """An Orin's files, as far as they are read."""
    for core, kilohertz in enumerate((1_200_000, 1_600_000)):
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{kilohertz}\n")
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor", "schedutil\n")
    write(tmp_path, "sys/devices/system/cpu/cpufreq/boost", "1\n")
    write(tmp_path, "sys/class/devfreq/17000000.gpu/cur_freq", "612000000\n")
    write(tmp_path, "sys/class/devfreq/15340000.vic/cur_freq", "115200000\n")
    for zone, (name, milli) in enumerate((("cpu-thermal", "51500"), ("gpu-thermal", "48250"))):
        write(tmp_path, f"sys/class/thermal/thermal_zone{zone}/type", f"{name}\n")
        write(tmp_path, f"sys/class/thermal/thermal_zone{zone}/temp", f"{milli}\n")
    write(tmp_path, "sys/class/thermal/thermal_zone2/type", "cv0-thermal\n")  # asleep: its temp cannot be read
    for index, (name, state) in enumerate((("pwm-fan", "2"), ("cpufreq-cpu0", "0"), ("devfreq-17000000.gpu", "0"))):
        write(tmp_path, f"sys/class/thermal/cooling_device{index}/type", f"{name}\n")
        write(tmp_path, f"sys/class/thermal/cooling_device{index}/cur_state", f"{state}\n")
    write(tmp_path, "sys/class/hwmon/hwmon3/oc1_event_cnt", "0\n")
    write(tmp_path, "sys/class/hwmon/hwmon3/oc3_event_cnt", "27\n")
    write(tmp_path, "var/lib/nvpmodel/status", "pmode:0002 fmode:quiet\n")
    write(tmp_path, "etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MODE_15W >\n")
    return tmp_path


def test_a_jetson_tells_mode_clocks_temperatures_and_events(jetson: Path) -> None:
    assert read_state(jetson) == DeviceState(
        power_mode="MODE_15W",
        governor="schedutil",
        cpu_mhz=1400.0,
        gpu_mhz=612.0,
        temperatures_c={"cpu-thermal (thermal_zone0)": 51.5, "gpu-thermal (thermal_zone1)": 48.25},
        counts={"hwmon3 oc1_event_cnt": 0, "hwmon3 oc3_event_cnt": 27},
    )


def test_nvpmodels_own_answer_comes_before_the_file_that_it_keeps(jetson: Path) -> None:
    tool = write(jetson, "usr/sbin/nvpmodel", "#!/bin/sh\n[ $1 = -q ] && printf 'NV Power Mode: 25W\\n1\\n'\n")
    tool.chmod(0o755)
    assert read_state(jetson).power_mode == "25W"
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert read_state(jetson).power_mode == "MODE_15W"
    (jetson / "etc/nvpmodel.conf").unlink()
    assert read_state(jetson).power_mode == "mode 2"


def test_a_device_that_tells_nothing_has_an_empty_state(tmp_path: Path) -> None:
    assert read_state(tmp_path) == DeviceState()
    assert throttled(DeviceState(), DeviceState()) == ()


def test_an_intel_machine_counts_its_throttling(tmp_path: Path) -> None:
    for core, count in enumerate((3, 0)):
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count", f"{count}\n")
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_total_time_ms", "900\n")
    before = read_state(tmp_path)
    assert before.counts == {"cpu0 core_throttle_count": 3, "cpu1 core_throttle_count": 0}
    assert throttled(before, read_state(tmp_path)) == ()
    write(tmp_path, "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "4\n")
    assert throttled(before, read_state(tmp_path)) == ("cpu1 core_throttle_count rose by 4",)


def test_over_current_on_a_jetson_is_throttling(jetson: Path) -> None:
    before = read_state(jetson)
    write(jetson, "sys/class/hwmon/hwmon3/oc3_event_cnt", "30\n")
    assert throttled(before, read_state(jetson)) == ("hwmon3 oc3_event_cnt rose by 3",)


def test_cooling_by_lower_clocks_is_throttling_and_a_fan_is_not(jetson: Path) -> None:
    before = read_state(jetson)
    assert before.slowdowns == ()
    write(jetson, "sys/class/thermal/cooling_device1/cur_state", "4\n")
    after = read_state(jetson)
    expected = ("cooling by cpufreq-cpu0 (cooling_device1)",)
    assert throttled(before, after) == throttled(after, before) == throttled(after, after) == expected


def test_a_counter_that_starts_anew_or_appears_accuses_nobody() -> None:
    assert throttled(DeviceState(counts={"a": 9}), DeviceState(counts={"a": 2, "b": 5})) == ()
    assert throttled(DeviceState(counts={"a": 9}), DeviceState()) == ()


class NvmlError(Exception):
    """NVML's own base class."""


def nvml(*, bits: int = 0, violation: int = 0, old: bool = False, unsupported: frozenset[str] = frozenset()) -> Any:
    def tell(name: str, value: object) -> Any:
        def function(*_: object) -> object:
            if name in unsupported:
                raise NvmlError("Not Supported")
            return value

        return function

    reasons = "nvmlDeviceGetCurrentClocksThrottleReasons" if old else "nvmlDeviceGetCurrentClocksEventReasons"
    values = {
        "nvmlInit": None, "nvmlDeviceGetHandleByIndex": "gpu0", "nvmlDeviceGetClockInfo": 1980,
        "nvmlDeviceGetEnforcedPowerLimit": 115_000, "nvmlDeviceGetTemperature": 61, reasons: bits,
        "nvmlDeviceGetViolationStatus": SimpleNamespace(violationTime=violation),
    }  # fmt: skip
    constants = {"NVML_CLOCK_SM": 1, "NVML_TEMPERATURE_GPU": 0, "NVML_PERF_POLICY_THERMAL": 1}
    functions = {name: tell(name, value) for name, value in values.items()}
    return SimpleNamespace(NVMLError=NvmlError, **constants, **functions)


def test_nvml_tells_clock_power_limit_temperature_and_violations(tmp_path: Path) -> None:
    assert read_state(tmp_path, nvml=nvml(violation=7)) == DeviceState(
        gpu_mhz=1980.0, power_limit_w=115.0, temperatures_c={"GPU": 61.0}, counts={"GPU thermal violation (ns)": 7}
    )


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("bits", "slowdowns"),
    [
        (0x1 | 0x2 | 0x4 | 0x10 | 0x100, ()),  # idle, set clocks, the power cap, synchronised boost, a display
        (0x8, ("GPU hardware slowdown",)),
        (0x20 | 0x4, ("GPU software thermal slowdown",)),
        (0x40 | 0x80, ("GPU hardware thermal slowdown", "GPU power brake slowdown")),
    ],
)
def test_of_nvmls_reasons_those_count_by_which_the_gpu_protects_itself(
    tmp_path: Path, bits: int, slowdowns: tuple[str, ...], old: bool
) -> None:
    state = read_state(tmp_path, nvml=nvml(bits=bits, old=old))
    assert state.slowdowns == slowdowns
    assert throttled(DeviceState(), state) == slowdowns


def test_a_violation_that_grew_in_between_is_seen_though_nothing_acts_now(tmp_path: Path) -> None:
    states = [read_state(tmp_path, nvml=nvml(violation=time)) for time in (100, 5100)]
    assert throttled(*states) == ("GPU thermal violation (ns) rose by 5000",)


def test_what_a_gpu_does_not_support_is_left_out_and_the_rest_is_told(tmp_path: Path) -> None:
    without = frozenset({"nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetViolationStatus"})
    state = read_state(tmp_path, nvml=nvml(unsupported=without))
    assert (state.power_limit_w, state.gpu_mhz, state.counts) == (None, 1980.0, {})
    assert read_state(tmp_path, nvml=nvml(unsupported=frozenset({"nvmlDeviceGetHandleByIndex"}))) == DeviceState()


def test_nvml_that_is_absent_or_has_no_driver_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_nvml() is None
    broken = ModuleType("pynvml")
    vars(broken).update(vars(nvml(unsupported=frozenset({"nvmlInit"}))))
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert open_nvml() is None


def test_this_machines_state_can_be_read() -> None:
    assert isinstance(state_reader()(), DeviceState)
