"""Where the samples of a split come from: an image folder, labels.csv, an .npz, or the user's function."""

from __future__ import annotations

import csv
import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar, cast

import numpy as np

from calib.samples import choose
from soup import SoupError
from soup.callables import call
from soup.files import sha256_bytes, sha256_file, shown
from soup.image_files import SUFFIXES, files_below

_SHOWN = 10
Given = str | Mapping[str, str] | Callable[[], object]  # what val.yaml has under data.val
_CLASSES = 10**9  # a label beyond is a slip of the pen


@dataclass(frozen=True, slots=True)
class Sample:
    """One image before preprocessing (a path, an array, a PIL image, a tensor; an error instead) with its class.

    `truth` is what else is in it, as a task's reader has it; `problems` is what was wrong with that, a sentence each.
    """

    id: str
    image: object
    label: int
    group: str | None
    truth: object = None
    problems: tuple[str, ...] = ()


One = TypeVar("One")  # a sample, as a task's reader makes it
Other = TypeVar("Other")


@dataclass(frozen=True, slots=True)
class Source(Generic[One]):
    """The samples of a split, in a fixed order. Two splits number their classes alike where `class_names` are equal."""

    origin: str  # as messages name it
    samples: Iterable[One]  # a list; of a function each is read when it is asked for, and once
    count: int | None  # None where only reading tells
    class_names: tuple[str, ...] | None  # None where classes are numbers without names
    identity: object | None  # JSON of all that decides the images of usable samples; None where only reading tells
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()  # of records that belong to no sample

    def mapped(self, change: Callable[[One], Other]) -> Source[Other]:
        """With each sample changed; those of a function as they are read."""
        changed = map(change, self.samples)
        samples = list(changed) if isinstance(self.samples, Sequence) else changed
        return Source(
            self.origin, samples, self.count, self.class_names, self.identity, self.notes, self.problems
        )  # fmt: skip


def open_source(name: str, source: Given, *, folder: Path, max_bytes: float) -> Source[Sample]:
    """List the samples of the split `name`; paths are relative to `folder`. No image is decoded yet.

    Image folder: one subfolder per class, sorted, as torchvision's ImageFolder; hidden ones are left out.
    labels.csv: columns path (relative to the file), label (integers, or names, numbered in sorted order), group.
    .npz: images uint8 [n, h, w(, channels)], labels, optionally ids and groups; at most `max_bytes` once unpacked.
    Function: called without arguments, gives a dataset (len and index) or an iterable of (image, label[, id]).
    Raises SoupError with all problems of one kind at once.
    """
    if isinstance(source, Mapping):
        keys = ", ".join(source)
        raise SoupError(f"data.{name}: has {keys}, expected an image folder, a .csv, an .npz or a callable.")
    if not isinstance(source, str):
        return from_function(name, source, function_sample)
    path = folder / Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise SoupError(f"{path}: no such file or folder. Point data.{name} at an image folder, a .csv or an .npz.")
    if path.suffix == ".csv":
        return _from_csv(path)
    if path.suffix == ".npz":
        return _from_npz(path, max_bytes=max_bytes)
    raise SoupError(f"{path}: '{path.suffix}' is no known kind of data. Give an image folder, a .csv or an .npz.")


def drawn(source: Source[Sample], count: int) -> Source[Sample]:
    """`count` of its samples, classes in proportion, the same ones each time; all where it has no more, or cannot tell.

    In the order of the source. A function's samples are read one after the other, so it gives them all.
    """
    if not isinstance(source.samples, Sequence) or len(source.samples) <= count:
        return source
    names = [sha256_bytes(sample.id.encode()) for sample in source.samples]
    rows = sorted(choose(names, count, labels=[sample.label for sample in source.samples]).tolist())
    samples = [source.samples[row] for row in rows]
    return replace(source, samples=samples, count=count, identity=["drawn", count, source.identity])


