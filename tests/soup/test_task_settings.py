"""The settings that a metric is made with, from val.yaml, the data and the network, and where these disagree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.runtimes import Arrays
from soup import SoupError
from soup.config import Config, load_config
from soup.data import Split
from soup.task_settings import refuse_beyond, settings_of
from soup.tasks import metric_named

HEAD = 'model: "./m.py:build"\ncheckpoints: ["*.pt"]\ndata: {train: train, val: val}\n'


def config(folder: Path, text: str) -> Config:
    (folder / "val.yaml").write_text(HEAD + text)
    return load_config(folder / "val.yaml")


def split(names: tuple[str, ...] | None = None, **targets: np.ndarray) -> Split:
    images = np.zeros((1, 4, 4, 3), np.uint8)
    return Split("val", images, targets, ("a",), ("0" * 64,), None, names, (), None)


def boxes(classes: int) -> Callable[[], Arrays]:
    return lambda: {"boxes": np.zeros((1, 5, 4), np.float32), "scores": np.zeros((1, 5, classes), np.float32)}


def inside() -> Arrays:
    return {**boxes(2)(), "scores": np.zeros((1, 5), np.float32), "labels": np.zeros((1, 5), np.int64)}


def never() -> Arrays:
    raise AssertionError


def test_a_detector_has_the_classes_of_its_scores_and_the_suppression_of_val_yaml(tmp_path: Path) -> None:
    found = settings_of(
        config(tmp_path, "task: detection\ndetection: {suppression: {iou: 0.6, score: 0.01, max_detections: 7}}\n"),
        split(), boxes(4),
    )  # fmt: skip
    assert found["classes"] == 4
    metric = metric_named("detection", "map", found)
    rules = metric.task.rules
    assert (rules.iou, rules.score, rules.max_detections, rules.method) == (0.6, 0.01, 7, "nms")
    assert metric.classes == 4


def test_a_graph_with_suppression_inside_takes_the_number_of_the_data(tmp_path: Path) -> None:
    one = config(tmp_path, "task: detection\n")
    assert settings_of(one, split(("a", "b", "c")), inside)["classes"] == 3
    named = config(tmp_path, "task: detection\ndetection: {classes: [a, b]}\n")
    assert settings_of(named, split(("a", "b")), inside)["classes"] == 2
    with pytest.raises(SoupError, match=r"^detection\.classes: neither the network nor the data tell how many\."):
        settings_of(one, split(), inside)


@pytest.mark.parametrize("given", [1, 3])
def test_a_detector_of_other_classes_than_the_data_is_refused(tmp_path: Path, given: int) -> None:
    with pytest.raises(SoupError) as raised:
        settings_of(config(tmp_path, "task: detection\n"), split(("cat", "dog")), boxes(given))
    assert str(raised.value) == (
        f"model './m.py:build': scores {given} classes, expected 2 as the data have (cat, dog). "
        "Check model_args, detection.classes and the adapter's arguments."
    )


def test_a_segmenter_of_other_classes_than_are_named_is_refused(tmp_path: Path) -> None:
    named = config(tmp_path, "task: segmentation\nsegmentation: {classes: [a, b], ignore_index: 9}\n")
    assert settings_of(named, split(), lambda: {"out": np.zeros((1, 2, 4, 4), np.float32)}) == {
        "classes": 2, "ignore_index": 9, "score_at": "image",
    }  # fmt: skip
    assert settings_of(named, split(), lambda: {"out": np.zeros((1, 4, 4), np.int64)})["classes"] == 2
    with pytest.raises(SoupError, match=r"scores 3 classes, expected 2 as the data have\. Check model_args, "):
        settings_of(named, split(), lambda: {"out": np.zeros((1, 3, 4, 4), np.float32)})


def test_a_classifier_is_not_asked(tmp_path: Path) -> None:
    found = settings_of(config(tmp_path, ""), split(("a", "b"), label=np.zeros(1, np.int64)), never)
    assert (found["classes"], found["multilabel"], found["weights"]) == (2, False, None)
    several = config(tmp_path, "classification: {multilabel: true}\n")
    assert settings_of(several, split(labels=np.zeros((1, 6), bool)), never)["classes"] == 6


def test_class_weights_come_in_the_order_of_the_classes(tmp_path: Path) -> None:
    weighted = config(
        tmp_path, "metric: weighted_accuracy\nclassification: {class_weights: {dog: 2, cat: 1}}\n"
    )  # fmt: skip
    assert settings_of(weighted, split(("cat", "dog")), never)["weights"] == [1, 2]
    with pytest.raises(SoupError, match="'cow' is only in one of weights and classes, expected one weight for each of"):
        settings_of(weighted, split(("cat", "cow", "dog")), never)
    with pytest.raises(SoupError, match=r"class_weights: the data name no classes\. Give a list"):
        settings_of(weighted, split(), never)
    listed = config(tmp_path, "classification: {class_weights: [3, 4]}\n")
    assert settings_of(listed, split(), never)["weights"] == [3, 4]


@pytest.mark.parametrize(
    ("task", "targets", "what"),
    [
        ("detection", {"labels": np.array([[0, 2, -1]], np.int32)}, "boxes"),
        ("segmentation", {"mask": np.array([[[0, 1], [2, 9]]], np.uint8)}, "masks"),
    ],
)
def test_truth_of_a_class_that_the_network_has_not_is_named_by_its_image(task: str, targets: Any, what: str) -> None:
    refuse_beyond(split(**targets), {"classes": 3, "ignore_index": 9}, task=task)
    refuse_beyond(split(label=np.array([7])), {"classes": 3}, task="classification")
    with pytest.raises(SoupError) as raised:
        refuse_beyond(split(**targets), {"classes": 2, "ignore_index": 9}, task=task)
    assert str(raised.value) == (
        f"data.val: {what} with a class beyond 1, the network's last: a. Repair them, or name {task}.classes so that "
        "data.on_bad_sample: skip can leave them out."
    )
