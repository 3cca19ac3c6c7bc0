"""How an engine is to be built: frozen values with their defaults, checked before any TensorRT is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from exporters import ExportError

Hardware = Literal["none", "ampere_plus", "same_compute_capability"]
LEVELS = range(6)  # of TensorRT's builder optimisation, documented for 8.6 and later


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The options of a build; what a flavour or version lacks is refused by `exporters.trt_api`, never left out.

    `workspace_bytes` None is a share of the free memory (`exporters.memory`). `compute_capabilities` ("8.6") are
    tensorrt_rtx's; none means portable there. `optimization_level` and `max_aux_streams` None leave TensorRT its own.
    `timing_cache` is a file that is read where it exists, which `timing_cache_sha256` must then pin, and written anew
    after the build. `dla_core` puts on that DLA what it can run; the rest goes to the GPU if `gpu_fallback`, else fails
    the build. `int8_ranges` (tensor → least and greatest value) make the layers of an FP32 graph on a DLA INT8.
    """

    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware: Hardware = "none"
    refit: bool = False
    strip_weights: bool = False
    optimization_level: int | None = None
    max_aux_streams: int | None = None
    timing_cache: Path | None = None
    timing_cache_sha256: str | None = None
    dla_core: int | None = None
    gpu_fallback: bool = True
    int8_ranges: Mapping[str, tuple[float, float]] | None = None


def settings_facts(settings: EngineSettings) -> dict[str, Any]:
    """The settings as JSON values, for a manifest or another process; those at their defaults are left out."""
    facts = {field.name: getattr(settings, field.name) for field in fields(settings)
             if getattr(settings, field.name) != field.default}  # fmt: skip
    if settings.timing_cache is not None:
        facts["timing_cache"] = str(settings.timing_cache)
    if settings.int8_ranges is not None:
        facts["int8_ranges"] = {name: list(limits) for name, limits in settings.int8_ranges.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}


def settings_from(facts: Mapping[str, Any]) -> EngineSettings:
    """The inverse of `settings_facts`. Raises ExportError (input) for a name that is no setting."""
    unknown = sorted(set(facts) - {field.name for field in fields(EngineSettings)})
    if unknown:
        raise ExportError(f"engine settings: {', '.join(map(repr, unknown))} not known to this version.", kind="input")
    values = dict(facts)
    if values.get("timing_cache"):
        values["timing_cache"] = Path(values["timing_cache"])
    values["compute_capabilities"] = tuple(values.get("compute_capabilities", ()))
    if values.get("int8_ranges") is not None:
        values["int8_ranges"] = {name: (float(low), float(high)) for name, (low, high) in values["int8_ranges"].items()}
    return EngineSettings(**values)


def check_settings(settings: EngineSettings) -> None:
    """Raise one ExportError (input) that lists every setting that no TensorRT could take."""
    problems = [*_capabilities(settings), *_numbers(settings), *_dla(settings), *_timing_cache(settings)]
    if problems:
        raise ExportError(f"engine settings: {'; '.join(problems)}.", kind="input")


def _capabilities(settings: EngineSettings) -> list[str]:
    wrong = [name for name in settings.compute_capabilities if not re.fullmatch(r"\d{1,2}\.\d", name)]
    return [f"compute capabilities {', '.join(map(repr, wrong))}, expected the form 8.6"] if wrong else []


def _numbers(settings: EngineSettings) -> list[str]:
    limits = {
        "workspace_bytes": (settings.workspace_bytes, 1, None),
        "optimization_level": (settings.optimization_level, LEVELS[0], LEVELS[-1]),
        "max_aux_streams": (settings.max_aux_streams, 0, None),
        "dla_core": (settings.dla_core, 0, None),
    }
    return [
        f"{name} is {value}, expected {least} {f'to {most}' if most is not None else 'or more'}"
        for name, (value, least, most) in limits.items()
        if value is not None and not (least <= value and (most is None or value <= most))
    ]


def _dla(settings: EngineSettings) -> list[str]:
    if settings.int8_ranges is None or settings.dla_core is not None:
        return []
    return ["int8_ranges without dla_core, expected them together: for a GPU, INT8 is in the graph as Q/DQ nodes"]


def _timing_cache(settings: EngineSettings) -> list[str]:
    if settings.timing_cache is None:
        return ["timing_cache_sha256 without timing_cache"] if settings.timing_cache_sha256 else []
    exists, pinned = settings.timing_cache.is_file(), settings.timing_cache_sha256 is not None
    if exists and not pinned:
        return [f"the timing cache {settings.timing_cache} exists, expected its recorded SHA-256 with it"]
    if pinned and not exists:
        return [f"the timing cache {settings.timing_cache} is not there, expected one with the recorded SHA-256"]
    return []
