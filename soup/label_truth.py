"""The classes of images as a split's targets: one for each, or any number of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.decoded import Decoded
from soup.multilabel_csv import read_multilabel
from soup.preprocess import Preprocess
from soup.sources import (
    Given,
    Sample,
    Source,
    files_identity,
    from_function,
    function_sample,
    open_source,
    read_csv,
    several,
)
from soup.truth import Reader

Classes = Sequence[str] | int | None  # names in the order of the network's scores, or how many there are


def several_labels(classes: Classes) -> Reader:
    """Of images with any number of labels; `classes` as `read_multilabel` takes them, so that splits number alike."""
    return Reader(partial(_open_several, classes=classes), _labels)


def _labels(decoded: Decoded, preprocess: Preprocess | None, *, origin: str, judges: bool) -> Arrays:
    """{"label": int64 [n]}, or {"labels": bool [n, classes]} where an image may have several."""
    if any(sample.truth is not None for sample in decoded.samples):
        return {"labels": np.stack([np.asarray(sample.truth, bool) for sample in decoded.samples])}
    return {"label": np.array([sample.label for sample in decoded.samples], np.int64)}


def _open_several(
    name: str, source: Given, *, folder: Path, max_bytes: float, classes: Classes
) -> Source[Sample]:  # fmt: skip
    """labels.csv with any number of labels a row, or a function that gives (image, bool [classes][, id])."""
    if callable(source):
        names = None if classes is None or isinstance(classes, int) else tuple(classes)
        count = classes if isinstance(classes, int) else None if names is None else len(names)
        read = partial(_labelled, count=count)
        return from_function(name, source, read, class_names=names)
    path = folder / Path(str(source)).expanduser()
    if not isinstance(source, str) or path.suffix != ".csv":
        raise SoupError(
            f"data.{name}: '{source}', expected a .csv or a callable, since classification.multilabel is set."
        )
    columns, rows = read_csv(path)
    if "path" not in columns or not rows:
        raise SoupError(f"{path}: no column path, or no rows below the header, expected path,labels. Add them.")
    if bad := [f"line {line}" for line, row in rows.items() if not row.get("path")]:
        raise SoupError(f"{path}: without path: {several(bad)}. Fill them in.")
    truth, names = read_multilabel(path, columns, rows, classes=classes)
    samples = [
        Sample(row["path"], path.parent / row["path"], 0, row.get("group") or None, labels)
        for row, labels in zip(rows.values(), truth, strict=True)
    ]
    return Source(str(path), samples, len(samples), names, files_identity(path.parent, samples))


def _labelled(item: object, index: int, where: str, *, count: int | None) -> Sample:
    """Of an image with any number of labels, as 0 and 1 for each of `count` classes; None: for as many as it gives."""
    if isinstance(item, SoupError):
        return Sample(str(index), item, 0, None)
    labels = np.asarray(item[1]) if isinstance(item, (tuple, list)) and len(item) in (2, 3) else np.empty(0)
    if labels.ndim != 1 or not labels.size or not np.isin(labels, (0, 1)).all():
        raise SoupError(f"{where} has labels {labels!r}, expected 0 or 1 for each class. Give (image, labels[, id]).")
    if count is not None and len(labels) != count:
        raise SoupError(f"{where} has {len(labels)} labels, expected {count}, one for each class. Give 0 or 1 for all.")
    sample = function_sample([item[0], 0, *item[2:]], index, where)  # type: ignore[index]  # a sequence, as seen
    return replace(sample, truth=labels.astype(bool))


LABELS = Reader(open_source, _labels)
