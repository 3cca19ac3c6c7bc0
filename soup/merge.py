"""Kits of several devices brought home into their release, below device/, without a touch of what was sealed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from soup import SoupError
from soup.files import staged_folder
from soup.gates import Check, Exit, exit_code
from soup.kit_facts import KitFacts, checks_of, device_kits, foreign, kit_facts_of, required
from soup.lock import locked
from soup.manifest import DEVICE_FOLDER, FILE_NAME, Manifest, read_manifest, verify_files
from soup.release_facts import facts_of


@dataclass(frozen=True, slots=True)
class Arrival:
    """A kit in the release: where it came from, whether it was there already, and whether its engine ran there."""

    device: str
    kit: Path
    digest: str
    state: Literal["merged", "there already"]
    ran: bool


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What `soup merge` tells; without arrivals where the release or a kit is damaged, and then nothing was copied."""

    release: Path
    digest: str | None
    arrivals: tuple[Arrival, ...]
    checks: tuple[Check, ...]
    exit_code: Exit


@dataclass(frozen=True, slots=True)
class _Kit:
    path: Path
    manifest: Manifest
    facts: KitFacts


def merge(release: Path, kits: Sequence[Path], *, allow_inconclusive: bool = False) -> MergeResult:
    """Copy each kit to device/<id>/ of its release, all or none, and say what `gates.require` still misses.

    The same kit again changes nothing. Damage is a failed check (exit 1); a kit of another release, or of another
    engine for a device that has one, is an input error: raises SoupError with a line for each.
    """
    checks = list(verify_files(release))
    if code := exit_code(checks):
        return MergeResult(release, None, (), tuple(checks), code)
    manifest = read_manifest(release)
    facts = facts_of(manifest, where=release)
    checks += [check for kit in kits for check in _hashes(kit)]
    if code := exit_code(checks):
        return MergeResult(release, manifest.self_sha256, (), tuple(checks), code)
    opened = [_Kit(kit, sealed := read_manifest(kit), kit_facts_of(sealed, where=kit)) for kit in kits]
    _refuse_foreign(opened, manifest)
    with locked(release / DEVICE_FOLDER, "soup merge"):
        arrivals = _copy(release, opened)
    home = device_kits(release)
    judged = [*verify_files(release), *(check for kit in home for check in checks_of(kit)), *required(facts, (), home)]
    code = exit_code(judged, allow_inconclusive=allow_inconclusive)
    return MergeResult(release, manifest.self_sha256, arrivals, tuple(judged), code)


def _hashes(kit: Path) -> list[Check]:
    """Of the kit's own files, under the kit's name."""
    if not (kit / FILE_NAME).is_file():
        raise SoupError(f"{kit}: no kit is here, as {FILE_NAME} is missing. Give what `soup verify --finish` wrote.")
    return [replace(check, name=f"{kit.name}/{check.name}") for check in verify_files(kit)]


def _refuse_foreign(kits: Sequence[_Kit], release: Manifest) -> None:
    reasons = [(kit.path, foreign(kit.facts, release)) for kit in kits]
    if refused := [f"{path}: {reason}. Finish this release on the device." for path, reason in reasons if reason]:
        raise SoupError("\n".join(refused))


def _copy(release: Path, kits: Sequence[_Kit]) -> tuple[Arrival, ...]:
    """Every new kit is whole in a staging folder before the first gets its name."""
    new, arrivals = _sorted_out(release, kits)
    with ExitStack() as stages:
        for kit in new:
            stage = stages.enter_context(staged_folder(release / DEVICE_FOLDER / kit.facts.device))
            for name in (*kit.manifest.files, FILE_NAME):
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(kit.path / name, stage / name)
            if wrong := [check.message for check in verify_files(stage) if check.verdict != "pass"]:
                raise SoupError(f"{kit.path}: was changed while it was copied: {wrong[0]}. Merge it again.")
    return arrivals


def _sorted_out(release: Path, kits: Sequence[_Kit]) -> tuple[list[_Kit], tuple[Arrival, ...]]:
    """Which kits are new, and all of them as they arrive. Raises SoupError for two engines of one device."""
    there = {kit.device: release / DEVICE_FOLDER / kit.device for kit in device_kits(release)}
    owners = {device: (path, read_manifest(path).self_sha256) for device, path in there.items()}
    new, arrivals, refused = [], [], []
    for kit in kits:
        device, digest = kit.facts.device, kit.manifest.self_sha256
        path, present = owners.setdefault(device, (kit.path, digest))
        if present != digest:
            refused.append(
                f"{kit.path}: is another kit of '{device}' than {path}. Remove one of them, or give this device a "
                "name of its own: soup verify --finish --device NAME"
            )
        fresh = path == kit.path and device not in there and kit not in new
        new += [kit] if fresh else []
        arrivals.append(Arrival(device, kit.path, digest, "merged" if fresh else "there already", kit.facts.ran))
    if refused:
        raise SoupError("\n".join(refused))
    return new, tuple(arrivals)
