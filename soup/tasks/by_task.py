"""The metrics of each task, from the settings that a build resolved and a manifest carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter

from soup.tasks import Metric, Settings, chosen


def _classification(name: str, settings: Settings) -> Metric:
    from soup.tasks import classification

    return classification.metric(name, **_plain(settings))


def _detection(name: str, settings: Settings) -> Metric:
    import soup.tasks.detection as detection
    from soup.tasks.suppression import Suppression

    rules = TypeAdapter(Suppression).validate_python(settings["suppression"])
    classes = TypeAdapter(int).validate_python(settings["classes"])
    return chosen(detection.metrics(rules, classes), name, task="detection")


def _segmentation(name: str, settings: Settings) -> Metric:
    import soup.tasks.segmentation as segmentation

    return chosen(segmentation.metrics(**_plain(settings)), name, task="segmentation")


METRIC_OF: Mapping[str, Callable[[str, Settings], Metric]] = {
    "classification": _classification,
    "detection": _detection,
    "segmentation": _segmentation,
}


def _plain(settings: Settings) -> dict[str, Any]:
    """As keyword arguments; what does not fit is a manifest of another version, told by its reader."""
    return dict(settings)
