"""The settings of a metric, resolved: what val.yaml says, what the data hold, and what the network gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from pydantic import JsonValue

from exporters.runtimes import Arrays
from soup import SoupError
from soup.config import Config
from soup.data import Split
from soup.sources import several


def settings_of(config: Config, val: Split, answer: Callable[[], Arrays]) -> dict[str, JsonValue]:
    """As `soup.tasks.metric_named` takes them and a manifest carries them; `answer` gives the network's outputs.

    It is asked only where they tell how many classes there are.

    Raises SoupError where the network has other classes than the data.
    """
    if config.task == "classification":
        return _classification(config, val)
    classes = _classes(config, val, answer())
    if config.task == "detection":
        return {"classes": classes, "suppression": config.detection.suppression.model_dump(mode="json")}
    section = config.segmentation
    return {"classes": classes, "ignore_index": section.ignore_index, "score_at": section.score_at}


def evaluation_batch(config: Config) -> int:
    """Images per forward pass: boxes and masks come from larger images, with larger outputs."""
    return 64 if config.task == "classification" else 16


def _classification(config: Config, val: Split) -> dict[str, JsonValue]:
    section, names = config.classification, val.class_names
    labels = val.targets.get("labels")
    count = labels.shape[1] if labels is not None else None if names is None else len(names)
    return {
        "classes": count,
        "multilabel": section.multilabel,
        "weights": _weights(section.class_weights, names),
        "threshold": section.threshold,
        "bins": section.bins,
    }


def refuse_beyond(split: Split, settings: Mapping[str, JsonValue], *, task: str) -> None:
    """Raise SoupError that names the images with boxes or masks of a class that the network does not have."""
    classes, ignored = settings["classes"], settings.get("ignore_index")
    key = {"detection": "labels", "segmentation": "mask"}.get(task, "")
    if key not in split.targets or not isinstance(classes, int):
        return
    found = split.targets[key]
    beyond = ((found >= classes) & (found != ignored)).reshape(len(found), -1).any(axis=1)
    if beyond.any():
        told = several([split.ids[row] for row in np.flatnonzero(beyond)])
        what = "boxes" if task == "detection" else "masks"
        raise SoupError(
            f"data.{split.name}: {what} with a class beyond {classes - 1}, the network's last: {told}. Repair them, or "
            f"name {task}.classes so that data.on_bad_sample: skip can leave them out."
        )


def _weights(given: Mapping[str, float] | tuple[float, ...] | None, names: tuple[str, ...] | None) -> JsonValue:
    """In the order of the classes. Raises SoupError for classes without a weight, and weights without a class."""
    if given is None or isinstance(given, tuple):
        return None if given is None else list(given)
    if names is None:
        raise SoupError("classification.class_weights: the data name no classes. Give a list in their order.")
    if set(given) != set(names):
        differing = sorted(set(given) ^ set(names))
        raise SoupError(
            f"classification.class_weights: '{differing[0]}' is only in one of weights and classes, expected one "
            f"weight for each of {', '.join(names)}."
        )
    return [given[name] for name in names]


def _classes(config: Config, val: Split, outputs: Arrays) -> int:
    """How many the network tells apart; the data must have as many."""
    arrays = list(outputs.values())
    section = config.detection if config.task == "detection" else config.segmentation
    named = len(section.classes) if section.classes else None if val.class_names is None else len(val.class_names)
    given = arrays[1].shape[2] if config.task == "detection" and arrays[1].ndim == 3 else None
    if config.task == "segmentation" and arrays[0].ndim == 4:
        given = arrays[0].shape[1]
    if given is None and named is None:
        raise SoupError(f"{config.task}.classes: neither the network nor the data tell how many. Name them.")
    if given is not None and named is not None and given != named:
        told = "" if val.class_names is None else f" ({', '.join(val.class_names[:10])})"
        raise SoupError(
            f"model '{config.model}': scores {given} classes, expected {named} as the data have{told}. Check "
            f"model_args, {config.task}.classes and the adapter's arguments."
        )
    return int(given if given is not None else named or 0)
