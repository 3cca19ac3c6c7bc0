"""A release finished on its device: the engine built there from the packed graphs, proved, and put into a kit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from exporters.gpu import find_gpu
from exporters.onnx_to_tensorrt import find_builder
from exporters.runtimes import device_name
from soup import Progress, SoupError, silent
from soup.attempts import Attempt
from soup.files import sha256_file, staged_folder
from soup.gates import Exit, exit_code
from soup.golden_proof import yardstick_of
from soup.kit_build import ENGINE, LAYERS, TIMING_CACHE, Job, Tried, climb
from soup.kit_facts import BuildCost, KitFacts, Machine, as_json, device_id, kit_facts_of, required
from soup.manifest import FILE_NAME, Manifest, read_manifest, seal, strangers, verify_files
from soup.proof import Findings
from soup.release import refuse_inside
from soup.release_facts import facts_of
from soup.release_report import NAMES, Heading, write_reports

_OURS = (ENGINE, LAYERS, TIMING_CACHE, *NAMES)


@dataclass(frozen=True, slots=True)
class FinishResult:
    """What `soup verify --finish` tells; `kit` and what it holds are None where the release itself is damaged.

    `findings` are of the graph that ships in the kit; `tried` says what became of each, down to that one.
    """

    release: Path
    kit: Path | None
    digest: str | None
    device: str | None
    tried: tuple[Attempt, ...]
    metric: str | None
    metric_unit: str
    findings: Findings
    exit_code: Exit
    files: Mapping[str, int] = field(default_factory=dict)  # size_bytes by name


def finish(
    release: Path, kit: Path, *, device: str | None = None, allow_inconclusive: bool = False,
    progress: Progress = silent,
) -> FinishResult:  # fmt: skip
    """Build the release's engine here, prove it on the golden samples, and write the kit; the release is only read.

    The first packed graph that builds and passes its gates ships; where none passes, the last that was built stays in
    the kit with its verdicts. Without a GPU tensorrt_rtx builds ahead of time, and that nothing ran is recorded.
    An interrupt or a failure leaves `kit` as it was. Raises SoupError (a kit folder that is not to be written, no
    release), ExportError (environment: no builder; build: none could be built).
    """
    refuse_inside(kit, release)
    hashes = list(verify_files(release))
    if code := exit_code(hashes):
        return FinishResult(release, None, None, None, (), None, "", Findings(checks=hashes), code)
    manifest = read_manifest(release)
    facts = facts_of(manifest, where=release)
    named = device_id(device) if device else None
    earlier = _claim(kit, manifest)
    by = yardstick_of(release, facts, device=device, progress=progress)
    with staged_folder(kit) as stage:
        job = Job(release, stage, facts, by, allow_inconclusive)
        if earlier:
            _take_timing_cache(kit, earlier, stage)
        tried = climb(job)
        chosen = _settle(stage, tried)
        made = _kit_facts(job, manifest, tried, chosen, named=named)
        heading = Heading("Device report", made.created, Exit(made.exit_code), facts.recipe_sha256, by.metric,
                          "the golden samples")  # fmt: skip
        write_reports(stage, heading, chosen.findings)
        digest = str(seal(stage, as_json(made))["self_sha256"])
        sizes = {path.name: path.stat().st_size for path in sorted(stage.iterdir())}
    return FinishResult(release, kit, digest, made.device, made.tried, by.metric.name, by.metric.unit,
                        chosen.findings, Exit(made.exit_code), sizes)  # fmt: skip


def _claim(kit: Path, release: Manifest) -> KitFacts | None:
    """Refuse a folder that holds anything but an intact kit of this very release, whose facts are given."""
    if kit.exists() and not kit.is_dir():
        raise SoupError(f"{kit}: is a file, expected a folder. Choose another -o.")
    if not kit.is_dir() or not any(kit.iterdir()):
        return None
    if (kit / FILE_NAME).is_file() and not strangers(kit):
        facts = kit_facts_of(read_manifest(kit), where=kit)
        if facts.parent == release.self_sha256:
            return facts
        raise SoupError(f"{kit}: holds the kit of another release ({facts.parent[:12]}…). Choose another -o.")
    other = next((name for name in strangers(kit) if name not in (*_OURS, FILE_NAME)), FILE_NAME)
    raise SoupError(f"{kit}: holds '{other}', which no intact kit there lists. Choose another -o.")


def _take_timing_cache(kit: Path, earlier: KitFacts, stage: Path) -> None:
    """What the builder measured for an earlier kit serves again, where it is the same builder and the file is whole."""
    builder, path, machine = find_builder(), kit / TIMING_CACHE, earlier.machine
    same = builder is not None and (builder.flavour, builder.version) == (machine.flavour, machine.version)
    if same and path.is_file() and sha256_file(path) == earlier.cost.timing_cache_sha256:
        shutil.copyfile(path, stage / TIMING_CACHE)


def _settle(stage: Path, tried: Sequence[Tried]) -> Tried:
    """Keep the files of the last that was built, the one that ships if any does, and of no other."""
    chosen = [one for one in tried if one.build is not None][-1]
    assert chosen.folder is not None
    for path in chosen.folder.iterdir():
        path.rename(stage / path.name)
    for one in tried:
        if one.folder is not None:
            shutil.rmtree(one.folder, ignore_errors=True)
    return chosen


def _kit_facts(job: Job, manifest: Manifest, tried: Sequence[Tried], chosen: Tried, *, named: str | None) -> KitFacts:
    """The facts of the kit; `gates.require` joins the chosen one's findings on the way."""
    assert chosen.build is not None
    assert chosen.engine is not None
    machine, findings, build = _machine(chosen), chosen.findings, chosen.build
    cache = job.stage / TIMING_CACHE
    facts = KitFacts(
        kind="kit",
        parent=manifest.self_sha256,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=named or machine.id,
        machine=machine,
        onnx=chosen.candidate,
        engine=chosen.engine,
        cost=BuildCost(build.seconds, build.peak_memory_bytes, sha256_file(cache) if cache.is_file() else None),
        tried=tuple(one.attempt for one in tried),
        checks=tuple(findings.checks),
        verified=tuple(findings.verified),
        notes=tuple(findings.notes),
        exit_code=0,
    )
    findings.checks += required(job.facts, (), (facts,))
    code = exit_code(findings.checks, allow_inconclusive=job.allow_inconclusive)
    return replace(facts, checks=tuple(findings.checks), exit_code=int(code))


def _machine(chosen: Tried) -> Machine:
    """A Jetson by the name of its board, another GPU by its own, and a machine without one by its CPU."""
    assert chosen.build is not None
    gpu = find_gpu()
    board = Path("/proc/device-tree/model").is_file()
    name = device_name() if gpu is None or board else gpu.name
    return Machine(
        name, gpu.name if gpu else None, gpu.compute_capability if gpu else None,
        chosen.build.flavour, chosen.build.version,
    )  # fmt: skip
