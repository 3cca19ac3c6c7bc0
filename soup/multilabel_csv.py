"""The labels of images that have any number of them, from the columns of a labels.csv."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from soup import SoupError
from soup.sources import several

_OTHERS = ("path", "group")  # what a labels.csv has beside labels
_CLASSES = 100_000  # a number beyond is a slip of the pen
Rows = Mapping[int, Mapping[str, str]]  # line number → column → cell


def read_multilabel(
    path: Path, columns: Sequence[str], rows: Rows, *, classes: Sequence[str] | int | None = None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """bool [rows, C], and the names of the C classes; None where they are numbers.

    Either a column `labels`: names, or whole numbers from 0, separated by ';', or by spaces where no cell of the file
    has a ';'. An empty cell is an image of no class. Or, beside path and group, a column of 0 and 1 for each class.
    `classes` are their names in the order of the model's outputs, or their number. Without them, the names found count
    in sorted order, columns in the order of the file, and numbers up to the largest.
    Raises SoupError with all problems of one kind at once.
    """
    if "labels" in columns:
        return _from_cells(path, {line: row.get("labels", "") for line, row in rows.items()}, classes)
    return _from_columns(path, [column for column in columns if column not in _OTHERS], rows, classes)


def _from_cells(
    path: Path, cells: Mapping[int, str], classes: Sequence[str] | int | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    found = _separated(path, cells)
    texts = _texts(found)
    if not texts and classes is None:
        raise SoupError(f"{path}: no row has a label, expected names or numbers in column labels. Fill them in.")
    numbered = all(_is_number(text) for text in texts)
    names = None if classes is None or isinstance(classes, int) else tuple(classes)
    if names is None and not numbered:
        names = _sorted_names(path, found)
    count = classes if isinstance(classes, int) else max(map(int, texts)) + 1 if names is None else len(names)
    if names is not None and len(names) != count:
        raise SoupError(
            f"{path}: names {len(names)} classes ({several(names)}), expected {count}, the outputs of the model. "
            "Number the labels by its outputs, or name all its classes."
        )
    places = {name: place for place, name in enumerate(names or ())}
    if numbered and not texts <= places.keys():
        places = {text: int(text) for text in texts}
    if strange := {text for text in texts if places.get(text, _CLASSES) >= min(count, _CLASSES)}:
        reason = f"are none of {count:,} classes" + ("" if names is None else f" ({several(names)})")
        raise _refused(path, found, strange, f"{reason}. Mend them, or the classes.")
    truth = np.zeros((len(found), count), bool)
    for row, labels in enumerate(found.values()):
        truth[row, [places[text] for text in labels]] = True
    return truth, names


def _separated(path: Path, cells: Mapping[int, str]) -> dict[int, list[str]]:
    """The labels of each line. A file that seems to be separated in two ways, or by something else, is refused."""
    if any(";" in cell for cell in cells.values()):
        found = {line: [part.strip() for part in cell.split(";") if part.strip()] for line, cell in cells.items()}
        known = _texts(found)
        mixed = {text for text in known if len(words := re.split(r"[\s,|]+", text)) > 1 and known.issuperset(words)}
        if mixed:
            raise _refused(path, found, mixed, "are made of others. Separate labels by ';' throughout.")
        return found
    found = {line: cell.split() for line, cell in cells.items()}
    if joined := {text for text in _texts(found) if "," in text or "|" in text}:
        raise _refused(path, found, joined, "hold a ',' or '|'. Separate labels by ';', or by spaces.")
    return found


def _sorted_names(path: Path, found: Mapping[int, list[str]]) -> tuple[str, ...]:
    texts = _texts(found)
    numbers = {text for text in texts if re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", text)}
    if numbers:
        strange = {text for text in texts if not _is_number(text)}
        reason = (
            "are not whole numbers from 0, and some labels are numbers. Use integers throughout, or names throughout."
        )
        raise _refused(path, found, strange, reason)
    return tuple(sorted(texts))


def _refused(path: Path, found: Mapping[int, list[str]], strange: set[str], why: str) -> SoupError:
    lines = [f"line {line} '{text}'" for line, labels in found.items() for text in labels if text in strange]
    return SoupError(f"{path}: labels {several(lines)} {why}")


def _texts(found: Mapping[int, list[str]]) -> set[str]:
    return {text for labels in found.values() for text in labels}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _from_columns(
    path: Path, columns: Sequence[str], rows: Rows, classes: Sequence[str] | int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    if not columns or "label" in columns:
        raise SoupError(
            f"{path}: no column labels, expected path,labels[,group], or one column of 0 and 1 for each class beside "
            f"path, but found {list(columns)}. A column label is for images of one class each."
        )
    if twice := [repr(name) for name, times in Counter(columns).items() if times > 1 or not name]:
        raise SoupError(f"{path}: columns without a name of their own: {several(twice)}. Name each class once.")
    bad = [
        f"line {line} {column} '{row.get(column, '')}'"
        for line, row in rows.items()
        for column in columns
        if row.get(column, "") not in ("0", "1")
    ]
    if bad:
        raise SoupError(
            f"{path}: {len(bad)} cells are not 0 or 1: {several(bad)}. "
            "Every column but path and group is a class; remove what is none, or list names in a column labels."
        )
    order = list(columns) if classes is None or isinstance(classes, int) else list(classes)
    if set(order) != set(columns) or (isinstance(classes, int) and classes != len(columns)):
        expected = classes if isinstance(classes, int) else several(order)
        raise SoupError(f"{path}: has the classes {several(columns)}, expected {expected}. Mend the columns.")
    return np.array([[row[name] == "1" for name in order] for row in rows.values()], bool), tuple(order)
