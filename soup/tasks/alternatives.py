"""Other ways to thin out the boxes of the same outputs, so that each can be measured beside the one that was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from exporters.runtimes import Arrays
from soup.tasks import Metric
from soup.tasks.detection import Boxes
from soup.tasks.suppression import Suppression, detections


def alternatives(rules: Suppression) -> Mapping[str, Suppression]:
    """What may be set as detection.suppression, by a label; without the ones that say the same as `rules`."""
    nms = replace(rules, method="nms", class_agnostic=False, voting_iou=None)
    found = {
        "NMS": nms,
        "class-agnostic NMS": replace(nms, class_agnostic=True),
        "soft-NMS, linear": replace(nms, method="soft_linear"),
        "soft-NMS, Gaussian": replace(nms, method="soft_gaussian"),
        "NMS with box voting": replace(nms, voting_iou=max(rules.iou, 0.7)),
        "weighted boxes fusion": replace(nms, method="weighted_fusion"),
    }
    return {label: one for label, one in found.items() if one != rules}


def answers_by(metric: Metric, outputs: Arrays, targets: Arrays) -> dict[str, Arrays]:
    """The answers of each alternative; none where the boxes were thinned out in the graph, or are no boxes at all."""
    if not isinstance(metric.task, Boxes) or len(outputs) > 2:
        return {}
    found = alternatives(metric.task.rules)
    return {label: detections(outputs, targets, one) for label, one in found.items()}
