"""Figures of another tool, or of our own report.json, read from a JSON file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from soup import SoupError

# Our name of a figure → how others spell it, once in lower case with "_" for all that is no letter or digit; of a name
# with slashes the last part counts ("metrics/accuracy_top1").
KEYS: Mapping[str, tuple[str, ...]] = {
    "accuracy": ("accuracy", "acc", "acc1", "top1", "top_1", "accuracy_top1", "val_accuracy"),
    "top5": ("top5", "top_5", "acc5", "accuracy_top5"),
    "cross_entropy": ("cross_entropy", "nll"),
    "n": ("n", "n_images", "num_images", "images"),
    "p50_ms": ("p50_ms", "p50", "latency_p50_ms", "median_ms"),
    "p90_ms": ("p90_ms", "p90", "latency_p90_ms"),
    "p99_ms": ("p99_ms", "p99", "latency_p99_ms"),
    "throughput": ("throughput", "samples_per_second", "images_per_second", "fps"),
    "size_mb": ("size_mb", "engine_size_mb", "model_size_mb"),
}
_SHARES = ("accuracy", "top5")
_POSITIVE = ("n", "p50_ms", "p90_ms", "p99_ms", "throughput", "size_mb")


def read_metrics(path: Path) -> dict[str, float]:
    """The figures by our names (`KEYS`); of several spellings the one that lies highest in the file.

    Accuracies are shares of one, times are in milliseconds. Of our own report.json, those of the file that ships.
    Raises SoupError for a file that is no JSON, has none of these figures, one of them twice, or one that cannot be.
    """
    document = _document(path)
    own = {"schema_version", "hops", "checks", "values", "latency"} <= document.keys()
    found = _of_report(document) if own else _of_anything(document, path=path)
    if not found:
        raise SoupError(f"{path}: holds none of the figures {', '.join(KEYS)}. Give at least one of them, as a number.")
    for name, value in found.items():
        _refuse_impossible(name, value, path=path)
    return found


def _document(path: Path) -> Mapping[str, object]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise SoupError(f"{path}: cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise SoupError(f"{path}: is no JSON ({error}).") from error
    if not isinstance(document, dict):
        raise SoupError(f"{path}: holds {type(document).__name__}, expected an object of figures by name.")
    return document


def _of_anything(document: Mapping[str, object], *, path: Path) -> dict[str, float]:
    spelled = {spelling: name for name, spellings in KEYS.items() for spelling in spellings}
    found: dict[str, tuple[int, str, float]] = {}
    for key, value in _numbers(document, ()):
        name = spelled.get(re.sub(r"[^a-z0-9]+", "_", key[-1].rpartition("/")[2].lower()).strip("_"))
        if name is None:
            continue
        depth, where, other = found.get(name, (math.inf, "", value))
        if len(key) < depth:
            found[name] = (len(key), ".".join(key), value)
        elif len(key) == depth and value != other:
            both = f"{where} {other:g}, {'.'.join(key)} {value:g}"
            raise SoupError(f"{path}: tells '{name}' twice ({both}). Leave one of them in.")
    return {name: value for name, (_, _, value) in found.items()}


def _numbers(document: Mapping[str, object], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number below named keys, with its path; lists are no figures of one model."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _numbers(value, (*above, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*above, key), float(value)


def _of_report(document: Mapping[str, object]) -> dict[str, float]:
    """Of the precision that ships, else of the FP32 graph; the metric only where the report names it."""
    tried = document.get("precision")
    ships = [one for one in tried if _get(one, "outcome") == "ships"] if isinstance(tried, list) else []
    file = str(_get(ships[0], "file")) if ships else "model.onnx"
    latency = _get(document.get("latency"), file)
    pairs = {name: _get(latency, name) for name in ("p50_ms", "p90_ms", "p99_ms", "throughput")}
    hops = document.get("hops")
    if isinstance(metric := document.get("metric"), str) and isinstance(hops, list) and hops:
        pairs |= {metric: _get(document.get("values"), file), "n": _get(_get(hops[-1], "difference"), "n")}
    return {name: float(one) for name, one in pairs.items() if isinstance(one, int | float)}


def _get(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None


def _refuse_impossible(name: str, value: float, *, path: Path) -> None:
    expected, possible = "a number", math.isfinite(value)
    if name in _SHARES:
        expected, possible = "a share of one, as 0.93", 0 <= value <= 1
    elif name in _POSITIVE:
        expected, possible = "a number above zero", possible and value > 0
    if not possible:
        raise SoupError(f"{path}: '{name}' is {value:g}, expected {expected}. Correct it.")
