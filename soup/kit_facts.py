"""What a device made of a release, as the manifest of its kit says it, and what counts of that at home."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from exporters.flavours import Flavour
from soup import SoupError
from soup.attempts import Attempt
from soup.build_folder import first_complaint
from soup.gates import Check, State, require_gates
from soup.manifest import FILE_NAME, Manifest, device_parts, read_manifest
from soup.proof import Artifact, Proof
from soup.release_facts import Candidate, ReleaseFacts

_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")
_OPEN_HERE = ("hash", "require")  # kinds that only this side can judge


@dataclass(frozen=True, slots=True)
class Machine:
    """Where an engine was built: `gpu` and `compute_capability` are None where that was ahead of time, without one."""

    name: str
    gpu: str | None
    compute_capability: str | None
    flavour: Flavour
    version: str

    @property
    def id(self) -> str:
        """Readable and stable: the name, the flavour and its version to the second number."""
        return device_id(f"{self.name} {self.flavour} {'.'.join(self.version.split('.')[:2])}")


@dataclass(frozen=True, slots=True)
class BuildCost:
    """What a build took: seconds, greatest memory, and the hash of the timing cache that it left, if any."""

    seconds: float
    peak_memory_bytes: int
    timing_cache_sha256: str | None


@dataclass(frozen=True, slots=True)
class KitFacts:
    """The facts of a kit's manifest; `parent` is the digest of the release, `onnx` the graph of it that was built.

    `tried` holds every graph down to the one that ships, in order; `checks` are the gates' verdicts on that one.
    """

    kind: Literal["kit"]
    parent: str
    created: str
    device: str
    machine: Machine
    onnx: Candidate
    engine: Artifact
    cost: BuildCost
    tried: tuple[Attempt, ...]
    checks: tuple[Check, ...]
    verified: tuple[Proof, ...]
    notes: tuple[str, ...]
    exit_code: int

    @property
    def ran(self) -> bool:
        """Whether the engine was executed, and not only built."""
        return any(proof.ran and self.kind_of(proof) == "engine" for proof in self.verified)

    def kind_of(self, proof: Proof) -> Literal["onnx", "engine"]:
        """Of what it is one: a kit proves its engine, and the graph that it was built from."""
        return "engine" if proof.artifact == self.engine.file else "onnx"


def device_id(name: str) -> str:
    """A name as a folder's: lower case, digits, dots and hyphens. Raises SoupError where nothing is left of it."""
    found = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:100].rstrip("-.")
    if not found:
        raise SoupError(f"--device: '{name}' holds no letter or digit, expected a name as orin-nano. Give one.")
    return found


def kit_facts_of(manifest: Manifest, *, where: Path) -> KitFacts:
    """The facts of an intact manifest in the folder `where`. Raises SoupError where they are not a kit's."""
    advice = "Give the folder that `soup verify --finish` wrote."
    if manifest.facts.get("kind") != "kit":
        raise SoupError(f"{where / FILE_NAME}: is not a kit's. {advice}")
    try:
        facts = TypeAdapter(KitFacts).validate_python(manifest.facts)
    except ValidationError as error:
        raise SoupError(f"{where / FILE_NAME}: {first_complaint(error)}. {advice}") from error
    listed = manifest.files.get(facts.engine.file)
    if listed is None or listed.sha256 != facts.engine.sha256:
        raise SoupError(f"{where / FILE_NAME}: does not list its engine '{facts.engine.file}' as built. {advice}")
    if not _ID.fullmatch(facts.device):
        raise SoupError(f"{where / FILE_NAME}: '{facts.device}' is no device id as orin-nano-tensorrt-10.3. {advice}")
    return facts


def as_json(facts: KitFacts) -> dict[str, object]:
    """The facts as the manifest holds them."""
    return dict(TypeAdapter(KitFacts).dump_python(facts, mode="json"))


def device_kits(release: Path) -> tuple[KitFacts, ...]:
    """The kits below device/ of a release whose files `verify_files` found to be intact, by id."""
    kits = [(part, kit_facts_of(read_manifest(part), where=part)) for part in device_parts(release)]
    for part, kit in kits:
        if kit.device != part.name:
            raise SoupError(f"{part}: holds the kit of '{kit.device}', expected one of that name. Merge the kit again.")
    return tuple(kit for _, kit in kits)


def foreign(kit: KitFacts, release: Manifest) -> str:
    """Why a kit is not one of this release; empty where it is."""
    listed = release.files.get(kit.onnx.file)
    if listed is None or listed.sha256 != kit.onnx.sha256:
        expected = f"the release's is {listed.sha256[:12]}…" if listed else "the release has none"
        return f"its engine was built from a {kit.onnx.file} with SHA-256 {kit.onnx.sha256[:12]}…, but {expected}"
    if kit.parent != release.self_sha256:
        return f"it was made from the release {kit.parent[:12]}…, but this is {release.self_sha256[:12]}…"
    return ""


def checks_of(kit: KitFacts) -> tuple[Check, ...]:
    """The gates' verdicts on the device, as a report at home names them."""
    return tuple(
        replace(check, hop=f"on {kit.device}: {check.hop}") for check in kit.checks if check.kind not in _OPEN_HERE
    )


def required(facts: ReleaseFacts, here: Sequence[Proof], kits: Sequence[KitFacts]) -> tuple[Check, ...]:
    """`gates.require` from what the export proved, what ran here, and what devices brought home."""
    kinds = {artifact.file: artifact.kind for artifact in facts.artifacts}
    done: dict[str, State] = {"engine": "done"} if kits or "engine" in kinds.values() else {}
    kinds_at_home = [kinds.get(proof.artifact) for proof in (*facts.verified, *here) if proof.ran]
    on_devices = [kit.kind_of(proof) for kit in kits for proof in kit.verified if proof.ran]
    for kind in (*kinds_at_home, *on_devices):
        if kind is not None:
            done["onnx" if kind == "onnx" else "device"] = "done"
    return require_gates(facts.gates.require, done)
