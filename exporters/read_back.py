"""What a new engine says of itself once it is opened on the GPU that built it: its layers, and every profile corner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from exporters import ExportError
from exporters.flavours import Record, explain
from exporters.profiles import Bounds


@dataclass(frozen=True, slots=True)
class ReadBack:
    """`inspector` is the engine inspector's JSON; `corners` how many shapes the engine accepted."""

    inspector: str
    corners: int


def read_back(
    trt: ModuleType,
    logger: Any,
    plan: Any,
    profiles: Sequence[Mapping[str, Bounds]],
    *,
    records: Sequence[Record],
    where: str,
    host_code_allowed: bool = False,
) -> ReadBack:
    """Deserialise the plan that this process has just built; needs its GPU.

    `host_code_allowed` is for a version-compatible plan, which carries its runtime as code.

    Raises ExportError (build): the engine does not open, or refuses a corner of a profile.
    """
    runtime = trt.Runtime(logger)
    if host_code_allowed:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ExportError(f"{where}: the engine that was just built does not open: {explain(records)}.")
    inspector = engine.create_engine_inspector()
    text = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    context: Any = engine.create_execution_context() if profiles else None
    if profiles and context is None:
        raise ExportError(f"{where}: the new engine cannot be run: {explain(records)}. Free some GPU memory.")
    corners = 0
    for number, shapes in enumerate(profiles):
        context.set_optimization_profile_async(number, 0)
        for corner in zip(*shapes.values(), strict=True):
            for name, shape in zip(shapes, corner, strict=True):
                if not context.set_input_shape(name, shape):
                    raise ExportError(
                        f"{where}: the engine refuses {shape} for '{name}', a corner of its profile {number}: "
                        f"{explain(records)}."
                    )
            corners += 1
    return ReadBack(text, corners)
