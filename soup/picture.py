"""The picture beside the report: where the checkpoints lie to each other, and accuracy on the line between two."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from soup.build_folder import BuildRecord
from soup.files import shown
from soup.search_records import Line, Place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels
_INK, _SOFT, _MODEL = "#1c2024", "#60646c", "#b3261e"
_SCORES = "cividis"  # as readable to the colour-blind as to others, and in grey (Nuñez et al., PLOS ONE 13, 2018)
_LONGEST = 22  # characters of a name that is shown
_PANEL, _HEIGHT = 4.7, 4.3  # inches; two panels are 900 px wide at 96 dpi
_STEPS = ((8, 5), (8, -13), (-8, 5), (-8, -13), (8, 17), (8, -25), (-8, 17), (-8, -25))  # points from a marker
STYLE = {
    "font.family": "sans-serif", "font.size": 10, "axes.edgecolor": _SOFT, "axes.labelcolor": _INK,
    "xtick.color": _SOFT, "ytick.color": _SOFT, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlelocation": "left", "axes.titlesize": 11, "figure.facecolor": "white",
    "svg.hashsalt": "soup", "svg.fonttype": "path", "path.simplify": False,
}  # fmt: skip


def picture_svg(record: BuildRecord) -> bytes | None:
    """SVG with the same bytes for the same record and matplotlib; None without matplotlib or where nothing is shown."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return None
    if not _panels(record):
        return None
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure(record).savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def shortest_names(paths: Mapping[str, Path]) -> dict[str, str]:
    """Each path's last parts, as many as tell all of them apart."""
    for parts in range(1, max((len(path.parts) for path in paths.values()), default=0) + 1):
        names = {sha: "/".join(path.parts[-parts:]) for sha, path in paths.items()}
        if len(set(names.values())) == len(names):
            return names
    return {sha: str(path) for sha, path in paths.items()}


def figure(record: BuildRecord) -> Figure:
    """The plane, the line, or both beside each other; under `STYLE` as the caller sets it."""
    from matplotlib.figure import Figure

    panels = _panels(record)
    drawn = Figure(figsize=(_PANEL * len(panels), _HEIGHT), layout="constrained")
    drawn.get_layout_engine().set(w_pad=0.09, h_pad=0.09)  # type: ignore[union-attr, call-arg]
    for axes, panel in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if isinstance(panel, Line):
            _draw_line(axes, panel, record)
        else:
            _draw_plane(axes, panel, record)
    return drawn


def _panels(record: BuildRecord) -> list[Line | tuple[Place, ...]]:
    """What there is to draw: checkpoints apart from each other, and two values or more on the line."""
    told = record.explanation
    if told is None:
        return []
    panels: list[Line | tuple[Place, ...]] = []
    if len({(place.x, place.y) for place in told.plane}) > 1:
        panels.append(told.plane)
    if told.line and sum(point.value is not None for point in told.line.points) > 1:
        panels.append(told.line)
    return panels


def _draw_plane(axes: Axes, places: Sequence[Place], record: BuildRecord) -> None:
    """Both axes in weight distance, on one scale."""
    scale, unit = _scale(record)
    points = [place for place in places if place.kind in ("ingredient", "left out")]
    scored = [place for place in points if place.value is not None]
    axes.set_title("Checkpoints by the distance of their weights")
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.22)
    if scored:
        shown = axes.scatter(
            [place.x for place in scored], [place.y for place in scored], s=64, zorder=3,
            c=[scale * (place.value or 0.0) for place in scored],
            cmap=_SCORES if record.higher_is_better else f"{_SCORES}_r",
        )  # fmt: skip
        bar = axes.figure.colorbar(shown, ax=axes, shrink=0.7, pad=0.02, label=f"{record.metric} on val{unit}")
        bar.outline.set_visible(False)
    _marks(axes, [place for place in points if place.value is None], "o", 64, "white", _SOFT, "not measured to the end")
    _marks(axes, [one for one in places if one.kind == "ingredient"], "o", 190, "none", _MODEL, "in the model")
    _marks(axes, [one for one in places if one.kind == "base"], "s", 64, "white", _INK, "base")
    _marks(axes, [one for one in places if one.kind == "model"], "*", 230, _MODEL, "white", "the model")
    _legend(axes)
    axes.tick_params(length=2, labelsize=8)
    first = {"base": 0, "ingredient": 1, "left out": 2}  # where there is no room for all
    _label(axes, sorted((one for one in places if one.kind in first), key=lambda one: first[one.kind]), places)


