"""What the ingredients of a soup give together, and the same boxes otherwise thinned out: beside the soup, not it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soup import references
from soup.bookkeeping import Settled
from soup.config import Config, load_config
from soup.larder import gather, load_data
from soup.ledger import Ledger
from soup.pipeline import open_kitchen, settle
from soup.references import ensemble
from soup.score import Kitchen
from soup.task_sections import Fusion as FusionSection
from soup.tasks.alternatives import alternatives
from soup.tasks.fusion import Fusion, fuse_answers
from soup.tasks.suppression import detections
from soup.trials import Trial
from tests.soup.detection_project import detector, silent

FUSIONS = [f"{name} of the ingredients' boxes" for name in ("union", "intersection", "weighted fusion")]


class Kitchens:
    """A config and its kitchen, with the trial of a soup of two checkpoints settled."""

    def __init__(self, config: Config, kitchen: Kitchen) -> None:
        self.config, self.kitchen = config, kitchen

    def settled(self, count: int) -> Settled:
        """With the first `count` checkpoints in equal parts, the third twice as heavy."""
        weights = {sha: 1.0 + (place == 2) for place, sha in enumerate(sorted(self.kitchen.ingredients)[:count])}
        method = "single" if count == 1 else "uniform"
        return settle(self.kitchen, Trial(method, weights, self.kitchen.score(weights, None), True, "single"))

    def told(
        self, settled: Settled, *, fusion: dict[str, Any] | None = None, views: tuple[str | float, ...] = ()
    ) -> dict[str, tuple[float | None, float]]:
        """(value, cost) by label."""
        section = self.config.detection.model_copy(update={"fusion": FusionSection(**(fusion or {}))})
        explain = self.config.explain.model_copy(update={"views": views})
        config = self.config.model_copy(update={"detection": section, "explain": explain})
        found = references.references(config, self.kitchen, settled)
        return {one.label: (one.value, one.cost) for one in found}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kitchens]:
    folder = tmp_path_factory.mktemp("references")
    shutil.copytree(detector(tmp_path_factory.getbasetemp()), folder / "project")
    config = load_config(folder / "project/val.yaml")
    with Ledger(folder / "ledger.sqlite") as ledger:
        larder = gather(config, exclude=None, progress=silent)
        splits = load_data(config, ("train", "val", "test"), cache=folder / "cache", progress=silent)
        yield Kitchens(config, open_kitchen(config, larder, splits, progress=silent, ledger=ledger))


def test_every_fusion_and_suppression_has_the_value_of_its_own_boxes(opened: Kitchens) -> None:
    kitchen, settled = opened.kitchen, opened.settled(3)
    told = opened.told(settled)
    singles = [kitchen.with_outputs({sha: 1.0}, "own", kitchen.val).answers for sha in settled.trial.weights]
    for label, mode in zip(FUSIONS, ("union", "intersection", "weighted"), strict=True):
        fused = fuse_answers(singles, Fusion(mode, weights=[1.0, 1.0, 2.0]))
        assert told[label] == (pytest.approx(value(kitchen, fused)), 3.0)
    assert value(kitchen, singles[0]) != told[FUSIONS[0]][0]
    outputs = kitchen.predict(settled.trial.weights, settled.policy)({"input": kitchen.val.inputs(np.arange(16))})
    for label, rules in alternatives(kitchen.metric.task.rules).items():
        answers = detections(outputs, kitchen.val.targets, rules)
        assert told[label] == (pytest.approx(value(kitchen, answers), abs=1e-6), 1.0)
    assert told.keys() == {*FUSIONS, *alternatives(kitchen.metric.task.rules)}


def test_votes_score_and_overlap_of_a_fusion_are_as_val_yaml_says(opened: Kitchens) -> None:
    kitchen, settled = opened.kitchen, opened.settled(3)
    singles = [kitchen.with_outputs({sha: 1.0}, "own", kitchen.val).answers for sha in settled.trial.weights]
    rules = Fusion("union", iou=0.8, min_votes=2, score=0.1, weights=[1.0, 1.0, 2.0])
    told = opened.told(settled, fusion={"iou": 0.8, "votes": 2, "score": 0.1})
    assert told["boxes that 2 of 3 ingredients find"] == (value(kitchen, fuse_answers(singles, rules)), 3.0)
    assert told[FUSIONS[1]] == (value(kitchen, fuse_answers(singles, replace(rules, min_votes=3))), 3.0)
    assert told[FUSIONS[0]] == (value(kitchen, fuse_answers(singles, replace(rules, min_votes=1))), 3.0)
    assert len({told[label] for label in (*FUSIONS, "boxes that 2 of 3 ingredients find")}) == 4
    assert told[FUSIONS[0]] != opened.told(settled)[FUSIONS[0]]
    told = opened.told(settled, fusion={"votes": 4})
    assert told["boxes that 4 ingredients find: the soup has 3"] == (None, 3.0)


@pytest.mark.parametrize(
    ("fusion", "rules"),
    [
        ({}, Fusion("weighted")),
        ({"method": "union", "iou": 0.7, "score": 0.2}, Fusion("union", 0.7, score=0.2)),
        ({"votes": 2}, Fusion("weighted", min_votes=2)),
        ({"votes": 3}, Fusion("weighted")),  # which two views cannot give
    ],
)
def test_boxes_of_a_mirrored_view_are_taken_back_and_fused_as_val_yaml_says(
    opened: Kitchens, fusion: dict[str, Any], rules: Fusion
) -> None:
    kitchen, settled = opened.kitchen, opened.settled(1)
    predict, task = kitchen.predict(settled.trial.weights, settled.policy), kitchen.metric.task
    inputs = kitchen.val.inputs(np.arange(len(kitchen.val)))
    boxes, scores = predict({"input": inputs[..., ::-1].copy()}).values()
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    width = inputs.shape[-1]
    mirrored = {"boxes": np.stack([width - right, top, width - left, bottom], -1), "scores": scores}
    found = [task.answers(one, kitchen.val.targets) for one in (predict({"input": inputs}), mirrored)]
    told = opened.told(settled, fusion=fusion, views=("flip",))
    expected = value(kitchen, fuse_answers(found, rules))
    assert told["2 views (the image, mirrored)"] == (pytest.approx(expected, abs=1e-9), 2.0)
    assert expected != value(kitchen, found[0])


def test_a_scale_that_rounds_to_the_image_itself_is_no_view(opened: Kitchens) -> None:
    told = opened.told(opened.settled(1), views=(0.9, 0.75, 0.7, 1.25))
    assert told["views: × 0.9, × 0.7 of 32×32 pixels is the image itself, or another view"] == (None, 1.0)
    value_of_three, cost = told["3 views (the image, × 0.75, × 1.25)"]
    assert cost == 1 + 0.75**2 + 1.25**2
    assert value_of_three != opened.told(opened.settled(1), views=(0.75,))["2 views (the image, × 0.75)"][0]


def value(kitchen: Kitchen, answers: object) -> float:
    return kitchen.metric.reduce(kitchen.metric.per_sample(answers, kitchen.val.targets))


def test_of_a_second_build_nothing_is_asked_again(opened: Kitchens, monkeypatch: pytest.MonkeyPatch) -> None:
    settled = opened.settled(2)
    first, asked = opened.told(settled), opened.kitchen.images["explaining"]
    monkeypatch.setattr(references, "fuse_answers", None)
    assert opened.told(settled) == first
    assert opened.kitchen.images["explaining"] == asked > 0


def test_a_single_checkpoint_is_fused_with_nothing(opened: Kitchens) -> None:
    assert not set(FUSIONS) & opened.told(opened.settled(1)).keys()


def test_weights_that_differ_by_layer_are_fused_with_nothing(opened: Kitchens) -> None:
    settled = opened.settled(2)
    first, second = settled.trial.weights
    layered = {first: {"body": 1.0, "": 0.5}, second: 1.0}
    assert references._plain(layered) == {}
    assert ensemble(opened.kitchen, layered) is None


def test_without_explain_ensemble_nothing_is_asked(opened: Kitchens, tmp_path: Path) -> None:
    quiet = load_config(opened.config.folder / "val.yaml", overrides=["explain.ensemble=false"])
    assert list(references.references(quiet, opened.kitchen, opened.settled(2))) == []
