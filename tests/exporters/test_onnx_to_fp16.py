from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporters import ExportError
from exporters.audit import audit_engine, audit_onnx, differences
from exporters.onnx_facts import onnx_facts
from exporters.onnx_to_fp16 import Fp16Graph, onnx_to_fp16, spans
from exporters.onnx_to_int8 import calibration_tensors, onnx_to_int8
from exporters.onnx_to_tensorrt import find_builder, onnx_to_tensorrt
from exporters.runtimes import OnnxRuntime
from exporters.tapped import tapped
from exporters.torch_to_onnx import torch_to_onnx

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
needs_rtx = pytest.mark.skipif(
    (builder := find_builder()) is None or builder.flavour != "tensorrt_rtx", reason="tensorrt_rtx builds these engines"
)


def exported(model: nn.Module, x: np.ndarray, path: Path) -> bytes:
    torch_to_onnx(
        model.eval(), {"input": x}, path, inputs={}, outputs={}, batch=(1, 2, 8), opset=17, metadata={"recipe": "r"},
        simplify=False,
    )  # fmt: skip
    return path.read_bytes()


def graph(
    nodes: Sequence[object], weights: dict[str, np.ndarray], *, shape: tuple[object, ...], opset: int = 18
) -> bytes:
    """`nodes` from "x" to "y", both float32."""
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", 1, list(shape))],
        [helper.make_tensor_value_info("y", 1, [f"axis{index}" for index in range(len(shape))])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return model.SerializeToString()


def run(model: bytes, x: np.ndarray, name: str = "x") -> np.ndarray:
    with OnnxRuntime(model, where="test") as runtime:
        return next(iter(runtime({name: x}).values()))


def half(model: bytes, x: np.ndarray, **options: object) -> Fp16Graph:
    name = onnx_facts(model, where="test").inputs[0].name
    return onnx_to_fp16(model, spans(model, [{name: x}], where="test"), where="test", **options)  # type: ignore[arg-type]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def digits(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, np.ndarray]:
    """The trained network's graph, and 64 real images as it is fed them."""
    namespace: dict[str, object] = {}
    exec((trained / "models.py").read_text(), namespace)
    model = namespace["build"]()  # type: ignore[operator]
    model.load_state_dict(torch.load(trained / "runs" / "epoch-6.pt", weights_only=True)["model"])
    images = np.load(trained / "val.npz")["images"][:64]
    x = ((images.astype(np.float32) / 255 - 0.3) / 0.35).transpose(0, 3, 1, 2).copy()
    return exported(model, x, tmp_path_factory.mktemp("digits") / "model.onnx"), x


def test_weights_and_arithmetic_become_fp16_and_the_interface_stays(digits: tuple[bytes, np.ndarray]) -> None:
    model, x = digits

    made = half(model, x)

    before, after = onnx_facts(model, where="before"), onnx_facts(made.model, where="after")
    assert made.kept == {}
    assert (after.inputs, after.outputs, after.opset) == (before.inputs, before.outputs, before.opset)
    assert after.metadata == before.metadata == {"recipe": "r"}
    assert after.weights["float16"] == before.weights["float32"]
    assert "float32" not in after.weights
    assert relative(run(made.model, x, "input"), run(model, x, "input")) < 2e-3
    assert differences(audit_onnx(made.model, asked="fp16", kept=(), where="made")) == ()
    onnx.checker.check_model(onnx.ModelProto.FromString(made.model), full_check=True)


def test_the_same_arguments_give_the_same_bytes(digits: tuple[bytes, np.ndarray]) -> None:
    model, x = digits

    assert half(model, x).model == half(model, x).model


def test_the_outputs_are_those_of_onnxruntimes_own_converter(digits: tuple[bytes, np.ndarray]) -> None:
    """onnxruntime.transformers.float16 is the oracle where no node has to stay FP32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    from exporters.quiet import quiet

    model, x = digits
    with quiet():
        other = convert_float_to_float16(onnx.ModelProto.FromString(model), keep_io_types=True)

    np.testing.assert_array_equal(run(half(model, x).model, x, "input"), run(other.SerializeToString(), x, "input"))


def test_spans_are_those_of_the_tensors_in_torch(digits: tuple[bytes, np.ndarray]) -> None:
    model, x = digits
    found = spans(model, [{"input": x[:5]}, {"input": x[5:]}], where="test")

    expected = np.abs(next(tapped(model, list(found), [{"input": x}], where="test"))[list(found)[-1]])
    assert found[list(found)[-1]].largest == pytest.approx(expected.max(), rel=1e-5)
    assert found["input"].largest == np.abs(x).max()


def test_a_matrix_product_is_numpys_float16_product() -> None:
    """A product of few terms, so that the order of the sum does not count: inputs and result are rounded, once each."""
    random = np.random.default_rng(0)
    x, w = random.normal(size=(4, 3)).astype(np.float32), random.normal(size=(3, 5)).astype(np.float32)
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], {"w": w}, shape=("n", 3))

    exact = x.astype(np.float16).astype(np.float64) @ w.astype(np.float16).astype(np.float64)

    np.testing.assert_allclose(run(half(model, x).model, x), exact, rtol=2.0**-10, atol=2.0**-12)


def test_a_node_whose_activation_would_overflow_stays_fp32_and_so_does_its_reader() -> None:
    """The value goes from one to the other in FP32: by FP16 it would be infinite."""
    nodes = [
        helper.make_node("Mul", ["x", "up"], ["big"], name="up"),
        helper.make_node("Mul", ["big", "down"], ["small"], name="down"),
        helper.make_node("Relu", ["small"], ["y"], name="relu"),
    ]
    up, down = np.array([1e5], np.float32), np.array([1e-4], np.float32)
    x = np.array([[1.0, 2.0]], np.float32)
    model = graph(nodes, {"up": up, "down": down}, shape=("n", 2))

    made = half(model, x)

    assert list(made.kept) == ["up", "down"]
    assert "'up' reaches 1e+05, expected at most 65504 in FP16" in made.kept["up"]
    assert "'big' reaches 2e+05, expected at most 32752 in FP16" in made.kept["down"]
    np.testing.assert_allclose(run(made.model, x), [[10.0, 20.0]], rtol=1e-3)
    casts = [node for node in onnx.ModelProto.FromString(made.model).graph.node if node.op_type == "Cast"]
    assert [node.input[0] for node in casts] == ["small", "y:fp16"]


def test_a_weight_has_no_headroom_as_it_is_known() -> None:
    model = graph([helper.make_node("Mul", ["x", "w"], ["y"], name="scaled")], {"w": np.array([6e4], np.float32)},
                  shape=("n", 2))  # fmt: skip

    assert half(model, np.array([[0.25, 0.5]], np.float32)).kept == {}


def test_a_constant_that_nodes_of_both_types_read_is_there_in_both() -> None:
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"], name="in_half"),
        helper.make_node("Mul", ["a", "c"], ["y"], name="in_single"),
    ]
    c = np.array([1.0001], np.float32)
    model = graph(nodes, {"c": c}, shape=("n", 2))

    made = half(model, np.ones((1, 2), np.float32), keep=["in_single"])

    constants = {tensor.name: tensor.data_type for tensor in onnx.ModelProto.FromString(made.model).graph.initializer}
    assert constants == {"c": onnx.TensorProto.FLOAT, "c:fp16": onnx.TensorProto.FLOAT16}
    assert made.kept == {"in_single": "asked for"}


def test_a_weight_that_would_flush_keeps_its_layer_and_a_tiny_bias_does_not() -> None:
    w, b = np.full((3, 5), 1e-7, np.float32), np.full(5, 1e-20, np.float32)
    x = np.ones((2, 3), np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"], name="gemm"),
        helper.make_node("Relu", ["g"], ["y"], name="r"),
    ]

    tiny_weight = half(graph(nodes, {"w": w, "b": b}, shape=("n", 3)), x)
    tiny_bias = half(graph(nodes, {"w": w * 1e6, "b": b}, shape=("n", 3)), x)

    assert "'w' loses" in tiny_weight.kept["gemm"]
    assert tiny_bias.kept == {}


def test_an_epsilon_below_a_root_is_not_lost() -> None:
    """x / √(x² + 1e-12): in FP16 the sum would be 0 where x is, and the quotient no number."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], name="square"),
        helper.make_node("Add", ["square", "epsilon"], ["sum"], name="sum"),
        helper.make_node("Sqrt", ["sum"], ["root"], name="root"),
        helper.make_node("Div", ["x", "root"], ["y"], name="quotient"),
    ]
    model = graph(nodes, {"epsilon": np.array([1e-12], np.float32)}, shape=("n", 2))
    x = np.array([[1.0, 0.0]], np.float32)

    made = half(model, x)

    assert {"sum", "root", "quotient"} <= set(made.kept)
    np.testing.assert_allclose(run(made.model, x), [[1.0, 0.0]], atol=1e-3)


