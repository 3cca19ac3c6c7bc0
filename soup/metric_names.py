"""Which metrics each task has, by the names that val.yaml writes: told before any data are read."""

from __future__ import annotations

import re
from typing import Literal

Task = Literal["classification", "detection", "segmentation"]
OWN_METRIC = r"([^:]+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*"  # './file.py:name' or 'package.module:name'

_SINGLE_LABEL = (
    "accuracy", "top5", "cross_entropy", "balanced_accuracy", "weighted_accuracy", "f1", "ece",
)  # fmt: skip
_MULTI_LABEL = ("map", "f1", "f1_micro", "exact_match")
_DETECTION = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "voc_map", "voc_map07")
_SEGMENTATION = ("miou", "pixel_accuracy", "dice", "mean_accuracy")


def names_of(task: str, *, multilabel: bool = False) -> tuple[str, ...]:
    """The first is the task's own; of top5 there is any number."""
    if task == "classification":
        return _MULTI_LABEL if multilabel else _SINGLE_LABEL
    return _DETECTION if task == "detection" else _SEGMENTATION


def is_name(metric: str, *, task: str, multilabel: bool = False) -> bool:
    """Whether val.yaml may write it."""
    if task == "classification" and not multilabel and re.fullmatch(r"top[1-9]\d*", metric):
        return True
    return metric in names_of(task, multilabel=multilabel)
