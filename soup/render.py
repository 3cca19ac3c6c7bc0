"""All terminal output: results as text or one JSON document, failures as one sentence, progress as a bar or plain lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import TypeAdapter

from soup.files import readable_json
from soup.gates import Check, Exit

if TYPE_CHECKING:  # what a command gives; its module is loaded by then, and may need torch
    from soup.check import CheckResult
    from soup.doctor import Facts
    from soup.inspect import Inspection
    from soup.pipeline import BuildResult
    from soup.release import BenchResult, VerifyResult
    from soup.ship import ExportResult

SCHEMA_VERSION = 1
Progress = Callable[[str, int, int], None]
_PLAIN_SECONDS = 10.0  # how often a log without a terminal gets a line
_STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "pending": "cyan"}


def show(command: str, result: object, *, code: int, json: bool) -> None:
    """A command's result on stdout: for a reader, or as one JSON document with `schema_version`."""
    if json:
        body = TypeAdapter(type(result)).dump_python(result, mode="json")
        _document({"schema_version": SCHEMA_VERSION, "command": command, "exit_code": int(code), "result": body})
        return
    for line in _TEXTS[command](result):
        _print(line)
    if code:
        _print(f"exit {int(code)}: {_MEANINGS[Exit(code)]}")


def failure(command: str, message: str, *, code: int, json: bool) -> None:
    """What went wrong, on stderr; with `json` a document on stdout too."""
    for line in message.splitlines():
        print(f"soup {command}: {line}", file=sys.stderr)  # noqa: T201  (this is the module that prints)
    if json:
        error = {"code": int(code), "message": message}
        _document({"schema_version": SCHEMA_VERSION, "command": command, "exit_code": int(code), "error": error})


