"""What a build leaves behind, as records: written whole, read back and checked, and all that an export needs."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from pydantic import JsonValue, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from exporters.runtimes import Arrays
from soup import SoupError
from soup.files import STAGING_PREFIX, array_entry, readable_json, sha256_file, write_safetensors
from soup.gates import Check
from soup.lock import LOCK_NAME
from soup.search_records import (
    Answer,
    ClassValue,
    Cost,
    Difference,
    Explanation,
    OptimismRecord,
    OtherValue,
    ResolutionPoint,
    Shares,
)

SCHEMA_VERSION = 1
RECIPE, SOUP, BUILD, TRIALS, EVALUATIONS = (
    "recipe.json", "soup.safetensors", "build.json", "trials.json", "evaluations.safetensors",
)  # fmt: skip
LEDGER, PICTURE, RANGES, RESOLUTIONS = "ledger.sqlite", "soup.svg", "ranges.json", "resolutions.safetensors"
OURS = (
    RECIPE, SOUP, BUILD, TRIALS, EVALUATIONS, "report.md", "report.html", PICTURE, RANGES, RESOLUTIONS, "release",
    "cache", LOCK_NAME, LEDGER, f"{LEDGER}-journal", f"{LEDGER}.damaged",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outputs:
    """How far one output moved over a hop: largest and mean absolute difference, cosine of all samples together."""

    name: str
    max_abs: float | None
    mean_abs: float | None
    cosine: float | None


@dataclass(frozen=True, slots=True)
class WorstClass:
    """The class that lost most over a hop: its mean score on `n` images, and the difference.

    It was picked out of all, so the interval is at the level of all classes together.
    """

    name: str
    n: int
    before: float | None
    after: float | None
    difference: Difference


@dataclass(frozen=True, slots=True)
class Hop:
    """One step from the best single to what ships, judged on all of a split; `worst_class` is None where none lost.

    `flips` counts images whose answer changed; `moved` says in a sentence how, and `figures` in numbers: boxes that
    were lost, are new or moved, pixels that changed.
    """

    name: str
    before: float | None
    after: float | None
    outputs: tuple[Outputs, ...]
    flips: int | None
    difference: Difference
    split: str
    where: str
    worst_class: WorstClass | None = None
    moved: str = ""
    figures: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ingredient:
    """A checkpoint that took part, and its own score on val; where that was not needed to the end, the best it can be.

    `base` marks the model that the others were fine-tuned from, which is no candidate itself.
    """

    sha256: str
    path: str
    container: str
    weights: str
    size_bytes: int
    val: float | None
    cosine: float | None
    notes: tuple[str, ...]
    bound: float | None = None
    base: bool = False


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """Which samples a split held: hashes of the ordered content hashes, and of targets and groups in that order."""

    n: int
    list_sha256: str
    targets_sha256: str
    groups: int | None
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A set of weights and what it scored; `test` is None without a test split."""

    method: str
    weights: Shares
    bn_policy: str
    val: float | None
    test: float | None

    @property
    def label(self) -> str:
        """As the last hop of a build names it."""
        return {"own": "best single", "averaged": "soup"}.get(self.bn_policy, self.bn_policy)


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """build.json: the resolved configuration, what was found, and the best single's results that bind an export."""

    schema_version: int
    soup_version: str
    versions: Mapping[str, str]
    val_folder: str  # of val.yaml, relative to the build folder
    config: Mapping[str, object]
    task: str
    metric: str
    metric_unit: str
    higher_is_better: bool
    class_names: tuple[str, ...] | None
    ingredients: tuple[Ingredient, ...]
    set_aside: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    splits: Mapping[str, SplitRecord]
    overlaps: tuple[str, ...]
    best_single: Model
    winner: Model
    policies: Mapping[str, float | None]
    batchnorm_layers: int
    convergence: float | None
    judged_on: str
    comparison: Difference
    hops: tuple[Hop, ...]
    checks: tuple[Check, ...]
    state_sha256: str
    files: Mapping[str, str]
    answers: tuple[Answer, ...]
    cost: Cost
    optimism: OptimismRecord | None
    explanation: Explanation | None
    seconds: float
    resolutions: tuple[ResolutionPoint, ...] = ()
    by_class: tuple[ClassValue, ...] = ()  # where the metric has a value for each
    also: tuple[OtherValue, ...] = ()  # the task's other metrics
    settings: Mapping[str, JsonValue] = field(default_factory=dict)  # of the metric, `soup.tasks.Settings`


