"""What the device that a release is for can take, told before any work, and where its engine is built."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from exporters.engine_settings import EngineSettings
from exporters.gpu import find_gpu
from exporters.precision import Precision
from exporters.targets import Asked, Here, Target, built_at, check_target, opset_for, target_named, unfit
from soup import SoupError
from soup.config import Config

BuiltAt = Literal["here", "ahead", "device", "trtexec"]


@dataclass(frozen=True, slots=True)
class TargetPlan:
    """The device where one was named, the opset that it reads, the precisions in order, and where its engine is built.

    `calibration_cache` is whether INT8 reaches a DLA as ranges and not in the graph.
    """

    target: Target | None
    opset: int
    precisions: tuple[Precision, ...]
    built: BuiltAt
    calibration_cache: bool = False

    def capabilities(self, asked: Sequence[str]) -> tuple[str, ...]:
        """What to build ahead of time for: what was asked, else the device's own."""
        if asked or self.target is None or self.built != "ahead":
            return tuple(asked)
        return (self.target.compute_capability,)


def plan_for(config: Config, *, engine: bool) -> TargetPlan:
    """Read `export.target` and refuse what it cannot run. Raises ExportError (environment): all problems at once."""
    export = config.export
    precisions: tuple[Precision, ...] = export.precision or (("fp16", "fp32") if engine else ("fp32",))
    if "int8" in precisions and config.data.train is None:
        raise SoupError(
            "data.train: not given, expected real images that are in neither val nor test to measure INT8 ranges on. "
            "Give it, or leave int8 out of export.precision."
        )
    if export.target is None:
        return TargetPlan(None, export.opset, precisions, "here")
    target = target_named(export.target)
    opset, dla = opset_for(target, export.opset), export.engine.dla_core is not None
    cache = dla and target.dla_int8 == "implicit" and "int8" in precisions
    if export.precision is None:  # of the default, what the device has
        rest = config.quantization.rest
        precisions = tuple(one for one in precisions if unfit(target, one, rest=rest, dla=dla) is None) or precisions
    check_target(
        target,
        Asked(
            opset, precisions, engine=engine, dla_core=export.engine.dla_core, rest=config.quantization.rest,
            calibration_cache=cache,
        ),
    )  # fmt: skip
    gpu = find_gpu()
    here = Here(platform.machine(), gpu.compute_capability if gpu else None)
    return TargetPlan(target, opset, precisions, built_at(target, here=here), cache)


def engine_settings(config: Config, plan: TargetPlan, *, capabilities: Sequence[str]) -> EngineSettings:
    """`export.engine` of val.yaml as the builder takes it."""
    engine = config.export.engine
    return EngineSettings(
        workspace_bytes=None if engine.workspace_mb is None else engine.workspace_mb << 20,
        compute_capabilities=plan.capabilities(capabilities),
        version_compatible=engine.version_compatible,
        hardware=engine.hardware_compatibility,
        refit=engine.refit,
        strip_weights=engine.strip_weights,
        optimization_level=engine.optimization_level,
        timing_cache=None if engine.timing_cache is None else config.resolve(engine.timing_cache),
        timing_cache_sha256=engine.timing_cache_sha256,
        dla_core=engine.dla_core,
    )
