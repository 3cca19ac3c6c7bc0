from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters import ExportError
from exporters.audit import audit_onnx
from exporters.in_graph import Color, with_preprocess
from exporters.onnx_facts import onnx_facts
from exporters.onnx_to_fp16 import onnx_to_fp16, spans
from exporters.onnx_to_int8 import calibration_tensors, onnx_to_int8
from exporters.onnx_to_tensorrt import find_builder, onnx_to_tensorrt
from exporters.runtimes import OnnxRuntime, TensorInfo
from exporters.tapped import tapped
from soup.preprocess import normalize

onnx = pytest.importorskip("onnx")
helper = onnx.helper
needs_rtx = pytest.mark.skipif(
    (builder := find_builder()) is None or builder.flavour != "tensorrt_rtx", reason="tensorrt_rtx builds these engines"
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PADDED, BARE, GROUPED = {"pads": [1, 1, 1, 1]}, {}, {"group": 3}


def network(
    conv: dict[str, object],
    *,
    channels: int = 3,
    bias: bool = True,
    batch: int | str = "n",
    before: Sequence[object] = (),
) -> bytes:
    """Convolution (of "input", or what `before` makes of it), ReLU, mean over the image, a linear head of 10."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(6, channels // int(str(conv.get("group", 1))), 3, 3)),
        "head": random.normal(size=(6, 10)),
    }
    if bias:
        weights["b"] = random.normal(size=6)
    first = before[-1].output[0] if before else "input"  # type: ignore[attr-defined]
    inputs = [first, "w", "b"] if bias else [first, "w"]
    nodes = [
        *before,
        helper.make_node("Conv", inputs, ["conv"], name="conv", **conv),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("ReduceMean", ["relu", "axes"], ["mean"], name="mean", keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"], name="head"),
    ]
    arrays = {name: array.astype(np.float32) for name, array in weights.items()} | {"axes": np.array([2, 3])}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", 1, [batch, channels, 8, 9])],
        [helper.make_tensor_value_info("logits", 1, [batch, 10])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"recipe": "r"})
    return bytes(model.SerializeToString())


def frames(count: int = 5, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 8, 9, channels), dtype=np.uint8)


def normalized(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """By the preprocessing that the evaluation uses, one image after another."""
    out = np.empty((len(images), images.shape[3], *images.shape[1:3]), np.float32)
    wide = [np.broadcast_to(np.float32(values), images.shape[3]) for values in (mean, std)]
    for image, planes in zip(images, out, strict=True):
        normalize(image, *wide, out=planes)
    return out


def run(model: bytes, images: np.ndarray) -> np.ndarray:
    with OnnxRuntime(model, where="test") as runtime:
        return runtime({"input": images})["logits"]


def inside(model: bytes, *, color: Color = "rgb", source_color: Color = "rgb", **options: object) -> bytes:
    arguments = {"mean": MEAN, "std": STD, **options}
    return with_preprocess(model, color=color, source_color=source_color, where="test", **arguments)  # type: ignore[arg-type]


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.ModelProto.FromString(model).graph.node]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("conv", "added"),
    [
        (BARE, ["Cast", "Transpose"]),
        ({"auto_pad": "VALID"}, ["Cast", "Transpose"]),
        (PADDED, ["Cast", "Transpose", "Sub"]),
        ({"auto_pad": "SAME_UPPER"}, ["Cast", "Transpose", "Sub"]),
        (GROUPED, ["Cast", "Transpose", "Div", "Sub", "Div"]),
    ],
)
def test_the_logits_are_those_of_the_preprocessing_outside(
    conv: dict[str, object], added: list[str], bias: bool
) -> None:
    model, images = network(conv, bias=bias), frames()
    expected = run(model, normalized(images, MEAN, STD))

    made = inside(model)

    np.testing.assert_allclose(run(made, images), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(run(made, images).argmax(1), expected.argmax(1))
    assert operators(made) == [*added, *operators(model)]


@pytest.mark.parametrize("conv", [BARE, PADDED, GROUPED])
@pytest.mark.parametrize(("color", "source"), [("rgb", "bgr"), ("bgr", "rgb"), ("bgr", "bgr")])
def test_a_camera_of_the_other_order_gives_the_same_logits(
    conv: dict[str, object], color: Color, source: Color
) -> None:
    """Mean and std are per channel of the model's own order."""
    model, images = network(conv), frames()
    expected = run(model, normalized(images, MEAN, STD))
    as_camera = images if color == source else images[..., ::-1]

    made = inside(model, color=color, source_color=source)

    np.testing.assert_allclose(run(made, np.ascontiguousarray(as_camera)), expected, rtol=1e-5, atol=1e-5)
    assert ("Gather" in operators(made)) is (conv is GROUPED and color != source)


def test_as_nodes_the_numbers_are_bit_for_bit_those_of_the_evaluation() -> None:
    model = network(PADDED, before=[helper.make_node("Relu", ["input"], ["first"], name="first")])
    images = frames()
    made = inside(model)

    name = onnx.ModelProto.FromString(made).graph.node[4].output[0]
    found = next(tapped(made, [name], [{"input": images}], where="test"))[name]

    np.testing.assert_array_equal(found, normalized(images, MEAN, STD))


def test_identity_before_the_convolution_does_not_keep_it_from_taking_the_scale() -> None:
    model = network(BARE, before=[helper.make_node("Identity", ["input"], ["same"], name="same")])

    made = inside(model)

    assert operators(made)[:3] == ["Cast", "Transpose", "Identity"]
    np.testing.assert_allclose(run(made, frames()), run(model, normalized(frames(), MEAN, STD)), rtol=1e-5, atol=1e-5)


def test_an_input_that_two_nodes_read_is_normalised_for_both() -> None:
    before = [
        helper.make_node("Relu", ["input"], ["positive"], name="positive"),
        helper.make_node("Add", ["input", "positive"], ["sum"], name="sum"),
    ]
    model = network(BARE, before=before)

    made = inside(model)

    assert operators(made)[:5] == ["Cast", "Transpose", "Div", "Sub", "Div"]
    np.testing.assert_allclose(run(made, frames()), run(model, normalized(frames(), MEAN, STD)), rtol=1e-5, atol=1e-5)


def test_an_input_that_the_convolution_shares_is_normalised_for_the_other_too() -> None:
    proto = onnx.ModelProto.FromString(network(BARE))
    proto.graph.node.append(helper.make_node("Identity", ["input"], ["seen"], name="seen"))
    proto.graph.output.append(helper.make_tensor_value_info("seen", 1, ["n", 3, 8, 9]))

    with OnnxRuntime(inside(proto.SerializeToString()), where="test") as runtime:
        outputs = runtime({"input": frames()})

    np.testing.assert_array_equal(outputs["seen"], normalized(frames(), MEAN, STD))


def test_a_weight_that_another_node_reads_too_is_not_scaled_for_it() -> None:
    proto = onnx.ModelProto.FromString(network(BARE))
    proto.graph.node.append(helper.make_node("Identity", ["w"], ["weights"], name="also"))
    proto.graph.output.append(helper.make_tensor_value_info("weights", 1, [6, 3, 3, 3]))

    made = onnx.ModelProto.FromString(inside(proto.SerializeToString()))

    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    before = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    np.testing.assert_array_equal(weights["w"], before["w"])
    assert "w:frames" in weights


@pytest.mark.parametrize("batch", ["n", 2])
def test_the_interface_is_frames_under_the_same_name_with_the_same_batch(batch: int | str) -> None:
    made = inside(network(PADDED, batch=batch))

    facts = onnx_facts(made, where="made")
    assert facts.inputs == (TensorInfo("input", "uint8", (batch, 8, 9, 3)),)
    assert facts.outputs == (TensorInfo("logits", "float32", (batch, 10)),)
    assert (facts.opset, facts.metadata) == (18, {"recipe": "r"})
    assert made == inside(network(PADDED, batch=batch))
    onnx.checker.check_model(onnx.ModelProto.FromString(made), full_check=True)


@given(count=st.integers(1, 9))
@settings(max_examples=5, deadline=None)
def test_any_number_of_frames_may_come_at_once(count: int) -> None:
    model, images = network(PADDED), frames(9)[:count]

    np.testing.assert_allclose(
        run(inside(model), images), run(model, normalized(images, MEAN, STD)), rtol=1e-5, atol=1e-5
    )


def test_real_grey_digits_are_told_apart_as_before(trained: Path, tmp_path: Path) -> None:
    """The trained network, exported, on the real images that val.yaml names."""
    import torch

    from exporters.torch_to_onnx import torch_to_onnx

    namespace: dict[str, object] = {}
    exec((trained / "models.py").read_text(), namespace)
    model = namespace["build"]()  # type: ignore[operator]
    model.load_state_dict(torch.load(trained / "runs" / "epoch-6.pt", weights_only=True)["model"])
    images = np.load(trained / "val.npz")["images"]
    x = normalized(images, [0.3], [0.35])
    torch_to_onnx(model.eval(), {"input": x[:2]}, tmp_path / "model.onnx", inputs={}, outputs={"logits": "float32"},
                  batch=(1, 4, 16), opset=17, metadata={}, simplify=False)  # fmt: skip
    before = (tmp_path / "model.onnx").read_bytes()

    made = inside(before, color="gray", source_color="gray", mean=[0.3], std=[0.35])

    np.testing.assert_allclose(run(made, images), run(before, x), atol=1e-5)
    np.testing.assert_array_equal(run(made, images).argmax(1), run(before, x).argmax(1))
    assert onnx_facts(made, where="made").inputs[0].shape[1:] == (8, 8, 1)


@pytest.mark.parametrize("conv", [BARE, PADDED, GROUPED])
def test_fp16_takes_the_graph_with_its_preprocessing_in_fp32(conv: dict[str, object]) -> None:
    made = inside(network(conv), source_color="bgr")
    images = frames(32)

    half = onnx_to_fp16(made, spans(made, [{"input": images}], where="test"), where="test")

    assert set(half.kept.values()) == {"it normalises the frames"}
    assert {audit.found for audit in audit_onnx(half.model, asked="fp16", kept=(), where="test")} == {"fp16"}
    assert onnx_facts(half.model, where="half").inputs == onnx_facts(made, where="made").inputs
    expected = run(made, images)
    assert np.abs(run(half.model, images) - expected).max() < 5e-3 * np.abs(expected).max()


@pytest.mark.parametrize("conv", [BARE, PADDED, GROUPED])
def test_int8_takes_the_graph_with_its_preprocessing(conv: dict[str, object]) -> None:
    made = inside(network(conv))
    images = frames(32)
    tensors = next(tapped(made, calibration_tensors(made), [{"input": images}], where="test"))
    ranges = {name: (float(array.min()), float(array.max())) for name, array in tensors.items()}

    int8 = onnx_to_int8(made, ranges, where="test").model
    rest = onnx_to_fp16(int8, spans(made, [{"input": images}], where="test"), where="test").model

    expected = run(made, images)
    for model in (int8, rest):
        assert {audit.found for audit in audit_onnx(model, asked="int8", kept=(), where="test")} == {"int8"}
        assert onnx_facts(model, where="int8").inputs == onnx_facts(made, where="made").inputs
        assert np.abs(run(model, images) - expected).max() < 5e-2 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"color": "gray", "source_color": "gray"},
            r"takes \[\('input', 'float32', \('n', 3, 8, 9\)\)\], expected one",
        ),
        ({"source_color": "gray"}, "frames in gray cannot become rgb"),
        ({"mean": (0.1, 0.2)}, "2 means or deviations, expected 1 or 3"),
    ],
)
def test_what_does_not_fit_the_graph_is_an_input_error(options: dict[str, object], expected: str) -> None:
    with pytest.raises(ExportError, match=expected) as raised:
        inside(network(BARE), **options)  # type: ignore[arg-type]

    assert raised.value.kind == "input"
    assert str(raised.value).startswith("test: ")


def test_a_graph_that_takes_frames_already_is_refused() -> None:
    with pytest.raises(ExportError, match="'uint8'"):
        inside(inside(network(BARE)))
    with pytest.raises(ExportError, match="not an ONNX file"):
        inside(b"hello")


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_builds_an_engine_that_reads_the_frames(tmp_path: Path, precision: str) -> None:
    made = inside(network(PADDED), source_color="bgr")
    if precision == "fp16":
        made = onnx_to_fp16(made, spans(made, [{"input": frames()}], where="test"), where="test").model
    (tmp_path / "model.onnx").write_bytes(made)

    onnx_to_tensorrt(tmp_path / "model.onnx", tmp_path / "model.engine", profile=(1, 2, 4), workspace_bytes=None)

    layers = json.loads((tmp_path / "model.layers.json").read_text())["layers"]
    inputs = [tensor for layer in layers for tensor in layer["inputs"] if tensor["name"] == "input"]
    assert [(tensor["dtype"], tensor["shape"]) for tensor in inputs] == [("UInt8", [-1, 8, 9, 3])]
