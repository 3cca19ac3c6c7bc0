"""A metric of the user's own: what it may give, what is refused, and a build and a release that go by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from soup import SoupError
from soup.build_folder import read_build
from soup.own_metric import metric_of
from soup.tasks import Metric, by_class
from tests.soup.commands import document, run

SOURCE = """
import numpy as np


def half_error(answers, targets):
    scores = next(iter(answers.values()))
    return 0.5 * (scores.argmax(axis=1) != targets["label"])


half_error.higher_is_better = False


def ratio(answers, targets):
    scores = next(iter(answers.values()))
    right = scores.argmax(axis=1) == targets["label"]
    return {"right": right.astype(np.float64), "weight": 1.0 + targets["label"]}


def _ratio(statistics):
    weight = statistics["weight"].sum()
    return (statistics["right"] * statistics["weight"]).sum() / weight if weight else float("nan")


ratio.reduce = _ratio
ratio.unit = "%"


def one_number(answers, targets):
    return 0.5


def too_few(answers, targets):
    return np.zeros(len(targets["label"]) - 1)


def table(answers, targets):
    return np.zeros((len(targets["label"]), 2))


def nothing(answers, targets):
    return {}


def text(answers, targets):
    return ["x"] * len(targets["label"])


def endless(answers, targets):
    return np.full(len(targets["label"]), np.inf)


def raises(answers, targets):
    raise KeyError("mask")
"""
ANSWERS = {"output": np.array([[2, 1], [0, 1], [3, 0], [0, 4]], np.float32)}
TARGETS = {"label": np.array([0, 0, 0, 1])}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "m.py").write_text(SOURCE)
    return tmp_path


def named(name: str, folder: Path) -> Metric:
    return metric_of("classification", f"./m.py:{name}", {"classes": 2}, folder=folder)


def test_a_score_per_sample_is_averaged_and_may_be_better_when_lower(code: Path) -> None:
    metric = named("half_error", code)
    statistics = metric.per_sample(ANSWERS, TARGETS)
    assert (metric.name, metric.higher_is_better, metric.unit) == ("./m.py:half_error", False, "")
    assert {name: array.tolist() for name, array in statistics.items()} == {"score": [0, 0.5, 0, 0]}
    assert metric.reduce(statistics) == 0.125
    assert np.isnan(metric.reduce({"score": np.empty(0)}))
    assert np.isnan(named("endless", code).reduce(named("endless", code).per_sample(ANSWERS, TARGETS)))


def test_statistics_are_read_by_the_function_s_own_reduce(code: Path) -> None:
    metric = named("ratio", code)
    assert (metric.higher_is_better, metric.unit) == (True, "%")
    assert metric.reduce(metric.per_sample(ANSWERS, TARGETS)) == pytest.approx(4 / 5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.sampled_from(["half_error", "ratio"]))
def test_resamples_are_reduce_of_the_repeated_rows(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], name: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "m.py").write_text(SOURCE)
    metric = named(name, folder)
    statistics = metric.per_sample(ANSWERS, TARGETS)
    rows = np.repeat(np.arange(4), counts)
    expected = metric.reduce({key: array[rows] for key, array in statistics.items()})
    found = metric.resampled(statistics, np.array([counts]))
    assert found == pytest.approx([expected], nan_ok=True)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("one_number", r"metric './m\.py:one_number': gave \{'score': \(\)\}, expected 4 rows, one for each sample\."),
        ("too_few", r"gave \{'score': \(3,\)\}, expected 4 rows"),
        ("table", r"gave more than one score per sample, expected also an attribute `reduce`\."),
        ("nothing", r"metric './m\.py:nothing': gave nothing, expected 4 rows"),
        ("text", r"metric './m\.py:text': gave \{'score': '<U1'\}, expected numbers\."),
        ("raises", r"metric './m\.py:raises': raised KeyError at .*m\.py:\d+: 'mask'\."),
        ("absent", r"'./m\.py:absent': \./m\.py has no 'absent'"),
    ],
)
def test_a_metric_that_gives_something_else_is_told_what_is_expected(code: Path, name: str, told: str) -> None:
    with pytest.raises(SoupError, match=told):
        named(name, code).per_sample(ANSWERS, TARGETS)


def test_what_it_has_no_part_in_is_the_task_s_own_and_no_bound_is_claimed(code: Path) -> None:
    metric, base = named("half_error", code), metric_of("classification", "accuracy", {}, folder=code)
    statistics, seen = metric.per_sample(ANSWERS, TARGETS), np.array([True, True, False, False])
    assert metric.upper_bound(statistics, seen) is None
    assert metric.worst_bound(statistics, seen) is None
    assert metric.unsettled(ANSWERS, 0.1) is None
    assert by_class(metric, statistics) is None
    assert (metric.task.margins(ANSWERS, ANSWERS) == base.task.margins(ANSWERS, ANSWERS)).all()
    hard = base.difficulty(base.per_sample(ANSWERS, TARGETS), ANSWERS, TARGETS)
    assert (metric.difficulty(statistics, ANSWERS, TARGETS) == hard).all()
    other = {"output": ANSWERS["output"][::-1]}
    assert metric.task.moves(ANSWERS, other).text == base.task.moves(ANSWERS, other).text


@pytest.fixture(scope="module")
def released(slim: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A project that was built and exported by `half_error`, all of val golden, and what export printed. Read only."""
    folder = Path(shutil.copytree(slim, tmp_path_factory.mktemp("own") / "project"))
    (folder / "m.py").write_text(SOURCE)
    text = (folder / "val.yaml").read_text().replace("{max_drop: 0.02}", "{max_drop: 0.2}")
    (folder / "val.yaml").write_text(text + "metric: ./m.py:half_error\nexplain: {line: 0}\n")
    run("build", "--val", folder / "val.yaml", "-o", folder / "soup-out")
    golden = ("--set", "release.golden.count=all")
    return folder, document("export", folder / "soup-out", "--precision", "fp32", *golden)


