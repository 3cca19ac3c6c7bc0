"""What the terminal shows of a command: its result as text or as one JSON document, a failure as one sentence."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from soup.device_lines import bisect_lines, check_lines, finish_lines, latency_lines, merge_lines, verify_lines
from soup.export_lines import export_lines
from soup.files import readable_json, shown
from soup.gates import Exit
from soup.progress import duration_text, say

if TYPE_CHECKING:  # what a command gives; its module is loaded by then, and may need torch
    from soup.bench import BenchResult
    from soup.check import CheckResult
    from soup.doctor import Facts
    from soup.estimate import Estimate
    from soup.expect import Comparison
    from soup.inspect import Inspection
    from soup.pipeline import BuildResult
    from soup.recook import Recooked
    from soup.starter import InitResult

SCHEMA_VERSION = 1
_LONGEST = 600  # characters of a line on a terminal, where what scrolls away is lost; logs and --json get all of it
_LABEL = 13  # characters that a line's verdict or kind takes up
_FEW = 3  # evaluations of one reason that are named
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
        say(f"soup {command}: {_cut(line)}", sys.stderr)
    if json:
        error = {"code": int(code), "message": message}
        _document({"schema_version": SCHEMA_VERSION, "command": command, "exit_code": int(code), "error": error})


def _cut(line: str) -> str:
    more = len(line) - _LONGEST
    if more <= 0 or not sys.stderr.isatty():
        return line
    return f"{line[:_LONGEST]} … ({more:,} more characters; --json prints all)"


def _document(value: Mapping[str, object]) -> None:
    say(readable_json(value).decode().rstrip(), sys.stdout)


def _print(line: str) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    text = _wrapped(shown(line), width=console.width) if sys.stdout.isatty() else shown(line)
    with console.capture() as captured:
        console.print(text, markup=False, style=_style(line), end="")
    say(captured.get(), sys.stdout)


def _wrapped(line: str, *, width: int) -> str:
    """Broken between words, the rest below the text and not below its label; a log's lines stay whole for grep."""
    lead = len(line) - len(line.lstrip())
    labelled = "  " in line[:_LABEL].lstrip() or line.startswith("inconclusive ")
    indent = " " * (_LABEL if labelled else min(lead + 2, _LABEL) if lead else 0)
    return textwrap.fill(line, max(width, 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _style(line: str) -> str | None:
    return _STYLES.get(line.split()[0]) if line.split() else None


def _build(result: BuildResult) -> Iterator[str]:
    from soup.build_report import comparison_sentence, winner_sentence
    from soup.build_tables import cost_sentence, shown_value
    from soup.reference_sections import resolution_sentence

    record = result.record
    yield from (f"set aside    {path}: {reason}" for path, reason in record.set_aside)
    yield from (f"note         {note}" for note in record.notes)
    yield winner_sentence(record).replace("`", "")
    yield comparison_sentence(record).replace("`", "")
    for answer in record.answers:
        if answer.method != "single":
            value = shown_value(record, answer.val)
            yield f"method       {answer.method}: {value} on val, of {len(answer.weights)} checkpoints"
    if told := resolution_sentence(record):
        yield f"resolution   {told}".replace("`", "")
    yield from (f"likely       {cause}" for cause in (record.explanation.causes if record.explanation else ()))
    yield from check_lines(record.checks)
    if result.show_reuse:
        yield from _reuse(result)
    yield f"cost         {cost_sentence(record.cost)}"
    yield f"wrote {result.folder}/soup.safetensors, recipe.json, report.html ({record.seconds:.0f} s)"


def _reuse(result: BuildResult) -> Iterator[str]:
    """What the ledger could not answer and why, many of one reason together; and how much it could."""
    reasons: dict[str, list[str]] = {}
    for line in result.not_reused:
        what, closed, reason = line.partition("): ")  # "epoch-3.pt (recalibrated, val): never evaluated"
        reasons.setdefault(reason, []).append(what + closed[:1])
    for reason, asked in reasons.items():
        rest = len(asked) - _FEW
        if rest <= 0:
            yield from (f"anew         {one}: {reason}" for one in asked)
        else:
            yield f"anew         {'; '.join(asked[:_FEW])}; and {rest} more: {reason}"
    yield f"reused       {sum(result.record.cost.reused.values()):,} images that an earlier build had asked"


def _recook(result: Recooked) -> Iterator[str]:
    yield f"cooked {len(result.ingredients)} checkpoints again: the state SHA-256 is {result.state_sha256}, as recorded"
    yield f"wrote {result.folder}/soup.safetensors, recipe.json"


def _bench(result: BenchResult) -> Iterator[str]:
    from soup.bench_picture import bench_lines

    info = result.info
    yield f"{result.model} on {info.runtime} {info.version} ({info.provider}), {info.device}"
    if len(result.rows) > 1:
        yield from bench_lines(result.rows)
    else:
        yield from latency_lines({result.model.name: result.latency})
    yield from result.verdicts
    yield from (f"note         {note}" for note in result.notes)
    yield "timed: " + ", ".join(f"{name} {value}" for name, value in sorted(result.latency.contract.items()))
    if result.files:
        yield f"wrote {', '.join(map(str, result.files))}"


def _check(result: CheckResult) -> Iterator[str]:
    for one in result.ingredients:
        recorded = "".join(f", {name} {value:g}" for name, value in one.recorded.items())
        cosine = "none" if one.cosine is None else f"{one.cosine:.4f}"
        yield f"checkpoint   {one.path}: {one.weights}, {one.size_bytes / 1e6:.1f} MB, cosine {cosine}{recorded}"
    for name, split in result.splits.items():
        groups = "" if split.groups is None else f", {split.groups} groups"
        skipped = f", {len(split.skipped)} skipped" if split.skipped else ""
        classes = f", {split.classes} classes" if split.classes else ""
        yield f"data         {name}: {split.n} images decoded{classes}{groups}{skipped}"
    yield from (f"overlap      {line}" for line in result.overlaps)
    yield from (f"set aside    {path}: {reason}" for path, reason in result.set_aside)
    yield from (f"refused      {line}" for line in result.refused)
    yield from (f"warning      {line}" for line in result.warnings)
    yield from (f"note         {line}" for line in result.notes)
    if result.comparison:
        yield from _comparison(result.comparison)
    if result.estimate:
        yield from _estimate(result.estimate)


def _comparison(one: Comparison) -> Iterator[str]:
    measured, difference = (
        ("not a number", "") if one.measured is None else (f"{one.measured:.4f}", f", {one.difference:+.4f}")
    )
    yield (
        f"{one.verdict:<13}{one.checkpoint} ({one.weights} weights): {one.metric} {measured} on val, "
        f"expected {one.expected:g} ± {one.tolerance:g}{difference}"
    )
    if one.attempts:
        yield f"tried        one change at a time, nearest to {one.expected:g} first"
    for attempt in one.attempts:
        missing = "untried" if attempt.verdict == "untried" else "none"
        value = missing if attempt.value is None else f"{attempt.value:.4f}"
        mark = attempt.verdict if attempt.verdict in ("explains", "nearer") else ""
        yield f"  {value:<9}{mark:<10}{attempt.change}" + (f": {attempt.note}" if attempt.note else "")
    yield from (f"likely       {line}" for line in one.advice)


def _estimate(one: Estimate) -> Iterator[str]:
    yield (
        f"estimate     build at most {duration_text(one.seconds)}: {one.evaluations} evaluations of val at "
        f"{duration_text(one.seconds_per_evaluation)} (timed on {one.timed_images} images), {one.recalibrations} "
        f"recalibrations at {duration_text(one.seconds_per_recalibration)}"
    )
    yield (
        f"             disk {_size(one.decoded_bytes)} decoded by now, build and release about "
        f"{_size(one.written_bytes)} more, {_size(one.free_disk_bytes)} free; memory about "
        f"{_size(one.memory_bytes)} of {_size(one.total_memory_bytes)}"
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:.1f} GB"


def _init(result: InitResult) -> Iterator[str]:
    yield f"wrote {result.path}: look at the lines marked '# check', then run: soup check --val {result.path}"


def _inspect(result: Inspection) -> Iterator[str]:
    yield f"{result.path}: {result.kind}"
    yield from _facts(result.facts, indent="  ")


def _facts(facts: Mapping[str, Any], *, indent: str) -> Iterator[str]:
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from _facts(value, indent=f"{indent}  ")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            yield f"{indent}{name}:"
            yield from (f"{indent}  {_fact(item)}" for item in value)
        else:
            yield f"{indent}{name or 'ai.onnx'}: {_fact(value)}"  # ONNX calls its own operators ""


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_fact, value))}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _doctor(result: Facts) -> Iterator[str]:
    yield f"Python {result.python}, {result.system}, {result.device}, {result.cores} cores"
    yield f"memory {result.memory_bytes / 1e9:.1f} GB, free disk {result.free_disk_bytes / 1e9:.1f} GB"
    yield f"GPU: {result.gpu or 'none found'}"
    for ability in result.abilities:
        yield f"{ability.state:<4} {ability.name}: {ability.detail}" + (f"; {ability.remedy}" if ability.remedy else "")


_TEXTS: Mapping[str, Callable[[Any], Iterator[str]]] = {
    "init": _init, "check": _check, "build": _build, "build --recipe": _recook, "export": export_lines,
    "verify": verify_lines, "verify --finish": finish_lines, "verify --bisect": bisect_lines, "merge": merge_lines,
    "bench": _bench, "inspect": _inspect, "doctor": _doctor,
}  # fmt: skip
_MEANINGS = {
    Exit.CHECK: "a check failed", Exit.INPUT: "something to mend in the input",
    Exit.ACCURACY: "an accuracy gate failed",
    Exit.LATENCY: "a latency gate failed", Exit.UNDECIDED: "a gate could not be decided with these samples",
    Exit.ENVIRONMENT: "something required was not run here", Exit.BUILD: "a file could not be built",
    Exit.BUG: "a bug", Exit.INTERRUPTED: "interrupted",
}  # fmt: skip
