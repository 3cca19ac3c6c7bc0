"""Baselines of each kind: what they tell, what they answer to the same images, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from exporters import ExportError
from soup import SoupError
from soup.answer_gates import Answers
from soup.baseline import Baseline, baseline_answers, open_baseline, open_runtime, refuse_missing
from soup.config import load_config
from soup.contract import Interface, changes
from soup.data import Split
from soup.larder import load_data
from soup.manifest import read_manifest
from soup.release_facts import facts_of
from soup.tasks import metric_named

METRIC = metric_named("classification", "accuracy")


@pytest.fixture(scope="module")
def val(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    config = load_config(built / "val.yaml")
    return load_data(config, ("val",), cache=tmp_path_factory.mktemp("cache"), progress=lambda *_: None)["val"]


@pytest.fixture
def now(released: Path) -> Interface:
    """The interface of a new release that changes nothing."""
    found = open_baseline(released).interface
    assert found is not None
    return found


def answered(baseline: Baseline, val: Split, now: Interface, *, task: str = "classification") -> Answers:
    return baseline_answers(baseline, val, METRIC, now=now, task=task)


def edited(path: Path, change: Callable[[Any], object], *, to: Path) -> Path:
    proto = onnx.load(path)
    change(proto)
    to.write_bytes(proto.SerializeToString())
    return to


def test_a_release_answers_to_val_as_its_manifest_says(released: Path, val: Split, now: Interface) -> None:
    baseline = open_baseline(released)
    manifest = read_manifest(released)
    facts = facts_of(manifest, where=released)
    found = answered(baseline, val, now)
    assert (baseline.kind, baseline.digest, baseline.task) == ("release", manifest.self_sha256, "classification")
    assert baseline.metrics["accuracy"] == facts.val.values["model.onnx"] == found.value
    assert baseline.metrics["n"] == len(val) == found.n
    assert {"p50_ms", "p99_ms", "throughput", "size_mb"} <= baseline.metrics.keys()
    assert found.label == "baseline"
    assert found.outputs is not None
    assert found.per_sample is not None
    assert np.mean(found.per_sample["correct"]) == found.value


def test_a_bare_onnx_file_of_ours_is_as_good_as_its_release(released: Path, val: Split, now: Interface) -> None:
    baseline = open_baseline(released / "model.onnx")
    assert (baseline.kind, baseline.task) == ("onnx", "classification")
    assert baseline.interface is not None
    assert changes(now, baseline.interface) == ()
    found, whole = answered(baseline, val, now), answered(open_baseline(released), val, now)
    assert found.outputs is not None
    assert whole.outputs is not None
    assert np.array_equal(found.outputs["output"], whole.outputs["output"])


def test_a_foreign_onnx_file_tells_nothing_of_classes_and_preprocessing(
    released: Path, val: Split, now: Interface, tmp_path: Path
) -> None:
    def strip(proto: Any) -> None:
        del proto.metadata_props[:]

    baseline = open_baseline(edited(released / "model.onnx", strip, to=tmp_path / "foreign"))
    assert baseline.interface is not None
    assert (baseline.interface.classes, baseline.interface.preprocess, baseline.task) == (None, None, None)
    assert answered(baseline, val, now).value == open_baseline(released).metrics["accuracy"]


def test_figures_alone_have_a_value_and_no_answers(tmp_path: Path, val: Split, now: Interface) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"accuracy": 0.93, "n": 500, "p99_ms": 8.1}))
    baseline = open_baseline(path)
    assert (baseline.kind, baseline.interface) == ("metrics", None)
    assert answered(baseline, val, now) == Answers("baseline", value=0.93, n=500)
    with pytest.raises(SoupError, match="holds figures and no model that could be run"):
        open_runtime(baseline)
    path.write_text(json.dumps({"p99_ms": 8.1}))
    with pytest.raises(SoupError, match=r"other\.json: does not tell 'accuracy', only p99_ms"):
        answered(open_baseline(path), val, now)


def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match="absent: cannot be read: No such file or directory, expected a release folder"):
        open_baseline(tmp_path / "absent")
    with pytest.raises(SoupError, match="not found, expected a release's manifest"):
        open_baseline(tmp_path)
    (tmp_path / "noise.onnx").write_bytes(b"\x00\x01noise" * 9)
    with pytest.raises(ExportError, match="not an ONNX file") as caught:
        open_baseline(tmp_path / "noise.onnx")
    assert caught.value.kind == "input"
    (tmp_path / "odd").write_bytes(b" {} ")
    with pytest.raises(SoupError, match="holds none of the figures"):
        open_baseline(tmp_path / "odd")


def test_a_release_whose_graph_was_changed_is_not_run(
    released: Path, val: Split, now: Interface, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(released, tmp_path / "release"))
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ExportError, match=r"SHA-256 is .* expected") as caught:
        answered(open_baseline(folder), val, now)
    assert caught.value.kind == "input"


def test_a_changed_report_gives_no_times(released: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(released, tmp_path / "release"))
    with (folder / "report.json").open("a") as file:
        file.write(" ")
    assert open_baseline(folder).metrics.keys() == {"n", "size_mb", "accuracy"}


def test_another_task_other_inputs_and_other_classes_are_refused(
    released: Path, val: Split, now: Interface, tmp_path: Path
) -> None:
    baseline = open_baseline(released)
    assert baseline.interface is not None
    with pytest.raises(SoupError, match="is of the task 'classification', expected 'detection'"):
        answered(baseline, val, now, task="detection")
    frames = replace(val, preprocess=None)
    with pytest.raises(
        SoupError, match=r"takes 'input' float32 \(1, 8, 8\) of each image, but val gives uint8 \(8, 8, 1"
    ):
        answered(baseline, frames, now)
    bytes_of_its_shape = replace(frames, images=np.ascontiguousarray(val.images.transpose(0, 3, 1, 2)))
    with pytest.raises(SoupError, match=r"but val gives uint8 \(1, 8, 8\)"):
        answered(baseline, bytes_of_its_shape, now)
    darker = replace(now, preprocess={**(now.preprocess or {}), "mean": [0.1]})
    with pytest.raises(SoupError, match=r"for other inputs than val gives: preprocess.mean is \[0.1\], was \[0.3\]"):
        answered(baseline, val, darker)
    fewer = replace(now, outputs=(replace(now.outputs[0], shape=("batch", 7)),))
    with pytest.raises(SoupError, match=r"gives 'output' \(1, 10\), expected logits \(n, 7\) first"):
        answered(baseline, val, fewer)
    named = replace(baseline, interface=replace(baseline.interface, classes=tuple("abcdefghij")))
    with pytest.raises(SoupError, match="has other classes than val"):
        answered(named, val, replace(now, classes=tuple("bacdefghij")))


def test_a_graph_that_fails_on_the_images_is_the_users_file_and_no_build_of_ours(
    released: Path, val: Split, now: Interface, tmp_path: Path
) -> None:
    def claim_other_batch(proto: Any) -> None:
        """A reshape to three rows, whatever comes in."""
        output = proto.graph.output[0].name
        node = next(one for one in proto.graph.node if output in one.output)
        node.output[list(node.output).index(output)] = "before"
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3, 10], np.int64), "three"))
        proto.graph.node.append(onnx.helper.make_node("Reshape", ["before", "three"], [output]))

    baseline = open_baseline(edited(released / "model.onnx", claim_other_batch, to=tmp_path / "odd.onnx"))
    with pytest.raises((SoupError, ExportError), match=r"odd\.onnx") as caught:
        answered(baseline, val, now)
    assert caught.value.kind == "input"


def test_a_gate_against_a_baseline_that_was_not_given_is_refused_before_the_work() -> None:
    refuse_missing((), None)
    refuse_missing(("gates.flips",), Path("given"))
    with pytest.raises(SoupError, match=r"gates\.flips and gates\.outputs: against is baseline, and none was given"):
        refuse_missing(("gates.flips", "gates.outputs"), None)