@pytest.mark.parametrize("variance", [1e-9, 1e6])
@pytest.mark.parametrize("rank", [2, 4])
def test_a_batchnorm_that_was_left_is_folded_before_its_variance_meets_fp16(variance: float, rank: int) -> None:
    """Before any convolution, where no exporter folds it; the oracle is torch in float64."""
    random = np.random.default_rng(0)
    mean = random.normal(size=3) * variance**0.5
    statistics = {"s": random.uniform(0.5, 2, 3), "b": random.normal(size=3), "m": mean, "v": np.full(3, variance)}
    arrays = {name: values.astype(np.float32) for name, values in statistics.items()}
    model = graph([helper.make_node("BatchNormalization", ["x", *arrays], ["y"], name="bn", epsilon=variance)], arrays,
                  shape=("n", 3, *(2,) * (rank - 2)))  # fmt: skip
    x = (random.normal(size=(4, 3, *(2,) * (rank - 2))) * variance**0.5).astype(np.float32)
    axes = (1, 3, *(1,) * (rank - 2))
    wide = {name: values.astype(np.float64).reshape(axes) for name, values in arrays.items()}
    expected = (x - wide["m"]) / np.sqrt(wide["v"] + np.float32(variance)) * wide["s"] + wide["b"]

    made = half(model, x)

    proto = onnx.ModelProto.FromString(made.model)
    assert not [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    assert not [t for t in proto.graph.initializer if np.isin(numpy_helper.to_array(t), [0, np.inf]).any()]
    np.testing.assert_allclose(run(made.model, x), expected, atol=1e-2)


def test_a_batchnorm_of_computed_statistics_stays_fp32() -> None:
    nodes = [
        helper.make_node("Abs", ["v"], ["var"], name="abs"),
        helper.make_node("BatchNormalization", ["x", "s", "b", "m", "var"], ["y"], name="bn"),
    ]
    weights = {"v": np.ones(2, np.float32), "s": np.ones(2, np.float32), "b": np.zeros(2, np.float32)}
    weights["m"] = np.zeros(2, np.float32)

    made = half(graph(nodes, weights, shape=("n", 2)), np.ones((3, 2), np.float32))

    assert made.kept["bn"] == "its statistics are not constants that can be folded"


def test_a_batchnorm_in_training_mode_is_not_folded() -> None:
    weights = {name: np.ones(2, np.float32) for name in ("s", "b", "m", "v")}
    node = helper.make_node("BatchNormalization", ["x", *weights], ["y", "mean", "var"], name="bn", training_mode=1)

    made = onnx_to_fp16(graph([node], weights, shape=("n", 2)), {}, where="test")

    assert made.kept == {"bn": "its statistics are not constants that can be folded"}


def test_sizes_and_scales_of_a_resize_stay_as_the_operator_wants_them() -> None:
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], name="up", mode="nearest")]
    model = graph(nodes, {"scales": np.array([1, 1, 2, 2], np.float32)}, shape=("n", 1, 2, 2))
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)

    made = half(model, x)

    assert made.kept == {}
    np.testing.assert_array_equal(run(made.model, x), run(model, x))


