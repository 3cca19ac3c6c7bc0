"""The story on the device: hashes first, then outputs, metric and latency again from the golden samples. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from soup import Progress, SoupError, silent
from soup.build_folder import claim_folder
from soup.files import staged
from soup.gates import Check, Exit, exit_code
from soup.golden_proof import Yardstick, golden_value, prove_on_golden, values_otherwise, yardstick_of
from soup.kit_facts import checks_of, device_kits, foreign, required
from soup.manifest import DEVICE_FOLDER, Manifest, read_manifest, verify_files
from soup.proof import Findings
from soup.release_facts import ReleaseFacts, facts_of
from soup.release_report import NAMES, Heading, write_reports
from soup.tasks import metric_named


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What `soup verify` tells; `golden_values` is the metric on the golden samples by artifact, torch included."""

    release: Path
    digest: str | None  # None where the manifest itself is damaged
    metric: str | None  # None where the manifest itself is damaged
    metric_unit: str
    golden_values: Mapping[str, float | None]
    findings: Findings
    exit_code: Exit
    otherwise: Mapping[str, float | None] = field(default_factory=dict)  # boxes thinned out in other ways


def verify(
    release: Path, *, out: Path | None = None, device: str | None = None, allow_inconclusive: bool = False,
    progress: Progress = silent,
) -> VerifyResult:  # fmt: skip
    """Check every hash, then run what can run here on the golden samples; reads only, but for the reports in `out`.

    Nothing is opened when a hash is wrong: an engine is executable code. Verdicts that need all of val are the
    export's, repeated here where the golden samples are all of it. Raises SoupError for a folder that is no release.
    """
    if out is not None:
        refuse_inside(out, release)
        claim_folder(out, ours=NAMES, command="soup verify")
    findings = Findings(checks=list(verify_files(release)))
    intact = all(check.verdict == "pass" for check in findings.checks)
    manifest = read_manifest(release) if findings.checks[0].verdict == "pass" else None
    facts = facts_of(manifest, where=release) if manifest else None
    values: dict[str, float | None] = {}
    otherwise: dict[str, float | None] = {}
    if manifest and facts and intact:
        by = yardstick_of(release, facts, device=device, progress=progress)
        values = _prove_all(release, by, findings)
        if by.metric.name != facts.metric:
            told = f"metric '{facts.metric}' is code of the export's own: here {by.metric.name} is told instead"
            findings.notes.append(told)
        otherwise = values_otherwise(by)
        findings.checks += _brought_home(release, manifest, facts, findings)
    code = exit_code(findings.checks, allow_inconclusive=allow_inconclusive)
    heading = _heading(facts, code)
    if out is not None:
        with staged(out, last="report.json") as stage:
            write_reports(stage, heading, findings)
    digest, metric = manifest.self_sha256 if manifest else None, heading.metric.name if heading.metric else None
    return VerifyResult(release, digest, metric, heading.unit, values, findings, code, otherwise)


def _prove_all(release: Path, by: Yardstick, findings: Findings) -> dict[str, float | None]:
    """The metric on the golden samples by artifact, torch at export included; findings grow by what is found."""
    facts = by.facts
    values = {"torch": golden_value(by.golden.outputs["torch"], by)}
    findings.checks += _recorded_checks(facts)
    for artifact in facts.artifacts:
        prove_on_golden(release, artifact, by, findings, references=("torch", artifact.file))
    return values | findings.values


def _recorded_checks(facts: ReleaseFacts) -> list[Check]:
    """Verdicts of the export that need its data: accuracy, gain, and what was built."""
    kinds = ("accuracy", "gain", "build")
    return [replace(check, hop=f"at export: {check.hop}") for check in facts.checks if check.kind in kinds]


def _brought_home(release: Path, manifest: Manifest, facts: ReleaseFacts, findings: Findings) -> list[Check]:
    """What devices said of their engines, and `gates.require` with that; nothing run at all is always open."""
    kits = device_kits(release)
    checks = [
        Check(f"{DEVICE_FOLDER}/{kit.device}", "files", "hash", "fail", reason)
        for kit in kits if (reason := foreign(kit, manifest))
    ]  # fmt: skip
    checks += [check for kit in kits for check in checks_of(kit)]
    checks += required(facts, findings.verified, kits)
    if not findings.verified:
        message = "nothing could be run here: " + "; ".join(findings.notes)
        checks.append(Check("runtime", "golden", "require", "pending", message))
    return checks


def refuse_mixed(out: Path | None, *, finish: bool, bisect: bool, for_bisect: Mapping[str, object]) -> None:
    """Refuse options of `soup verify` that say nothing together: a slip would prove less than was meant."""
    if finish and bisect:
        raise SoupError("--finish and --bisect: expected one of the two. Run them one after the other.")
    if finish and out is None:
        raise SoupError("--finish: no folder was given for the kit. Add -o KIT.")
    if bisect and out is not None:
        raise SoupError("-o: --bisect writes nothing. Leave it out, and use --json for a file.")
    if not bisect and (given := [name for name, value in for_bisect.items() if value is not None]):
        raise SoupError(f"{' and '.join(given)}: only for --bisect, which was not asked for. Add --bisect.")


def refuse_inside(out: Path, release: Path) -> None:
    """Refuse to write into a release, whatever way leads there."""
    inner, outer = Path(os.path.realpath(out)), Path(os.path.realpath(release))
    if outer in (inner, *inner.parents):
        raise SoupError(f"{out}: is inside the release, whose manifest would no longer hold. Choose another -o.")


def _heading(facts: ReleaseFacts | None, code: Exit) -> Heading:
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    if facts is None:
        return Heading("Verification report", created, code, None, None, "the golden samples")
    metric = metric_named(facts.task, facts.metric, facts.settings)
    return Heading("Verification report", created, code, facts.recipe_sha256, metric, "the golden samples")
