"""What a sweep looks like: a table, and latency and throughput over batch and threads as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporters.latency import Latency
from soup.picture import STYLE
from soup.report import NONE, document, plain, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0b5cad", "#b3261e", "#2e7d32", "#8a5a00", "#60646c")  # one per number of threads


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One setting of a sweep; `threads` is None where ONNX Runtime chose, or where there are none to choose."""

    batch: int
    threads: int | None
    latency: Latency


def bench_cells(rows: Sequence[BenchRow]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table; a column that says nothing of any row is left out."""
    columns: dict[str, list[str]] = {
        "batch": [str(row.batch) for row in rows],
        "threads": [_optional(row.threads) for row in rows],
        "p50 ms": [_bounded(row.latency.p50_ms, row.latency.p50_upper_ms) for row in rows],
        "p90 ms": [_bounded(row.latency.p90_ms, row.latency.p90_upper_ms) for row in rows],
        "p99 ms": [_bounded(row.latency.p99_ms, row.latency.p99_upper_ms) for row in rows],
        "GPU p50 ms": [NONE if (ms := row.latency.gpu_p50_ms) is None else f"{ms:.2f}" for row in rows],
        "samples/s": [NONE if (value := row.latency.throughput) is None else f"{value:,.1f}" for row in rows],
        "variation": [NONE if (value := row.latency.cv) is None else f"{100 * value:.1f} %" for row in rows],
        "late": [_optional(row.latency.late) for row in rows],
        "dropped": [_optional(row.latency.dropped) for row in rows],
        "calls": [f"{row.latency.samples:,}" for row in rows],
        "warm-up": [f"{row.latency.warmup}{_STABLE[row.latency.stable]}" for row in rows],
        "verdict": [row.latency.verdict for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if set(cells) != {NONE}}
    return list(shown), [list(cells) for cells in zip(*shown.values(), strict=True)]


def bench_lines(rows: Sequence[BenchRow]) -> list[str]:
    """The table for a terminal, columns aligned to the right."""
    header, cells = bench_cells(rows)
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    return [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in (header, *cells)
    ]


def bench_markdown(title: str, rows: Sequence[BenchRow], *, picture: str | None) -> str:
    """The table as a document, with the picture's file where there is one, and how it was timed."""
    header, cells = bench_cells(rows)
    confidence = f"{rows[0].latency.confidence * 100:g} %"
    contract = ", ".join(f"{plain(key)}: {plain(value)}" for key, value in sorted(rows[0].latency.contract.items()))
    slowed = [
        f"- batch {row.batch}: the device was slowed down: {plain('; '.join(row.latency.throttled))}"
        for row in rows
        if row.latency.throttled
    ]
    return document(title, {
        "": f"In brackets: the upper bound at {confidence} confidence. Variation: standard deviation over mean.",
        "Table": table(header, [[plain(cell) for cell in row] for row in cells]),
        "Slowed down": "\n".join(slowed),
        "Picture": f"![Latency and throughput]({picture})" if picture else "",
        "How it was timed": f"The first row: {contract}.",
    })  # fmt: skip


def bench_svg(rows: Sequence[BenchRow]) -> bytes | None:
    """SVG with the same bytes for the same rows and matplotlib; None without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return None
    from matplotlib.figure import Figure

    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 3.8), layout="constrained")
        latency, throughput = figure.subplots(1, 2)
        _draw_latency(latency, rows)
        _draw_throughput(throughput, rows)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _draw_latency(axes: Axes, rows: Sequence[BenchRow]) -> None:
    """The median as a line, and up to p99 as a bar above it."""
    axes.set_title("Latency of a call: median, and up to p99 (ms)")
    for colour, (threads, line) in zip(_cycled(rows), _lines(rows).items(), strict=False):
        medians = [row.latency.p50_ms for row in line]
        above = [row.latency.p99_ms - row.latency.p50_ms for row in line]
        axes.errorbar(
            [row.batch for row in line], medians, yerr=[[0.0] * len(line), above], color=colour, marker="o",
            markersize=5, linewidth=1.8, elinewidth=1.2, capsize=3, label=_threads_text(threads),
        )  # fmt: skip
    _finish(axes, rows)


def _draw_throughput(axes: Axes, rows: Sequence[BenchRow]) -> None:
    axes.set_title("Throughput (samples per second)")
    for colour, (threads, line) in zip(_cycled(rows), _lines(rows).items(), strict=False):
        known = [(row.batch, row.latency.throughput) for row in line if row.latency.throughput is not None]
        axes.plot(
            [batch for batch, _ in known], [value for _, value in known], color=colour, marker="o", markersize=5,
            linewidth=1.8, label=_threads_text(threads),
        )  # fmt: skip
    _finish(axes, rows)


def _finish(axes: Axes, rows: Sequence[BenchRow]) -> None:
    axes.set_xlabel("batch")
    axes.set_xticks(sorted({row.batch for row in rows}))
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=2, labelsize=8)
    if len(_lines(rows)) > 1:
        axes.legend(frameon=False, fontsize=9)


def _lines(rows: Sequence[BenchRow]) -> dict[int | None, list[BenchRow]]:
    """The rows by number of threads, each by batch."""
    lines: dict[int | None, list[BenchRow]] = {}
    for row in sorted(rows, key=lambda row: row.batch):
        lines.setdefault(row.threads, []).append(row)
    return lines


def _cycled(rows: Sequence[BenchRow]) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(len(_lines(rows)))]


def _threads_text(threads: int | None) -> str:
    return "" if threads is None else f"{threads} thread{'s' if threads != 1 else ''}"


def _bounded(value: float, upper: float | None) -> str:
    return f"{value:.2f}" if upper is None else f"{value:.2f} (≤ {upper:.2f})"


def _optional(value: int | None) -> str:
    return NONE if value is None else str(value)


_STABLE = {True: ", stable", False: ", not stable", None: ""}
