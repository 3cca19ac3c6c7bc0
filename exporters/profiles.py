"""Optimisation profiles: least, usual and greatest shape of each input, every corner checked against the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exporters import ExportError
from exporters.runtimes import TensorInfo

Shape = tuple[int, ...]
Bounds = tuple[Shape, Shape, Shape]  # min, opt, max
# The batch (min, opt, max) of every dynamic input, or whole shapes by input name.
Profile = tuple[int, int, int] | Mapping[str, Bounds]


def resolve_profiles(
    inputs: Sequence[TensorInfo], profiles: Sequence[Profile], *, must_take: int | None, where: str
) -> tuple[dict[str, Bounds], ...]:
    """The profiles as whole shapes of each dynamic input; none for a static graph.

    `must_take` is a batch that some profile (or the static graph) has to take: the golden samples' own.
    Raises ExportError (input): corners out of order, a graph without a profile or the other way round, an input that is
    not there, a shape that the graph cannot have, a batch that is excluded.
    """
    dynamic = [info for info in inputs if any(isinstance(size, str) for size in info.shape)]
    if bool(dynamic) != bool(profiles):
        have, got = ("a dynamic", "no profile") if dynamic else ("a static", "a profile")
        raise ExportError(
            f"{where}: the graph has {have} batch, but {got} (min, opt, max) was given. "
            "Export it again with the batch that the engine is to have.",
            kind="input",
        )
    resolved = tuple(_whole(profile, dynamic, where=where) for profile in profiles)
    for number, shapes in enumerate(resolved):
        for info in dynamic:
            _check_corners(info, shapes[info.name], number=number, where=where)
    if must_take is not None:
        _check_taken(inputs, resolved, must_take, where=where)
    return resolved


def _whole(profile: Profile, dynamic: Sequence[TensorInfo], *, where: str) -> dict[str, Bounds]:
    names = [info.name for info in dynamic]
    if isinstance(profile, Mapping):
        if set(profile) != set(names):
            raise ExportError(
                f"{where}: the profile is for inputs {sorted(profile)}, expected all dynamic ones: {sorted(names)}.",
                kind="input",
            )
        return {name: _bounds(profile[name], name, where=where) for name in names}
    least, usual, greatest = profile
    if not 1 <= least <= usual <= greatest:
        message = f"profile: batch (min, opt, max) is {tuple(profile)}, expected 1 <= min <= opt <= max."
        raise ExportError(message, kind="input")
    for info in dynamic:
        if any(isinstance(size, str) for size in info.shape[1:]):
            shape = tuple(-1 if isinstance(size, str) else size for size in info.shape)
            raise ExportError(
                f"{where}: input '{info.name}' has shape {shape}, expected only its first axis to be dynamic. "
                "Give whole shapes (min, opt, max) for it.",
                kind="input",
            )
    rest = {info.name: tuple(int(size) for size in info.shape[1:]) for info in dynamic}
    return {name: ((least, *rest[name]), (usual, *rest[name]), (greatest, *rest[name])) for name in names}


def _bounds(shapes: Sequence[Sequence[int]], name: str, *, where: str) -> Bounds:
    if len(shapes) != 3:
        message = f"{where}: the profile gives input '{name}' {len(shapes)} shapes, expected min, opt and max."
        raise ExportError(message, kind="input")
    least, usual, greatest = (tuple(shape) for shape in shapes)
    return least, usual, greatest


def _check_corners(info: TensorInfo, bounds: Bounds, *, number: int, where: str) -> None:
    """Every axis in order, and equal to the graph's where that is fixed."""
    for axis, size in enumerate(info.shape):
        if any(len(shape) != len(info.shape) for shape in bounds):
            expected, got = f"{len(info.shape)} axes", f"shapes {bounds}"
        else:
            least, usual, greatest = (shape[axis] for shape in bounds)
            if isinstance(size, int) and not least == usual == greatest == size:
                expected, got = f"{size} as in the graph", f"{(least, usual, greatest)} on axis {axis}"
            elif not 1 <= least <= usual <= greatest:
                expected, got = "1 <= min <= opt <= max", f"{(least, usual, greatest)} on axis {axis}"
            else:
                continue
        message = f"{where}: profile {number} gives input '{info.name}' {got}, expected {expected}."
        raise ExportError(message, kind="input")


def _check_taken(
    inputs: Sequence[TensorInfo], profiles: Sequence[Mapping[str, Bounds]], batch: int, *, where: str
) -> None:
    if profiles:
        ranges = [
            (max(low[0] for low, _, _ in shapes.values()), min(high[0] for _, _, high in shapes.values()))
            for shapes in profiles
        ]
    else:
        sizes = {info.shape[0] for info in inputs if info.shape and isinstance(info.shape[0], int)}
        ranges = [(size, size) for size in sizes]
    if not any(least <= batch <= greatest for least, greatest in ranges):
        taken = ", ".join(f"{least} to {greatest}" if least < greatest else str(least) for least, greatest in ranges)
        raise ExportError(
            f"{where}: the engine would take batches of {taken or 'no size'}, expected {batch} among them, in which "
            "the golden samples run. Widen the profile.",
            kind="input",
        )
