from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from soup import SoupError
from soup.config import Config, apply_overrides, load_config, resolved, schema
from soup.metric_names import Task, is_name, names_of
from soup.search import METHODS as RUN
from soup.search_sections import METHODS
from soup.tasks import metric_named

PUBLISHED = Path(__file__).parents[2] / "docs" / "schemas" / "val.schema.json"
MINIMAL = """\
model: ./models.py:build
checkpoints: ["runs/*.pt"]
data: {train: data/train, val: data/val}
"""
EVERY_KEY = """\
model: ./models.py:build
model_args: {num_classes: 10}
checkpoints:
  {files: ["runs/*/last.pt"], use: auto, dtype: same, drop: [], base: null, order: recorded, on_bad_ingredient: fail}
expect: {checkpoint: runs/a/last.pt, value: 0.883, tolerance: 0.003}
task: classification
data:
  train: data/train
  val: data/val
  test: data/test
  max_overlap: 0.001
  near_duplicates: false
  cache: {dir: null, max_gb: 20}
  on_bad_sample: fail
preprocess:
  resize: 256
  crop: 224
  interpolation: bilinear
  backend: pil
  color: rgb
  mean: [0.485, 0.456, 0.406]
  std: [0.229, 0.224, 0.225]
  letterbox: null
  sweep: {scales: [0.8, 1.0], crop_ratios: [0.875]}
metric: accuracy
device: auto
search:
  {methods: [uniform, greedy], bn_policy: recalibrated, min_gain: 0, confidence: null, budget: null, early_stop: true,
  precision: fp32, backend: auto}
explain: {contributions: true, ensemble: true, views: [flip, 0.8], line: 3}
classification: {multilabel: false, classes: null, threshold: 0.5, class_weights: null, bins: 15}
detection:
  adapter: yolo
  adapter_args: {strides: [8, 16, 32]}
  classes: [a, b]
  suppression:
    {method: nms, iou: 0.5, score: 0.05, max_detections: 100, candidates: 1000, class_agnostic: false, sigma: 0.5,
    voting_iou: null}
  fusion: {method: union, iou: null, votes: 2, score: 0.1}
segmentation: {output: out, classes: null, ignore_index: 255, palette: null, score_at: image}
batchnorm: {samples: 1000, batch: 100}
quantization: {samples: 500, method: entropy, percentile: 99.99, backend: onnxruntime, rest: fp32, budget: 100}
export:
  batch: {min: 1, opt: 8, max: 32}
  profiles: [{min: 1, opt: 1, max: 1}, {min: 2, opt: 8, max: 32}]
  inputs: {}
  outputs: {}
  precision: [int8, fp16, fp32]
  preprocess: in_graph
  frames: bgr
  target: rtx-4060
  engine:
    workspace_mb: null
    optimization_level: null
    version_compatible: false
    hardware_compatibility: none
    refit: false
    strip_weights: false
    timing_cache: null
    timing_cache_sha256: null
    dla_core: null
  nms: none
  prepare: null
  opset: 18
release: {golden: {count: 64, from: val}}
gates:
  accuracy: {max_drop: 0.005, max_drop_relative: 0.01, against: best_single}
  per_class_drop: {max_drop: 0.05, against: soup, min_images: 30}
  flips: {max_share: 0.01, max_count: 20, against: soup}
  outputs: {max_error: 0.5, cosine: 0.99, against: baseline}
  gain: {min: 0.001}
  latency:
    p50_ms: 5
    p90_ms: 8
    p99_ms: 10
    relative: {max_ratio: 1.05, against: best_single}
    runtime: tensorrt
    device: orin-nano
  throughput: {min_per_s: 30, runtime: tensorrt, device: orin-nano}
  engine_size: {max_mb: 20}
  memory: {max_mb: 500, build_max_mb: 4000}
  int8_speedup: {min: 1.0}
  dla_share: {min: 0.9}
  require: [onnx, engine]
"""


def load(folder: Path, text: str, *overrides: str) -> Config:
    (folder / "val.yaml").write_text(text)
    return load_config(folder / "val.yaml", overrides=overrides, environment={})


