"""May these checkpoints be averaged at all? Asked of their headers, then of their values, before any forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from soup import SoupError
from soup.checkpoint import Checkpoint
from soup.headers import Table, differences, only_float16, other_precision, table_of, unaverageable
from soup.tensors import read_tensor

INDEPENDENT = 0.1  # cosine under which two ingredients share no starting point; fine-tunes of one lie above 0.9
SPARSE = 0.1  # share of zeros from which a network counts as pruned
_NOT_SPARSE = "the average of weights pruned in different places is no longer pruned. Take ingredients of one mask."
_BLOCK = 1 << 18  # elements compared at a time, so that their float64 copies stay in the cache


@dataclass(frozen=True, slots=True)
class Finding:
    """What the user should know although the ingredients may be averaged; `where` is a path."""

    level: Literal["warning", "info"]
    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Preflight:
    """The ingredients that may be averaged, in the order given and without duplicates, and what was seen on the way."""

    ingredients: tuple[Checkpoint, ...]
    set_aside: tuple[tuple[Path, str], ...]  # (path, reason)
    findings: tuple[Finding, ...]
    cosines: Mapping[str, float]  # SHA-256 → cosine with the first of `ingredients`; NaN where one has no weights


@dataclass(frozen=True, slots=True)
class _Scan:
    """One ingredient's values against the first ingredient's: problems, and sums over its kernels and matrices."""

    problems: tuple[str, ...]
    squares: float
    dot: float
    cosine: float


def preflight(
    checkpoints: Sequence[Checkpoint], *, model_spec: Table | None, on_bad: Literal["fail", "skip"]
) -> Preflight:
    """Compare the checkpoints with the model, or without one with the first of them, and their values with each other.

    The cosine is over all floating tensors of two or more axes: gains and BatchNorm statistics start alike in every
    network, and would make independent initialisations look related.

    Raises SoupError with every problem of every ingredient when `on_bad` is "fail"; when raw and EMA weights are mixed;
    and when no ingredient is left.
    """
    unique, findings = _without_copies(checkpoints)
    problems = _header_problems(unique, model_spec)
    scans, repeated = _scan_all([item for item in unique if not problems[item.sha256]])
    for sha, scan in scans.items():
        problems[sha] += scan.problems
    usable = tuple(item for item in unique if not problems[item.sha256] and item.sha256 not in repeated)
    common = _mixed_kinds(usable)
    if common or not usable or (on_bad == "fail" and any(problems.values())):
        raise SoupError("\n".join(_lines(unique, problems, common=common, any_left=bool(usable))))
    cosines = {item.sha256: scans[item.sha256].cosine for item in usable}
    set_aside = tuple((item.path, " ".join(problems[item.sha256])) for item in unique if problems[item.sha256])
    findings += repeated.values()
    findings += _warnings(usable, cosines)
    return Preflight(usable, set_aside, tuple(findings), cosines)


def _without_copies(checkpoints: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[Finding]]:
    first: dict[str, Checkpoint] = {}
    findings = []
    for item in checkpoints:
        if first.setdefault(item.sha256, item) is not item:
            findings.append(Finding("info", str(item.path), f"is a copy of '{first[item.sha256].path}', counted once."))
    return list(first.values()), findings


def _header_problems(unique: Sequence[Checkpoint], model_spec: Table | None) -> dict[str, list[str]]:
    """SHA-256 → what is wrong with an ingredient's names, shapes and dtypes."""
    tables = {item.sha256: table_of(item) for item in unique}
    problems = {sha: unaverageable(table) if len(unique) > 1 else [] for sha, table in tables.items()}
    good = [sha for sha, lines in problems.items() if not lines]
    for sha in good:
        if model_spec is not None:
            problems[sha] += differences(tables[sha], model_spec, like="the model")
        else:
            problems[sha] += differences(tables[sha], tables[good[0]], like="the first ingredient")
    return problems


def _mixed_kinds(unique: Sequence[Checkpoint]) -> list[str]:
    kinds: dict[str, list[Path]] = {}
    for item in unique:
        kinds.setdefault(item.weights, []).append(item.path)
    if len(kinds) < 2:
        return []
    found = " and ".join(f"{kind} weights in {len(paths)} ('{paths[0]}')" for kind, paths in sorted(kinds.items()))
    return [
        f"checkpoints: {found}, expected one kind in all. Set checkpoints.use to raw or ema, or leave one kind out."
    ]


def _scan_all(items: Sequence[Checkpoint]) -> tuple[dict[str, _Scan], dict[str, Finding]]:
    """SHA-256 → scan of each, and → finding for those that hold the tensors of an earlier one in another file."""
    scans: dict[str, _Scan] = {}
    repeated: dict[str, Finding] = {}
    kept: list[Checkpoint] = []
    for item in items:
        scan = scans[item.sha256] = _scan(item, kept[0] if kept else item)
        if scan.problems:
            continue
        twin = next((other for other in kept if _alike(scan, scans[other.sha256]) and _same_tensors(item, other)), None)
        if twin:
            repeated[item.sha256] = Finding(
                "info", str(item.path), f"holds the tensors of '{twin.path}', counted once."
            )
        else:
            kept.append(item)
    return scans, repeated


