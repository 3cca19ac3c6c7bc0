"""What `soup export` found, as lines of text: hop by hop, what was tried, how fast it is, and every check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from soup.attempts import Attempt
from soup.device_lines import check_lines, latency_lines

if TYPE_CHECKING:  # what a command gives; its module is loaded by then, and needs torch
    from soup.ship import ExportResult


def export_lines(result: ExportResult) -> Iterator[str]:
    """Everything that a reader of the terminal should know, the digest to sign last."""
    from soup.build_report import moved_text
    from soup.build_tables import difference_text
    from soup.precision_tables import lost_sentence
    from soup.release_report import cost_sentence

    findings = result.findings
    for hop in findings.hops:
        told = moved_text(hop)
        flips = "" if hop.flips is None else f", {told}" if told else f", {hop.flips} flips"
        worst = max((one.max_abs for one in hop.outputs if one.max_abs is not None), default=None)
        moved = "" if worst is None else f", outputs max {worst:.1e}"
        difference = difference_text(hop.difference, unit=result.metric_unit)
        yield f"hop          {hop.name}: {difference}{flips}{moved} ({hop.where})"
    if any(hop.difference.verdict == "worse" for hop in findings.hops):
        yield f"lost         {lost_sentence(findings.hops, unit=result.metric_unit)}"
    if [one.precision for one in findings.attempts] != ["fp32"]:
        yield from (f"precision    {_tried(one)}" for one in findings.attempts)
    yield from latency_lines(findings.latency)
    if findings.cost is not None:
        yield f"cost         {cost_sentence(findings.cost)}"
    yield from check_lines(findings.checks)
    yield from (f"note         {note}" for note in findings.notes)
    yield f"wrote {result.release} ({', '.join(_briefly(result))})"
    yield f"digest {result.digest}"


def _tried(one: Attempt) -> str:
    share = "" if one.share is None or one.precision == "fp32" else f", {100 * one.share:.1f} % of the multiply-adds"
    kept = f", {len(one.kept)} layers kept higher" if one.kept else ""
    raised = one.raised
    looked = f" ({raised.evaluations} of {raised.budget} evaluations to find them)" if raised and raised.passed else ""
    return f"{one.precision.upper()} {one.outcome}: {one.reason}{share}{kept}{looked}"


def _briefly(result: ExportResult) -> Iterator[str]:
    """Files by name, and a folder by its own."""
    return iter(dict.fromkeys(name.partition("/")[0] for name in result.files))