def complaints(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(SoupError) as caught:
        load(folder, text, *overrides)
    assert caught.value.kind == "input"
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_every_key_of_the_design_is_read_as_written(tmp_path: Path) -> None:
    config = load(tmp_path, EVERY_KEY)

    assert resolved(config) == yaml.safe_load(EVERY_KEY)
    assert config.gates.latency is not None
    assert config.gates.latency.p99_ms == 10


def test_what_is_left_out_has_a_default_but_a_gate_is_only_set_by_the_user(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)

    assert config.checkpoints.files == ("runs/*.pt",)
    assert (config.search.methods, config.search.bn_policy) == (("uniform", "greedy"), "recalibrated")
    assert (config.batchnorm.samples, config.export.opset, config.release.golden.count) == (1000, 18, 64)
    assert (config.preprocess, config.data.test, config.expect) == (None, None, None)
    assert (config.gates.accuracy, config.gates.gain, config.gates.latency) == ((), None, None)


def test_the_config_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)

    with pytest.raises(ValueError, match="frozen"):
        config.search.min_gain = 1  # type: ignore[misc]


def test_paths_start_from_the_folder_of_val_folder(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)

    assert config.folder == tmp_path
    assert config.resolve(config.data.val) == tmp_path / "data/val"
    assert config.resolve("/abs") == Path("/abs")
    assert str(tmp_path) not in json.dumps(resolved(config))


