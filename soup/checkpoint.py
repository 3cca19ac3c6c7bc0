"""Checkpoints of any trainer, read without unpickling: found, hashed, told apart → where each tensor's bytes lie."""

from __future__ import annotations

import glob
import itertools
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from soup import SoupError
from soup.containers import Use, find_weights, listed, recorded_numbers
from soup.files import canonical_json, sha256_bytes
from soup.formats import Contents, FileStamp, read_contents
from soup.tensors import StateDict, TensorSpec, read_from, read_tensor, save_state, state_entry, state_sha256

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_OURS = {  # tensors that a build or an export wrote, and what lies beside them
    "soup.safetensors": "recipe.json", "evaluations.safetensors": "recipe.json", "golden.safetensors": "manifest.json",
}  # fmt: skip
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One ingredient, its header read and its bytes hashed, no tensor loaded yet."""

    path: Path
    sha256: str  # of the file; for a sharded folder, of the canonical JSON of its shards' names and hashes
    files: tuple[FileStamp, ...]
    container: str  # "flat", "state_dict", "model_ema", … as found
    weights: str  # "raw" or "ema": which of the two was taken
    tensors: Mapping[str, TensorSpec]  # prefixes removed, in the file's order
    recorded: Mapping[str, float]  # epoch and metrics that the trainer wrote beside the weights, where found
    notes: tuple[str, ...]  # what a user should know: prefixes removed, entries ignored, tied names


def read_checkpoint(
    path: Path, *, use: Use = "auto", drop: Sequence[str] = (), expected_sha256: str | None = None
) -> Checkpoint:
    """Read a checkpoint file, or a Hugging Face folder, in one pass; no tensor is loaded, no object made.

    `use` chooses between raw and EMA weights (`auto`: EMA where there are any); `drop` holds fnmatch patterns of
    tensors to leave out. Raises SoupError for what cannot be read, and where the hash is not `expected_sha256`.
    """
    if _SHARD.search(path.name) and any((path.parent / index).exists() for index in _INDEXES):
        raise SoupError(f"{path}: is one shard of several. Name its folder '{path.parent}' instead.")
    contents = _shards(path) if path.is_dir() else [read_contents(path)]
    files = tuple(content.stamp for content in contents)
    sha256 = files[0].sha256 if len(files) == 1 else _folder_sha256(files)
    if expected_sha256 not in (None, sha256):
        raise SoupError(f"{path}: has the SHA-256 {sha256}, expected {expected_sha256}. Restore the file as it was.")
    value = contents[0].value if len(contents) == 1 else _merged(contents)
    try:
        weights = find_weights(value, use=use, drop=drop)
    except ValueError as error:
        raise SoupError(f"{path}: {error}") from error
    recorded = {
        name: figure
        for name, number in recorded_numbers(value).items()
        if math.isfinite(figure := float(read_tensor(number)) if isinstance(number, TensorSpec) else number)
    }
    notes = (*weights.notes, *_tied(weights.tensors), *_inert(contents))
    return Checkpoint(path, sha256, files, weights.container, weights.kind, weights.tensors, recorded, notes)


def load_state(checkpoint: Checkpoint) -> StateDict:
    """All tensors in memory of their own; tied names share one tensor. Raises SoupError where a file changed."""
    check_unchanged(checkpoint)
    loaded = {}
    try:
        with ExitStack() as stack:
            opened = {stamp.path: stack.enter_context(stamp.path.open("rb")) for stamp in checkpoint.files}
            for spec in dict.fromkeys(checkpoint.tensors.values()):
                loaded[spec] = read_from(opened[spec.file], spec)
    except OSError as error:
        raise SoupError(f"{checkpoint.path}: cannot be read: {error.strerror or error}. Check its disk.") from error
    return {name: loaded[spec] for name, spec in checkpoint.tensors.items()}


def check_unchanged(checkpoint: Checkpoint) -> None:
    """Raise SoupError where a file's size or modification time is not what it was when it was hashed."""
    for stamp in checkpoint.files:
        try:
            status = stamp.path.stat()
        except OSError as error:
            raise SoupError(f"{stamp.path}: is gone since it was checked ({error.strerror}). Run again.") from error
        if (status.st_size, status.st_mtime_ns) != (stamp.size_bytes, stamp.modified_ns):
            raise SoupError(f"{stamp.path}: changed since it was checked. Run again when no training writes to it.")


def with_names(checkpoint: Checkpoint, wanted: Collection[str]) -> Checkpoint:
    """The same tensors under the prefix that `wanted` has in common, where that makes more of the names agree.

    Reading removes `model.` and the like wherever all names have it; a model may itself name its tensors so.
    """
    given, expected = _common_prefix(checkpoint.tensors), _common_prefix(wanted)
    renamed = {expected + name.removeprefix(given): spec for name, spec in checkpoint.tensors.items()}
    if len(renamed.keys() & set(wanted)) <= len(checkpoint.tensors.keys() & set(wanted)):
        return checkpoint
    note = f"names begin with '{expected}' instead of '{given}', as in the model"
    return replace(checkpoint, tensors=renamed, notes=(*checkpoint.notes, note))


