"""The precision benchmark: everything of it runs on a tiny network, and its figures are those of a plain formula."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks import precision, precision_measures, precision_networks, precision_variants


@pytest.fixture(scope="module")
def subject():
    return precision_networks.quick_subject()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(scope="module")
def result(subject, folder):
    return precision.measured(subject, folder, images=32, repeats=1, built=("INT8",))


def test_accuracy_and_flips_are_those_of_a_plain_session(subject, result):
    inputs, labels = subject.splits["test"]
    answers = onnxruntime.InferenceSession(subject.graph).run(None, {"input": inputs})[0].argmax(1)
    fp32 = result["accuracy"][0]
    assert fp32["graph"] == "FP32"
    assert fp32["accuracy"] == pytest.approx(100 * (answers == labels).mean())
    assert fp32["flips"] == 0
    for row in result["accuracy"]:
        assert row["points"] == pytest.approx(row["accuracy"] - fp32["accuracy"])
        assert row["points"] == pytest.approx(100 * (row["to_right"] - row["to_wrong"]) / len(labels))
        assert row["to_right"] + row["to_wrong"] <= row["flips"] <= len(labels)
        assert row["low"] <= row["points"] <= row["high"]


def test_every_precision_method_and_tool_is_there(result):
    graphs = {(row["by"], row["graph"]) for row in result["accuracy"]}
    assert {("soup", "FP16"), ("quantize_static", "INT8, its defaults (minmax)")} < graphs
    assert {("soup", f"INT8 {method}") for method in precision_variants.METHODS} < graphs
    assert [row["method"] for row in result["raised"]] == list(precision_variants.METHODS)
    assert sum(row["ships"] for row in result["raised"]) == 1
    assert [row["other"] is None for row in result["times"]] == [False, False, False, True]


def test_the_engine_computes_in_int8_by_its_own_record(result):
    pytest.importorskip("tensorrt_rtx")
    (row,) = result["engines"]
    assert (row["precision"], row["share"]) == ("INT8", 1.0)
    assert row["dtypes"]["Int8"] > 0


def test_the_document_has_a_table_for_each_question_and_a_line_for_each_target(result):
    text = "\n\n".join(precision.sections(result))
    for heading in ("Targets", "The networks", "Accuracy and flips", "accuracy-aware", "Time to", "Engines"):
        assert f"{heading}" in text
    assert len(list(precision.targets(result))) == 2 + len(precision_variants.THEIRS)


def test_what_was_measured_is_not_measured_again(subject, folder, result, monkeypatch):
    def fail(*arguments, **named):
        raise AssertionError("measured again")

    monkeypatch.setattr(precision_variants, "answers", fail)
    monkeypatch.setattr(precision_measures, "engine_row", fail)
    monkeypatch.setattr(precision_measures, "time_rows", fail)
    assert precision.measured(subject, folder, images=32, repeats=1, built=("INT8",)) == result


def test_a_time_is_measured_again_when_what_it_depends_on_changes(tmp_path):
    path, calls = tmp_path / "times.json", []

    def make():
        calls.append(1)
        return [{"seconds": len(calls)}]

    first = precision_measures.remembered(path, {"code": "a"}, make)
    assert precision_measures.remembered(path, {"code": "a"}, make) == first == [{"seconds": 1}]
    assert precision_measures.remembered(path, {"code": "b"}, make) == [{"seconds": 2}]
    assert json.loads(path.read_text())["rows"] == [{"seconds": 2}]


def test_the_pass_keeps_the_layer_that_a_bad_range_spoils(subject):
    made = precision_variants.forge(subject, "minmax")
    spoilt = made.layers[2]
    made.table().ranges[spoilt.inputs[0]] = (-0.05, 0.05)
    before = precision_variants.answers(subject.graph, subject.splits["val"][0], where="quick")
    found = precision_variants.raised(subject, made, before, allowed=0.5)
    assert found.passed
    assert found.layers == (spoilt.name,)
    assert found.evaluations <= precision_variants.DEFAULTS.budget


@pytest.mark.parametrize("method", precision_variants.METHODS)
def test_what_is_timed_is_the_graph_that_is_judged(subject, method):
    judged = precision_variants.forge(subject, method, count=64).make("int8").graph
    assert precision_variants.quantized(subject, method, count=64) == judged


def test_flips_are_counted_both_ways():
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    before = np.eye(3)[[0, 1, 2, 1, 0, 2, 0, 1]]
    after = np.eye(3)[[0, 2, 2, 0, 2, 1, 1, 1]]  # one to right, three to wrong, one from wrong to wrong
    found = precision_variants.compared(after, before, labels)
    assert found == {
        "accuracy": 50.0, "points": -25.0, "flips": 5, "to_right": 1, "to_wrong": 3, "images": 8,
    }  # fmt: skip


@pytest.mark.parametrize(("value", "met"), [(-0.5, "met"), (-0.75, "MISSED by 0.25"), (float("nan"), "MISSED by nan")])
def test_a_target_says_by_how_much_it_is_missed(value, met):
    row = {"network": "n", "ships": True, "test_points": value, "share": 0.95}
    lines = list(precision.targets({"raised": [row], "times": []}))
    assert [line[""] for line in lines] == [met, "met"]


def test_the_method_that_ships_is_chosen_on_val_and_passed_its_gate():
    rows = [
        {"method": "a", "passed": True, "val_points_after": -0.4, "share": 1.0, "test_points": 0.0},
        {"method": "b", "passed": True, "val_points_after": -0.2, "share": 0.9, "test_points": -9.0},
        {"method": "c", "passed": True, "val_points_after": -0.2, "share": 1.0, "test_points": -9.0},
        {"method": "d", "passed": False, "val_points_after": 0.3, "share": 1.0, "test_points": 1.0},
    ]
    assert precision.chosen(rows) == "c"
    assert precision.chosen([dict(row, passed=False) for row in rows]) == "d"


def test_the_median_ratio_is_of_the_medians():
    ours, theirs = [(3.0, 2.0), (1.0, 1.0), (2.0, 9.0)], [(1.0, 4.0), (4.0, 1.0), (9.0, 2.0)]
    assert precision_measures.medians(ours, theirs) == {"soup": 2.0, "other": 4.0, "ratio": 0.5, "cpu_ratio": 1.0}
    assert precision_measures.medians(ours, [])["ratio"] is None


def test_no_picture_is_in_two_splits(monkeypatch):
    monkeypatch.setattr(precision_networks, "COUNTS", {"val": 5, "calibration": 4, "test": 6, "learned": 20})
    pictures = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    parts = {"t10k": pictures[:10], "train": pictures[5:]}  # five are in both
    rows = precision_networks.disjoint_rows(parts)
    found = [parts[part][row].tobytes() for part, chosen in rows.values() for row in chosen]
    assert len(found) == len(set(found)) == 6 + 10
    assert {split: part for split, (part, _) in rows.items()} == {
        "test": "t10k", "val": "train", "calibration": "train", "learned": "train",
    }  # fmt: skip


def test_the_last_epochs_are_averaged_with_statistics_of_the_calibration_images(tmp_path):
    def build():
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))

    torch.manual_seed(0)
    states = [build().state_dict() for _ in range(3)]
    paths = [tmp_path / f"epoch-{number}.pt" for number in range(3)]
    for path, state in zip(paths, states, strict=True):
        torch.save({"model": state}, path)
    images = np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32)
    model = precision_networks.averaged(paths, build(), images)
    mean = torch.stack([state["0.weight"] for state in states]).double().mean(0)
    torch.testing.assert_close(model[0].weight.double(), mean, rtol=0, atol=1e-7)
    seen = model[0](torch.from_numpy(images)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[1].running_mean, seen.mean(1), rtol=1e-5, atol=1e-6)
    assert not model.training


def test_calibration_batches_are_of_one_size_and_in_order(subject):
    batches = [batch["input"] for batch in subject.batches(100)]
    assert {len(batch) for batch in batches} == {10}
    np.testing.assert_array_equal(np.concatenate(batches), subject.calibration[:100])