def test_every_problem_is_told_at_once_with_file_line_and_key(tmp_path: Path) -> None:
    text = """\
model: models.py
checkpoints: []
data:
  vall: data/val
  max_overlap: ${NOT_SET}
metric: accuracy
metric: top5
batchnorm:
  samples: 0
gates:
  accuracy: {max_drop: abc}
  latncy: {}
"""
    lines = complaints(tmp_path, text, "export.opset=99", "gates.acuracy.max_drop=1")

    assert [line.split(": ")[:2] for line in lines] == [
        ["val.yaml:5", "data.max_overlap"],
        ["val.yaml:7", "metric"],
        ["val.yaml:1", "model"],
        ["val.yaml:2", "checkpoints.files"],
        ["val.yaml:3", "data.val"],
        ["val.yaml:4", "data.vall"],
        ["val.yaml:9", "batchnorm.samples"],
        ["--set export.opset=99", "export.opset"],
        ["val.yaml:11", "gates.accuracy.max_drop"],
        ["val.yaml:12", "gates.latncy"],
        ["--set gates.acuracy.max_drop=1", "gates.acuracy"],
    ]
    assert lines[8].startswith(
        "val.yaml:11: gates.accuracy.max_drop: expected a number, got 'abc'. Meaning: the largest"
    )
    assert lines[9] == "val.yaml:12: gates.latncy: unknown key. Did you mean 'latency'?"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("metric=weighted_accuracy", "weighted_accuracy needs classification.class_weights, which are not given"),
        ("task=pose", "expected 'classification', 'detection' or 'segmentation', got 'pose'"),
        ("export.nms=onnx", "export.nms is onnx, and the task is classification. Leave it out"),
        ("detection.adapter=yolov8", "expected one of torchvision, centernet, yolo, detr, none, or './file.py:name'"),
        (
            "detection.classes=[RBC, WBC, RBC]",
            "detection.classes: 'RBC' is there more than once, expected a name of its own for each score. Rename one.",
        ),
        ("segmentation.palette={red: 1}", "expected a colour as '#ff0000'"),
        ("segmentation.palette={'#f00': 1}", "expected a colour as '#ff0000'"),
        ("segmentation.palette={}", "segmentation.palette: expected at least 1"),
        ("segmentation.classes=[]", "segmentation.classes: expected at least 1"),
        ("preprocess.sweep={scales: [0.1]}", "preprocess.sweep.scales[0]: expected 0.25 or more, got 0.1"),
        ("explain.views=[upside_down]", "expected flip, or a scale as 1.25, got 'upside_down'"),
        ("search.methods=[greedy, ties]", "search.methods[1]: expected one of uniform, greedy, greedy_repeated, prun"),
        ("search.methods=[]", "search.methods: expected at least 1 of them, got []"),
        ("search.bn_policy=own", "(singles are always scored with their own statistics), got 'own'"),
        ("search.methods=[ranked]", "search.budget: the method 'ranked' needs one. Give {evaluations: 20} or {minu"),
        ("search.budget={evaluations: 3}", "only the method 'ranked' spends a budget. Add it to search.methods, or re"),
        ("search={methods: [ranked], budget: {}}", "search.budget: expected evaluations or minutes, one of the two."),
        ("search={methods: [ranked], budget: {evaluations: 1, minutes: 1}}", "expected evaluations or minutes, one "),
        ("search={methods: [ranked], budget: {evaluations: 0}}", "budget.evaluations: expected 1 or more, got 0"),
        ("search={methods: [ranked], budget: {minutes: 0}}", "search.budget.minutes: expected more than 0, got 0"),
        ("search.budget=10", "search.budget: expected keys below it, got 10"),
        ("search.methods=[uniform, wise_ft]", "search: 'wise_ft' starts from checkpoints.base, which is not given. G"),
        ("search.methods=[model_stock]", "search: 'model_stock' starts from checkpoints.base, which is not given."),
        ("search.confidence=0.4", "search.confidence: expected 0.5 or more, got 0.4"),
        ("search.confidence=1", "search.confidence: expected less than 1, got 1"),
        ("search.confidence=95", "search.confidence: expected less than 1, got 95"),
        ("search.early_stop=1", "search.early_stop: expected true or false, got 1"),
        ("search.backend=tensorrt", "search.backend: expected 'auto', 'torch' or 'onnxruntime', got 'tensorrt'"),
        ("checkpoints.order=best", "checkpoints.order: expected 'recorded' or 'pilot', got 'best'"),
        ("explain.line=51", "explain.line: expected 50 or less, got 51"),
        ("explain=false", "explain: expected keys below it, got false"),
        ("export.precision=[fp8]", "export.precision[0]: expected 'fp32', 'fp16' or 'int8'"),
        ("export.precision=[fp16, fp16]", "export.precision: names a precision twice"),
        ("export.profiles=[{min: 1, opt: 1, max: 2}]", "export.profiles: are for a dynamic batch"),
        ("export.frames=bgr", "export.frames: is the order of camera frames"),
        ("export.nms=graph", "expected 'none', 'onnx' or 'efficientnms_trt', got 'graph'"),
        ("export.batch={min: 4, opt: 2, max: 8}", "{min, opt, max} in rising order, got {\"min\": 4, \"opt\": 2"),
        ("export.batch=true", "expected a whole number from 1, or {min, opt, max} in rising order, got true"),
        ("export.opset=12", "expected 13 or more, got 12"),
        ("export.inputs={images: float64}", "export.inputs.images: expected 'float32', 'float16', 'int64'"),
        ("export.prepare=prepare", "expected './file.py:name' or 'package.module:name', got 'prepare'"),
        ("preprocess.resize=[1, 2, 3]", "expected pixels, or [height, width], got [1, 2, 3]"),
        ("preprocess.mean=[0.5, 0.5]", "preprocess.mean: has 2 values, expected 1 or one per channel (3)."),
        ("preprocess={color: gray, std: [1, 1, 1]}", "preprocess.std: has 3 values, expected 1 or one per channel (1)"),
        ("preprocess.std=[0]", "preprocess.std[0]: expected more than 0, got 0"),
        ("preprocess={letterbox: {size: 8}, crop: 4}", "letterbox stands instead of resize and crop"),
        ("preprocess={letterbox: {size: 8, pad: 256}}", "letterbox.pad: expected 0 to 255, or one such number per"),
        ("release.golden.count=some", "expected a whole number from 1, or 'all', got 'some'"),
        ("release.golden.from=test", "golden.from is test, but data.test is not given"),
        ("data.train=null", "BatchNorm is recalibrated on data.train, which is not given"),
        ("data.on_bad_sample=ignore", "expected 'fail' or 'skip', got 'ignore'"),
        ("gates.latency={runtime: tensorrt, device: orin}", "gates.latency: limits nothing. Give p50_ms, "),
        ("gates.latency={p99_ms: 1, device: orin}", "gates.latency.runtime: is missing. Meaning: the runtime"),
        ("gates.require=[onx]", "gates.require[0]: expected 'onnx', 'engine' or 'device', got 'onx'"),
        ("gates.accuracy.max_drop='0.1'", "expected a number, got '0.1'"),
        ("metric=mAP", "'mAP' is not known for classification. Expected one of accuracy, top5"),
        ("device=gpu", "expected auto, cpu, cuda or cuda:0, got 'gpu'"),
        ("batchnorm=7", "batchnorm: expected keys below it, got 7"),
        ("extends=other.yaml", "extends: unknown key"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(tmp_path: Path, option: str, message: str) -> None:
    (line,) = complaints(tmp_path, MINIMAL, option)

    assert line.startswith(f"--set {option}: ") or option == "data.train=null"
    assert message in line


@pytest.mark.parametrize(
    "option",
    [
        "export.batch={min: 1, opt: 1, max: 32}", "release.golden.count=all", "preprocess={resize: [20, 30]}",
        "preprocess={letterbox: {size: [20, 30], pad: 0, centered: false}}", "preprocess={color: gray, mean: [0.5]}",
        "data={val: v.npz, train: ./data.py:train}", "device=cuda:1", "export.inputs={images: float16}",
        "model=torchvision:resnet18", "model=timm:resnet50.a1_in1k", "model=package.module:build",
        "model_args={deep: [{a: 1}]}", "search={methods: [greedy, ranked], budget: {evaluations: 20}}",
        "search={methods: [ranked], budget: {minutes: 0.5}, confidence: 0.95, backend: torch}", "checkpoints.base=a.pt",
        "explain={contributions: false, ensemble: false, line: 0}", "checkpoints.order=pilot",
    ],
)  # fmt: skip
def test_the_other_forms_of_a_value_load_and_survive_build_json(tmp_path: Path, option: str) -> None:
    config = load(tmp_path, MINIMAL, option)

    assert apply_overrides(json.loads(json.dumps(resolved(config))), [], folder=tmp_path) == config


def test_a_valid_config_with_a_key_given_twice_is_refused_all_the_same(tmp_path: Path) -> None:
    assert complaints(tmp_path, f"{MINIMAL}metric: top5\nmetric: accuracy\n") == [
        "val.yaml:5: metric: is given twice, first at val.yaml:4. Keep one."
    ]


def test_every_method_of_the_search_can_be_asked_for_and_no_other(tmp_path: Path) -> None:
    config = load(
        tmp_path, MINIMAL, f"search={{methods: [{', '.join(METHODS)}], budget: {{evaluations: 2}}}}",
        "checkpoints={files: [a.pt], base: b.pt}",
    )  # fmt: skip
    assert config.search.methods == METHODS
    assert set(METHODS) == set(RUN)


def test_without_training_images_the_averaged_policy_loads(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL, "data.train=null", "search.bn_policy=averaged")

    assert config.data.train is None


def test_a_problem_of_an_extended_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "common.yaml").write_text(f"{MINIMAL}gates:\n  accuracy:\n    max_drop: -1\n")

    (line,) = complaints(tmp_path, "extends: common.yaml\nmetric: top5\n")
    assert line.startswith("common.yaml:6: gates.accuracy.max_drop: expected 0 or more, got -1")


