from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters import ExportError
from exporters.efficient_nms import with_efficient_nms
from exporters.nms_graph import with_nms
from exporters.onnx_facts import onnx_facts
from exporters.runtimes import Arrays, OnnxRuntime, TensorInfo

onnx = pytest.importorskip("onnx")
helper = onnx.helper
Row = tuple[float, int, tuple[float, ...]]


def detector(
    *,
    anchors: int | str = 40,
    classes: int | str = 3,
    batch: int | str = "batch",
    opset: int = 18,
    names: tuple[str, str] = ("boxes", "scores"),
) -> bytes:
    """Boxes as they are fed, scores by a sigmoid of what is fed; the second is read inside the graph, too."""
    nodes = [
        helper.make_node("Identity", ["b"], [names[0]], name="boxes"),
        helper.make_node("Mul", [names[0], "one"], ["scaled"], name="scaled"),
        helper.make_node("Sigmoid", ["s"], [names[1]], name="scores"),
    ]
    shapes = {"b": [batch, anchors, 4], "s": [batch, anchors, classes]}
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in zip(names, shapes.values(), strict=True)],
        [onnx.numpy_helper.from_array(np.ones((), np.float32), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, {"recipe": "r"})
    return bytes(model.SerializeToString())


def scene(*, count: int, anchors: int = 40, classes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Boxes that overlap, and logits in steps so coarse that many scores are equal."""
    random = np.random.default_rng(seed)
    centers, sizes = random.random((count, anchors, 2)) * 50, random.random((count, anchors, 2)) * 30 + 1
    boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=-1)
    logits = np.round(random.normal(0, 3, (count, anchors, classes)))
    return {"b": boxes.astype(np.float32), "s": logits.astype(np.float32)}


def run(model: bytes, feed: Arrays) -> list[np.ndarray]:
    with OnnxRuntime(model, where="test", threads=1) as runtime:
        return list(runtime(feed).values())


def inside(model: bytes, **options: object) -> bytes:
    arguments = {"iou": 0.5, "score": 0.1, "max_detections": 20, "candidates": 1000, "class_agnostic": False, **options}
    return with_nms(model, where="test", **arguments)  # type: ignore[arg-type]


def rows_of(outputs: Sequence[np.ndarray], image: int) -> list[Row]:
    boxes, scores, labels = (array[image] for array in outputs)
    count = int((labels >= 0).sum())
    assert (labels[:count] >= 0).all()
    assert (labels[count:] == -1).all()
    assert not scores[count:].any()
    assert not boxes[count:].any()
    return [(float(s), int(c), tuple(b)) for s, c, b in zip(scores[:count], labels, boxes.tolist(), strict=False)]


def by_hand(
    boxes: np.ndarray, scores: np.ndarray, *, iou: float, score: float, max_detections: int, candidates: int,
    class_agnostic: bool,
) -> list[Row]:  # fmt: skip
    """The rule, one pair after the other, in float64."""
    pairs = sorted(
        (
            (-float(value), anchor, label)
            for (anchor, label), value in np.ndenumerate(scores)
            if value > np.float32(score)
        )
    )[:candidates]
    kept: list[Row] = []
    for value, anchor, label in pairs:
        box = boxes[anchor].astype(np.float64)
        if all(not (class_agnostic or label == other) or overlap(box, one) <= iou for _, other, one in kept):
            kept.append((-value, label, tuple(boxes[anchor].tolist())))
    return kept[:max_detections]


def overlap(a: np.ndarray, b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.sampled_from([1, 3]),
    fixed=st.booleans(),
    anchors=st.integers(1, 40),
    classes=st.integers(1, 4),
    iou=st.sampled_from([0.3, 0.5, 0.75]),
    score=st.sampled_from([0.0, 0.05, 0.5]),
    max_detections=st.sampled_from([1, 7, 200]),
    candidates=st.sampled_from([1, 10, 1000]),
    class_agnostic=st.booleans(),
    opset=st.sampled_from([13, 17, 18, 20]),
)
def test_the_graph_keeps_what_the_rule_keeps_in_the_same_order(
    seed: int, count: int, fixed: bool, anchors: int, classes: int, opset: int, **rules: float
) -> None:
    model = detector(anchors=anchors, classes=classes, batch=count if fixed else "batch", opset=opset)
    feed = scene(count=count, anchors=anchors, classes=classes, seed=seed)
    boxes, scores = run(model, feed)
    outputs = run(inside(model, **rules), feed)
    assert [array.shape for array in outputs] == [
        (count, rules["max_detections"], 4), *[(count, rules["max_detections"])] * 2,
    ]  # fmt: skip
    for image in range(count):
        assert rows_of(outputs, image) == by_hand(boxes[image], scores[image], **rules)  # type: ignore[arg-type]


def test_detections_are_those_of_torchvision() -> None:
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision.ops")
    model, feed = detector(), scene(count=3)
    feed["s"] += np.random.default_rng(1).normal(0, 0.1, feed["s"].shape).astype(np.float32)  # no ties
    boxes, scores = run(model, feed)
    outputs = run(inside(model), feed)
    for image in range(3):
        anchors, labels = np.nonzero(scores[image] > np.float32(0.1))
        values = torch.from_numpy(scores[image][anchors, labels])
        keep = ops.batched_nms(torch.from_numpy(boxes[image][anchors]), values, torch.from_numpy(labels), 0.5)[
            :20
        ].numpy()
        expected = [(float(values[row]), int(labels[row]), tuple(boxes[image][anchors[row]].tolist())) for row in keep]
        assert rows_of(outputs, image) == expected


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_detections_are_those_of_the_suppression_outside(class_agnostic: bool) -> None:
    suppression = pytest.importorskip("soup.tasks.suppression")
    model, feed = detector(), scene(count=3, seed=5)
    boxes, scores = run(model, feed)
    outputs = run(inside(model, class_agnostic=class_agnostic, candidates=50), feed)
    rules = suppression.Suppression(iou=0.5, score=0.1, max_detections=20, candidates=50, class_agnostic=class_agnostic)
    for image in range(3):
        found = suppression.suppress(boxes[image], scores[image], rules)
        expected = zip(found.scores.tolist(), found.labels.tolist(), map(tuple, found.boxes.tolist()), strict=True)
        assert rows_of(outputs, image) == list(expected)


def test_no_box_above_the_threshold_gives_rows_of_label_minus_1_and_nan_is_no_candidate() -> None:
    feed = scene(count=2)
    feed["s"][0], feed["s"][1, :, 1:] = -9, np.nan
    outputs = run(inside(detector()), feed)
    assert rows_of(outputs, 0) == []
    assert {label for _, label, _ in rows_of(outputs, 1)} == {0}


def test_names_batch_opset_and_metadata_are_kept() -> None:
    model = inside(detector(names=("where", "how_sure"), opset=17), max_detections=5)
    facts = onnx_facts(model, where="test")
    assert facts.outputs == (
        TensorInfo("where", "float32", ("batch", 5, 4)),
        TensorInfo("how_sure", "float32", ("batch", 5)),
        TensorInfo("labels", "int32", ("batch", 5)),
    )
    assert (facts.opset, facts.metadata) == (17, {"recipe": "r"})
    assert model == inside(detector(names=("where", "how_sure"), opset=17), max_detections=5)


@pytest.mark.parametrize("output", [0, 1])
def test_the_number_of_anchors_may_be_told_by_one_output_alone(output: int) -> None:
    proto = onnx.ModelProto.FromString(detector())
    for value in (proto.graph.input[output], proto.graph.output[output]):
        value.type.tensor_type.shape.dim[1].dim_param = "unknown"
    model, feed = inside(proto.SerializeToString()), scene(count=2)
    for found, expected in zip(run(model, feed), run(inside(detector()), feed), strict=True):
        np.testing.assert_array_equal(found, expected)


def renamed(model: bytes, old: str, new: str) -> bytes:
    return model.replace(old.encode(), new.encode())


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (detector(anchors="many"), {}, r"float32 'boxes' \('batch', 'many', 4\).*expected float32 boxes \(n, A, 4\)"),
        (detector(opset=12), {}, "has opset 12, expected 13 or later for NMS in the graph"),
        (renamed(detector(), "scaled", "labels"), {}, "the graph has a tensor 'labels' already, expected none"),
        (inside(detector()), {}, r"int32 'labels' \('batch', 20\), expected float32 boxes"),
        (detector(), {"max_detections": 0}, "max_detections 0, candidates 1000, score 0.1; expected 1 or more"),
        (detector(), {"score": -0.1}, "score -0.1; expected 1 or more of both, and no negative score"),
        (b"no model", {}, "not an ONNX file"),
    ],
)
def test_what_cannot_be_suppressed_in_the_graph_is_refused(
    model: bytes, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        inside(model, **options)
    assert caught.value.kind == "input"


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_the_plugin_has_the_attributes_of_nvidias_documentation(class_agnostic: bool) -> None:
    """Its structure alone: no runtime here has the plugin."""
    model = with_efficient_nms(
        detector(), iou=0.6, score=0.25, max_detections=50, class_agnostic=class_agnostic, where="test"
    )
    proto = onnx.ModelProto.FromString(model)
    onnx.checker.check_model(proto, full_check=True)
    (plugin,) = (node for node in proto.graph.node if node.op_type == "EfficientNMS_TRT")
    attributes = {one.name: helper.get_attribute_value(one) for one in plugin.attribute}
    assert attributes == {
        "plugin_version": b"1", "plugin_namespace": b"", "score_threshold": pytest.approx(0.25),
        "iou_threshold": pytest.approx(0.6), "max_output_boxes": 50, "background_class": -1, "score_activation": 0,
        "box_coding": 0, "class_agnostic": int(class_agnostic),
    }  # fmt: skip
    assert [len(plugin.input), len(plugin.output)] == [2, 4]
    assert {item.domain: item.version for item in proto.opset_import} == {"": 18, "TRT": 1}
    assert [(info.name, info.dtype, info.shape) for info in onnx_facts(model, where="test").outputs] == [
        ("boxes", "float32", ("batch", 50, 4)),
        ("scores", "float32", ("batch", 50)),
        ("labels", "int32", ("batch", 50)),
    ]


def test_rows_beyond_the_plugins_count_become_label_minus_1() -> None:
    """The plugin replaced by inputs of its outputs' shapes, the rest run."""
    proto = onnx.ModelProto.FromString(
        with_efficient_nms(detector(), iou=0.5, score=0.1, max_detections=3, class_agnostic=False, where="test")
    )
    (plugin,) = (node for node in proto.graph.node if node.op_type == "EfficientNMS_TRT")
    given = dict(zip(["count", "boxes", "scores", "classes"], plugin.output, strict=True))
    kept = [node for node in proto.graph.node if node.name.startswith("nms/") and node.op_type != "EfficientNMS_TRT"]
    shapes = {"count": (6, [2, 1]), "boxes": (1, [2, 3, 4]), "scores": (1, [2, 3]), "classes": (6, [2, 3])}
    inputs = [helper.make_tensor_value_info(given[name], *shape) for name, shape in shapes.items()]
    graph = helper.make_graph(kept, "rest", inputs, proto.graph.output, proto.graph.initializer)
    rest = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    boxes, scores, labels = run(
        rest,
        {
            given["count"]: np.array([[1], [3]], np.int32),
            given["boxes"]: np.arange(24, dtype=np.float32).reshape(2, 3, 4) + 1,
            given["scores"]: np.full((2, 3), 0.5, np.float32),
            given["classes"]: np.full((2, 3), 7, np.int32),
        },
    )
    assert labels.tolist() == [[7, -1, -1], [7, 7, 7]]
    assert scores.tolist() == [[0.5, 0, 0], [0.5, 0.5, 0.5]]
    assert boxes[0].tolist() == [[1, 2, 3, 4], [0] * 4, [0] * 4]
    assert boxes[1].min() == 13


def test_the_plugin_refuses_what_the_operators_refuse() -> None:
    with pytest.raises(ExportError, match=r"max_detections 0, score 0\.1; expected 1 or more"):
        with_efficient_nms(detector(), iou=0.5, score=0.1, max_detections=0, class_agnostic=False, where="test")
    with pytest.raises(ExportError, match="expected float32 boxes"):
        with_efficient_nms(
            detector(classes="some"), iou=0.5, score=0.1, max_detections=5, class_agnostic=False, where="test"
        )
