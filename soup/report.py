"""Records become Markdown, HTML and JUnit: pure, so that equal records give equal bytes."""

from __future__ import annotations

import base64
import html
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import get_args

from markdown_it import MarkdownIt

from exporters.latency import Latency
from soup.gates import Check, Verdict

NONE = "–"
_BADGES = "pass|fail|inconclusive|pending|better|worse|same|undecided"
_NUMBER = re.compile(r"[+−]?[\d,]+(\.\d+)?(e[+−]?\d+)?( ?(%|ms|s|points|B|kB|MB|GB|TB))?( \([^()]*\))?")
_MARKUP = re.compile(r"[\\`*|]|<(?=[A-Za-z/!?])|](?=[(\[:])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|(?<=\s)#(?=#*$)")
_BLOCK_START = re.compile(r"(#{1,6}|[+-]|\d{1,9}[.)])(\s|$)|>|=+$|-[- ]*$")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class HopRow:
    """One step from the best single to what ships; numbers are None where they were not measured."""

    hop: str
    where: str
    max_abs: float | None
    mean_abs: float | None
    cosine: float | None
    after: float | None
    flips: int | None
    difference: str
    verdict: str
    worst_class: str = ""  # the one that lost most
    moved: str = ""  # how answers changed, where a number of flips does not tell


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """What was timed, and on which runtime and device."""

    artifact: str
    where: str
    latency: Latency


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file of the release."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ReleaseReport:
    """All that a release's report says; `facts` are name and value, `verified` and `pending` sentences."""

    title: str
    date: str
    facts: tuple[tuple[str, str], ...]
    checks: tuple[Check, ...]
    unit: str
    hops: tuple[HopRow, ...]
    latency: tuple[LatencyRow, ...]
    files: tuple[FileRow, ...]
    verified: tuple[str, ...]
    pending: tuple[str, ...]
    cost: str = ""  # the soup's time against the best single's
    lost: str = ""  # which hop lost, as Markdown
    precision: str = ""  # what was tried, as Markdown
    pictures: Mapping[str, str] = field(default_factory=dict)  # file name by the section that it stands in


def release_markdown(report: ReleaseReport) -> str:
    """What was checked, hop by hop, how fast it is, what is in the folder, and what was proved where."""
    facts = [(plain(name), plain(value)) for name, value in (("date", report.date), *report.facts)]
    return document(
        report.title,
        {
            "": f"{summary(report.checks)}\n\n{table(('what', 'value'), facts)}",
            "Hop by hop": _with_picture(report, "Hop by hop", report.lost, hops_table(report.hops, unit=report.unit)),
            "Precision": _with_picture(report, "Precision", report.precision),
            "Checks": checks_table(report.checks),
            "Latency": "\n\n".join(part for part in (latency_section(report.latency), plain(report.cost)) if part),
            "What was proved where": bullets(report.verified),
            "What the reader should know": bullets(report.pending),
            "Files": table(
                ("file", "size", "SHA-256"),
                [(code(row.name), size_text(row.size_bytes), code(row.sha256)) for row in report.files],
            ),
        },
    )


def _with_picture(report: ReleaseReport, heading: str, *parts: str) -> str:
    name = report.pictures.get(heading)
    shown = [f"![{heading}]({name})"] if name else []
    return "\n\n".join([part for part in (*shown, *parts) if part])


def document(title: str, sections: Mapping[str, str]) -> str:
    """A Markdown document of a title and its sections; an empty section is left out with its heading."""
    parts = [f"# {plain(title)}"]
    for heading, body in sections.items():
        parts += [f"## {plain(heading)}"] * bool(heading and body) + [body] * bool(body)
    return "\n\n".join(parts) + "\n"


def summary(checks: Sequence[Check]) -> str:
    """The worst verdict, and how many there are of each."""
    counts = Counter(check.verdict for check in checks)
    worst = next((verdict for verdict in ("fail", "inconclusive", "pending") if counts[verdict]), "pass")
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict])
    return f"**{worst}** – {told}" if checks else "Nothing was checked."


def hops_table(hops: Sequence[HopRow], *, unit: str) -> str:
    """The waterfall: one row per hop, with what moved in outputs and metric, so that the cause of a drop is named."""
    header = ["hop", "where", "outputs max", "mean", "cosine", "metric", "flips", "difference", "verdict"]
    rows: list[tuple[str, ...]] = [
        (
            plain(hop.hop), plain(hop.where), tiny_text(hop.max_abs), tiny_text(hop.mean_abs),
            NONE if hop.cosine is None else f"{hop.cosine:.6f}", value_text(hop.after, unit=unit),
            NONE if hop.flips is None else f"{hop.flips:,}", plain(hop.difference), plain(hop.verdict),
        )
        for hop in hops
    ]  # fmt: skip
    if any(hop.worst_class for hop in hops):  # "metric" is of all; a mean can hide what one class paid
        header.append("worst class")
        rows = [(*row, plain(hop.worst_class) or NONE) for row, hop in zip(rows, hops, strict=True)]
    moved = bullets([f"{hop.hop}: {hop.moved}" for hop in hops if hop.moved])
    return "\n\n".join(part for part in (table(header, rows), moved) if part)


