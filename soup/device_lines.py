"""What `soup verify` (--finish, --bisect) and `soup merge` found, as lines of text; checks and latencies too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from soup.gates import Check

if TYPE_CHECKING:  # what a command gives; its module is loaded by then
    from soup.bisect import BisectResult
    from soup.kit import FinishResult
    from soup.merge import MergeResult
    from soup.release import VerifyResult


def verify_lines(result: VerifyResult) -> Iterator[str]:
    """Latency and checks, notes, the metric, and the digest to sign."""
    yield from _found(result)
    if result.golden_values:
        yield f"{result.metric} on the golden samples: {_values(result.golden_values, unit=result.metric_unit)}"
    if result.otherwise:
        yield f"with other suppressions: {_values(result.otherwise, unit=result.metric_unit)}"
    if result.digest:
        yield f"digest {result.digest}"


def finish_lines(result: FinishResult) -> Iterator[str]:
    """What was tried and why it failed, then what was found of the one that ships."""
    yield from (f"tried        {one.precision.upper()}: {one.outcome}: {one.reason}" for one in result.tried)
    yield from _found(result)
    if result.kit is None:
        return
    if values := result.findings.values:
        yield f"{result.metric} on the golden samples: {_values(values, unit=result.metric_unit)}"
    yield f"wrote {result.kit} ({', '.join(result.files)}), the kit of {result.device}"
    yield f"digest {result.digest}"


def merge_lines(result: MergeResult) -> Iterator[str]:
    """A line for each kit, then every check."""
    for one in result.arrivals:
        yield f"device       {one.device}: {one.state}, from {one.kit}, {'ran there' if one.ran else 'only built'}"
    yield from check_lines(result.checks)
    yield f"digest {result.digest}, as it was" if result.arrivals else "nothing was merged"


def bisect_lines(result: BisectResult) -> Iterator[str]:
    """The table, and what could not be compared."""
    from soup.bisect import layer_lines

    yield from layer_lines(result)
    yield from (f"note         {note}" for note in result.notes)


def check_lines(checks: tuple[Check, ...] | list[Check]) -> Iterator[str]:
    """Failures first, in full; what passed in a line of its own too: a release engineer reads them all."""
    order = {"fail": 0, "inconclusive": 1, "pending": 2, "pass": 3}
    for check in sorted(checks, key=lambda one: order[one.verdict]):
        if check.kind != "hash" or check.verdict != "pass":
            yield f"{check.verdict:<13}{check.name}, {check.hop}: {check.message}"
    hashes = sum(check.kind == "hash" and check.verdict == "pass" for check in checks)
    if hashes:
        yield f"{'pass':<13}{hashes} {'files are as they were' if hashes > 1 else 'file is as it was'} sealed"


def latency_lines(latency: Mapping[str, Any]) -> Iterator[str]:
    """A line for each file that was timed."""
    for name, one in latency.items():
        upper = "no bound" if one.p99_upper_ms is None else f"at most {one.p99_upper_ms:.2f}"
        yield (
            f"latency      {name}: p50 {one.p50_ms:.2f} ms, p90 {one.p90_ms:.2f}, p99 {one.p99_ms:.2f} ({upper}), "
            f"{one.samples} calls of batch {one.contract['batch']} on {one.contract['provider']}"
        )


def _found(result: VerifyResult | FinishResult) -> Iterator[str]:
    yield from latency_lines(result.findings.latency)
    yield from check_lines(result.findings.checks)
    yield from (f"note         {note}" for note in result.findings.notes)


def _values(values: Mapping[str, float | None], *, unit: str) -> str:
    from soup.report import value_text

    return ", ".join(f"{name} {value_text(value, unit=unit)}" for name, value in values.items())
