"""`gates:` of val.yaml as frozen records: what must hold before a release may ship."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import CoreSchema

from soup.sections import AtLeastZero, Count, Number, Positive, Section, Text, Whole

Against = Literal["best_single", "soup", "baseline"]
RuntimeName = Literal["onnxruntime", "tensorrt", "tensorrt_rtx"]
Share = Annotated[Number, Field(ge=0, le=1)]


class AccuracyGate(Section):
    """Passes if the whole interval of the drop is within the limit, fails if all of it is beyond, else inconclusive."""

    max_drop: AtLeastZero | None = None
    """the largest drop that may ship, in the metric's unit (0.005 is half a point)"""
    max_drop_relative: Share | None = None
    """the same as a share of what it is compared with (0.01 of 0.93 is 0.0093)"""
    against: Against = "best_single"
    """what the drop is measured from: the best single checkpoint, the soup in torch, or --baseline"""

    @model_validator(mode="after")
    def _limits_something(self) -> AccuracyGate:
        if self.max_drop is None and self.max_drop_relative is None:
            raise ValueError("limits nothing. Give max_drop or max_drop_relative")
        return self


class _OneOrMore:
    """A rule by itself stands for a list of one, read and written, so that `--set` reaches its keys."""

    @staticmethod
    def read(value: object, handler: ValidatorFunctionWrapHandler) -> Any:
        if value is None:
            return ()
        return (AccuracyGate.model_validate(value),) if isinstance(value, Mapping | AccuracyGate) else handler(value)

    @staticmethod
    def write(rules: tuple[AccuracyGate, ...]) -> AccuracyGate | tuple[AccuracyGate, ...] | None:
        return rules if len(rules) > 1 else next(iter(rules), None)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        listed = handler(schema)  # of what is written it knows already, by the annotation of `write`
        return {"anyOf": [listed["items"], listed, {"type": "null"}]} if "items" in listed else listed


AccuracyRules = Annotated[
    tuple[AccuracyGate, ...], _OneOrMore, WrapValidator(_OneOrMore.read), PlainSerializer(_OneOrMore.write)
]


class PerClassGate(Section):
    """Passes if a drop beyond the limit is excluded in every class, fails if it is shown in any, else inconclusive."""

    max_drop: AtLeastZero
    """the largest drop of any class, in the metric's unit"""
    against: Against = "best_single"
    """what the drop is measured from"""
    min_images: Count = 20
    """images of val that a class must have to be judged; the gate is inconclusive where one has fewer"""


class FlipsGate(Section):
    """Limits of how many images of val may change their class; both hold where both are given."""

    max_share: Share | None = None
    """the largest share of images like those of val, judged by its interval"""
    max_count: Annotated[Whole, Field(ge=0)] | None = None
    """the most images of val itself, counted"""
    against: Literal["soup", "baseline"] = "soup"
    """whose answers they are compared with: the soup's in torch, or the baseline's"""

    @model_validator(mode="after")
    def _limits_something(self) -> FlipsGate:
        if self.max_share is None and self.max_count is None:
            raise ValueError("limits nothing. Give max_share or max_count")
        return self


class OutputsGate(Section):
    """Limits of how far outputs may move on val; both hold where both are given."""

    max_error: AtLeastZero | None = None
    """the largest absolute difference of any output, in its own unit (the report's "outputs max")"""
    cosine: Share | None = None
    """the smallest cosine of any output, all of val together"""
    against: Literal["soup", "baseline"] = "soup"
    """whose outputs they are compared with: the soup's in torch, or the baseline's"""

    @model_validator(mode="after")
    def _limits_something(self) -> OutputsGate:
        if self.max_error is None and self.cosine is None:
            raise ValueError("limits nothing. Give max_error or cosine")
        return self


class GainGate(Section):
    """Fails unless the soup beats the best single on test."""

    min: AtLeastZero
    """the smallest gain that may ship, in the metric's unit"""


class RelativeLatency(Section):
    """A limit of the time per call as a multiple of another model's, both on the same device."""

    max_ratio: Positive
    """the largest ratio of the median times (1.05 allows 5 % more)"""
    against: Literal["best_single", "baseline"] = "best_single"
    """the model whose time it is compared with"""


