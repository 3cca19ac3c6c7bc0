from __future__ import annotations

import math

import numpy as np
import pytest

from exporters import ExportError
from exporters.audit import LayerAudit, audit_engine, audit_onnx, differences, int8_share, share
from exporters.plan import Layer, Tensor
from exporters.precision import Precision

onnx = pytest.importorskip("onnx")
helper = onnx.helper
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def graph(
    nodes: list[object], weights: dict[str, np.ndarray], *, kind: int = FLOAT, shape: tuple[int, ...] = (2, 4)
) -> bytes:
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)]).SerializeToString())


def quantised(name: str, *, to: str) -> list[object]:
    return [
        helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [to]),
    ]


SCALE = {"scale": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
WEIGHT = {"w_q": np.ones((4, 3), np.int8), "scale_w": np.array(0.1, np.float32)}
DQ_WEIGHT = helper.make_node("DequantizeLinear", ["w_q", "scale_w", "zero"], ["w"])
PRODUCT = helper.make_node("MatMul", ["x_dq", "w"], ["y"], name="layer")


def found(model: bytes, *, asked: Precision = "fp32") -> list[str]:
    return [audit.found for audit in audit_onnx(model, asked=asked, kept=(), where="test")]


@pytest.mark.parametrize(("dtype", "kind", "expected"), [(np.float32, FLOAT, "fp32"), (np.float16, HALF, "fp16")])
def test_a_float_layer_is_what_its_factors_are(dtype: type, kind: int, expected: str) -> None:
    nodes: list[object] = [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]

    assert found(graph(nodes, {"w": np.ones((4, 3), dtype)}, kind=kind)) == [expected]


def test_a_layer_is_int8_only_where_data_and_weight_are_dequantised() -> None:
    both = graph([*quantised("x", to="x_dq"), DQ_WEIGHT, PRODUCT], {**SCALE, **WEIGHT})
    data = graph([*quantised("x", to="x_dq"), PRODUCT], {**SCALE, "w": np.ones((4, 3), np.float32)})
    weight = graph([helper.make_node("Identity", ["x"], ["x_dq"]), DQ_WEIGHT, PRODUCT], {**SCALE, **WEIGHT})

    assert [found(model) for model in (both, data, weight)] == [["int8"], ["fp32"], ["fp32"]]


def test_a_cast_behind_the_dequantiser_changes_nothing_and_an_operator_does() -> None:
    cast, relu = (
        [*quantised("x", to="x_f"), helper.make_node(op, ["x_f"], ["x_dq"], **options), DQ_WEIGHT, PRODUCT]
        for op, options in (("Cast", {"to": FLOAT}), ("Relu", {}))
    )

    assert found(graph(cast, {**SCALE, **WEIGHT})) == ["int8"]
    assert found(graph(relu, {**SCALE, **WEIGHT})) == ["fp32"]


def test_uint8_is_not_int8() -> None:
    unsigned = {**SCALE, "zero": np.array(0, np.uint8), **WEIGHT, "w_q": np.ones((4, 3), np.uint8)}

    assert found(graph([*quantised("x", to="x_dq"), DQ_WEIGHT, PRODUCT], unsigned)) == ["fp32"]


def test_a_product_of_two_activations_is_int8_where_both_are() -> None:
    square: list[object] = [helper.make_node("MatMul", ["x_dq", "x_dq"], ["y"], name="layer")]

    assert found(graph([*quantised("x", to="x_dq"), *square], SCALE, shape=(4, 4))) == ["int8"]


def test_what_is_no_model_is_an_input_error() -> None:
    with pytest.raises(ExportError, match="test: not an ONNX file") as raised:
        audit_onnx(b"hello", asked="fp16", kept=(), where="test")

    assert raised.value.kind == "input"


def audit(name: str = "conv", *, op: str = "Conv", asked: Precision = "int8", found: str = "int8", macs: int | None = 1,
          kept: bool = False) -> LayerAudit:  # fmt: skip
    return LayerAudit(name, op, asked, found, macs, kept)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "found", "kept", "as_asked"),
    [
        ("int8", "int8", False, True), ("int8", "fp16", False, False), ("int8", "fp16", True, True),
        ("fp16", "fp32", True, True), ("fp16", "int8", True, False), ("fp16", "mixed", True, False),
        ("fp32", "fp32", False, True), ("fp32", "unknown", True, False), ("fp32", "fp16", False, False),
    ],
)  # fmt: skip
def test_a_kept_layer_may_be_higher_and_never_lower(asked: Precision, found: str, kept: bool, as_asked: bool) -> None:
    one = audit(asked=asked, found=found, kept=kept)

    assert one.as_asked is as_asked
    assert differences([one]) == (() if as_asked else (one,))


def test_shares_are_by_multiply_adds_and_of_nothing_known_there_is_none() -> None:
    audits = [audit(macs=30), audit(found="fp16", macs=10), audit(macs=None)]

    assert int8_share(audits) == 0.75
    assert share(audits, "fp16") == 0.25
    assert math.isnan(share([audit(macs=None)], "int8"))


