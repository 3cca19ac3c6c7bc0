"""What is kept of an evaluation: answers of all samples, and raw outputs of as many as are allowed to take memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from soup import evaluate as evaluating
from soup.evaluate import Evaluation, Memory, evaluate, kept_arrays, kept_rows, outputs_and_answers
from soup.ledger import Key, Ledger
from soup.tasks import metric_named
from soup.tasks.segmentation import metrics

MIOU = metrics(3, 255, "input")["miou"]
ROW_BYTES = 3 * 4 * 5 * 4  # float32 logits [3, 4, 5]


@dataclass(frozen=True)
class Scenes:
    """Samples whose input is the model's output."""

    logits: np.ndarray
    masks: np.ndarray

    @property
    def targets(self) -> dict[str, np.ndarray]:
        return {"mask": self.masks}

    def __len__(self) -> int:
        return len(self.masks)

    def batches(self, batch: int, *, order: Sequence[int] | None = None) -> Iterator[tuple]:
        wanted = np.arange(len(self)) if order is None else np.asarray(order)
        for start in range(0, len(wanted), batch):
            rows = wanted[start : start + batch]
            yield rows, {"input": self.logits[rows]}, {"mask": self.masks[rows]}


@pytest.fixture
def scenes() -> Scenes:
    random = np.random.default_rng(0)
    return Scenes(random.normal(size=(10, 3, 4, 5)).astype(np.float32), random.integers(0, 3, (10, 4, 5), np.uint8))


