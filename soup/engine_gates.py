"""The gates on an engine that its build alone decides: its file, the builder's memory, and the share on a DLA."""

from __future__ import annotations

from exporters.onnx_to_tensorrt import EngineBuild
from soup.gate_sections import Gates
from soup.gates import Check, Kind, Subject
from soup.size_gates import dla_gate, memory_gate, size_gate


def build_gates(build: EngineBuild, gates: Gates, subject: Subject) -> tuple[Check, ...]:
    """One check per limit that is set; memory while it runs is pending, as a build does not show it."""
    checks = []
    if gates.engine_size is not None:
        checks.append(size_gate(build.size_bytes, subject, max_mb=gates.engine_size.max_mb))
    if gates.memory is not None and gates.memory.build_max_mb is not None:
        limit, what = gates.memory.build_max_mb, "memory of the build"
        checks.append(memory_gate(build.peak_memory_bytes, subject, max_mb=limit, what=what))
    if gates.memory is not None and gates.memory.max_mb is not None:
        checks.append(memory_gate(None, subject, max_mb=gates.memory.max_mb, what="device memory while it runs"))
    if gates.dla_share is not None:
        checks.append(dla_gate(build.dla_share, subject, minimum=gates.dla_share.min))
    return tuple(checks)


def open_gates(gates: Gates) -> tuple[Check, ...]:
    """The gates on an engine that are set where none was built: pending, so that none of them is forgotten."""
    asked: tuple[tuple[Kind, object], ...] = (
        ("size", gates.engine_size), ("memory", gates.memory), ("dla", gates.dla_share),
        ("speedup", gates.int8_speedup),
    )  # fmt: skip
    message = "set in gates, and no engine was built here to judge"
    return tuple(Check("engine", "gate", kind, "pending", message) for kind, gate in asked if gate is not None)