def tensor(dtype: str, *shape: int) -> Tensor:
    return Tensor(name="t", dtype=dtype, shape=list(shape))


def layer(
    kind: str, inputs: list[Tensor], constants: list[Tensor], *, nodes: tuple[str, ...] = ("conv",), out: str = "Float"
) -> Layer:
    return Layer(
        name="l", type=kind, inputs=inputs, constants=constants, outputs=[tensor(out, 1)], onnx_nodes=list(nodes)
    )


def engine(layers: list[Layer], *, op: str = "Conv") -> str:
    (one,) = audit_engine(layers, onnx=[audit(op=op)])
    return one.found


ACTIVATION, WEIGHTS, SCALES = (-1, 64, 32, 32), (64, 64, 3, 3), (1, 64, 1, 1)


def test_an_int8_convolution_is_judged_by_what_it_multiplies_and_not_by_what_is_around_it() -> None:
    """As tensorrt_rtx 1.7 has it: one layer rounds, one multiplies, one scales and adds the shortcut."""
    layers = [
        layer("kgen", [tensor("Float", *ACTIVATION)], [tensor("Float", 1)], out="Int8"),
        layer("correlation", [tensor("Int8", *ACTIVATION)], [tensor("Int8", *WEIGHTS), tensor("Float", *SCALES)]),
        layer("kgen", [tensor("Int8", *ACTIVATION), tensor("Float", *ACTIVATION)], [tensor("Float", *SCALES)]),
    ]

    assert engine(layers) == "int8"


@pytest.mark.parametrize(("dtype", "expected"), [("Float", "fp32"), ("Half", "fp16"), ("BFloat16", "unknown")])
def test_a_fused_convolution_with_a_shortcut_is_of_its_weights_type(dtype: str, expected: str) -> None:
    inputs = [tensor(dtype, *ACTIVATION), tensor(dtype, *ACTIVATION)]

    assert engine([layer("correlation", inputs, [tensor(dtype, *WEIGHTS), tensor("Float", 1)])]) == expected


def test_an_int8_convolution_that_adds_a_half_shortcut_itself_is_int8() -> None:
    inputs = [tensor("Int8", *ACTIVATION), tensor("Half", *ACTIVATION)]

    assert engine([layer("correlation", inputs, [tensor("Int8", *WEIGHTS)])]) == "int8"


def test_weights_of_another_type_than_every_input_are_mixed() -> None:
    assert engine([layer("correlation", [tensor("Half", *ACTIVATION)], [tensor("Int8", *WEIGHTS)])]) == "mixed"


def test_a_kernel_without_a_weight_that_shows_is_of_its_input() -> None:
    """One output channel makes its weight a vector; classic TensorRT's inspector lists no weights."""
    assert engine([layer("correlation", [tensor("Half", *ACTIVATION)], [tensor("Half", 1, 64, 1, 1)])]) == "fp16"
    assert engine([layer("CaskConvolution", [tensor("Int8", *ACTIVATION)], [])]) == "int8"


def test_a_fused_product_is_known_by_its_weight_and_attention_by_its_two_inputs() -> None:
    linear = layer("runtime_fusion", [tensor("Half", -1, 64)], [tensor("Half", 1, 192), tensor("Half", 64, 192)])
    attention = layer("kgen", [tensor("Half", -1, 17, 16)] * 3, [])

    assert engine([linear], op="MatMul") == "fp16"
    assert engine([attention], op="MatMul") == "fp16"
    assert engine([attention], op="Conv") == "unknown"


def test_a_layer_that_the_record_does_not_name_or_show_is_unknown() -> None:
    padding = layer("kgen", [tensor("Half", *ACTIVATION)], [])

    assert engine([]) == "unknown"
    assert engine([layer("correlation", [tensor("Half", *ACTIVATION)], [], nodes=("other",))]) == "unknown"
    assert engine([padding]) == "unknown"


def test_two_kernels_of_two_types_for_one_layer_are_mixed() -> None:
    layers = [layer("gemm", [tensor(dtype, -1, 64)], [tensor(dtype, 64, 10)]) for dtype in ("Half", "Int8")]

    assert engine(layers, op="Gemm") == "mixed"


def test_what_is_asked_of_an_engine_is_what_the_graph_has() -> None:
    """A kept layer that TensorRT computes lower than the graph says is a difference."""
    kept = audit(asked="fp16", found="fp32", kept=True)
    half, single = (layer("gemm", [tensor(dtype, -1, 64)], [tensor(dtype, 64, 10)]) for dtype in ("Half", "Float"))

    assert [audit.asked for audit in differences(audit_engine([half], onnx=[kept]))] == ["fp32"]
    assert differences(audit_engine([single], onnx=[kept])) == ()
    assert audit_engine([half], onnx=[audit(asked="fp16", found="unknown")])[0].as_asked
    assert differences(audit_engine([single], onnx=[audit(asked="fp16", found="fp16", kept=True)])) != ()