@pytest.fixture
def four_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the outputs of four samples."""
    monkeypatch.setattr(evaluating, "KEPT_BYTES", 4 * ROW_BYTES + 1)


def echo(inputs):
    return {"out": inputs["input"]}


@pytest.mark.parametrize(("room", "rows"), [(0, 1), (ROW_BYTES, 1), (3.5 * ROW_BYTES, 3), (99 * ROW_BYTES, 10)])
def test_as_many_rows_are_kept_as_there_is_room_for_and_never_none(
    monkeypatch: pytest.MonkeyPatch, scenes: Scenes, room: int, rows: int
) -> None:
    monkeypatch.setattr(evaluating, "KEPT_BYTES", room)
    assert kept_rows({"out": scenes.logits}, 10) == rows
    assert kept_rows({"out": scenes.logits[:3]}, 10) == rows  # whatever the batch


@pytest.mark.parametrize("batch", [1, 3, 10])
@pytest.mark.parametrize("order", [None, range(9, -1, -1), [5, 0, 9, 3, 1, 2, 8, 7, 6, 4]])
@pytest.mark.usefixtures("four_rows")
def test_raw_outputs_are_kept_of_the_first_samples_and_answers_of_all(
    scenes: Scenes, batch: int, order: Sequence[int] | None
) -> None:
    found = evaluate(echo, scenes, MIOU, batch=batch, order=order, keep_outputs=True)
    assert found.outputs is not None
    assert found.answers is not None
    assert (found.outputs["out"] == scenes.logits[:4]).all()
    assert (found.answers["classes"] == scenes.logits.argmax(1)).all()
    assert found.value == evaluate(echo, scenes, MIOU).value


@pytest.mark.usefixtures("four_rows")
def test_outputs_that_are_the_answers_are_kept_of_all_where_they_must_be_cut() -> None:
    random = np.random.default_rng(0)
    metric = metric_named("classification", "accuracy")
    logits = random.normal(size=(10, 60)).astype(np.float32)  # as large as one scene's

    @dataclass(frozen=True)
    class Rows(Scenes):
        @property
        def targets(self) -> dict[str, np.ndarray]:
            return {"label": self.masks}

        def batches(self, batch: int, *, order: Sequence[int] | None = None) -> Iterator[tuple]:
            for rows, inputs, targets in super().batches(batch, order=order):
                yield rows, inputs, {"label": targets["mask"]}

    found = evaluate(echo, Rows(logits, np.zeros(10, int)), metric, batch=3, keep_outputs=True)
    assert found.outputs is not None
    assert found.answers is not None
    assert (len(found.outputs["out"]), len(found.answers["out"])) == (4, 10)


def test_where_all_fit_answers_that_are_the_outputs_are_the_same_arrays(scenes: Scenes) -> None:
    metric = metric_named("classification", "accuracy")

    @dataclass(frozen=True)
    class Rows(Scenes):
        @property
        def targets(self) -> dict[str, np.ndarray]:
            return {"label": self.masks}

        def batches(self, batch: int, *, order: Sequence[int] | None = None) -> Iterator[tuple]:
            for rows, inputs, targets in super().batches(batch, order=order):
                yield rows, inputs, {"label": targets["mask"]}

    found = evaluate(echo, Rows(scenes.logits[:, :, 0, 0], np.zeros(10, int)), metric, keep_outputs=True)
    assert found.answers is found.outputs
    kept = kept_arrays(found)
    assert kept is found.outputs
    outputs, answers = outputs_and_answers(kept or {})
    assert answers is outputs


@pytest.mark.usefixtures("four_rows")
def test_without_being_asked_nothing_is_kept(scenes: Scenes) -> None:
    found = evaluate(echo, scenes, MIOU)
    assert (found.outputs, found.answers, kept_arrays(found)) == (None, None, None)


@pytest.mark.usefixtures("four_rows")
def test_what_is_kept_takes_the_way_through_the_ledger_and_back(scenes: Scenes, tmp_path: Path) -> None:
    found = evaluate(echo, scenes, MIOU, batch=3, keep_outputs=True)
    key = Key({"what": "a scene"})
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.keep(key, found)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        kept, again = ledger.outputs(key), ledger.evaluation(key)
    assert kept is not None
    assert again is not None
    outputs, answers = outputs_and_answers(kept)
    assert list(outputs) == ["out"]
    assert (outputs["out"] == scenes.logits[:4]).all()
    assert (answers["classes"] == scenes.logits.argmax(1)).all()
    assert answers["classes"].dtype == np.uint8
    memory = Memory.of(again, kept)
    told: list[int] = []

    def asked(inputs):
        told.append(len(inputs["input"]))
        return echo(inputs)

    repeated = evaluate(asked, scenes, MIOU, batch=3, memory=memory, keep_outputs=True)
    assert told == []
    assert same(repeated, found)


@pytest.mark.usefixtures("four_rows")
def test_an_evaluation_that_stopped_goes_on_with_what_it_kept(scenes: Scenes) -> None:
    memory = Memory(np.zeros(10, bool))
    part = evaluate(echo, scenes, MIOU, batch=2, limit=6, order=range(9, -1, -1), memory=memory, keep_outputs=True)
    assert part.outputs is not None
    assert part.seen.tolist() == [False] * 4 + [True] * 6
    assert not part.outputs["out"].any()  # none of the first four was seen
    assert part.answers is not None
    assert not part.answers["classes"][:4].any()
    whole = evaluate(echo, scenes, MIOU, batch=3, memory=memory, keep_outputs=True)
    assert same(whole, evaluate(echo, scenes, MIOU, keep_outputs=True))


@pytest.mark.usefixtures("four_rows")
def test_truth_of_samples_that_were_not_asked_bounds_what_is_in_reach(scenes: Scenes) -> None:
    part = evaluate(echo, scenes, MIOU, batch=2, limit=4)
    assert part.value is None
    perfect = np.where(np.arange(3)[None, :, None, None] == scenes.masks[:, None], 1.0, 0.0).astype(np.float32)
    best = replace(scenes, logits=np.concatenate([scenes.logits[:4], perfect[4:]]))
    assert part.bound == pytest.approx(evaluate(echo, best, MIOU).value, abs=1e-12)
    assert part.worst is not None
    value = evaluate(echo, scenes, MIOU).value
    assert value is not None
    assert part.worst <= value <= (part.bound or 0)


def same(one: Evaluation, other: Evaluation) -> bool:
    """Whether both know the same."""
    parts = [(one.outputs, other.outputs), (one.answers, other.answers), (one.per_sample, other.per_sample)]
    return one.value == other.value and all(
        a is not None and b is not None and a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)
        for a, b in parts
    )
