"""What an export or a verification found becomes report.md, report.html, report.json and junit.xml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from exporters.interleaved import Pair
from exporters.latency import Latency
from soup import __version__
from soup.attempts import Attempt
from soup.build_folder import Hop
from soup.build_report import hop_row
from soup.build_tables import difference_text
from soup.files import readable_json, sha256_file
from soup.gates import ACCURACY_KINDS, Check, Exit, Verdict
from soup.junit import junit
from soup.precision_tables import lost_sentence, precision_section
from soup.proof import WITH_NMS, Findings, Proof
from soup.release_pictures import PRECISION, WATERFALL, pictures
from soup.report import FileRow, LatencyRow, ReleaseReport, release_markdown, to_html, value_text
from soup.tasks import Metric

SCHEMA_VERSION = 1
_SECTIONS = {WATERFALL: "Hop by hop", PRECISION: "Precision"}
NAMES = ("report.md", "report.html", "report.json", "junit.xml")


@dataclass(frozen=True, slots=True)
class Heading:
    """What a report says beside the findings; `metric` and `recipe_sha256` are None where the manifest is damaged."""

    title: str
    created: str
    exit_code: Exit
    recipe_sha256: str | None
    metric: Metric | None
    split: str  # what `findings.values` were measured on

    @property
    def unit(self) -> str:
        """The metric's."""
        return self.metric.unit if self.metric else ""


@dataclass(frozen=True, slots=True)
class ReportRecord:
    """report.json: every figure of the report, for a pipeline."""

    schema_version: int
    created: str
    exit_code: int
    checks: tuple[Check, ...]
    hops: tuple[Hop, ...]
    values: Mapping[str, float | None]
    latency: Mapping[str, Latency]
    verified: tuple[Proof, ...]
    notes: tuple[str, ...]
    precision: tuple[Attempt, ...] = ()
    cost: Pair | None = None  # the soup's time over the best single's
    metric: str | None = None


def write_reports(folder: Path, heading: Heading, findings: Findings) -> None:
    """Write the four reports into `folder`; the other files there are listed with their hashes."""
    drawn = pictures(findings.hops, findings.attempts, unit=heading.unit)
    for name, svg in drawn.items():
        (folder / name).write_bytes(svg)
    markdown = release_markdown(_report(folder, heading, findings, drawn=tuple(drawn)))
    (folder / "report.md").write_text(markdown, encoding="utf-8")
    (folder / "report.html").write_text(to_html(markdown, title=heading.title, images=drawn), encoding="utf-8")
    (folder / "report.json").write_bytes(readable_json(asdict(_record(heading, findings))))
    gate = _accuracy_verdict(findings)
    cases = [*(_hop_case(hop, gate=gate, unit=heading.unit) for hop in findings.hops), *findings.checks]
    properties = {"soup_version": __version__, "recipe_sha256": heading.recipe_sha256 or "unknown"}
    (folder / "junit.xml").write_bytes(junit(cases, suite="soup", properties=properties))


def cost_sentence(pair: Pair) -> str:
    """Whether the soup costs inference time, from both timed in turns."""
    if pair.low is None or pair.high is None:
        return f"soup / best single: {pair.ratio:.3f} of its time, too few rounds for an interval"
    word = {
        "pass": f"no inference cost beyond {100 * pair.margin:g} %", "fail": "the soup is slower",
        "inconclusive": f"a cost of {100 * pair.margin:g} % is neither shown nor excluded",
        "invalid": f"invalid, the device was throttled: {', '.join(pair.throttled)}",
    }[pair.verdict]  # fmt: skip
    interval = f"{100 * pair.confidence:g} % interval {pair.low:.3f} to {pair.high:.3f}"
    return f"soup / best single: {pair.ratio:.3f} of its time, {interval}, in {pair.blocks} rounds of turns: {word}"


def proof_sentence(proof: Proof) -> str:
    """One line of "what was proved where"."""
    where = f"{proof.runtime} {proof.version} ({proof.provider}), {proof.device}"
    return f"{proof.artifact} by {where}: {', '.join(proof.proved)}"


def _record(heading: Heading, findings: Findings) -> ReportRecord:
    return ReportRecord(
        SCHEMA_VERSION, heading.created, int(heading.exit_code), tuple(findings.checks), tuple(findings.hops),
        findings.values, findings.latency, tuple(findings.verified), tuple(findings.notes), tuple(findings.attempts),
        findings.cost, heading.metric.name if heading.metric else None,
    )  # fmt: skip


def _report(folder: Path, heading: Heading, findings: Findings, *, drawn: Sequence[str]) -> ReleaseReport:
    unit = heading.unit
    shown = [("recipe", heading.recipe_sha256 or "unknown")]
    shown += [("metric", heading.metric.name)] if heading.metric else []
    shown += [(f"{name} on {heading.split}", value_text(value, unit=unit)) for name, value in findings.values.items()]
    open_ends = [check.message for check in findings.checks if check.verdict == "pending"]
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in NAMES]
    return ReleaseReport(
        title=heading.title,
        date=heading.created,
        facts=tuple(shown),
        checks=tuple(findings.checks),
        unit=unit,
        hops=tuple(hop_row(hop, unit=unit) for hop in findings.hops),
        latency=tuple(LatencyRow(name, _where(findings, name), one) for name, one in findings.latency.items()),
        files=tuple(FileRow(path.name, path.stat().st_size, sha256_file(path)) for path in files),
        verified=tuple(proof_sentence(proof) for proof in findings.verified),
        pending=(*open_ends, *findings.notes),
        cost=cost_sentence(findings.cost) if findings.cost else "",
        lost=lost_sentence(findings.hops, unit=unit),
        precision=precision_section(findings.attempts, unit=unit),
        pictures={_SECTIONS[name]: name for name in drawn},
    )


def _where(findings: Findings, artifact: str) -> str:
    proof = next(
        (proof for proof in findings.verified if proof.artifact == artifact.removesuffix(WITH_NMS) and proof.ran), None
    )
    return f"{proof.runtime} on {proof.device}" if proof else ""


def _accuracy_verdict(findings: Findings) -> Verdict:
    verdicts = [check.verdict for check in findings.checks if check.kind in ACCURACY_KINDS]
    order: tuple[Verdict, ...] = ("fail", "inconclusive")
    return next((verdict for verdict in order if verdict in verdicts), "pass")


def _hop_case(hop: Hop, *, gate: Verdict, unit: str) -> Check:
    """A hop as a JUnit case: one that lost accuracy for certain shares the gate's verdict, as a cause of it.

    A loss that a later hop makes good (averaged BatchNorm statistics before they are measured again) blocks nothing.
    """
    verdict = gate if hop.difference.verdict == "worse" else "pass"
    message = f"{difference_text(hop.difference, unit=unit)} on {hop.split}: {hop.difference.verdict}"
    return Check(hop.name, "hop", "accuracy", verdict, message, hop.after, None, unit, hop.where)
