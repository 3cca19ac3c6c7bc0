"""What every command that judges a network starts from: the network, its checkpoints, and the splits, all checked."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from calib.samples import list_sha256, overlaps
from soup import Progress, SoupError
from soup.adapters import transform_note
from soup.box_truth import boxes
from soup.build_folder import SplitRecord
from soup.callables import resolve
from soup.checkpoint import Checkpoint, find_checkpoints, read_checkpoint, with_names
from soup.config import Config
from soup.data import Split, load_split
from soup.headers import Table
from soup.label_truth import LABELS, Classes, several_labels
from soup.mask_truth import masks
from soup.models import select_device, tensor_table
from soup.near_duplicates import near_duplicates, shared_groups
from soup.network import network_of
from soup.preflight import Preflight, preflight
from soup.preprocess import Letterbox, Preprocess
from soup.sections import Files, Where
from soup.sources import Given
from soup.truth import Reader

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Larder:
    """A network and the checkpoints that may be averaged into it."""

    model: nn.Module
    ingredients: Mapping[str, Checkpoint]  # by SHA-256
    preflight: Preflight
    set_aside: tuple[tuple[str, str], ...]  # (path, reason)
    notes: tuple[str, ...]
    base: Checkpoint | None = None  # what they were fine-tuned from

    @property
    def cookable(self) -> dict[str, Checkpoint]:
        """Whatever a soup may be made of, by SHA-256."""
        return {**self.ingredients, **({self.base.sha256: self.base} if self.base else {})}


def gather(config: Config, *, exclude: Path | None, only: Collection[str] | None = None, progress: Progress) -> Larder:
    """Find, read and compare the checkpoints, and build the network they fit.

    An unreadable one is refused with all others that are, or set aside (`checkpoints.on_bad_ingredient: skip`). With
    `only`, those of these SHA-256 are taken, whatever their files are called, and the others do not matter.
    """
    select_device(config.device)  # told now, and not once every image is decoded
    model = network_of(config)
    table = tensor_table(model)
    paths, notes = find_checkpoints(config.checkpoints.files, folder=config.folder, exclude=exclude)
    readable, unreadable = _read_all(config, paths, table=table, progress=progress)
    if only is not None:
        readable, unreadable = _only(only, readable, looked_at=len(paths)), []
    if unreadable and config.checkpoints.on_bad_ingredient == "fail":
        raise SoupError("\n".join(reason for _, reason in unreadable))
    if not readable:
        raise SoupError("\n".join([*(reason for _, reason in unreadable), "checkpoints: none of them can be read."]))
    checked = preflight(readable, model_spec=table, on_bad=config.checkpoints.on_bad_ingredient)
    for one in checked.findings:
        if one.level == "warning":  # told now: a build may take hours, and this may be the reason to stop it
            _LOG.warning("warning: %s: %s", one.where, one.what)
    aside = [(path, reason.removeprefix(f"{path}: ")) for path, reason in unreadable]
    aside += [(str(path), reason) for path, reason in checked.set_aside]
    usable = {checkpoint.sha256: checkpoint for checkpoint in checked.ingredients}
    if config.task == "detection" and config.preprocess is not None:
        told = transform_note(model, config.preprocess.mean, config.preprocess.std)
        notes = (*notes, *([told] if told else []))
    return Larder(model, usable, checked, tuple(aside), notes, _base(config, usable, table=table))


def load_data(
    config: Config, names: Sequence[str], *, cache: Path, progress: Progress,
    each: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Split]:  # fmt: skip
    """The splits that val.yaml names, decoded; absent ones are left out. `each` is entered for every step that raises.

    Raises SoupError where they number their classes differently (a missing class folder would shift every label), or
    hold images of different shapes.
    """
    splits: dict[str, Split] = {}
    several = config.classification.multilabel and config.task == "classification"
    for name in sorted(names, key=lambda name: several and name != "val"):
        if getattr(config.data, name) is not None:
            with each():
                classes = classes_of(splits.get("val"))
                splits[name] = open_split(config, name, cache=cache, progress=progress, classes=classes)
    splits = {name: splits[name] for name in names if name in splits}
    with each():
        _refuse_other_classes(splits)
        _refuse_other_shapes(splits)
    return splits


def open_split(
    config: Config, name: str, *, cache: Path, progress: Progress, preprocess: Preprocess | None = None,
    draw: int | None = None, classes: Classes = None,
) -> Split:  # fmt: skip
    """One split that val.yaml names, decoded; with another `preprocess` where one is given.

    `classes` are val's, of several labels, so that all splits number them alike.

    Of train no more than `draw` images are decoded, without it as many as BatchNorm may need.
    """
    where: Where = getattr(config.data, name)
    return load_split(
        name, _source(config, where),
        folder=config.folder, preprocess=preprocess or preprocess_of(config), cache=cache,
        max_gb=config.data.cache.max_gb, on_bad=config.data.on_bad_sample,
        reader=_reader(config, classes), draw=(draw or _draw(config)) if name == "train" else None,
        progress=lambda done, total: progress(f"decoding {name}", done, total),
    )  # fmt: skip


def classes_of(val: Split | None) -> Classes:
    """What the other splits must number alike, of several labels: names, or how many."""
    labels = None if val is None else val.targets.get("labels")
    if val is None or labels is None or labels.dtype != bool:
        return None
    return val.class_names or int(labels.shape[1])


def is_code(config: Config, source: str | Files | None) -> bool:
    """Whether a split names a callable, and not a file or folder."""
    return isinstance(source, str) and ":" in source and not (config.folder / source).exists()


def _source(config: Config, where: str | Files) -> Given:
    if isinstance(where, Files):
        return {key: value for key, value in where.model_dump().items() if value is not None}
    return resolve(where, folder=config.folder) if is_code(config, where) else where


def _reader(config: Config, classes: Classes) -> Reader:
    if config.task == "detection":
        return boxes(config.detection.classes)
    if config.task == "segmentation":
        section = config.segmentation
        return masks(section.ignore_index, classes=section.classes, at=section.score_at, palette=section.palette)
    return several_labels(config.classification.classes or classes) if config.classification.multilabel else LABELS


def _refuse_other_classes(splits: Mapping[str, Split]) -> None:
    """Raise SoupError where two splits number their classes differently."""
    named = [(split.name, split.class_names) for split in splits.values() if split.class_names is not None]
    for (first, classes), (second, others) in itertools.pairwise(named):
        if differing := sorted(set(classes) ^ set(others)):
            raise SoupError(
                f"data.{second}: has other classes than data.{first} ('{differing[0]}' is only in one of them), "
                "and labels are numbered by class name. Give both the same classes (an empty class folder will do)."
            )


def _refuse_other_shapes(splits: Mapping[str, Split]) -> None:
    """Raise SoupError where two splits feed the network images of different shapes."""
    for first, second in itertools.pairwise(splits.values()):
        found, expected = second.images.shape[1:], first.images.shape[1:]
        if found != expected:
            raise SoupError(
                f"data.{second.name}: has images of shape {found}, expected {expected} as in data.{first.name}. "
                "Set preprocess.resize to [height, width], resize and crop, or letterbox without a stride."
            )


def find_overlaps(config: Config, splits: Mapping[str, Split]) -> tuple[str, ...]:
    """One line for each pair of splits that share images by content. Raises SoupError above `data.max_overlap`.

    Groups that they share are listed too and, on request, pairs of images that only look alike.
    """
    max_overlap = config.data.max_overlap
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
    lines += shared_groups({name: split.groups for name, split in splits.items()})
    if config.data.near_duplicates:
        lines += near_duplicates(
            {name: split.images for name, split in splits.items()},
            {name: split.ids for name, split in splits.items()},
            {name: split.hashes for name, split in splits.items()},
        )
    return tuple(lines)


def preprocess_of(config: Config) -> Preprocess | None:
    """val.yaml's `preprocess` as the data layer takes it."""
    if config.preprocess is None:
        return None
    plain = config.preprocess.model_dump(exclude={"sweep"})
    letterbox = plain.pop("letterbox")
    return Preprocess(**plain, letterbox=Letterbox(**letterbox) if letterbox else None)


