"""Figures of other tools: which keys are read, and what is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from soup import SoupError
from soup.metrics_file import KEYS, read_metrics


def written(folder: Path, document: object) -> Path:
    path = folder / "metrics.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"accuracy": 0.93, "p99_ms": 8.1}, {"accuracy": 0.93, "p99_ms": 8.1}),
        ({"metrics/accuracy_top1": 0.9, "metrics/accuracy_top5": 0.99}, {"accuracy": 0.9, "top5": 0.99}),
        ({"val": {"Acc": 0.9, "num-images": 500}, "speed": {"FPS": 60}}, {"accuracy": 0.9, "n": 500, "throughput": 60}),
        ({"accuracy": 0.9, "per_run": {"accuracy": 0.1}}, {"accuracy": 0.9}),
        ({"a": {"accuracy": 0.9}, "b": {"accuracy": 0.9}}, {"accuracy": 0.9}),
        ({"accuracy": False, "top1": 1, "runs": [{"p50": 3}], "name": "x"}, {"accuracy": 1.0}),
    ],
)
def test_figures_are_found_at_any_depth_under_any_of_their_names(
    tmp_path: Path, document: object, expected: dict[str, float]
) -> None:
    assert read_metrics(written(tmp_path, document)) == expected


def test_every_spelling_is_read_as_the_figure_it_stands_for(tmp_path: Path) -> None:
    for name, spellings in KEYS.items():
        for spelling in spellings:
            assert read_metrics(written(tmp_path, {"deep": {spelling: 0.5}})) == {name: 0.5}


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("{", "is no JSON (Expecting property name"),
        ("[1]", "holds list, expected an object of figures by name."),
        ({"lr": 0.1}, "holds none of the figures accuracy, top5, "),
        ({"accuracy": 93}, "'accuracy' is 93, expected a share of one, as 0.93. Correct it."),
        ('{"accuracy": NaN}', "'accuracy' is nan, expected a share of one"),
        ({"p99_ms": 0}, "'p99_ms' is 0, expected a number above zero."),
        ('{"cross_entropy": Infinity}', "'cross_entropy' is inf, expected a number. Correct it."),
        (
            {"val": {"acc": 0.9}, "test": {"acc": 0.8}},
            "tells 'accuracy' twice (val.acc 0.9, test.acc 0.8). ",
        ),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_what_is_no_figure_is_refused_in_one_sentence(tmp_path: Path, document: object, complaint: str) -> None:
    path = written(tmp_path, document)
    with pytest.raises(SoupError) as caught:
        read_metrics(path)
    assert str(caught.value).startswith(f"{path}: {complaint}")
    assert caught.value.kind == "input"


def test_our_own_report_gives_the_figures_of_the_file_that_ships(tmp_path: Path) -> None:
    report = {
        "schema_version": 1, "hops": [{"difference": {"n": 400}}], "checks": [], "metric": "accuracy",
        "values": {"model.onnx": 0.95, "model.int8.onnx": 0.94},
        "latency": {
            "model.onnx": {"p99_ms": 9.0, "p50_ms": 8.0}, "model.int8.onnx": {"p50_ms": 4.0, "throughput": None},
        },
        "precision": [
            {"outcome": "failed", "file": "model.fp16.onnx"}, {"outcome": "ships", "file": "model.int8.onnx"}
        ],
    }  # fmt: skip
    assert read_metrics(written(tmp_path, report)) == {"p50_ms": 4.0, "accuracy": 0.94, "n": 400}
    older = {**report, "precision": [], "metric": None}
    assert read_metrics(written(tmp_path, older)) == {"p50_ms": 8.0, "p99_ms": 9.0}
