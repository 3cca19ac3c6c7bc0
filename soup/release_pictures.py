"""The pictures beside a release's report: the metric hop by hop, and what is lost against the share that is lowered."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from soup.attempts import Attempt, Raised
from soup.build_folder import Hop
from soup.picture import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WATERFALL, PRECISION = "waterfall.svg", "precision.svg"
_INK, _SOFT, _BAD, _GOOD = "#1c2024", "#60646c", "#b3261e", "#2e6b3a"
_COLORS = {"better": _GOOD, "worse": _BAD, "undecided": _SOFT}
_MOST_LAYERS = 12  # the most sensitive ones that are drawn


def pictures(hops: Sequence[Hop], attempts: Sequence[Attempt], *, unit: str) -> dict[str, bytes]:
    """SVG by name, the same bytes for the same records and matplotlib; empty without matplotlib."""
    drawn: dict[str, bytes] = {}
    steps = [hop for hop in hops if hop.before is not None and hop.after is not None]
    if len(steps) > 1 and (svg := _svg(lambda: _waterfall(steps, unit=unit))):
        drawn[WATERFALL] = svg
    looked = [(one, one.raised) for one in attempts if one.raised is not None and one.raised.steps]
    if looked and (svg := _svg(lambda: _precision(*looked[0], unit=unit))):
        drawn[PRECISION] = svg
    return drawn


def _svg(draw: Callable[[], Figure]) -> bytes | None:
    try:
        import matplotlib
    except ModuleNotFoundError:
        return None
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        draw().savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _waterfall(hops: Sequence[Hop], *, unit: str) -> Figure:
    """The metric after each hop, with the interval of the hop's own difference around it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 0.55 * len(hops) + 1.3), layout="constrained")
    axes, scale = figure.subplots(), _scale(unit)
    names = [hops[0].name.partition(" → ")[0], *(hop.name.rpartition(" → ")[2] for hop in hops)]
    values = [scale * (hops[0].before or 0.0), *(scale * (hop.after or 0.0) for hop in hops)]
    axes.plot(values, range(len(values)), color=_SOFT, linewidth=1, zorder=1)
    for row, (hop, value) in enumerate(zip(hops, values[1:], strict=True), start=1):
        low, high, was = hop.difference.low, hop.difference.high, hop.before or 0.0
        if low is not None and high is not None:
            axes.plot([scale * (was + low), scale * (was + high)], [row, row], color=_SOFT, linewidth=4, alpha=0.35)
        axes.scatter([value], [row], color=_COLORS[hop.difference.verdict], s=46, zorder=3)
    axes.scatter(values[:1], [0], color=_INK, s=46, zorder=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title("The metric hop by hop, with the 95 % interval of each step")
    axes.set_xlabel(f"on {hops[0].split}{' in %' if unit == '%' else ''}")
    axes.margins(x=0.08)
    return figure


def _precision(attempt: Attempt, raised: Raised, *, unit: str) -> Figure:
    """Left: loss against share; right: what each layer costs, where the budget has measured any."""
    from matplotlib.figure import Figure

    measured = any(one.alone is not None for one in raised.sensitivities)
    figure = Figure(figsize=(9.4 if measured else 4.7, 4.3), layout="constrained")
    axes = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    _draw_steps(axes[0], attempt, raised, unit=unit)
    if measured:
        _draw_layers(axes[1], raised, unit=unit)
    return figure


def _draw_steps(axes: Axes, attempt: Attempt, raised: Raised, *, unit: str) -> None:
    scale, name = _scale(unit), attempt.precision.upper()
    for verdict, color in (("pass", _GOOD), ("inconclusive", _SOFT), ("fail", _BAD)):
        steps = [one for one in raised.steps if one.verdict == verdict and one.loss is not None]
        if steps:
            axes.scatter(
                [100 * one.share for one in steps], [scale * (one.loss or 0.0) for one in steps], color=color, s=40,
                label=verdict, zorder=3,
            )  # fmt: skip
    axes.axhline(0, color=_SOFT, linewidth=0.8)
    axes.set_title(f"Loss against the share in {name}")
    axes.set_xlabel(f"% of the multiply-adds in {name}")
    axes.set_ylabel(f"loss on val{' in points' if unit == '%' else ''}")
    axes.margins(0.12)
    axes.legend(frameon=False, fontsize=8.5)


def _draw_layers(axes: Axes, raised: Raised, *, unit: str) -> None:
    """By what a layer alone loses of the metric; where none loses any, by what it moves the outputs."""
    measured = [one for one in raised.sensitivities if one.alone is not None]
    by_metric = any(one.alone for one in measured)
    scale = _scale(unit) if by_metric else 100.0
    costs = {one.layer: scale * ((one.alone if by_metric else one.error) or 0.0) for one in measured}
    shown = sorted(costs, key=lambda layer: costs[layer], reverse=True)[:_MOST_LAYERS]
    colors = [_BAD if layer in raised.layers else _SOFT for layer in shown]
    axes.barh(range(len(shown)), [costs[layer] for layer in shown], height=0.62, color=colors)
    axes.set_yticks(range(len(shown)), [_short(layer) for layer in shown], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color=_SOFT, linewidth=0.8)
    axes.set_title("A layer alone (red: kept higher)")
    points = " in points" if unit == "%" else ""
    loss = f"loss on {raised.samples} hard samples{points}"
    axes.set_xlabel(loss if by_metric else f"outputs' mean square moved in %, on {raised.samples} hard samples")


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _scale(unit: str) -> float:
    return 100.0 if unit == "%" else 1.0
