"""`gates:` of val.yaml as frozen records: what must hold before a release may ship."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from soup.sections import AtLeastZero, Positive, Section, Text


class AccuracyGate(Section):
    """Passes if the whole interval of the drop is within the limit, fails if all of it is beyond, else inconclusive."""

    max_drop: AtLeastZero
    """the largest drop that may ship, in the metric's unit (0.005 is half a point)"""
    against: Literal["best_single"] = "best_single"
    """what the drop is measured from"""


class GainGate(Section):
    """Fails unless the soup beats the best single on test."""

    min: AtLeastZero
    """the smallest gain that may ship, in the metric's unit"""


class LatencyGate(Section):
    """Limits that hold on one runtime and device; measured elsewhere, they stay pending."""

    p50_ms: Positive | None = None
    """limit of the median, in milliseconds"""
    p90_ms: Positive | None = None
    """limit of the 90th percentile, in milliseconds"""
    p99_ms: Positive | None = None
    """limit of the 99th percentile, in milliseconds"""
    runtime: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
    """the runtime that the limits are for; tensorrt stands for tensorrt_rtx too"""
    device: Text
    """the device that the limits are for: words of its name, as orin-nano, rtx-4060 or cpu"""

    @model_validator(mode="after")
    def _limits_something(self) -> LatencyGate:
        if self.p50_ms is None and self.p90_ms is None and self.p99_ms is None:
            raise ValueError("limits nothing. Give p50_ms, p90_ms or p99_ms")
        return self


class Gates(Section):
    """What must hold before a release may ship. A gate that is not written is not set."""

    accuracy: AccuracyGate | None = None
    """limit of the accuracy lost on the way"""
    gain: GainGate | None = None
    """makes it a failure (exit 3) when the soup does not beat the best single"""
    latency: LatencyGate | None = None
    """limits of the time per call"""
    require: tuple[Literal["onnx", "engine", "device"], ...] = ("onnx",)
    """what must have been run; `device` where an engine that was never executed must block"""