def test_a_build_goes_by_it_and_takes_the_lowest(released: tuple[Path, dict[str, Any]], plain_accuracy: Any) -> None:
    folder, _ = released
    record = read_build(folder / "soup-out").record
    assert (record.metric, record.higher_is_better, record.metric_unit) == ("./m.py:half_error", False, "")
    state = load_file(folder / "soup-out/soup.safetensors")
    assert record.winner.val == pytest.approx((1 - plain_accuracy(folder, state, "val")) / 2, abs=1e-12)
    trials = json.loads((folder / "soup-out/trials.json").read_bytes())
    assert record.winner.val <= min(one["val"] for one in trials if one["val"] is not None)
    assert record.best_single.val >= record.winner.val


def test_the_export_holds_its_gates_to_it(released: tuple[Path, dict[str, Any]]) -> None:
    folder, told = released
    record = read_build(folder / "soup-out").record
    assert told["findings"]["values"]["model.onnx"] == record.winner.val
    (gate,) = (one for one in told["findings"]["checks"] if one["kind"] == "accuracy")
    assert (gate["verdict"], gate["unit"]) == ("pass", "")
    drop = gate["measured"]
    assert drop == pytest.approx((record.winner.val or 0) - (record.best_single.val or 0), abs=1e-9)


def test_the_device_tells_that_it_goes_by_the_task_s_own_and_compares_no_two_metrics(
    released: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = released
    found = document("verify", folder / "soup-out/release")
    accuracy = 1 - 2 * (read_build(folder / "soup-out").record.winner.val or 0)
    assert found["golden_values"] == {
        "torch": pytest.approx(accuracy), "model.onnx": pytest.approx(accuracy),
    }  # fmt: skip
    (note,) = (one for one in found["findings"]["notes"] if "half_error" in one)
    assert "accuracy" in note
    again = [one for one in found["findings"]["checks"] if one["kind"] == "accuracy"]
    assert [one["hop"].partition(":")[0] for one in again] == ["at export"], again