def test_an_export_may_differ_from_its_build_in_what_comes_after_it_only(tmp_path: Path) -> None:
    values = resolved(load(tmp_path, MINIMAL))

    changed = apply_overrides(values, ["export.batch=8", "gates.accuracy.max_drop=0.01"], folder=tmp_path)
    assert changed.export.batch == 8
    with pytest.raises(SoupError) as caught:
        apply_overrides(values, ["metric=top5", "export.batch=8", "data.val=x"], folder=tmp_path)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["--set metric=top5", "--set data.val=x"]
    assert "only gates, export, quantization, release may differ" in str(caught.value)


@settings(max_examples=30, deadline=None)
@given(
    text=st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=60),
    key=st.sampled_from(["", "data: ", "gates:\n  "]),
)
def test_any_text_is_a_config_or_one_named_error(text: str, key: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "val.yaml"
    path.write_bytes(f"{key}{text}".encode())

    with pytest.raises(SoupError, match=r"val\.yaml"):
        load_config(path, environment={})


def test_every_metric_of_the_task_can_be_asked_for_and_no_other() -> None:
    settings = {
        "classification": {}, "detection": {"classes": 3, "suppression": {}},
        "segmentation": {"classes": 3, "ignore_index": 255, "score_at": "image"},
    }  # fmt: skip
    for task in get_args(Task):
        for name in names_of(task):
            assert is_name(name, task=task)
            weights = {"weights": [1.0], "classes": 1} if name == "weighted_accuracy" else {}
            assert metric_named(task, name, settings[task] | weights).name == name
    for name in names_of("classification", multilabel=True):
        assert metric_named("classification", name, {"multilabel": True}).name == name
    assert is_name("top7", task="classification")
    assert not is_name("top7", task="detection")


def test_the_published_schema_is_the_one_that_the_code_gives() -> None:
    assert json.loads(PUBLISHED.read_text()) == schema(), (
        "write it again: python -c 'import sys; from soup.config import schema; from soup.files import readable_json; "
        "sys.stdout.buffer.write(readable_json(schema()))' > docs/schemas/val.schema.json"
    )


def test_the_schema_accepts_what_loads_and_refuses_a_misspelt_key() -> None:
    validator = Draft202012Validator(schema())

    validator.check_schema(schema())
    for text in (EVERY_KEY, MINIMAL, f"extends: a.yaml\n{MINIMAL}"):
        validator.validate(yaml.safe_load(text))
    with pytest.raises(ValidationError, match="metrik"):
        validator.validate({**yaml.safe_load(MINIMAL), "metrik": "accuracy"})


def test_every_key_has_a_meaning_in_the_schema() -> None:
    document = json.loads(json.dumps(schema()))
    sections = [document, *(section for section in document["$defs"].values() if "properties" in section)]

    assert [name for one in sections for name, key in one["properties"].items() if "description" not in key] == []