class LatencyGate(Section):
    """Limits that hold on one runtime and device; measured elsewhere, they stay pending."""

    p50_ms: Positive | None = None
    """limit of the median, in milliseconds"""
    p90_ms: Positive | None = None
    """limit of the 90th percentile, in milliseconds"""
    p99_ms: Positive | None = None
    """limit of the 99th percentile, in milliseconds"""
    relative: RelativeLatency | None = None
    """limit as a multiple of another model's time"""
    runtime: RuntimeName
    """the runtime that the limits are for; tensorrt stands for tensorrt_rtx too"""
    device: Text
    """the device that the limits are for: words of its name, as orin-nano, rtx-4060 or cpu"""

    @model_validator(mode="after")
    def _limits_something(self) -> LatencyGate:
        if self.p50_ms is None and self.p90_ms is None and self.p99_ms is None and self.relative is None:
            raise ValueError("limits nothing. Give p50_ms, p90_ms, p99_ms or relative")
        return self


class ThroughputGate(Section):
    """A floor that holds on one runtime and device; measured elsewhere, it stays pending."""

    min_per_s: Positive
    """the fewest samples per second"""
    runtime: RuntimeName
    """the runtime that the floor is for; tensorrt stands for tensorrt_rtx too"""
    device: Text
    """the device that the floor is for: words of its name, as orin-nano, rtx-4060 or cpu"""


class SizeGate(Section):
    """A limit of the engine's file."""

    max_mb: Positive
    """the largest file, in 10^6 bytes"""


class MemoryGate(Section):
    """Limits of memory; what was not measured stays pending."""

    max_mb: Positive | None = None
    """the most device memory that the engine may take to run, in 10^6 bytes"""
    build_max_mb: Positive | None = None
    """the most memory that building the engine may take, in 10^6 bytes"""

    @model_validator(mode="after")
    def _limits_something(self) -> MemoryGate:
        if self.max_mb is None and self.build_max_mb is None:
            raise ValueError("limits nothing. Give max_mb or build_max_mb")
        return self


class SpeedupGate(Section):
    """Whether INT8 pays; judged where INT8 and FP16 were timed on the same device, else pending."""

    min: Positive = 1.0
    """the smallest ratio of FP16's time to INT8's (1.0: no slower)"""


class DlaGate(Section):
    """Whether the deep-learning accelerator does the work that it was chosen for."""

    min: Share = 0.9
    """the smallest share of the layers that run there and do not fall back to the GPU"""


class Gates(Section):
    """What must hold before a release may ship. A gate that is not written is not set."""

    accuracy: AccuracyRules = ()
    """limit of the accuracy lost on the way; one rule, or a list of them"""
    per_class_drop: PerClassGate | None = None
    """limit of what the worst class lost"""
    flips: FlipsGate | None = None
    """limit of the images that change their class"""
    outputs: OutputsGate | None = None
    """limit of how far outputs move"""
    gain: GainGate | None = None
    """makes it a failure (exit 3) when the soup does not beat the best single"""
    latency: LatencyGate | None = None
    """limits of the time per call"""
    throughput: ThroughputGate | None = None
    """floor of the samples per second"""
    engine_size: SizeGate | None = None
    """limit of the engine's file"""
    memory: MemoryGate | None = None
    """limits of memory"""
    int8_speedup: SpeedupGate | None = None
    """makes it a failure (exit 4) when INT8 is slower than FP16"""
    dla_share: DlaGate | None = None
    """floor of what the deep-learning accelerator runs"""
    require: tuple[Literal["onnx", "engine", "device"], ...] = ("onnx",)
    """what must have been run; `device` where an engine that was never executed must block"""

    @property
    def against_baseline(self) -> tuple[str, ...]:
        """The gates that compare with --baseline, by key."""
        rules = [(f"accuracy[{at}]", rule.against) for at, rule in enumerate(self.accuracy)]
        rules = [("accuracy", self.accuracy[0].against)] if len(self.accuracy) == 1 else rules
        others = {"per_class_drop": self.per_class_drop, "flips": self.flips, "outputs": self.outputs}
        rules += [(key, gate.against) for key, gate in others.items() if gate is not None]
        if self.latency and self.latency.relative:
            rules.append(("latency.relative", self.latency.relative.against))
        return tuple(f"gates.{key}" for key, against in rules if against == "baseline")
