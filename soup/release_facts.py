"""What a manifest says beside the hashes: all that a device must know to judge the files of a release again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import JsonValue, TypeAdapter, ValidationError

from exporters.precision import Precision
from exporters.runtimes import TensorInfo
from soup import SoupError
from soup.attempts import Attempt
from soup.build_folder import Model, first_complaint
from soup.gate_sections import Gates
from soup.gates import Check, Place
from soup.manifest import FILE_NAME, Manifest
from soup.proof import Artifact, LatencyRule, Proof


@dataclass(frozen=True, slots=True)
class ValFacts:
    """The split that every hop was judged on, and the metric there by artifact."""

    n: int
    list_sha256: str
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class GoldenFacts:
    """Where the golden samples come from: `count` of the `of` samples of a split, in `groups` or each by itself."""

    split: str
    count: int
    of: int
    groups: int | None

    @property
    def can_judge(self) -> bool:
        """Whether they decide the accuracy gate as val did: all of val, drawn one by one."""
        return self.split == "val" and self.count == self.of and self.groups is None


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """The interface of model.onnx; outputs are in the network's order."""

    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    simplified: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A packed graph that an engine may be built from; `tolerance` is of the engine's outputs, as Artifact's is.

    `ranges` names the packed table that makes an FP32 graph INT8 on a DLA which takes no Q/DQ nodes.
    """

    precision: Precision
    file: str
    sha256: str
    tolerance: float
    ranges: str | None = None
    boxes: bool = False  # as Artifact's


@dataclass(frozen=True, slots=True)
class EngineRecipe:
    """What a device needs to build its engine: graphs in the order of preference, the batch, and the settings.

    `batch` is the graphs' own, static or (min, opt, max); `profiles` are more than one range to tune for within a
    dynamic one. `settings` are those of the builder, empty for its defaults. `target` names the device that it is for.
    """

    candidates: tuple[Candidate, ...]
    batch: int | tuple[int, int, int]
    profiles: tuple[tuple[int, int, int], ...] = ()
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Previous:
    """What this release was held against: an earlier release by its digest, or a file by its SHA-256."""

    digest: str
    soup_version: str | None = None
    kind: Literal["release", "onnx", "metrics"] = "release"


@dataclass(frozen=True, slots=True)
class ReleaseFacts:
    """The manifest's facts."""

    created: str
    task: str
    metric: str
    classes: tuple[str, ...] | None
    preprocess: Mapping[str, JsonValue] | None
    recipe_sha256: str
    state_sha256: str
    best_single: Model
    winner: Model
    val: ValFacts
    golden: GoldenFacts
    onnx: GraphFacts
    artifacts: tuple[Artifact, ...]
    gates: Gates
    checks: tuple[Check, ...]
    verified: tuple[Proof, ...]
    exit_code: int
    previous: Previous | None = None
    precision: tuple[Attempt, ...] = ()  # in the order of export.precision
    settings: Mapping[str, JsonValue] = field(default_factory=dict)  # of the metric, `soup.tasks.Settings`
    build: EngineRecipe | None = None  # None in a release of an earlier version, see `recipe_of`


def facts_of(manifest: Manifest, *, where: Path) -> ReleaseFacts:
    """The facts of an intact manifest in the folder `where`. Raises SoupError where they are not a release's."""
    try:
        facts = TypeAdapter(ReleaseFacts).validate_python(manifest.facts)
    except ValidationError as error:
        raise SoupError(f"{where / FILE_NAME}: {first_complaint(error)}. Export the release again.") from error
    named = [one.file for one in facts.artifacts] + [one.file for one in recipe_of(facts).candidates]
    if unlisted := [file for file in named if file not in manifest.files]:
        raise SoupError(f"{where / FILE_NAME}: lists no file '{unlisted[0]}', its artifact. Export the release again.")
    return facts


def recipe_of(facts: ReleaseFacts) -> EngineRecipe:
    """How to build an engine of a release: as it says, or from its first ONNX file where it says nothing of it."""
    if facts.build is not None:
        return facts.build
    onnx = [one for one in facts.artifacts if one.kind == "onnx"][:1]
    candidates = tuple(Candidate(one.precision, one.file, one.sha256, one.tolerance) for one in onnx)
    return EngineRecipe(candidates, onnx[0].batch if onnx else 1)


def as_json(facts: ReleaseFacts) -> dict[str, object]:
    """The facts as the manifest holds them."""
    return dict(TypeAdapter(ReleaseFacts).dump_python(facts, mode="json"))


def latency_rule(gates: Gates) -> LatencyRule | None:
    """`gates.latency` as it is applied, where it is set."""
    gate = gates.latency
    if gate is None:
        return None
    limits = {50: gate.p50_ms, 90: gate.p90_ms, 99: gate.p99_ms}
    asked = {percent: limit for percent, limit in limits.items() if limit is not None}
    return LatencyRule(asked, Place(gate.runtime, gate.device))
