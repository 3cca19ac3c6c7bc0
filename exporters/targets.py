"""What a device can be asked for, decided by the table of devices before any work is done."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from exporters import ExportError
from exporters.precision import Precision
from exporters.target_rows import TARGETS, DlaInt8, Runtime, Target

__all__ = [
    "TARGETS", "Asked", "BuiltAt", "DlaInt8", "Here", "Route", "Runtime", "Target",
    "built_at", "check_target", "exporter_route", "opset_for", "precision_path", "target_named", "unfit",
]  # fmt: skip

BuiltAt = Literal["here", "ahead", "device", "trtexec"]
Route = Literal["dynamo", "legacy"]

_DYNAMO_LEAST_OPSET = 18
# Half precision runs at a small fraction of the float rate there, and TensorRT's support matrix says No.
_NO_FP16 = {"5.0", "5.2", "6.1"}
_INT8_SINCE = (6, 1)  # compute capability
_QDQ_SINCE = (8, 0)  # TensorRT


@dataclass(frozen=True, slots=True)
class Asked:
    """What an export is to make; `rest` is what the layers outside INT8 compute in.

    `calibration_cache` is whether INT8 goes to a DLA as our ranges in a calibration cache instead of Q/DQ nodes.
    """

    opset: int
    precisions: tuple[Precision, ...]
    engine: bool = False
    dla_core: int | None = None
    rest: Precision = "fp32"
    calibration_cache: bool = False


@dataclass(frozen=True, slots=True)
class Here:
    """This machine: `platform.machine()`, and its GPU's compute capability where it has one."""

    machine: str
    compute_capability: str | None = None


def target_named(name: str) -> Target:
    """The row of that name. Raises ExportError (environment) with names near to it."""
    if name in TARGETS:
        return TARGETS[name]
    near = difflib.get_close_matches(name.lower(), TARGETS, n=4, cutoff=0.5) or sorted(TARGETS)[:4]
    raise ExportError(
        f"target: '{name}' is none that is known, nearest are {', '.join(near)}. docs/targets.md lists all.",
        kind="environment",
    )


def check_target(target: Target, asked: Asked) -> None:
    """Say before any work that a device cannot do what is asked.

    Raises:
        ExportError: "environment", one sentence a line, all problems at once.
    """
    found = list(dict.fromkeys(_problems(target, asked)))
    if found:
        raise ExportError("\n".join(f"{target.name}: {problem}" for problem in found), kind="environment")


def unfit(
    target: Target,
    precision: Precision,
    *,
    rest: Precision = "fp32",
    dla: bool = False,
    calibration_cache: bool = False,
) -> str | None:
    """Why a precision cannot be had on a device, in one sentence; None where nothing speaks against it."""
    computes = {precision, rest} if precision == "int8" else {precision}
    if "fp16" in computes and target.compute_capability in _NO_FP16:
        return f"compute capability {target.compute_capability} has no fast FP16. Ask for fp32."
    if precision == "int8" and _numbers(target.compute_capability) < _INT8_SINCE:
        return (
            f"compute capability {target.compute_capability} has no INT8, expected 6.1 or more. Ask for fp32 or fp16."
        )
    if precision == "int8" and target.version < _QDQ_SINCE and target.runtime == "tensorrt":
        return f"TensorRT {target.tensorrt} reads no Q/DQ nodes, expected 8.0 or newer. Ask for fp32 or fp16."
    if target.runtime == "tensorrt_rtx" and target.compute_capability == "7.5" and "fp32" in computes:
        what = "FP32" if precision == "fp32" else "INT8 with the rest in FP32"
        remedy = "Ask for fp16, or int8 with the rest in fp16."
        return f"{what} does not build with tensorrt_rtx for compute capability 7.5. {remedy}"
    if dla and target.dla:
        return _unfit_for_dla(target, precision, calibration_cache=calibration_cache)
    return None


def opset_for(target: Target | None, wanted: int) -> int:
    """The opset to export: what is wanted, or the target's greatest where that is less."""
    return wanted if target is None else min(wanted, target.opset)


def exporter_route(opset: int) -> Route:
    """Which of torch's exporters gives that opset: the dynamo one gives 18 at least."""
    return "dynamo" if opset >= _DYNAMO_LEAST_OPSET else "legacy"


def precision_path(target: Target, *, dla_calibration: bool = False) -> Literal["typed", "flags"]:
    """Whether the engine's precision comes from the graph's types or from builder flags.

    A DLA that takes INT8 from a calibration cache needs the flags on any TensorRT that still has them (below 11).
    """
    return "flags" if not target.typed or (dla_calibration and target.dla_int8 == "implicit") else "typed"


def built_at(target: Target, *, here: Here) -> BuiltAt:
    """Where the engine for a device is built, as seen from this machine.

    "ahead": here, without the GPU (TensorRT for RTX). "here": this is such a device. "device": the engine is pending
    until the release is finished there. "trtexec": likewise, but by check_device.sh, since edgesoup does not run there.
    """
    if not target.python:
        return "trtexec"
    if target.runtime == "tensorrt_rtx":
        return "ahead"
    jetson_elsewhere = target.jetpack is not None and here.machine != "aarch64"
    return "device" if jetson_elsewhere or here.compute_capability != target.compute_capability else "here"


def _problems(target: Target, asked: Asked) -> Iterator[str]:
    if asked.opset > target.opset:
        yield (
            f"opset {asked.opset} is asked, TensorRT {target.tensorrt} documents up to {target.opset}. "
            f"Set export.opset to {target.opset}."
        )
    if asked.engine and not target.python:
        yield (
            f"JetPack {target.jetpack} has Python {target.python_version}, expected 3.10 or newer to build an engine "
            "from Python. Leave the engine out: check_device.sh in the release builds and checks it there."
        )
    if asked.dla_core is not None and not target.dla:
        yield f"a DLA core is asked, and {_why_no_dla(target)}. Leave export.engine.dla_core out."
    elif asked.dla_core is not None and asked.dla_core >= target.dla:
        yield f"has DLA cores 0 to {target.dla - 1}, export.engine.dla_core is {asked.dla_core}. Choose one of them."
    yield from _precision_problems(target, asked)


def _precision_problems(target: Target, asked: Asked) -> Iterator[str]:
    dla = asked.dla_core is not None
    for precision in asked.precisions:
        problem = unfit(target, precision, rest=asked.rest, dla=dla, calibration_cache=asked.calibration_cache)
        if problem is not None:
            yield f"{precision}: {problem}"


def _unfit_for_dla(target: Target, precision: Precision, *, calibration_cache: bool) -> str | None:
    if precision == "fp32":
        return "a DLA computes in FP16 or INT8 only. Ask for fp16."
    if precision == "int8" and target.dla_int8 == "implicit" and not calibration_cache:
        return (
            f"with TensorRT {target.tensorrt} a DLA takes INT8 from a calibration cache only, not from Q/DQ nodes. "
            "Build it from the ranges as a calibration cache, or ask for fp16."
        )
    if precision == "int8" and target.dla_int8 == "explicit" and calibration_cache:
        return f"TensorRT {target.tensorrt} reads no calibration cache. Use Q/DQ nodes."
    return None


def _why_no_dla(target: Target) -> str:
    if target.jetpack is None:
        return "this GPU has none"
    orin = target.compute_capability == "8.7" and "nano" not in target.name
    return f"TensorRT {target.tensorrt} (JetPack {target.jetpack}) has no DLA" if orin else "this module has none"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
