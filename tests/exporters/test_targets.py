"""The table of devices is coherent row by row, and what it decides is told before any work."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from exporters import ExportError
from exporters.precision import Precision
from exporters.targets import (
    TARGETS,
    Asked,
    Here,
    Target,
    built_at,
    check_target,
    exporter_route,
    opset_for,
    precision_path,
    target_named,
    unfit,
)

HOSTS = ("https://developer.nvidia.com/", "https://docs.nvidia.com/", "https://docs.pytorch.org/TensorRT/")
X86 = Here("x86_64")
DOCS = Path(__file__).parents[2] / "docs" / "targets.md"


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_row_is_coherent(target: Target) -> None:
    assert target.name == target.name.lower()
    assert all(re.fullmatch(r"\d+(\.\d+)+", text) for text in (target.tensorrt, target.cuda, target.compute_capability))
    assert re.fullmatch(r"3\.\d+", target.python_version)
    assert 17 <= target.opset <= 25
    assert target.source.startswith(HOSTS), "NVIDIA's pages and Torch-TensorRT's"
    assert set(target.unverified) <= {field.name for field in fields(Target)}
    assert (target.dla > 0) == (target.dla_int8 != "none")
    assert target.typed == (target.version >= (10,) or target.runtime == "tensorrt_rtx")
    assert (target.jetpack is not None) == target.name.startswith("jetson-")
    assert target.jetpack is None or target.name.endswith(f"-jp{target.jetpack}")
    assert target.dla_int8 != "implicit" or target.version < (11,), "11 has no calibration cache"
    assert target.runtime != "tensorrt_rtx" or target.compute_capability in {"7.5", "8.6", "8.9", "12.0", "12.1"}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_document_says_of_every_row_what_was_not_read_in_the_documentation(target: Target) -> None:
    (row,) = [line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{target.name}` ")]
    for fact in (target.tensorrt, target.cuda, target.compute_capability, str(target.opset), target.source):
        assert fact in row
    assert row.rstrip(" |").endswith(", ".join(target.unverified) or "–")


@pytest.mark.parametrize(
    ("name", "tensorrt", "capability", "opset", "typed", "dla", "dla_int8"),
    [
        ("jetson-orin-jp6.2", "10.3", "8.7", 20, True, 1, "implicit"),
        ("jetson-orin-jp6.0", "8.6.2", "8.7", 17, False, 1, "implicit"),
        ("jetson-orin-nano-jp6.2", "10.3", "8.7", 20, True, 0, "none"),
        ("jetson-agx-orin-jp6.1", "10.3", "8.7", 20, True, 2, "implicit"),
        ("jetson-agx-orin-jp7.2", "10.16.2", "8.7", 24, True, 0, "none"),
        ("jetson-agx-orin-jp7.2.2", "11.4.1", "8.7", 24, True, 2, "explicit"),
        ("jetson-xavier-jp5.1", "8.5.2", "7.2", 17, False, 2, "implicit"),
        ("jetson-orin-jp5.1", "8.5.2", "8.7", 17, False, 1, "implicit"),
        ("jetson-thor-jp7.0", "10.13", "11.0", 24, True, 0, "none"),
        ("rtx-4060", "1.5", "8.9", 24, True, 0, "none"),
        ("rtx-2080", "1.5", "7.5", 24, True, 0, "none"),
        ("rtx-5090", "1.5", "12.0", 24, True, 0, "none"),
        ("h100", "11.4.1", "9.0", 24, True, 0, "none"),
        ("a100", "11.4.1", "8.0", 24, True, 0, "none"),
    ],
)
def test_main_devices_are_as_documented(
    name: str, tensorrt: str, capability: str, opset: int, typed: bool, dla: int, dla_int8: str
) -> None:
    row = target_named(name)
    found = (row.tensorrt, row.compute_capability, row.opset, row.typed, row.dla, row.dla_int8)
    assert found == (tensorrt, capability, opset, typed, dla, dla_int8)


@pytest.mark.parametrize(
    ("name", "near"),
    [("jetson-orin-jp6.3", "jetson-orin-jp6.2"), ("RTX-4060", "rtx-4060"), ("rtx4060", "rtx-4060"), ("", "a10")],
)
def test_an_unknown_name_is_answered_with_names_near_to_it(name: str, near: str) -> None:
    with pytest.raises(ExportError, match=f"target: '{re.escape(name)}' is none that is known") as refused:
        target_named(name)
    assert near in str(refused.value)
    assert refused.value.kind == "environment"


def problems(name: str, **asked: object) -> str:
    """What check_target says; "" where it lets the request pass."""
    wanted = Asked(**{"opset": 17, "precisions": ("fp16",), **asked})  # type: ignore[arg-type]
    kinds, said = ["environment"], ""
    try:
        check_target(TARGETS[name], wanted)
    except ExportError as refused:
        kinds, said = [refused.kind], str(refused)
    assert kinds == ["environment"]
    return said


@pytest.mark.parametrize("name", sorted(set(TARGETS)))
def test_fp16_at_opset_17_is_possible_everywhere(name: str) -> None:
    assert problems(name) == ""


def test_an_opset_above_the_greatest_is_told() -> None:
    assert problems("jetson-orin-jp6.0", opset=17) == ""
    assert problems("jetson-orin-jp6.0", opset=18) == (
        "jetson-orin-jp6.0: opset 18 is asked, TensorRT 8.6.2 documents up to 17. Set export.opset to 17."
    )


def test_int8_on_a_dla_with_implicit_quantisation_needs_a_calibration_cache() -> None:
    said = problems("jetson-orin-jp6.2", precisions=("int8",), rest="fp16", dla_core=0)
    assert "int8: with TensorRT 10.3 a DLA takes INT8 from a calibration cache only" in said
    assert problems("jetson-orin-jp6.2", precisions=("int8",), rest="fp16", dla_core=0, calibration_cache=True) == ""
    assert problems("jetson-orin-jp6.2", precisions=("int8",), rest="fp16") == "", "the GPU takes Q/DQ"


def test_int8_on_a_dla_with_explicit_quantisation_needs_the_nodes() -> None:
    assert problems("jetson-agx-orin-jp7.2.2", precisions=("int8",), dla_core=0) == ""
    said = problems("jetson-agx-orin-jp7.2.2", precisions=("int8",), dla_core=0, calibration_cache=True)
    assert "reads no calibration cache" in said


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("jetson-orin-nano-jp6.2", "this module has none"),
        ("jetson-thor-jp7.0", "this module has none"),
        ("jetson-agx-orin-jp7.2", "TensorRT 10.16.2 (JetPack 7.2) has no DLA"),
        ("rtx-4060", "this GPU has none"),
    ],
)
def test_a_dla_that_is_not_there_is_told_with_the_reason(name: str, why: str) -> None:
    assert why in problems(name, dla_core=0)
    assert problems(name, dla_core=None) == ""


def test_a_dla_core_that_the_device_lacks_is_told_with_all_else() -> None:
    assert problems("jetson-agx-orin-jp6.2", dla_core=1) == ""
    assert problems("jetson-agx-orin-jp6.2", dla_core=2, precisions=("fp32",)).splitlines() == [
        "jetson-agx-orin-jp6.2: has DLA cores 0 to 1, export.engine.dla_core is 2. Choose one of them.",
        "jetson-agx-orin-jp6.2: fp32: a DLA computes in FP16 or INT8 only. Ask for fp16.",
    ]


def test_a_dla_does_not_compute_in_fp32() -> None:
    assert "FP16 or INT8 only" in problems("jetson-agx-orin-jp6.2", precisions=("fp32",), dla_core=0)


@pytest.mark.parametrize("name", ["rtx-2080", "rtx-2060"])
def test_turing_with_tensorrt_rtx_takes_fp16_or_int8_with_the_rest_in_fp16(name: str) -> None:
    assert "FP32 does not build with tensorrt_rtx" in problems(name, precisions=("fp32",))
    assert "INT8 with the rest in FP32" in problems(name, precisions=("int8",))
    assert problems(name, precisions=("int8", "fp16"), rest="fp16") == ""
    assert problems("t4", precisions=("fp32",)) == "", "the same GPU with classic TensorRT"
    assert problems("rtx-3060", precisions=("fp32", "int8")) == ""


@pytest.mark.parametrize("name", ["jetson-xavier-jp5.1", "jetson-orin-jp5.1"])
def test_jetpack_5_gets_no_engine_from_python(name: str) -> None:
    said = problems(name, engine=True)
    assert "JetPack 5.1 has Python 3.8, expected 3.10 or newer" in said
    assert "check_device.sh" in said
    assert problems(name, engine=False) == ""
    assert problems("jetson-orin-jp6.0", engine=True) == ""


def test_hardware_and_versions_before_fp16_int8_and_qdq_are_told() -> None:
    pascal = replace(TARGETS["t4"], compute_capability="6.1")
    assert unfit(pascal, "fp16") is not None
    assert unfit(pascal, "int8") is None
    assert unfit(pascal, "int8", rest="fp16") is not None
    assert unfit(pascal, "fp32") is None
    assert "no INT8" in str(unfit(replace(pascal, compute_capability="5.3"), "int8"))
    assert "reads no Q/DQ nodes" in str(unfit(replace(pascal, tensorrt="7.2"), "int8"))
    assert unfit(replace(pascal, tensorrt="8.0"), "int8") is None


def test_all_problems_are_told_at_once_a_line_each() -> None:
    said = problems("jetson-xavier-jp5.1", opset=20, precisions=("int8", "fp32"), engine=True, dla_core=0).splitlines()
    assert len(said) == 4
    assert all(line.startswith("jetson-xavier-jp5.1: ") and line.endswith(".") for line in said)
    assert [line.split(": ")[1] for line in said[2:]] == ["int8", "fp32"]


def test_an_engine_that_is_built_elsewhere_is_no_error_but_known() -> None:
    orin, aarch64 = TARGETS["jetson-orin-jp6.2"], "aarch64"
    assert problems("jetson-orin-jp6.2", engine=True) == ""
    assert built_at(orin, here=X86) == "device"
    assert built_at(orin, here=Here("x86_64", "8.7")) == "device"
    assert built_at(orin, here=Here(aarch64, "8.7")) == "here"
    assert built_at(orin, here=Here(aarch64, "11.0")) == "device"
    assert built_at(TARGETS["jetson-xavier-jp5.1"], here=Here(aarch64, "7.2")) == "trtexec"
    assert built_at(TARGETS["rtx-4060"], here=X86) == "ahead"
    assert built_at(TARGETS["h100"], here=X86) == "device"
    assert built_at(TARGETS["h100"], here=Here("x86_64", "9.0")) == "here"


def test_the_table_decides_opset_exporter_and_precision_path() -> None:
    orin6, orin62 = TARGETS["jetson-orin-jp6.0"], TARGETS["jetson-orin-jp6.2"]
    assert [opset_for(target, 18) for target in (None, orin6, orin62)] == [18, 17, 18]
    assert [exporter_route(opset) for opset in (17, 18)] == ["legacy", "dynamo"]
    assert [precision_path(target) for target in (orin6, orin62)] == ["flags", "typed"]
    assert precision_path(orin62, dla_calibration=True) == "flags"
    assert precision_path(TARGETS["jetson-agx-orin-jp7.2.2"], dla_calibration=True) == "typed"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_what_check_target_says_of_a_precision_is_what_unfit_says(precision: Precision) -> None:
    for target in TARGETS.values():
        reason = unfit(target, precision)
        said = problems(target.name, precisions=(precision,))
        assert said == ("" if reason is None else f"{target.name}: {precision}: {reason}")
