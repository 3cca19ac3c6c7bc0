"""A backend is tried out once, and only where one is needed; the next build knows which one it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from exporters.runtimes import Arrays
from soup.backends import Backend
from soup.ledger import Ledger
from soup.runner import Runner
from soup.tasks import metric_named

Name = Literal["torch", "onnxruntime"]
Wanted = Literal["auto", "torch", "onnxruntime"]
PLAN = {"candidates": 5, "samples": 100, "batch": 64}
COMPARED = {"torch": 10.0, "onnxruntime": 30.0}  # images a second


@dataclass
class Opened:
    """In the place of trying runtimes out."""

    name: Name
    compared: bool = True
    asked: list[str] = field(default_factory=list)

    def __call__(self, wanted: Wanted) -> Backend:
        self.asked.append(wanted)
        return Backend(self.name, "it was quicker", images_per_second=COMPARED if self.compared else {})


def runner(opened: Opened, ledger: Ledger, *, wanted: Wanted = "auto", metric: str = "accuracy", **plan: int) -> Runner:
    facts = {"model": "./models.py:build", "plan": PLAN | plan}
    return Runner(opened, ledger, facts, metric_named("classification", metric), wanted=wanted)


def reference(inputs: Arrays) -> Arrays:
    return {"logits": np.asarray(inputs["input"])}


def test_where_torch_is_asked_for_nothing_is_opened() -> None:
    opened = Opened("onnxruntime")
    asked = runner(opened, Ledger(None), wanted="torch")
    assert (asked.name, asked.predict({}, reference), asked.reason) == ("torch", reference, "")
    assert opened.asked == []


def test_a_choice_is_made_once_and_remembered_by_the_ledger(tmp_path: Path) -> None:
    opened = Opened("torch")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        first = runner(opened, ledger)
        assert (first.name, first.name, first.reason) == ("torch", "torch", "it was quicker")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        second = runner(opened, ledger)
        assert (second.name, second.predict({}, reference), second.reason) == ("torch", reference, "")
    assert opened.asked == ["auto"]


def test_a_remembered_runtime_is_opened_when_the_first_candidate_needs_it() -> None:
    ledger, opened = Ledger(None), Opened("onnxruntime")
    assert runner(opened, ledger).name == "onnxruntime"
    again = runner(opened, ledger)
    assert again.name == "onnxruntime"
    assert opened.asked == ["auto"]
    first, second = again.predict({}, reference), again.predict({}, reference)
    assert opened.asked == ["auto", "onnxruntime"]
    inputs = {"input": np.zeros((2, 3), np.float32)}
    assert first(inputs)["logits"].shape == second(inputs)["logits"].shape == (2, 3)


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_a_comparison_holds_for_more_candidates_whatever_chance_would_say_now(name: Name) -> None:
    ledger = Ledger(None)
    assert runner(Opened(name), ledger).name == name
    other = Opened("torch" if name == "onnxruntime" else "onnxruntime")
    assert runner(other, ledger, candidates=50).name == name
    assert other.asked == []


def test_a_choice_without_a_comparison_is_made_again_for_a_longer_search() -> None:
    """A search too short to be worth an export may become long."""
    ledger = Ledger(None)
    assert runner(Opened("torch", compared=False), ledger).name == "torch"
    assert runner(Opened("onnxruntime"), ledger).name == "torch"
    assert runner(Opened("onnxruntime"), ledger, candidates=50).name == "onnxruntime"


def test_more_images_another_metric_and_another_wish_are_tried_anew() -> None:
    ledger = Ledger(None)
    assert runner(Opened("torch"), ledger).name == "torch"
    assert runner(Opened("onnxruntime"), ledger, samples=5000).name == "onnxruntime"
    assert runner(Opened("onnxruntime"), ledger, metric="top5").name == "onnxruntime"
    assert runner(Opened("onnxruntime"), ledger, wanted="onnxruntime").name == "onnxruntime"
