"""What more inference, and other test resolutions, would give: two sections of a build's report."""

from __future__ import annotations

from collections.abc import Mapping

from soup.build_folder import BuildRecord
from soup.build_tables import difference_text, shown_value
from soup.report import NONE, code, plain, table, value_text
from soup.resolution_choice import best_of
from soup.search_records import ResolutionPoint
from soup.statistics import difference_text as signed_text

_MOST_CLASSES = 40


def references_section(record: BuildRecord) -> str:
    """References beside the model, each with its cost in forward passes."""
    found = record.explanation.references if record.explanation else ()
    if not found:
        return ""
    rows = [
        (plain(one.label), shown_value(record, one.value), _change(record, one.value), f"{one.cost:g} ×")
        for one in found
    ]
    told = "What the same images give otherwise, on val. An ensemble costs inference, and a soup does not."
    return f"{told}\n\n{table(('', 'val', 'against the model', 'forward passes'), rows)}"


def reading_section(record: BuildRecord) -> str:
    """What turned outputs into answers: the adapter, and the settings of the task that are not plain classification."""
    section = record.config.get(record.task)
    adapter = section.get("adapter") if isinstance(section, Mapping) else None
    rows = [("adapter", plain(str(adapter or "torchvision")))] if record.task == "detection" else []
    for name, value in record.settings.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        rows += [(f"{name} {key}".strip(), plain(str(one))) for key, one in parts if one is not None]
    several = bool(record.settings.get("multilabel"))
    return table(("setting", "value"), rows) if record.task != "classification" or several else ""


def other_metrics_section(record: BuildRecord) -> str:
    """The task's other metrics, best single beside model; the search looked at none of them."""
    rows = [
        (code(one.metric), value_text(one.best_single, unit=one.unit), value_text(one.model, unit=one.unit))
        for one in record.also
    ]
    told = f"Of the same answers to val. The search looked at {code(record.metric)} alone."
    return f"{told}\n\n{table(('metric', 'best single', 'model'), rows)}" if rows else ""


def classes_section(record: BuildRecord) -> str:
    """The metric of each class alone, best single beside model, those with most images first."""
    found = sorted(record.by_class, key=lambda one: -one.images)
    rows = [
        (plain(one.name), f"{one.images:,}", shown_value(record, one.best_single), shown_value(record, one.model))
        for one in found[:_MOST_CLASSES]
    ]
    if not rows:
        return ""
    rest = len(found) - len(rows)
    told = table(("class", f"images of {record.judged_on}", "best single", "model"), rows)
    return told + (f"\n\nAnd {rest} classes more, in build.json." if rest else "")


def resolutions_section(record: BuildRecord) -> str:
    """The metric over the time at each test resolution, the best one named."""
    points = record.resolutions
    if not points:
        return ""
    best = best_of(points, higher_is_better=record.higher_is_better)
    rows = [_row(record, one, best=one is best) for one in points]
    header = ("scale", "crop", "network's input", "val", "against the trained size", "one image in torch", "")
    told = table(header, rows)
    return f"{told}\n\n{resolution_sentence(record)}"


def resolution_sentence(record: BuildRecord) -> str:
    """Which test resolution does best on val; empty where none was tried."""
    points = record.resolutions
    if not any(one.val is not None for one in points[1:]):
        return "No other resolution could be measured." if points else ""
    best = best_of(points, higher_is_better=record.higher_is_better)
    if best is None or best is points[0]:
        return "No other resolution does better on val than the one that is given."
    cropped = "" if best.crop_ratio is None else f" with a crop of {best.crop_ratio:g}"
    return (
        f"The best point is {_size(best)}{cropped}; `soup export --resolution {best.scale:g}` takes it. It was "
        "chosen on val, so expect less of new images."
    )


def _row(record: BuildRecord, one: ResolutionPoint, *, best: bool) -> tuple[str, ...]:
    difference = "" if one.difference is None else plain(difference_text(one.difference, unit=record.metric_unit))
    return (
        f"{one.scale:g}", NONE if one.crop_ratio is None else f"{one.crop_ratio:g}", _size(one),
        shown_value(record, one.val), difference, NONE if one.p50_ms is None else f"{one.p50_ms:.1f} ms",
        "the best" if best else plain(one.note),
    )  # fmt: skip


def _size(one: ResolutionPoint) -> str:
    return NONE if one.size is None else "×".join(map(str, one.size))


def _change(record: BuildRecord, value: float | None) -> str:
    if value is None or record.winner.val is None:
        return NONE
    return signed_text(value - record.winner.val, unit=record.metric_unit)