def test_an_operator_without_fp16_stays_fp32_and_is_told() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="r"),
        helper.make_node("CumSum", ["r", "axis"], ["y"], name="sum"),
    ]
    model = graph(nodes, {"axis": np.array(1, np.int64)}, shape=("n", 3), opset=13)

    made = half(model, np.ones((1, 3), np.float32))

    assert made.kept == {"sum": "CumSum takes no FP16 at this opset"}
    np.testing.assert_array_equal(run(made.model, np.ones((1, 3), np.float32)), [[1, 2, 3]])


def test_a_tensor_without_a_span_keeps_its_nodes() -> None:
    model = graph([helper.make_node("Relu", ["x"], ["y"], name="r")], {}, shape=("n", 3))

    assert onnx_to_fp16(model, {}, where="test").kept == {"r": "'x' was not measured"}


def test_one_output_that_another_node_reads_too_stays_an_output() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="r"), helper.make_node("Relu", ["y"], ["z"], name="again")]
    proto = onnx.ModelProto.FromString(graph(nodes, {}, shape=("n", 3)))
    proto.graph.output.append(helper.make_tensor_value_info("z", 1, ["n", 3]))
    x = np.array([[-1.0, 0.1, 3.0]], np.float32)

    made = half(proto.SerializeToString(), x)

    with OnnxRuntime(made.model, where="test") as runtime:
        outputs = runtime({"x": x})
    assert [info.dtype for info in onnx_facts(made.model, where="made").outputs] == ["float32", "float32"]
    np.testing.assert_array_equal(outputs["y"], outputs["z"])