def _scan(item: Checkpoint, first: Checkpoint) -> _Scan:
    """Read both, tensor by tensor, and stop at the first that holds NaN or Inf."""
    problems = []
    sums, total = np.zeros(6), 0
    for name, spec in item.tensors.items():
        tensor = read_tensor(spec)
        other = tensor if item is first else read_tensor(first.tensors[name])
        if not (tensor.is_floating_point() or tensor.is_complex()):
            if not name.endswith("num_batches_tracked") and not torch.equal(tensor, other):
                problems.append(
                    f"tensor '{name}' ({spec.dtype}) is not that of '{first.path}': integers have no average."
                )
            continue
        values, others = _reals(tensor), _reals(other)
        if bad := int(values.numel() - values.isfinite().sum()):
            what = f"tensor '{name}' holds NaN or Inf in {bad} of {values.numel()} values."
            return _Scan((what,), math.nan, math.nan, math.nan)
        if name.endswith("running_var") and bool((values < 0).any()):
            problems.append(f"tensor '{name}' holds a variance below zero, whose root is no number.")
        if _is_pruning_mask(name, item) and not torch.equal(values, others):
            problems.append(f"mask '{name}' is not that of '{first.path}', and {_NOT_SPARSE}")
        if tensor.ndim > 1:
            total += values.numel()
            sums += _sums(values, others)
    squares, first_squares, dot, *zeros = sums.tolist()
    if _differently_pruned(*zeros, total=total):
        shares = f"{zeros[0] / total:.0%} of the weights are zero, {zeros[1] / total:.0%} in '{first.path}'"
        problems.append(f"{shares}, in other places ({zeros[2] / total:.0%}), and {_NOT_SPARSE}")
    cosine = dot / math.sqrt(squares * first_squares) if squares and first_squares else math.nan
    return _Scan(tuple(problems), squares, dot, cosine)


def _sums(values: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    """x·x, y·y, x·y, zeros in x, zeros in y, places where one of them alone is zero."""
    sums = np.zeros(6)
    for start in range(0, len(values), _BLOCK):
        x, y = (tensor[start : start + _BLOCK].double() for tensor in (values, others))
        zeros, other_zeros = x.numel() - int(x.count_nonzero()), y.numel() - int(y.count_nonzero())
        apart = int(((x == 0) != (y == 0)).sum()) if zeros and other_zeros else zeros + other_zeros
        sums += [float(x.dot(x)), float(y.dot(y)), float(x.dot(y)), zeros, other_zeros, apart]
    return sums


def _differently_pruned(zeros: float, other_zeros: float, apart: float, *, total: int) -> bool:
    """Pruned (but not all zero), and so that at least half of the smaller group, zeros or weights, lies elsewhere."""
    most = max(zeros, other_zeros)
    return SPARSE * total < most < total and apart > 0.5 * min(most, total - most)


def _is_pruning_mask(name: str, item: Checkpoint) -> bool:
    return name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in item.tensors  # torch.nn.utils.prune


def _reals(tensor: torch.Tensor) -> torch.Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return (real.float() if real.dtype.itemsize == 1 else real).reshape(-1)


def _alike(scan: _Scan, other: _Scan) -> bool:
    return math.isclose(scan.squares, other.squares) and math.isclose(scan.dot, other.dot)


def _same_tensors(item: Checkpoint, other: Checkpoint) -> bool:
    return all(
        spec.dtype == other.tensors[name].dtype and torch.equal(read_tensor(spec), read_tensor(other.tensors[name]))
        for name, spec in item.tensors.items()
    )


def _lines(
    unique: Sequence[Checkpoint], problems: Mapping[str, Sequence[str]], *, common: Sequence[str], any_left: bool
) -> list[str]:
    """One line for each problem; ingredients that share it are counted behind the first of them."""
    paths: dict[str, list[Path]] = {}
    for item in unique:
        for what in problems[item.sha256]:
            paths.setdefault(what, []).append(item.path)
    lines = [
        f"{which[0]}: {what}" if len(which) == 1 else f"{which[0]} and {len(which) - 1} more: {what}"
        for what, which in paths.items()
    ]
    if lines and any_left:
        lines.append("checkpoints: leave these out, or set on_bad_ingredient: skip.")
    return [*common, *lines]


def _warnings(usable: Sequence[Checkpoint], cosines: Mapping[str, float]) -> list[Finding]:
    first = usable[0]
    found = [
        Finding(
            "warning", str(item.path),
            f"the cosine of its weights with those of '{first.path}' is {cosines[item.sha256]:.2f}: independent "
            "initialisations? Only networks trained on from one starting point can be averaged.",
        )
        for item in usable
        if cosines[item.sha256] < INDEPENDENT
    ]  # fmt: skip
    tables = {item.path: table_of(item) for item in usable}
    for path, table in tables.items():
        if names := other_precision(table, tables[first.path]):
            name, count = names[0], len(names) - 1
            dtypes = f"{table[name][1]} and not {tables[first.path][name][1]} as in '{first.path}'"
            found.append(
                Finding("warning", str(path), f"tensor '{name}' (and {count} more) is {dtypes}; the wider dtype wins.")
            )
    if half := [path for path, table in tables.items() if only_float16(table)]:
        what = (
            f"all weights are float16 here (in {len(half)} of {len(tables)} ingredients): they were rounded to 11 bits."
        )
        found.append(Finding("warning", str(half[0]), f"{what} Take unstripped checkpoints where there are any."))
    return found