def _marks(axes: Axes, places: Sequence[Place], marker: str, size: int, face: str, edge: str, label: str) -> None:
    if places:
        axes.scatter(
            [place.x for place in places], [place.y for place in places], s=size, marker=marker, facecolors=face,
            edgecolors=edge, linewidths=1.3, zorder=4, label=label,
        )  # fmt: skip


def _label(axes: Axes, places: Sequence[Place], marks: Sequence[Place]) -> None:
    """Beside each point, at the first place around it that no other label or point takes; without one, none."""
    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    pixels = axes.transData.transform([(place.x, place.y) for place in marks]).tolist()
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in pixels]
    for place in places:
        for x, y in _STEPS:
            text = axes.annotate(
                _shortened(place.label), (place.x, place.y), (x, y), textcoords="offset points", fontsize=8.5,
                color=_INK, ha="left" if x > 0 else "right", zorder=5,
            )  # fmt: skip
            extent = text.get_window_extent()
            box = (extent.x0, extent.y0, extent.x1, extent.y1)
            if not any(_overlap(box, other) for other in taken) and _inside(box, axes):
                taken.append(box)
                break
            text.remove()


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _inside(box: Box, axes: Axes) -> bool:
    frame = axes.get_window_extent()
    return bool(frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1)


def _draw_line(axes: Axes, line: Line, record: BuildRecord) -> None:
    scale, unit = _scale(record)
    points = [(point.share, scale * point.value) for point in line.points if point.value is not None]
    shares, values = [share for share, _ in points], [value for _, value in points]
    axes.set_title("Soups on the straight line between two")
    axes.plot(
        [shares[0], shares[-1]], [values[0], values[-1]], color=_SOFT, linewidth=1.1, linestyle=(0, (4, 3)),
        label="even between the ends",
    )  # fmt: skip
    axes.plot(shares, values, color="#0b5cad", linewidth=1.8, marker="o", markersize=6, zorder=3, label="measured")
    axes.set_ylabel(f"{record.metric} on {line.points[0].images:,} images of val{unit}")
    axes.margins(0.1, 0.12)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=2, labelsize=8)
    names = shortest_names({one.sha256: Path(one.path) for one in record.ingredients})
    ends = [_shortened(names.get(sha, "base")) for sha in (line.first, line.second)]
    inner = [point.share for point in line.points[1:-1]] if len(line.points) < 7 else [0.5]
    axes.set_xticks([0.0, *inner, 1.0], [ends[0], *(f"{share:.2g}" for share in inner), ends[1]])
    for label in (axes.get_xticklabels()[0], axes.get_xticklabels()[-1]):
        label.set(color=_INK, fontsize=9)
    _legend(axes)


def _legend(axes: Axes) -> None:
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2, frameon=False, fontsize=9, markerscale=0.7,
        handletextpad=0.4, columnspacing=1.4,
    )  # fmt: skip


def _shortened(name: str) -> str:
    """The end of a long name, which tells most; odd bytes as escapes, and no `$` that would begin a formula."""
    name = shown(name)
    return (name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}").replace("$", r"\$")


def _scale(record: BuildRecord) -> tuple[float, str]:
    """What values are multiplied by, and how an axis names their unit."""
    return (100.0, " (%)") if record.metric_unit == "%" else (1.0, "")