def several(items: Sequence[str]) -> str:
    """The first ten of them, and how many more there are."""
    rest = len(items) - _SHOWN
    return "; ".join(items[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _from_folder(root: Path) -> Source[Sample]:
    try:
        classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise SoupError(f"{error.filename}: cannot be read: {error.strerror}. Check its permissions.") from error
    samples = [
        Sample(shown(path.relative_to(root)), path, label, None)
        for label, class_name in enumerate(classes)
        for path in files_below(root / class_name)
    ]
    if not samples:
        kinds = " ".join(SUFFIXES)
        raise SoupError(f"{root}: no images in {len(classes)} class folders, expected CLASS/IMAGE with one of {kinds}.")
    return Source(str(root), samples, len(samples), tuple(map(shown, classes)), files_identity(root, samples))


def _from_csv(path: Path) -> Source[Sample]:
    columns, rows = read_csv(path)
    if missing := [column for column in ("path", "label") if column not in columns]:
        raise SoupError(f"{path}: no column {' and '.join(missing)}, expected path,label[,group] but found {columns}.")
    if not rows:
        raise SoupError(f"{path}: no rows below the header. Add one line per image.")
    used = [column for column in ("path", "label", "group") if column in columns]
    if bad := [f"line {line}" for line, row in rows.items() if not all(row.get(column) for column in used)]:
        raise SoupError(f"{path}: without {' or '.join(used)}: {several(bad)}. Fill them in.")
    labels, class_names = _numbered(path, {line: row["label"] for line, row in rows.items()})
    samples = [
        Sample(row["path"], path.parent / row["path"], label, row.get("group"))
        for row, label in zip(rows.values(), labels, strict=True)
    ]
    return Source(str(path), samples, len(samples), class_names, files_identity(path.parent, samples))


def read_csv(path: Path) -> tuple[list[str], dict[int, dict[str, str]]]:
    """The header, and line number → row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            columns = [cell.strip() for cell in next(reader, [])]
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SoupError(f"{path}: cannot be read as a CSV file: {error}.") from error
    if long := [f"line {line}" for line, cells in lines if len(cells) > len(columns) > 0]:
        raise SoupError(f"{path}: more than {len(columns)} cells: {several(long)}. Quote paths that hold a comma.")
    return columns, {line: dict(zip(columns, cells, strict=False)) for line, cells in lines}


def _numbered(path: Path, texts: Mapping[int, str]) -> tuple[list[int], tuple[str, ...] | None]:
    """Integers as they are; names by their place in sorted order. A mix is a slip of the pen, and refused."""
    others = [f"line {line} '{text}'" for line, text in texts.items() if not _is_class(text)]
    if not others:
        return [int(text) for text in texts.values()], None
    if any(_is_number(text) for text in texts.values()):
        raise SoupError(
            f"{path}: some labels are numbers and these are not whole ones from 0: {several(others)}. "
            "Use integers throughout, or names throughout."
        )
    names = sorted(set(texts.values()))
    places = {name: place for place, name in enumerate(names)}
    return [places[text] for text in texts.values()], tuple(names)


def _is_class(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < len(str(_CLASSES))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _from_npz(path: Path, *, max_bytes: float) -> Source[Sample]:
    arrays = _read_npz(path, max_bytes=max_bytes)
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim < 2 or not len(images):
        raise SoupError(
            f"{path}: 'images' has shape {images.shape}, expected (n, height, width[, channels]), n from 1."
        )
    if labels.dtype.kind not in "iu":
        raise SoupError(f"{path}: 'labels' is {labels.dtype}, expected integers.")
    for key, array in arrays.items():
        if key != "images" and array.shape != (len(images),):
            raise SoupError(f"{path}: '{key}' has shape {array.shape}, expected ({len(images)},): one for each image.")
    if (outside := np.flatnonzero((labels < 0) | (labels >= _CLASSES))).size:
        reasons = several([f"row {row}: {labels[row]}" for row in outside])
        raise SoupError(f"{path}: labels that number no class: {reasons}. Count classes from 0.")
    ids = arrays.get("ids", np.arange(len(images)))
    groups = arrays.get("groups")
    samples = [
        Sample(str(ids[row]), images[row], int(labels[row]), None if groups is None else str(groups[row]))
        for row in range(len(images))
    ]
    return Source(str(path), samples, len(samples), None, ["npz", sha256_file(path)])


def _read_npz(path: Path, *, max_bytes: float) -> dict[str, np.ndarray]:
    wanted = ("images", "labels", "ids", "groups")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > max_bytes:
            raise SoupError(
                f"{path}: {size / 1e9:.1f} GB unpacked, more than data.cache.max_gb = {max_bytes / 1e9:g}. "
                "Raise it, or use fewer images."
            )
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in wanted if key in archive}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SoupError(f"{path}: cannot be read as an .npz: {error}.") from error
    if missing := [key for key in wanted[:2] if key not in arrays]:
        raise SoupError(f"{path}: no array {' and '.join(missing)}, expected images and labels[, ids, groups].")
    return arrays


def from_function(
    name: str,
    function: Callable[[], object],
    read: Callable[[object, int, str], One],
    *,
    gives: str = "(image, label[, id])",
    class_names: tuple[str, ...] | None = None,
) -> Source[One]:
    """The samples that a function of the user gives, each made by `read` of (item, its number, how to name it)."""
    origin = f"data.{name}"
    dataset = call(function, where=origin)
    count = cast("int", call(len, dataset, where=origin)) if isinstance(dataset, Sized) else None
    if count is not None and hasattr(dataset, "__getitem__"):
        items = _by_index(dataset.__getitem__, count)
    elif isinstance(dataset, Iterable):
        items = _in_turn(cast("Iterator[object]", call(iter, dataset, where=origin)), origin)
    else:
        raise SoupError(f"{origin}: gave {type(dataset).__name__}, expected a dataset or an iterable of {gives}.")
    samples = (read(item, index, f"{origin}: sample {index}") for index, item in enumerate(items))
    return Source(origin, samples, count, class_names, None)


def _by_index(get: Callable[[int], object], count: int) -> Iterator[object]:
    """What a dataset raises for a sample stands for its image, since datasets read files when they are indexed."""
    for index in range(count):
        try:
            yield call(get, index, where="__getitem__")
        except SoupError as error:
            yield error


def _in_turn(items: Iterator[object], origin: str) -> Iterator[object]:
    end = object()
    for index in itertools.count():
        item = call(next, items, end, where=f"{origin}: sample {index}")
        if item is end:
            return
        yield item


def function_sample(item: object, index: int, where: str) -> Sample:
    """An image and its class, as a dataset gives them."""
    if isinstance(item, SoupError):
        return Sample(str(index), item, 0, None)
    if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
        raise SoupError(f"{where} is {type(item).__name__}, expected (image, label) or (image, label, id).")
    image = item[0].detach().cpu() if hasattr(item[0], "detach") else item[0]
    label = np.asarray(item[1])
    if label.size != 1 or label.dtype.kind not in "iu" or not 0 <= label.item() < _CLASSES:
        raise SoupError(f"{where} has the label {item[1]!r}, expected one integer from 0. Give samples, not batches.")
    return Sample(str(item[2]) if len(item) == 3 else str(index), image, int(label.item()), None)


def files_identity(root: Path, samples: Sequence[Sample]) -> object:
    stamps = [[sample.id, *_stamp(sample.image)] for sample in samples if isinstance(sample.image, Path)]
    return ["files", str(root.resolve()), stamps]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1  # decoding will say what is wrong
    return status.st_size, status.st_mtime_ns
