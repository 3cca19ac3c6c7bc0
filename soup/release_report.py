"""What an export or a verification found becomes report.md, report.html, report.json and junit.xml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from soup import __version__
from soup.build_folder import Hop
from soup.build_report import difference_text, hop_row
from soup.files import readable_json, sha256_file
from soup.gates import Check
from soup.proof import Findings, Proof
from soup.report import FileRow, LatencyRow, ReleaseReport, junit, release_markdown, to_html, value_text

SCHEMA_VERSION = 1
NAMES = ("report.md", "report.html", "report.json", "junit.xml")


def write_reports(folder: Path, facts: Mapping[str, object], findings: Findings, *, title: str, unit: str) -> None:
    """Write the four reports into `folder`; `facts` are the manifest's, `unit` the metric's."""
    markdown = release_markdown(_report(folder, facts, findings, title=title, unit=unit))
    (folder / "report.md").write_text(markdown, encoding="utf-8")
    (folder / "report.html").write_text(to_html(markdown, title=title), encoding="utf-8")
    (folder / "report.json").write_bytes(readable_json(report_json(findings, facts)))
    cases = [*(_hop_case(hop, unit=unit) for hop in findings.hops), *findings.checks]
    properties = {"soup_version": __version__, "recipe_sha256": str(facts["recipe_sha256"])}
    (folder / "junit.xml").write_bytes(junit(cases, suite="soup", properties=properties))


def report_json(findings: Findings, facts: Mapping[str, object]) -> dict[str, object]:
    """report.json: every figure of the report, for a pipeline."""
    return {
        "schema_version": SCHEMA_VERSION,
        "created": facts["created"],
        "exit_code": facts["exit_code"],
        "checks": [asdict(check) for check in findings.checks],
        "hops": [asdict(hop) for hop in findings.hops],
        "values": findings.values,
        "latency": {name: asdict(latency) for name, latency in findings.latency.items()},
        "verified": [asdict(proof) for proof in findings.verified],
        "notes": findings.notes,
    }


def proof_sentence(proof: Proof) -> str:
    """One line of "what was proved where"."""
    return f"{proof.artifact}: {', '.join(proof.proved)} on {proof.runtime} {proof.version} ({proof.provider}), {proof.device}"


def _report(
    folder: Path, facts: Mapping[str, object], findings: Findings, *, title: str, unit: str
) -> ReleaseReport:
    shown = [("recipe", str(facts["recipe_sha256"])), ("metric", str(facts["metric"]))]
    shown += [(f"{name} on {facts['split']}", value_text(value, unit=unit)) for name, value in findings.values.items()]
    open_ends = [check.message for check in findings.checks if check.verdict == "pending"]
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in NAMES]
    return ReleaseReport(
        title=title,
        date=str(facts["created"]),
        facts=tuple(shown),
        checks=tuple(findings.checks),
        unit=unit,
        hops=tuple(hop_row(hop, unit=unit) for hop in findings.hops),
        latency=tuple(LatencyRow(name, _where(findings, name), one) for name, one in findings.latency.items()),
        files=tuple(FileRow(path.name, path.stat().st_size, sha256_file(path)) for path in files),
        verified=tuple(proof_sentence(proof) for proof in findings.verified),
        pending=(*open_ends, *findings.notes),
    )


def _where(findings: Findings, artifact: str) -> str:
    proof = next((proof for proof in findings.verified if proof.artifact == artifact), None)
    return f"{proof.runtime} on {proof.device}" if proof else ""


def _hop_case(hop: Hop, *, unit: str) -> Check:
    """A hop as a JUnit case: it fails where the metric fell for certain; undecided is no verdict against it."""
    worse = hop.difference.verdict == "worse"
    message = f"{difference_text(hop.difference, unit=unit)} on {hop.split}"
    return Check(hop.name, "hop", "accuracy", "fail" if worse else "pass", message, hop.after, None, unit, hop.where)
