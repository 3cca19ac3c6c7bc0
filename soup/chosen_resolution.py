"""A test resolution that a build measured, taken for an export: its preprocessing, its statistics, its figures."""

from __future__ import annotations

from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from torch import from_numpy, nn

from soup import SoupError
from soup.build_folder import RESOLUTIONS, BuildFolder, Hop
from soup.resolution_choice import best_of
from soup.search_records import Difference, ResolutionPoint


def point_of(built: BuildFolder, wanted: str | None) -> ResolutionPoint | None:
    """The measured point: "best", or a scale as "1.2" (of several crops there the best). None for the trained size.

    Raises SoupError where the build measured none such.
    """
    if wanted is None:
        return None
    record = built.record
    points = tuple(one for one in record.resolutions if one.val is not None)
    if not points:
        raise SoupError(
            "--resolution: the build measured none. Build with --resolutions 0.7..1.4 (or preprocess.sweep) first."
        )
    if wanted != "best":
        try:
            asked = [one.preprocess for one in record.resolutions if abs(one.scale - float(wanted)) < 1e-6]
            points = tuple(one for one in points if one.preprocess in asked)
        except ValueError as error:
            raise SoupError(f"--resolution {wanted}: expected best, or a scale as 1.2.") from error
    found = best_of(points, higher_is_better=record.higher_is_better)
    if found is None:
        measured = sorted({one.scale for one in record.resolutions if one.val is not None})
        scales = ", ".join(f"{scale:g}" for scale in measured)
        raise SoupError(f"--resolution {wanted}: was not measured, expected best or one of {scales}.")
    return None if found is record.resolutions[0] else found


def install_statistics(model: nn.Module, built: BuildFolder, point: ResolutionPoint) -> None:
    """Give the network BatchNorm's statistics of that resolution, in place; none where they were not measured again."""
    index = built.record.resolutions.index(point)
    if RESOLUTIONS not in built.record.files:  # one that lies there is of an earlier build
        return
    path = built.path / RESOLUTIONS
    try:
        arrays = load_arrays(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise SoupError(f"{path}: {error}. Build again.") from error
    for name, array in arrays.items():
        place, _, buffer = name.partition("/")
        if place == str(index):
            model.get_buffer(buffer).copy_(from_numpy(array))


def hop_to(built: BuildFolder, point: ResolutionPoint) -> Hop:
    """The step from the winner as it was trained for to this resolution."""
    winner = built.record.winner
    unknown = Difference(None, None, None, 0.95, "the same resolution", 0, None, "undecided")
    name = f"{winner.label} → {label_of(point)}"
    return Hop(name, winner.val, point.val, (), None, point.difference or unknown, "val", "torch")


def label_of(point: ResolutionPoint) -> str:
    """As a hop names it."""
    return f"at {'×'.join(map(str, point.size or ()))}"
