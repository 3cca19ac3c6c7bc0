"""Other suppressions of the same outputs: each is the setting that its label names, and none is told twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from soup.tasks import metric_named
from soup.tasks.alternatives import alternatives, answers_by
from soup.tasks.suppression import Suppression, detections

ALL = {
    "NMS", "class-agnostic NMS", "soft-NMS, linear", "soft-NMS, Gaussian", "NMS with box voting",
    "weighted boxes fusion",
}  # fmt: skip
TARGETS = {
    "placement": np.array([[1.0, 1.0, 0.0, 0.0]]),
    "size": np.array([[100, 100]], np.int32),
}


def outputs(*boxes: tuple[float, float, float, float], scores: list[list[float]]) -> dict[str, np.ndarray]:
    return {"boxes": np.array([boxes], np.float32), "scores": np.array([scores], np.float32)}


@pytest.mark.parametrize(
    ("rules", "same"),
    [
        (Suppression(), {"NMS"}),
        (Suppression(class_agnostic=True), {"class-agnostic NMS"}),
        (Suppression(method="soft_linear"), {"soft-NMS, linear"}),
        (Suppression(method="soft_gaussian"), {"soft-NMS, Gaussian"}),
        (Suppression(method="weighted_fusion"), {"weighted boxes fusion"}),
        (Suppression(voting_iou=0.7), {"NMS with box voting"}),
        (Suppression(method="none"), set()),
        (Suppression(iou=0.8, voting_iou=0.7), set()),
    ],
)
def test_all_but_the_chosen_one_are_alternatives(rules: Suppression, same: set[str]) -> None:
    found = alternatives(rules)
    assert found.keys() == ALL - same
    assert rules not in found.values()
    kept = ("iou", "score", "max_detections", "candidates", "sigma")
    assert all(getattr(one, name) == getattr(rules, name) for one in found.values() for name in kept)


def test_each_label_gives_what_its_rules_give_alone() -> None:
    """Two boxes of an IoU of 0.6 and of other classes, and one that overlaps the first by 0.75."""
    raw = outputs(
        (0, 0, 40, 40), (0, 10, 40, 50), (0, 0, 40, 30), scores=[[0.9, 0.0], [0.0, 0.6], [0.7, 0.0]]
    )  # fmt: skip
    metric = metric_named("detection", "map", {"classes": 2, "suppression": {"iou": 0.5, "score": 0.05}})
    found = answers_by(metric, raw, TARGETS)
    assert found.keys() == ALL - {"NMS"}
    counts = {label: int((one["labels"] >= 0).sum()) for label, one in found.items()}
    assert counts["class-agnostic NMS"] == 1
    assert counts["soft-NMS, linear"] == 3
    assert counts["weighted boxes fusion"] == counts["NMS with box voting"] == 2
    scores = np.sort(found["soft-NMS, linear"]["scores"][0, :3])
    assert scores == pytest.approx([0.7 * 0.25, 0.6, 0.9], abs=1e-6)
    gaussian = np.sort(found["soft-NMS, Gaussian"]["scores"][0, :3])
    assert gaussian == pytest.approx(np.sort([0.9, 0.6, 0.7 * np.exp(-(0.75**2) / 0.5)]), abs=1e-6)
    bottom = (40 * 0.9 + 30 * 0.7) / 1.6
    assert found["NMS with box voting"]["boxes"][0, 0] == pytest.approx([0, 0, 40, bottom], abs=1e-4)
    assert found["weighted boxes fusion"]["boxes"][0, 0] == pytest.approx([0, 0, 40, bottom], abs=1e-4)
    for label, one in found.items():
        alone = detections(raw, TARGETS, alternatives(replace(Suppression(), score=0.05))[label])
        assert all(np.array_equal(one[name], alone[name]) for name in alone)


def test_boxes_that_the_graph_thinned_out_have_no_alternatives() -> None:
    metric = metric_named("detection", "map", {"classes": 2, "suppression": {}})
    inside = {
        "boxes": np.zeros((1, 1, 4), np.float32),
        "scores": np.zeros((1, 1), np.float32),
        "labels": np.full((1, 1), -1),
    }
    assert answers_by(metric, inside, TARGETS) == {}


@pytest.mark.parametrize(("task", "metric"), [("classification", "accuracy"), ("segmentation", "miou")])
def test_other_tasks_have_no_alternatives(task: str, metric: str) -> None:
    settings = {"classes": 2, "ignore_index": 255, "score_at": "image"} if task == "segmentation" else {}
    raw = outputs((0, 0, 1, 1), scores=[[0.5, 0.5]])
    assert answers_by(metric_named(task, metric, settings), raw, TARGETS) == {}
