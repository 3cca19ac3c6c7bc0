"""Activation ranges for INT8: measured on real images in one pass, kept as a table that is readable and hashed."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from calib import CalibError, DivergedError
from calib.histograms import Histogram
from calib.thresholds import entropy_threshold, mse_threshold, percentile_threshold

Method = Literal["minmax", "entropy", "percentile", "mse"]
Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]
_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RangeTable:
    """(lowest, highest) by tensor, symmetric about 0, and what they were measured with.

    `list_sha256` is of the images' hashes in their order (`calib.samples.list_sha256`), `graph_sha256` of the FP32
    graph; `percentile` is None for the other methods.
    """

    method: Method
    samples: int
    list_sha256: str
    graph_sha256: str
    ranges: Mapping[str, tuple[float, float]]
    percentile: float | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 of the table's canonical JSON without this very hash."""
        return hashlib.sha256(_dump(_facts(self)).encode()).hexdigest()


def measure_ranges(
    batches: Batches,
    *,
    method: Method,
    percentile: float = 99.99,
    unclipped: Collection[str] = (),
    where: str = "calibration",
) -> dict[str, tuple[float, float]]:
    """Symmetric ranges (-t, t) of the float32 arrays by name that `batches()` yields, in order of their first coming.

    "minmax": t is the largest magnitude; "percentile": what `percentile` percent of the magnitudes do not exceed;
    "entropy": least information lost; "mse": least squared error. One pass, and the result does not depend on how the
    images are split into batches, nor on their order.

    Raises:
        DivergedError: a tensor held NaN or Inf.
        CalibError: "input" where there are no batches, or `method` or `percentile` is none.
    """
    if method not in get_args(Method):
        known = ", ".join(get_args(Method))
        raise CalibError(f"{where}: method is '{method}', expected one of {known}.")
    if not 0 < percentile <= 100:
        raise CalibError(f"{where}: percentile is {percentile}, expected more than 0 and at most 100.")
    found = _histograms(batches, binned=lambda name: method != "minmax" and name not in unclipped, where=where)
    if not found:
        raise CalibError(f"{where}: no batch came, expected at least one. Add calibration images.")
    methods: dict[str, Method] = dict.fromkeys(unclipped, "minmax")
    thresholds = {name: _threshold(item, methods.get(name, method), percentile) for name, item in found.items()}
    return {name: (-threshold, threshold) for name, threshold in thresholds.items()}


def write_ranges(path: Path, table: RangeTable) -> None:
    """Write the table as JSON, one line per tensor, whole or not at all. Raises CalibError where that fails."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staged.open("w", encoding="utf-8") as file:
            file.write(_readable(table))
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise CalibError(
            f"{path}: cannot be written: {error.strerror}. Check the folder and its free space."
        ) from error


def read_ranges(path: Path, *, graph_sha256: str | None = None, list_sha256: str | None = None) -> RangeTable:
    """A table that `write_ranges` wrote.

    Raises CalibError ("input") where it cannot be read, was damaged or edited, or is of another graph or list of images
    than expected (None: any).
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CalibError(f"{path}: no JSON ({error}). Calibrate again.") from error
    table = _table(path, facts)
    if facts["sha256"] != table.sha256:
        message = f"{path}: its SHA-256 is {table.sha256}, expected {facts['sha256']} as written in it."
        raise CalibError(f"{message} It was damaged or edited: calibrate again.")
    expected = {"graph_sha256": graph_sha256, "list_sha256": list_sha256}
    for name, value in expected.items():
        if value is not None and facts[name] != value:
            what = "graph" if name == "graph_sha256" else "list of images"
            message = f"{path}: was measured with another {what}, {name} is {facts[name]}, expected {value}."
            raise CalibError(f"{message} Calibrate again.")
    return table


def _histograms(batches: Batches, *, binned: Callable[[str], bool], where: str) -> dict[str, Histogram]:
    """By tensor; of those that are not `binned` only the largest magnitude is known."""
    found: dict[str, Histogram] = {}
    for batch in batches():
        for name, array in batch.items():
            histogram = found.setdefault(name, Histogram())
            if binned(name):
                try:
                    histogram.add(array)
                except ValueError as error:
                    raise _diverged(name, where) from error
            else:
                largest = float(max(array.max(), -array.min())) if array.size else 0.0
                if not math.isfinite(largest):
                    raise _diverged(name, where)
                histogram.largest = max(histogram.largest, largest)
    return found


def _diverged(name: str, where: str) -> DivergedError:
    return DivergedError(
        f"{where}: tensor '{name}' holds NaN or Inf, expected finite activations. Check the weights and the images."
    )


def _threshold(histogram: Histogram, method: Method, percentile: float) -> float:
    if method == "minmax":
        return histogram.largest
    if method == "percentile":
        return percentile_threshold(histogram, percentile)
    return entropy_threshold(histogram) if method == "entropy" else mse_threshold(histogram)


def _facts(table: RangeTable) -> dict[str, Any]:
    return {
        "graph_sha256": table.graph_sha256,
        "list_sha256": table.list_sha256,
        "method": table.method,
        "percentile": table.percentile,
        "ranges": {name: list(ends) for name, ends in table.ranges.items()},
        "samples": table.samples,
        "schema_version": _SCHEMA_VERSION,
    }


def _dump(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _readable(table: RangeTable) -> str:
    """Valid JSON with a line per fact and a line per tensor, keys sorted."""
    facts = _facts(table) | {"sha256": table.sha256}
    ranges = ",\n".join(f"    {_dump(name)}: {_dump(ends)}" for name, ends in sorted(facts["ranges"].items()))
    lines = {key: _dump(value) for key, value in facts.items()} | {"ranges": f"{{\n{ranges}\n  }}"}
    return "{\n" + ",\n".join(f'  "{key}": {lines[key]}' for key in sorted(lines)) + "\n}\n"


def _table(path: Path, facts: Any) -> RangeTable:
    try:
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in facts["ranges"].items()}
        version, method, samples = facts["schema_version"], facts["method"], facts["samples"]
        hashes = str(facts["list_sha256"]), str(facts["graph_sha256"])
        percentile, _ = facts["percentile"], facts["sha256"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CalibError(f"{path}: no table of ranges ({type(error).__name__}: {error}). Calibrate again.") from error
    if version != _SCHEMA_VERSION or method not in get_args(Method):
        message = f"{path}: has version {version!r} and method {method!r}, expected {_SCHEMA_VERSION} and a known one."
        raise CalibError(f"{message} Calibrate again.")
    return RangeTable(method, samples, *hashes, ranges, percentile)