def split_record(split: Split) -> SplitRecord:
    """The facts of a split that a build keeps."""
    groups = None if split.groups is None else len(set(split.groups.tolist()))
    return SplitRecord(len(split), list_sha256(split.hashes), split.targets_sha256(), groups, split.skipped)


def _read_all(
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


def _base(config: Config, ingredients: Mapping[str, Checkpoint], *, table: Table) -> Checkpoint | None:
    """`checkpoints.base`, with the model's tensors; it may not be one of the ingredients too."""
    if config.checkpoints.base is None:
        return None
    path = config.resolve(config.checkpoints.base)
    try:
        read = read_checkpoint(path, use=config.checkpoints.use, drop=config.checkpoints.drop)
    except SoupError as error:  # its advice is for one of checkpoints.files
        reason = str(error).replace("Leave it out of checkpoints.files.", "Name another checkpoint.")
        raise SoupError(f"checkpoints.base: {reason}", kind=error.kind) from error
    base = with_names(read, table)
    if base.sha256 in ingredients:
        raise SoupError(
            f"checkpoints.base: '{path}' is one of checkpoints.files too, expected the model that they were fine-tuned "
            "from. Leave it out of files."
        )
    preflight([base], model_spec=table, on_bad="fail")
    return base


def _only(wanted: Collection[str], found: Sequence[Checkpoint], *, looked_at: int) -> list[Checkpoint]:
    if missing := sorted(set(wanted) - {one.sha256 for one in found}):
        lines = (f"checkpoints.files: none of {looked_at} checkpoints has the SHA-256 {sha}." for sha in missing)
        raise SoupError("\n".join([*lines, "The recipe averages it: restore the file, or name the folder it is in."]))
    return [one for one in found if one.sha256 in wanted]


def _draw(config: Config) -> int:
    """How many train images are decoded: enough to choose from once shared content is left out."""
    ranges = config.quantization.samples if config.search.precision != "fp32" else 0
    return 4 * max(config.batchnorm.samples, ranges)
