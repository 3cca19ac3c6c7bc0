"""What every command that judges a network starts from: the network, its checkpoints, and the splits, all checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from calib.samples import list_sha256, overlaps
from soup import SoupError
from soup.build_folder import SplitRecord
from soup.callables import resolve
from soup.checkpoint import Checkpoint, find_checkpoints, read_checkpoint, with_names
from soup.config import Config
from soup.data import Split, load_split
from soup.headers import Table
from soup.models import build_model, tensor_table
from soup.preflight import Preflight, preflight
from soup.preprocess import Letterbox, Preprocess

Progress = Callable[[str, int, int], None]  # (what, done, total)


@dataclass(frozen=True, slots=True)
class Larder:
    """A network and the checkpoints that may be averaged into it."""

    model: nn.Module
    ingredients: Mapping[str, Checkpoint]  # by SHA-256
    preflight: Preflight
    set_aside: tuple[tuple[str, str], ...]  # (path, reason)
    notes: tuple[str, ...]


def gather(config: Config, *, exclude: Path | None, progress: Progress) -> Larder:
    """Find, read and compare the checkpoints, and build the network they fit.

    An unreadable one is refused with all others that are, or set aside (`checkpoints.on_bad_ingredient: skip`).
    """
    model = build_model(config.model, config.model_args, folder=config.folder)
    table = tensor_table(model)
    paths, notes = find_checkpoints(config.checkpoints.files, folder=config.folder, exclude=exclude)
    readable, unreadable = read_all(config, paths, table=table, progress=progress)
    if unreadable and config.checkpoints.on_bad_ingredient == "fail":
        raise SoupError("\n".join(reason for _, reason in unreadable))
    if not readable:
        raise SoupError("\n".join([*(reason for _, reason in unreadable), "checkpoints: none of them can be read."]))
    checked = preflight(readable, model_spec=table, on_bad=config.checkpoints.on_bad_ingredient)
    aside = [*unreadable, *((str(path), reason) for path, reason in checked.set_aside)]
    usable = {checkpoint.sha256: checkpoint for checkpoint in checked.ingredients}
    return Larder(model, usable, checked, tuple(aside), notes)


def read_all(
    config: Config, paths: Sequence[Path], *, table: Table, progress: Progress
) -> tuple[list[Checkpoint], list[tuple[str, str]]]:
    """The checkpoints that can be read, their tensors named as in `table`, and (path, reason) of the others."""
    readable, unreadable = [], []
    for done, path in enumerate(paths, 1):
        try:
            checkpoint = read_checkpoint(path, use=config.checkpoints.use, drop=config.checkpoints.drop)
            readable.append(with_names(checkpoint, table))
        except SoupError as error:
            unreadable.append((str(path), str(error)))
        progress("reading checkpoints", done, len(paths))
    return readable, unreadable


def load_data(config: Config, names: Sequence[str], *, cache: Path, progress: Progress) -> dict[str, Split]:
    """The splits that val.yaml names, decoded; absent ones are left out.

    Raises SoupError where they number their classes differently (a missing class folder would shift every label).
    """
    splits = {}
    for name in names:
        source = getattr(config.data, name)
        if source is not None:
            splits[name] = _load_split(config, name, source, cache=cache, progress=progress)
    _refuse_other_classes(splits)
    return splits


def find_overlaps(splits: Mapping[str, Split], *, max_overlap: float) -> tuple[str, ...]:
    """One line for each pair of splits that share images by content. Raises SoupError above `max_overlap`."""
    shared = overlaps({name: split.hashes for name, split in splits.items()})
    lines = [
        f"data.{one.first} and data.{one.second} share {one.count} images ({one.share:.2%} of the smaller), "
        f"as '{splits[one.first].ids[one.examples[0][0]]}' = '{splits[one.second].ids[one.examples[0][1]]}'"
        for one in shared
    ]
    beyond = [line for line, one in zip(lines, shared, strict=True) if one.share > max_overlap]
    if beyond:
        raise SoupError(
            "\n".join(f"{line}, more than data.max_overlap = {max_overlap:g}. Split them anew." for line in beyond)
        )
    return tuple(lines)


def preprocess_of(config: Config) -> Preprocess | None:
    """val.yaml's `preprocess` as the data layer takes it."""
    if config.preprocess is None:
        return None
    plain = config.preprocess.model_dump()
    letterbox = plain.pop("letterbox")
    return Preprocess(**plain, letterbox=Letterbox(**letterbox) if letterbox else None)


def split_record(split: Split) -> SplitRecord:
    """The facts of a split that a build keeps."""
    groups = None if split.groups is None else len(set(split.groups.tolist()))
    return SplitRecord(len(split), list_sha256(split.hashes), groups, split.skipped)


def _load_split(config: Config, name: str, source: str, *, cache: Path, progress: Progress) -> Split:
    is_callable = ":" in source and not (config.folder / source).exists()
    return load_split(
        name, resolve(source, folder=config.folder) if is_callable else source,
        folder=config.folder, preprocess=preprocess_of(config), cache=cache, max_gb=config.data.cache.max_gb,
        on_bad=config.data.on_bad_sample, draw=_draw(config) if name == "train" else None,
        progress=lambda done, total: progress(f"decoding {name}", done, total),
    )  # fmt: skip


def _draw(config: Config) -> int:
    """How many train images are decoded: enough to choose from once shared content is left out."""
    return 4 * config.batchnorm.samples


def _refuse_other_classes(splits: Mapping[str, Split]) -> None:
    named = [split for split in splits.values() if split.class_names]
    for first, second in itertools.pairwise(named):
        if first.class_names != second.class_names:
            differing = sorted(set(first.class_names) ^ set(second.class_names))
            raise SoupError(
                f"data.{second.name}: has other classes than data.{first.name} ('{differing[0]}' is only in one of them), "
                "and labels are numbered by class name. Give both the same class folders (an empty one will do)."
            )