def checks_table(checks: Sequence[Check]) -> str:
    """One row per check, in the order given."""
    rows = [
        (plain(check.hop), plain(check.name), check.verdict, plain(check.message), plain(check.where or NONE))
        for check in checks
    ]
    return table(("hop", "check", "verdict", "what was found", "where"), rows)


def latency_section(rows: Sequence[LatencyRow]) -> str:
    """Percentiles with their upper bounds, and below them how each was timed."""

    def percentile(value: float, upper: float | None) -> str:
        return f"{value:.2f} ms (no bound)" if upper is None else f"{value:.2f} ms (≤ {upper:.2f})"

    cells = [
        (
            plain(row.artifact), plain(row.where), f"{row.latency.samples:,}",
            percentile(row.latency.p50_ms, row.latency.p50_upper_ms),
            percentile(row.latency.p90_ms, row.latency.p90_upper_ms),
            percentile(row.latency.p99_ms, row.latency.p99_upper_ms),
        )
        for row in rows
    ]  # fmt: skip
    if not rows:
        return ""
    contracts = [
        f"{plain(row.artifact)} – "
        + ", ".join(f"{plain(key)}: {plain(value)}" for key, value in _contract(row.latency))
        for row in rows
    ]
    bounds = f"In brackets: the upper bound at {rows[0].latency.confidence * 100:g} % confidence. How it was timed:"
    listed = "\n".join(f"- {line}" for line in contracts)
    return f"{table(('model', 'where', 'calls', 'p50', 'p90', 'p99'), cells)}\n\n{bounds}\n\n{listed}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded to be read as it is, columns of numbers to the right; no rows give an empty text.

    Cells are Markdown: any other text goes through `plain` or `code`.
    """
    if not rows:
        return ""
    lines = [header, *rows]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*lines, strict=True)]
    right = [all(cell == NONE or _NUMBER.fullmatch(cell) for cell in column) for column in zip(*lines[1:], strict=True)]
    ruler = [f"{'-' * (width - 1)}:" if flag else "-" * width for width, flag in zip(widths, right, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if flag else cell.ljust(width)
            for cell, width, flag in zip(cells, widths, right, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    return "\n".join(line(cells) for cells in (lines[0], ruler, *lines[1:]))


def bullets(items: Sequence[str]) -> str:
    """A list of sentences, as they are."""
    return "\n".join(f"- {plain(item)}" for item in items)


def plain(text: object) -> str:
    """Any text as Markdown that shows it literally, on one line; only what would be read as markup is escaped."""
    line = " ".join(str(text).split())
    line = _MARKUP.sub(r"\\\g<0>", line)
    return re.sub(r"^(\d*)([#>+=.)-])", r"\1\\\2", line) if _BLOCK_START.match(line) else line


def code(text: str) -> str:
    """A name, path or hash as Markdown code; without what cannot stand in it (backticks, line breaks)."""
    return f"`{' '.join(text.split()).replace('`', chr(0x2BC)).replace('|', chr(92) + '|')}`"


def value_text(value: float | None, *, unit: str) -> str:
    """A metric's value: "88.33 %" for unit "%" (a fraction), else four decimals."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value * 100:.2f} %" if unit == "%" else f"{value:.4f}".replace("-", "−")


def tiny_text(value: float | None) -> str:
    """A difference of outputs, which spans many orders of magnitude."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.1e}".replace("-", "−")


def size_text(size_bytes: float) -> str:
    """A file's size in powers of 1000, as disks and `ls --si` count."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def to_html(markdown: str, *, title: str, images: Mapping[str, bytes] | None = None) -> str:
    """One self-contained page: no script, nothing fetched, raw HTML shown as text, verdicts as badges.

    `images` are SVG by the name that the Markdown has for them, and become part of the page.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = re.sub(rf"(<td[^>]*>|<strong>)({_BADGES})(</td>|</strong>)", r'\1<span class="badge \2">\2</span>\3', body)
    body = body.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    for name, svg in (images or {}).items():  # not as Markdown, whose reader refuses SVG in an address
        address = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        body = body.replace(f'<img src="{html.escape(name)}"', f'<img src="{address}"')
    style = (files("soup") / "report.css").read_text(encoding="utf-8")
    return _PAGE.format(title=html.escape(title), style=style, body=body)


def _contract(latency: Latency) -> list[tuple[str, object]]:
    """How it was timed, and what the percentiles do not say; what was not measured is left out."""
    told: dict[str, object] = {"warm-up calls": latency.warmup}
    if latency.stable is not None:
        told["stable after warm-up"] = latency.stable
    if latency.throughput is not None:
        told["samples per s"] = f"{latency.throughput:.1f}"
    if latency.cv is not None:
        told["coefficient of variation"] = f"{latency.cv:.2f}"
    if latency.gpu_p50_ms is not None:
        told["GPU's own p50 in ms"] = f"{latency.gpu_p50_ms:.2f}"
    if latency.throttled:
        told["invalid, the device was throttled"] = "; ".join(latency.throttled)
    return [*told.items(), *sorted(latency.contract.items())]