def find_checkpoints(
    patterns: Sequence[str], *, folder: Path, exclude: Path | None
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The files (and Hugging Face folders) that glob patterns name, sorted by path, and notes on what was left out.

    Patterns are relative to `folder`. Links are followed and each target is taken once; hidden files, whatever lies in
    `exclude` and the soups of earlier builds are left out. Raises SoupError where nothing, or a plain path, is missing.
    """
    found: dict[Path, Path] = {}
    notes: list[str] = []
    for pattern in patterns:
        matches, hidden = _matches(folder, Path(pattern).expanduser())
        notes += [f"{path}: left out, hidden" for path in hidden]
        for path in matches:
            target = Path(os.path.realpath(path))  # unlike resolve(), at peace with links that go in a circle
            if reason := _not_wanted(target, exclude, named=not glob.has_magic(pattern)):
                notes.append(f"{path}: left out, {reason}")
            elif found.setdefault(target, path) != path:
                notes.append(f"{path}: left out, the same file as {found[target]}")
    if not found:
        raise SoupError(f"{folder}: no checkpoint matches {', '.join(map(repr, patterns))}. Correct checkpoints.files.")
    return tuple(sorted(found)), tuple(dict.fromkeys(notes))


def _matches(folder: Path, pattern: Path) -> tuple[list[Path], list[Path]]:
    """What a pattern matches, sorted; apart from it what is hidden, unless the pattern names a hidden part itself."""
    if not glob.has_magic(str(pattern)):
        path = folder / pattern
        if not path.exists():
            link = " (a link to what does not exist)" if path.is_symlink() else ""
            raise SoupError(f"{path}: does not exist{link}. Correct checkpoints.files.")
        return [path], []
    base = Path(pattern.anchor) if pattern.is_absolute() else folder
    matches = sorted(base.glob(str(pattern.relative_to(pattern.anchor))))
    hidden = [] if _hidden(pattern) else [path for path in matches if _hidden(path.relative_to(base))]
    return [path for path in matches if path not in hidden], hidden


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") and part != ".." for part in path.parts)


def _not_wanted(target: Path, exclude: Path | None, *, named: bool) -> str | None:
    """Why a match is no ingredient; a path `named` without wildcards is refused later rather than passed over."""
    if exclude is not None and target.is_relative_to(os.path.realpath(exclude)):
        return "part of the output folder"
    if target.name in _OURS and (target.parent / _OURS[target.name]).exists():
        return "part of an earlier build"
    if not target.exists():
        return "a link to what does not exist"
    if target.is_dir() and not named and not any((target / name).exists() for name in (*_INDEXES, *_WHOLE)):
        return "a folder that is no checkpoint"
    return None


def _shards(folder: Path) -> list[Contents]:
    """The files of a Hugging Face folder: the shards that its index lists, all there and as listed, or its one file."""
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    if index is not None:
        return _indexed(folder, index)
    whole = next((folder / name for name in _WHOLE if (folder / name).is_file()), None)
    if whole is not None:
        return [read_contents(whole)]
    if (folder / ".metadata").is_file():
        raise SoupError(
            f"{folder}: is a distributed checkpoint. "
            "Convert it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, file)."
        )
    raise SoupError(f"{folder}: is a folder without {' or '.join((*_INDEXES, *_WHOLE))}. Name the files in it instead.")


def _indexed(folder: Path, index: Path) -> list[Contents]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        shards = sorted(set(weight_map.values()))
        plain = all(Path(shard).name == shard for shard in shards)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SoupError(f"{index}: is no index of shards ({error}). Copy it again.") from error
    if not shards or not plain:
        raise SoupError(f"{index}: lists no shards in its own folder. Copy it again.")
    contents = [read_contents(folder / shard) for shard in shards]
    held = {name: content.stamp.path.name for content in contents for name in _as_entries(content)}
    wrong = sorted(name for name in held.keys() | weight_map.keys() if held.get(name) != weight_map.get(name))
    if wrong:
        raise SoupError(
            f"{index}: {len(wrong)} tensors are not where it lists them, '{wrong[0]}' the first. Copy the folder again."
        )
    return contents


def _as_entries(content: Contents) -> dict[str, object]:
    items = content.value.items() if isinstance(content.value, dict) else ()
    return {name: item for name, item in items if isinstance(name, str)}


def _merged(contents: Sequence[Contents]) -> dict[str, object]:
    return {name: item for content in contents for name, item in _as_entries(content).items()}


def _folder_sha256(files: Sequence[FileStamp]) -> str:
    return sha256_bytes(canonical_json({stamp.path.name: stamp.sha256 for stamp in files}))


def _common_prefix(names: Collection[str]) -> str:
    """The dotted path that all names begin with, its last dot included."""
    first, last = min(names, default="").split("."), max(names, default="").split(".")
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first[:-1], last[:-1], strict=False))
    return "".join(f"{part}." for part, _ in shared)


def _tied(tensors: Mapping[str, TensorSpec]) -> list[str]:
    names: defaultdict[TensorSpec, list[str]] = defaultdict(list)
    for name, spec in tensors.items():
        names[spec].append(name)
    return [f"tied: {' = '.join(group)}" for spec, group in names.items() if len(group) > 1 and spec.size_bytes]


def _inert(contents: Sequence[Contents]) -> list[str]:
    names = sorted({name for content in contents for name in content.inert})
    return [f"objects that were not made: {listed(names)}"] if names else []


__all__ = [
    "Checkpoint", "FileStamp", "StateDict", "TensorSpec", "check_unchanged", "find_checkpoints", "load_state",
    "read_checkpoint", "read_tensor", "save_state", "state_entry", "state_sha256", "with_names",
]  # fmt: skip