def test_frames_come_in_as_they_are_and_the_cast_goes_to_fp16_at_once() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], name="cast", to=1),
        helper.make_node("Relu", ["f"], ["y"], name="r"),
    ]
    proto = onnx.ModelProto.FromString(graph(nodes, {}, shape=("n", 3)))
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    x = np.array([[0, 128, 255]], np.uint8)

    made = half(proto.SerializeToString(), x)

    assert [node.op_type for node in onnx.ModelProto.FromString(made.model).graph.node] == ["Cast", "Relu", "Cast"]
    np.testing.assert_array_equal(run(made.model, x), x.astype(np.float32))


def test_what_cannot_be_converted_is_told_in_a_sentence() -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, None)]
    )
    model = graph([helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch, else_branch=branch)],
                  {"c": np.array(True)}, shape=("n", 3))  # fmt: skip
    plain = graph([helper.make_node("Relu", ["x"], ["y"], name="r")], {}, shape=("n", 3))

    with pytest.raises(ExportError, match=r"test: node 'if' \(If\) holds a graph of its own") as held:
        onnx_to_fp16(model, {}, where="test")
    with pytest.raises(ExportError, match="test: has no node 'layer'") as unknown:
        onnx_to_fp16(plain, {}, keep=["layer"], where="test")
    with pytest.raises(ExportError, match="test: not an ONNX file") as text:
        onnx_to_fp16(b"hello", {}, where="test")
    with pytest.raises(ExportError, match="test: nothing was run") as empty:
        spans(plain, [], where="test")

    assert [error.value.kind for error in (held, unknown, text, empty)] == ["build", "input", "input", "input"]


def test_without_onnx_one_line_says_which_command_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(ExportError, match="pip install 'edgesoup") as raised:
        onnx_to_fp16(b"", {}, where="test")

    assert raised.value.kind == "environment"


def test_nodes_without_names_are_kept_by_their_first_output() -> None:
    model = graph([helper.make_node("Relu", ["x"], ["y"])], {}, shape=("n", 3))

    assert half(model, np.ones((1, 3), np.float32), keep=["y"]).kept == {"y": "asked for"}


@pytest.fixture(scope="module")
def quantised(digits: tuple[bytes, np.ndarray]) -> tuple[bytes, bytes, bytes, np.ndarray]:
    """FP32 graph, its INT8 graph with the last layer left float, that one's INT8 and FP16 graph, and the images."""
    model, x = digits
    names = calibration_tensors(model)
    tensors = next(tapped(model, names, [{"input": x}], where="test"))
    ranges = {name: (float(array.min()), float(array.max())) for name, array in tensors.items()}
    last = audit_onnx(model, asked="fp32", kept=(), where="test")[-1].name
    int8 = onnx_to_int8(model, ranges, keep=[last], where="test").model
    mixed = onnx_to_fp16(int8, spans(model, [{"input": x}], where="test"), where="test")
    assert mixed.kept == {}
    return model, int8, mixed.model, x


