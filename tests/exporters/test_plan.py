from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters import ExportError
from exporters.plan import dtype_counts, inspect_engine, parse_layers, plan_flavour

RECORD = """Layers:
Name: shapes_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: \n\
Name: conv, LayerType: correlation, Inputs: [ { Name: a[0], Dimensions: [-1,3,16,16], Strides: [768,1,48,3], \
StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: \
[8,3,3,3], Strides: [27,1,9,3], Datatype: Int8, Format: (NHWC) Channel major format }, { Name: scale, Dimensions: [], \
Strides: [], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: c, Dimensions: \
[-1,8,16,16], Strides: [2048,1,128,8], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: stub, \
StreamId: 0, Metadata: [ONNX Layer: /conv/Conv]\x1e[ONNX Layer: relu]\n\nI/O Tensors:\n Name: input, IOMode: Input\n"""


def rtx_plan(capability_mask: int) -> bytes:
    """The first 64 bytes as tensorrt_rtx 1.7 writes them, by observation."""
    return b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]) + b"vtrt" + capability_mask.to_bytes(4, "little") + bytes(28)


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
