from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters import ExportError
from exporters.flavours import Flavour
from exporters.plan import (
    EngineFacts,
    dtype_counts,
    inspect_engine,
    parse_inspector,
    parse_layers,
    plan_flavour,
    preflight,
)

RECORD = """Layers:
Name: shapes_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: \n\
Name: conv, LayerType: correlation, Inputs: [ { Name: a[0], Dimensions: [-1,3,16,16], Strides: [768,1,48,3], \
StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: \
[8,3,3,3], Strides: [27,1,9,3], Datatype: Int8, Format: (NHWC) Channel major format }, { Name: scale, Dimensions: [], \
Strides: [], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: c, Dimensions: \
[-1,8,16,16], Strides: [2048,1,128,8], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: stub, \
StreamId: 0, Metadata: [ONNX Layer: /conv/Conv]\x1e[ONNX Layer: relu]\n\nI/O Tensors:\n Name: input, IOMode: Input\n"""


def rtx_plan(capability_mask: int, *, size_bytes: int = 71) -> bytes:
    """The first 64 bytes as tensorrt_rtx 1.7 writes them, by observation."""
    begin = b"vtrt" + bytes(12) + size_bytes.to_bytes(8, "little") + bytes([1, 7, 1, 116])
    return begin + b"vtrt" + capability_mask.to_bytes(4, "little") + bytes(28)


def facts_of(tmp_path: Path, content: bytes) -> EngineFacts:
    (tmp_path / "model.engine").write_bytes(content)
    return inspect_engine(tmp_path / "model.engine")


def reasons(facts: EngineFacts, **here: str | None) -> tuple[str, ...]:
    rtx: dict[str, Any] = {"flavour": "tensorrt_rtx", "version": "1.7.1.116", "compute_capability": "8.6"}
    return preflight(facts, **{**rtx, **here})


def test_layers_are_read_with_their_tensors_and_the_onnx_nodes_that_went_in() -> None:
    shapes, conv = parse_layers(RECORD)

    assert (shapes["name"], shapes["inputs"], shapes["outputs"], shapes["onnx_nodes"]) == ("shapes_0", [], [], [])
    assert (conv["name"], conv["type"]) == ("conv", "correlation")
    assert conv["inputs"] == [{"name": "a[0]", "dtype": "Int8", "shape": [-1, 3, 16, 16]}]
    assert conv["constants"] == [
        {"name": "w", "dtype": "Int8", "shape": [8, 3, 3, 3]},
        {"name": "scale", "dtype": "Float", "shape": []},
    ]
    assert conv["outputs"] == [{"name": "c", "dtype": "Half", "shape": [-1, 8, 16, 16]}]
    assert conv["onnx_nodes"] == ["/conv/Conv", "relu"]
    assert dtype_counts([shapes, conv, conv]) == {"Int8": 2}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no layer"),
        ("Layers:\n", "holds no layer"),
        ("Layers:\nconv1\nrelu1\n", "a line has another form: 'conv1'"),
        (RECORD.replace("Datatype: Half", "Type: Half"), "a tensor has another form"),
        (RECORD.replace("LayerType", "Kind"), "a line has another form"),
    ],
)
def test_a_record_of_another_form_is_refused_not_guessed(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_layers(text)


@given(st.text(max_size=80))
@settings(max_examples=30, deadline=None)
def test_no_text_makes_the_reader_fail_otherwise(noise: str) -> None:
    for text in (noise, f"Layers:\n{noise}", RECORD + noise, RECORD.replace("Name: w", noise)):
        try:
            layers = parse_layers(text)
        except ValueError:
            continue
        assert len(layers) >= 1


@pytest.mark.parametrize(
    ("mask", "capabilities"),
    [(0b1100, ("8.6", "8.9")), (0b1111110, ("8.0", "8.6", "8.9", "12.0", "12.1")), (1, ("7.5",))],
)
def test_the_header_of_an_rtx_plan_tells_version_and_compute_capabilities(
    tmp_path: Path, mask: int, capabilities: tuple[str, ...]
) -> None:
    (tmp_path / "model.engine").write_bytes(rtx_plan(mask) + b"weights")

    facts = inspect_engine(tmp_path / "model.engine")

    assert (facts.flavour, facts.version, facts.size_bytes) == ("tensorrt_rtx", "1.7.1.116", 71)
    assert facts.compute_capabilities == capabilities


def test_a_classic_plan_is_told_by_its_tag_and_its_capabilities_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"ftrt" + bytes(20) + bytes([10, 3, 0, 30]) + bytes(36))

    facts = inspect_engine(tmp_path / "model.engine")

    assert (facts.flavour, facts.version, facts.compute_capabilities) == ("tensorrt", "10.3.0.30", None)