def test_a_quantised_graph_stays_quantised_and_its_float_rest_becomes_fp16(
    quantised: tuple[bytes, bytes, bytes, np.ndarray],
) -> None:
    model, int8, mixed, x = quantised

    found = [audit.found for audit in audit_onnx(mixed, asked="int8", kept=(), where="test")]

    assert found == ["int8", "int8", "fp16"]
    assert relative(run(mixed, x, "input"), run(int8, x, "input")) < 0.05
    assert (run(mixed, x, "input").argmax(1) == run(model, x, "input").argmax(1)).mean() > 0.95
    proto = onnx.ModelProto.FromString(mixed)
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    assert {makers[name] for node in proto.graph.node if node.op_type == "Conv" for name in node.input[:2]} == {
        "DequantizeLinear"
    }
    scales = [node.input[1] for node in proto.graph.node if "quantize" in node.op_type.lower()]
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert {types[name] for name in scales} == {onnx.TensorProto.FLOAT}


def test_torchvisions_mobilenet_keeps_its_answers(tmp_path: Path) -> None:
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(0)
    model = mobilenet_v3_small(num_classes=10)
    with torch.no_grad():
        for module in model.modules():  # statistics as a trained network has them: each layer's output near 1
            if isinstance(module, nn.BatchNorm2d):
                module.train()
                module.momentum = None
        for _ in range(2):
            model(torch.rand(16, 3, 32, 32))
    x = np.random.default_rng(0).random((8, 3, 32, 32)).astype(np.float32)
    graph32 = exported(model, x, tmp_path / "model.onnx")

    made = half(graph32, x)

    assert relative(run(made.model, x, "input"), run(graph32, x, "input")) < 2e-2
    audits = audit_onnx(made.model, asked="fp16", kept=tuple(made.kept), where="test")
    assert differences(audits) == ()
    assert sum(audit.found == "fp16" for audit in audits) >= len(audits) - 5


def test_what_reads_a_kept_layer_stays_fp32_with_it(digits: tuple[bytes, np.ndarray]) -> None:
    model, x = digits
    second = audit_onnx(model, asked="fp32", kept=(), where="test")[1].name

    made = half(model, x, keep=[second])

    nodes = onnx.ModelProto.FromString(made.model).graph.node
    layer = next(node for node in nodes if node.name == second)
    readers = [node.name for node in nodes if set(layer.output) & set(node.input)]
    assert list(made.kept) == [second, *readers]
    assert made.kept[readers[0]] == f"TensorRT would put '{second}', which it reads, into FP16"
    audits = audit_onnx(made.model, asked="fp16", kept=tuple(made.kept), where="test")
    assert [audit.found for audit in audits] == ["fp16", "fp32", "fp16"]
    assert differences(audits) == ()


@needs_rtx
@pytest.mark.parametrize("which", ["fp16", "kept", "int8"])
def test_tensorrt_computes_each_layer_as_the_graph_says(
    digits: tuple[bytes, np.ndarray], quantised: tuple[bytes, bytes, bytes, np.ndarray], tmp_path: Path, which: str
) -> None:
    """Correctness 39, on engines that were built; a layer that is FP32 between FP16 ones stays so."""
    import json

    second = audit_onnx(digits[0], asked="fp32", kept=(), where="test")[1].name
    made = {"fp16": half(*digits).model, "kept": half(*digits, keep=[second]).model, "int8": quantised[2]}[which]
    (tmp_path / "model.onnx").write_bytes(made)
    onnx_to_tensorrt(tmp_path / "model.onnx", tmp_path / "model.engine", profile=(1, 2, 8), workspace_bytes=None)
    layers = json.loads((tmp_path / "model.layers.json").read_text())["layers"]

    of_engine = audit_engine(layers, onnx=audit_onnx(made, asked="fp16", kept=(), where="test"))

    found = [audit.found for audit in of_engine]
    assert found == {"fp16": ["fp16"] * 3, "kept": ["fp16", "fp32", "fp16"], "int8": ["int8", "int8", "fp16"]}[which]
    assert differences(of_engine) == ()