@dataclass(frozen=True, slots=True)
class BuildFolder:
    """A build as read back: its record, and the per-sample statistics of the two models that matter."""

    path: Path
    record: BuildRecord
    evaluations: Arrays

    def per_sample(self, model: str, split: str) -> dict[str, np.ndarray]:
        """Statistics of "best_single" or "winner" on a split, first axis the sample."""
        prefix = f"{split}/{model}/"
        return {name.removeprefix(prefix): a for name, a in self.evaluations.items() if name.startswith(prefix)}


def claim_folder(folder: Path, *, ours: Collection[str] = OURS, command: str = "soup build") -> None:
    """Refuse an output folder that is no folder, or that holds what is not `ours`, which `command` writes."""
    wanted = folder.absolute()
    nearest = next(path for path in (wanted, *wanted.parents) if os.access(path, os.F_OK))
    if not nearest.is_dir():
        raise SoupError(f"{nearest}: is a file, expected a folder. Choose another -o.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise SoupError(f"{nearest}: is not writable. Choose another -o.")
    here = nearest.iterdir() if nearest == wanted else ()
    strangers = sorted(p.name for p in here if p.name not in ours and not p.name.startswith(STAGING_PREFIX))
    if strangers:
        raise SoupError(
            f"{folder}: holds '{strangers[0]}', which {command} did not write. Choose an empty or a new folder with -o."
        )


def first_complaint(error: ValidationError) -> str:
    """What pydantic found first, behind the key that it is about where there is one."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"'{where}': {first['msg']}" if where else first["msg"]


def write_build(stage: Path, record: BuildRecord, evaluations: Arrays) -> None:
    """Write evaluations.safetensors and build.json (with the hash of every other file) into a staging folder."""
    write_safetensors(stage / EVALUATIONS, {name: array_entry(array) for name, array in evaluations.items()})
    files = {path.name: sha256_file(path) for path in sorted(stage.iterdir())}
    (stage / BUILD).write_bytes(readable_json(asdict(record) | {"files": files}))


def read_build(folder: Path) -> BuildFolder:
    """Read a build and check each of its files against its hash. Raises SoupError for what is missing or changed."""
    if not (folder / RECIPE).is_file() or not (folder / BUILD).is_file():
        raise SoupError(
            f"{folder}: no finished build here (recipe.json and build.json). Run: soup build --val val.yaml"
        )
    try:
        record = TypeAdapter(BuildRecord).validate_json((folder / BUILD).read_bytes())
    except ValidationError as error:
        raise SoupError(f"{folder / BUILD}: {first_complaint(error)}. Build again.") from error
    if record.schema_version > SCHEMA_VERSION:
        raise SoupError(
            f"{folder / BUILD}: schema_version {record.schema_version}, expected {SCHEMA_VERSION}. Upgrade edgesoup."
        )
    for name, expected in record.files.items():
        if _sha256(folder / name) != expected:
            raise SoupError(
                f"{folder / name}: is missing or not as soup build wrote it (SHA-256 differs). Build again."
            )
    try:
        evaluations = load_arrays((folder / EVALUATIONS).read_bytes())
    except SafetensorError as error:
        raise SoupError(f"{folder / EVALUATIONS}: {error}. Build again.") from error
    return BuildFolder(folder, record, evaluations)


def _sha256(path: Path) -> str | None:
    """None where there is no such file, or no longer: another build may be moving its files here."""
    try:
        return sha256_file(path)
    except (FileNotFoundError, IsADirectoryError):
        return None