@pytest.mark.parametrize("content", [b"", b"vtrt", b"\x08\x0a" * 50, b"VTRT" + bytes(60)])
def test_any_other_file_is_hashed_but_not_recognised(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.engine").write_bytes(content)

    facts = inspect_engine(tmp_path / "model.engine")

    assert (facts.flavour, facts.version, facts.compute_capabilities) == (None, None, None)
    assert plan_flavour(content) is None
    assert facts.size_bytes == len(content)


def test_an_engine_file_that_is_absent_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be read: No such file") as raised:
        inspect_engine(tmp_path / "model.engine")

    assert raised.value.kind == "input"


def test_an_engine_that_fits_what_is_here_has_no_reason_against_it(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rtx_plan(0b1111110) + b"weights")

    assert reasons(facts) == ()
    assert reasons(facts, version=None, compute_capability=None) == ()
    assert reasons(facts, compute_capability="12.9") == ()  # portable, and newer than all that is listed
    assert reasons(facts, flavour=None, version=None) == ()


@pytest.mark.parametrize(
    ("mask", "here", "expected"),
    [
        (0b0100, {"compute_capability": "8.9"}, "it is for compute capability 8.6, the GPU here has 8.9"),
        (0b010000, {"compute_capability": "12.9"}, "it is for compute capability 12.0, the GPU here has 12.9"),
        (0b1111110, {"compute_capability": "7.5"}, "the GPU here has 7.5"),
        (0b1111110, {"version": "1.6.0.1"}, "it was built by tensorrt_rtx 1.7.1.116, here is 1.6.0.1"),
        (0b1111110, {"flavour": "tensorrt", "version": "10.3.0"}, "it is for tensorrt_rtx, here is tensorrt"),
    ],
)
def test_an_engine_of_another_gpu_version_or_flavour_is_told_with_both(
    tmp_path: Path, mask: int, here: dict[str, str], expected: str
) -> None:
    (reason,) = reasons(facts_of(tmp_path, rtx_plan(mask) + b"weights"), **here)

    assert expected in reason


def test_a_version_is_compared_as_far_as_both_are_told(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, b"ftrt" + bytes(20) + bytes([10, 3, 0, 30]) + bytes(36))
    flavour: Flavour = "tensorrt"

    assert preflight(facts, flavour=flavour, version="10.3.0", compute_capability="8.7") == ()
    assert "here is 10.4.0" in preflight(facts, flavour=flavour, version="10.4.0", compute_capability="8.7")[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (rtx_plan(0b1111110) + b"w", "it is cut off: 65 bytes, expected 71 as its header tells"),
        (rtx_plan(0b1111110) + b"weights" * 2, "it has bytes after its end: 78 bytes, expected 71"),
        (b"", "it is empty"),
        (b"vtrt", "it has 4 bytes, an engine's header alone has 64: it is cut off or no engine"),
        (b"PK\x03\x04" + bytes(100), "it is a zip file, as PyTorch writes its checkpoints, no engine"),
        (b"\x7fELF" + bytes(100), "it is a program or shared library, no engine"),
        (b"version https://git-lfs.github.com/spec/v1", "it is a Git LFS pointer: the file itself was not fetched"),
        (bytes(8) + b'{"a":1}' + bytes(100), "it is a safetensors file, no engine"),
        (b"VTRT" + bytes(100), "it begins like no engine that is known"),
    ],
)
def test_a_file_that_is_no_whole_engine_is_told_by_what_it_is(tmp_path: Path, content: bytes, expected: str) -> None:
    (reason,) = reasons(facts_of(tmp_path, content))

    assert expected in reason


def test_an_onnx_file_called_engine_is_recognised_whoever_wrote_it(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    value = helper.make_tensor_value_info("x", 1, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value])
    for producer in ("", "pytorch"):
        content = helper.make_model(graph, producer_name=producer).SerializeToString()

        assert reasons(facts_of(tmp_path, content)) == ("it is an ONNX model, no engine",)


INSPECTED: dict[str, Any] = {"Layers": [
    {"Name": "conv1 + relu1", "LayerType": "CaskConvolution",
     "Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8],
                 "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
     "Outputs": [{"Name": "y", "Dimensions": [1, 4, 8, 8], "Format/Datatype": "Row major linear FP16 format"}]},
    {"Name": "myl", "LayerType": "kgen", "Metadata": "[ONNX Layer: /a/Conv]\u001e[ONNX Layer: b]",
     "Inputs": [{"Name": "y", "Dimensions": [1, 4], "Format/Datatype": "Half"}],
     "Constants": [{"Name": "w", "Dimensions": [4], "Format": "Linear", "Datatype": "Float"}],
     "Outputs": []},
]}  # fmt: skip


def test_the_inspectors_json_is_read_into_the_same_layers_as_the_log() -> None:
    conv, fused = parse_inspector(json.dumps(INSPECTED))

    assert (conv["name"], conv["type"], conv["onnx_nodes"]) == ("conv1 + relu1", "CaskConvolution", ["conv1", "relu1"])
    assert conv["inputs"] == [{"name": "x", "dtype": "Int8", "shape": [1, 3, 8, 8]}]
    assert conv["outputs"] == [{"name": "y", "dtype": "Half", "shape": [1, 4, 8, 8]}]
    assert fused["onnx_nodes"] == ["/a/Conv", "b"]
    assert fused["constants"] == [{"name": "w", "dtype": "Float", "shape": [4]}]
    assert dtype_counts([conv, fused]) == {"Half": 1, "Int8": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no json", "the inspector's JSON has another form"),
        ("[]", "the inspector's JSON has another form"),
        ('{"Layers": []}', "names of layers only"),
        ('{"Layers": ["conv1", "relu1"]}', "names of layers only"),
        (json.dumps(INSPECTED).replace("LayerType", "Kind"), "a layer has another form"),
        (
            json.dumps(INSPECTED).replace("Row major linear FP16 format", "Row major linear"),
            "a tensor has another form",
        ),
        (json.dumps(INSPECTED).replace("Dimensions", "Shape"), "a layer has another form"),
    ],
)
def test_an_inspector_of_another_form_is_refused_not_guessed(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_inspector(text)