@contextmanager
def progress() -> Iterator[Progress]:
    """A callback (what, done, total): a bar with the remaining time on a terminal, plain lines elsewhere; on stderr."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _plain_progress(sys.stderr, time.monotonic)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeRemainingColumn

    with Bar(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    ) as bar:  # fmt: skip
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield report


def _plain_progress(stream: TextIO, clock: Callable[[], float]) -> Progress:
    """A line when a stage begins, and then one at most every ten seconds."""
    last: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        now = clock()
        if what in last and now - last[what] < _PLAIN_SECONDS:
            return
        last[what] = now
        print(f"{what}: {done}/{total}" if total else what, file=stream, flush=True)

    return report


def _document(value: Mapping[str, object]) -> None:
    sys.stdout.write(readable_json(value).decode())


def _print(line: str) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(line, markup=False, style=_style(line))


def _style(line: str) -> str | None:
    return _STYLES.get(line.split()[0]) if line.split() else None


def _check_lines(checks: tuple[Check, ...] | list[Check]) -> Iterator[str]:
    """Failures first, in full; what passed in a line of its own too: a release engineer reads them all."""
    order = {"fail": 0, "inconclusive": 1, "pending": 2, "pass": 3}
    for check in sorted(checks, key=lambda one: order[one.verdict]):
        if check.kind != "hash" or check.verdict != "pass":
            yield f"{check.verdict:<13}{check.name}, {check.hop}: {check.message}"
    hashes = sum(check.kind == "hash" and check.verdict == "pass" for check in checks)
    if hashes:
        yield f"{'pass':<13}{hashes} files are as they were sealed"


def _build(result: BuildResult) -> Iterator[str]:
    from soup.build_report import comparison_sentence, winner_sentence

    yield from (f"set aside    {path}: {reason}" for path, reason in result.record.set_aside)
    yield from (f"note         {note}" for note in result.record.notes)
    yield winner_sentence(result.record).replace("`", "")
    yield comparison_sentence(result.record).replace("`", "")
    yield from _check_lines(result.record.checks)
    yield f"wrote {result.folder}/soup.safetensors, recipe.json, report.html ({result.record.seconds:.0f} s)"


def _export(result: ExportResult) -> Iterator[str]:
    from soup.build_report import difference_text

    unit = next((check.unit for check in result.findings.checks if check.kind == "accuracy"), "%")
    for hop in result.findings.hops:
        flips = "" if hop.flips is None else f", {hop.flips} flips"
        worst = max((one.max_abs for one in hop.outputs if one.max_abs is not None), default=None)
        moved = "" if worst is None else f", outputs max {worst:.1e}"
        yield f"hop          {hop.name}: {difference_text(hop.difference, unit=unit)}{flips}{moved} ({hop.where})"
    yield from _latency_lines(result.findings.latency)
    yield from _check_lines(result.findings.checks)
    yield from (f"note         {note}" for note in result.findings.notes)
    yield f"wrote {result.release} ({', '.join(result.files)})"
    yield f"digest {result.digest}"


def _verify(result: VerifyResult) -> Iterator[str]:
    yield from _latency_lines(result.findings.latency)
    yield from _check_lines(result.findings.checks)
    yield from (f"note         {note}" for note in result.findings.notes)
    if result.golden_values:
        values = ", ".join(f"{name} {value:.4f}" for name, value in result.golden_values.items())
        yield f"on the golden samples: {values}"
    if result.digest:
        yield f"digest {result.digest}"


def _latency_lines(latency: Mapping[str, Any]) -> Iterator[str]:
    for name, one in latency.items():
        upper = "no bound" if one.p99_upper_ms is None else f"at most {one.p99_upper_ms:.2f}"
        yield (
            f"latency      {name}: p50 {one.p50_ms:.2f} ms, p90 {one.p90_ms:.2f}, p99 {one.p99_ms:.2f} ({upper}), "
            f"{one.samples} calls on {one.contract['provider']}"
        )


def _bench(result: BenchResult) -> Iterator[str]:
    yield f"{result.model} on {result.info.runtime} {result.info.version} ({result.info.provider}), {result.info.device}"
    yield from _latency_lines({result.model.name: result.latency})
    yield "timed: " + ", ".join(f"{name} {value}" for name, value in sorted(result.latency.contract.items()))


def _check(result: CheckResult) -> Iterator[str]:
    yield from result.lines


def _init(result: dict[str, str]) -> Iterator[str]:
    yield f"wrote {result['path']}: look at the lines marked '# check', then run: soup check --val {result['path']}"


def _inspect(result: Inspection) -> Iterator[str]:
    yield f"{result.path}: {result.kind}"
    for name, value in result.facts.items():
        if isinstance(value, dict):
            yield f"  {name}:"
            yield from (f"    {key}: {item}" for key, item in value.items())
        else:
            yield f"  {name}: {value}"


def _doctor(result: Facts) -> Iterator[str]:
    yield f"Python {result.python}, {result.system}, {result.device}, {result.cores} cores"
    yield f"memory {result.memory_bytes / 1e9:.1f} GB, free disk {result.free_disk_bytes / 1e9:.1f} GB"
    yield f"GPU: {result.gpu or 'none found'}"
    for ability in result.abilities:
        yield f"{ability.state:<4} {ability.name}: {ability.detail}" + (f"; {ability.remedy}" if ability.remedy else "")


_TEXTS: Mapping[str, Callable[[Any], Iterator[str]]] = {
    "init": _init, "check": _check, "build": _build, "export": _export, "verify": _verify, "bench": _bench,
    "inspect": _inspect, "doctor": _doctor,
}  # fmt: skip
_MEANINGS = {
    Exit.CHECK: "a check failed", Exit.INPUT: "something to mend in the input", Exit.ACCURACY: "an accuracy gate failed",
    Exit.LATENCY: "a latency gate failed", Exit.UNDECIDED: "a gate could not be decided with these samples",
    Exit.ENVIRONMENT: "something required was not run here", Exit.BUILD: "a file could not be built",
    Exit.BUG: "a bug", Exit.INTERRUPTED: "interrupted",
}  # fmt: skip
