"""What other pipelines are handed says the same as the engine that soup builds, in the words of each version."""

from __future__ import annotations

import configparser
import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters import ExportError
from exporters.companions import (
    Model,
    Normalisation,
    TrtexecOptions,
    nvinfer_config,
    nvinfer_labels,
    nvinfer_obstacle,
    polygraphy_line,
    precision_flags,
    timing_flags,
    triton_config,
    trtexec_line,
)
from exporters.runtimes import TensorInfo
from exporters.targets import TARGETS

JP5, JP60, JP62 = (TARGETS[f"jetson-orin-jp{version}"] for version in ("5.1", "6.0", "6.2"))
TRT11, RTX = TARGETS["h100"], TARGETS["rtx-4060"]
STATIC = Model(
    onnx="model.fp16.onnx",
    engine="model.engine",
    inputs=(TensorInfo("input", "float32", (1, 3, 224, 224)),),
    outputs=(TensorInfo("output", "float32", (1, 10)),),
    profiles=((1, 1, 1),),
    precision="fp16",
)
DYNAMIC = replace(
    STATIC,
    inputs=(TensorInfo("input", "float32", ("batch", 3, 224, 224)),),
    outputs=(TensorInfo("output", "float32", ("batch", 10)),),
    profiles=((1, 4, 8),),
)
PLAIN = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (JP5, "trtexec --onnx=model.fp16.onnx --saveEngine=model.engine --fp16\n"),
        (JP62, "trtexec --onnx=model.fp16.onnx --saveEngine=model.engine --stronglyTyped\n"),
        (
            TRT11,
            "trtexec --onnx=model.fp16.onnx --saveEngine=model.engine --includeDataTransfers --noCudaGraph "
            "--noSpinWait\n",
        ),
        (
            RTX,
            "tensorrt_rtx --onnx=model.fp16.onnx --saveEngine=model.engine --includeDataTransfers --noCudaGraph "
            "--noSpinWait\n",
        ),
    ],
    ids=["8.5", "10.3", "11.4", "rtx"],
)
def test_the_plain_line_is_in_the_words_of_its_version(target: object, line: str) -> None:
    assert trtexec_line(STATIC, target) == line  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "rest", "flags"),
    [
        ("fp32", "fp32", ()),
        ("fp16", "fp32", ("--fp16",)),
        ("int8", "fp32", ("--int8",)),
        ("int8", "fp16", ("--fp16", "--int8")),
    ],
)
def test_precision_flags_are_set_where_they_exist_and_only_there(
    precision: object, rest: object, flags: tuple[str, ...]
) -> None:
    model = replace(STATIC, precision=precision, rest=rest)
    assert precision_flags(model, JP5) == precision_flags(model, JP60) == flags
    assert precision_flags(model, JP62) == ("--stronglyTyped",)
    assert precision_flags(model, TRT11) == precision_flags(model, RTX) == ()


def test_int8_for_a_dla_takes_flags_and_our_cache_also_on_10() -> None:
    model = replace(STATIC, precision="int8", rest="fp16", onnx="model.onnx")
    line = trtexec_line(model, JP62, options=TrtexecOptions(dla_core=0, calibration_cache="ranges.cache"))
    assert "--fp16 --int8 --calib=ranges.cache" in line
    assert "--useDLACore=0 --allowGPUFallback" in line
    assert "--stronglyTyped" not in line
    assert "--int8 --calibration-cache ranges.cache" in polygraphy_line(
        model, JP62, atol=1e-3, rtol=0, options=TrtexecOptions(dla_core=0, calibration_cache="ranges.cache")
    )


def test_the_same_timing_is_asked_of_every_version() -> None:
    ours = {"transfers": True, "cuda_graph": False, "spin_wait": False}
    fast = {"transfers": False, "cuda_graph": True, "spin_wait": True}
    assert timing_flags(JP62, **ours) == () == timing_flags(TRT11, **fast)
    assert timing_flags(JP62, **fast) == ("--noDataTransfers", "--useCudaGraph", "--useSpinWait")
    assert timing_flags(TRT11, **ours) == ("--includeDataTransfers", "--noCudaGraph", "--noSpinWait")
    assert timing_flags(RTX, **ours) == timing_flags(TRT11, **ours)


def test_a_dynamic_batch_has_its_profile_and_a_static_one_none() -> None:
    line = trtexec_line(DYNAMIC, JP62)
    assert line.endswith(
        "--minShapes=input:1x3x224x224 --optShapes=input:4x3x224x224 --maxShapes=input:8x3x224x224 "
        "--shapes=input:4x3x224x224\n"
    )
    assert "Shapes" not in trtexec_line(STATIC, JP62)


def test_several_profiles_are_numbered_and_one_wide_one_before_10() -> None:
    model = replace(DYNAMIC, profiles=((1, 1, 2), (4, 8, 16)))
    line = trtexec_line(model, JP62)
    assert "--profile=0 --minShapes=input:1x" in line
    assert "--profile=1 --minShapes=input:4x" in line
    old = trtexec_line(model, JP60)
    assert "--profile" not in old
    assert "--minShapes=input:1x3x224x224 --optShapes=input:1x3x224x224 --maxShapes=input:16x3x224x224" in old


def test_every_option_of_the_build_is_in_the_line_or_named_as_left_out() -> None:
    options = TrtexecOptions(
        workspace_mb=2048,
        optimization_level=5,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
        refit=True,
        strip_weights=True,
        timing_cache="timing.cache",
    )
    new = trtexec_line(STATIC, JP62, options=options)
    assert new.startswith("trtexec ")
    for flag in (
        "--memPoolSize=workspace:2048", "--builderOptimizationLevel=5", "--versionCompatible", "--refit",
        "--hardwareCompatibilityLevel=ampere+", "--stripWeights", "--timingCacheFile=timing.cache",
    ):  # fmt: skip
        assert flag in shlex.split(new)
    *left_out, old = trtexec_line(STATIC, JP5, options=options).splitlines()
    assert [line.rpartition(" ")[2] for line in left_out] == [
        "--builderOptimizationLevel=5", "--versionCompatible", "--hardwareCompatibilityLevel=ampere+", "--stripWeights",
    ]  # fmt: skip
    assert all(line.startswith("# left out, TensorRT 8.5.2 has no ") for line in left_out)
    assert not {"--versionCompatible", "--stripWeights"} & set(shlex.split(old))
    assert "--memPoolSize=workspace:2048" in old


def test_the_level_that_10_3_lacks_is_left_out_there() -> None:
    options = TrtexecOptions(hardware_compatibility="same_compute_capability")
    assert trtexec_line(STATIC, JP62, options=options).startswith("# left out")
    assert "--hardwareCompatibilityLevel=sameComputeCapability" in shlex.split(
        trtexec_line(STATIC, TRT11, options=options)
    )


@given(st.text(st.characters(codec="ascii", exclude_characters="\x00\r\n"), min_size=1))
def test_any_file_name_survives_the_shell(name: str) -> None:
    assert f"--onnx={name}" in shlex.split(trtexec_line(replace(STATIC, onnx=name), JP62))
    assert name in shlex.split(polygraphy_line(replace(STATIC, onnx=name), JP62, atol=1, rtol=0))


def test_a_name_with_a_colon_is_quoted_for_trtexec() -> None:
    model = replace(DYNAMIC, inputs=(TensorInfo("in:0", "float32", ("n", 4)),))
    assert "--minShapes='in:0':1x4" in shlex.split(trtexec_line(model, JP62))


def test_the_polygraphy_line_builds_the_same_and_compares_within_the_tolerance() -> None:
    options = TrtexecOptions(workspace_mb=512, optimization_level=4, timing_cache="t.cache", version_compatible=True)
    assert shlex.split(polygraphy_line(DYNAMIC, JP62, atol=1e-3, rtol=0.01, options=options)) == shlex.split(
        "polygraphy run model.fp16.onnx --trt --onnxrt --strongly-typed"
        " --trt-min-shapes input:[1,3,224,224] --trt-opt-shapes input:[4,3,224,224]"
        " --trt-max-shapes input:[8,3,224,224]"
        " --input-shapes input:[4,3,224,224] --pool-limit workspace:512M --builder-optimization-level 4"
        " --version-compatible --load-timing-cache t.cache --save-timing-cache t.cache --save-engine model.engine"
        " --atol 0.001 --rtol 0.01"
    )
    assert "--strongly-typed" not in polygraphy_line(STATIC, JP60, atol=1, rtol=0)
    assert polygraphy_line(STATIC, RTX, atol=1, rtol=0).startswith("POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy run")
    frames = replace(STATIC, inputs=(TensorInfo("frames", "uint8", (1, 8, 8, 3)),))
    assert "--val-range frames:[0,255]" in polygraphy_line(frames, JP62, atol=1, rtol=0).replace("'", "")


def read_nvinfer(text: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=True, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    assert parser.sections() == ["property"]
    return dict(parser["property"])


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 2), st.integers(0, 255))
def test_nvinfer_computes_what_the_training_did(r: float, g: float, b: float, std: float, pixel: int) -> None:
    """y = net-scale-factor · (x - offset[c]), as the DeepStream guide states it, against (x / 255 - mean) / std."""
    found = read_nvinfer(nvinfer_config(STATIC, Normalisation((r, g, b), (std, std, std)), labels=None))
    offsets = [float(text) for text in found["offsets"].split(";")]
    fed = [float(found["net-scale-factor"]) * (pixel - offset) for offset in offsets]
    assert fed == pytest.approx([(pixel / 255 - mean) / std for mean in (r, g, b)], abs=1e-5)


def test_the_nvinfer_file_names_what_is_served() -> None:
    found = read_nvinfer(
        nvinfer_config(DYNAMIC, replace(PLAIN, color="bgr"), labels="labels.txt", threshold=0.3, dla_core=1)
    )
    assert found["network-type"] == "1"
    assert found["network-mode"] == "2"
    assert (found["onnx-file"], found["model-engine-file"]) == ("model.fp16.onnx", "model.engine")
    assert (found["batch-size"], found["infer-dims"]) == ("8", "3;224;224")
    assert (found["model-color-format"], found["labelfile-path"]) == ("1", "labels.txt")
    assert (found["classifier-threshold"], found["output-blob-names"]) == ("0.3", "output")
    assert (found["enable-dla"], found["use-dla-core"]) == ("1", "1")
    assert "enable-dla" not in read_nvinfer(nvinfer_config(STATIC, PLAIN, labels=None))


@pytest.mark.parametrize(("precision", "mode"), [("fp32", "0"), ("int8", "1"), ("fp16", "2")])
def test_network_mode_is_the_precision(precision: object, mode: str) -> None:
    model = replace(STATIC, precision=precision)
    assert read_nvinfer(nvinfer_config(model, PLAIN, labels=None))["network-mode"] == mode


@pytest.mark.parametrize(
    ("model", "normalisation", "said"),
    [
        (STATIC, IMAGENET, r"one net-scale-factor, and std is \[0.229, 0.224, 0.225\] per channel. Export with "),
        (STATIC, Normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.3)), "per channel"),
        (STATIC, None, "not known here"),
        (replace(STATIC, inputs=(TensorInfo("f", "uint8", (1, 8, 8, 3)),)), PLAIN, "takes uint8 frames"),
        (replace(STATIC, inputs=(TensorInfo("f", "float16", (1, 3, 8, 8)),)), PLAIN, "takes float16"),
        (replace(STATIC, inputs=(TensorInfo("f", "float32", (1, 8)),)), PLAIN, "one image input"),
        (replace(STATIC, inputs=STATIC.inputs * 2), PLAIN, "one image input"),
    ],
)
def test_what_nvinfer_cannot_feed_right_is_said_and_not_written(
    model: Model, normalisation: Normalisation | None, said: str
) -> None:
    with pytest.raises(ExportError, match=said) as refused:
        nvinfer_config(model, normalisation, labels=None)
    assert refused.value.kind == "input"
    assert f"nvinfer: {nvinfer_obstacle(model, normalisation)}" == str(refused.value)
    assert nvinfer_obstacle(STATIC, PLAIN) is None


def test_labels_stand_on_one_line_and_one_with_the_separator_is_refused() -> None:
    assert nvinfer_labels(["tench", "great white"]) == "tench;great white\n"
    with pytest.raises(ExportError, match="label 'a;b'"):
        nvinfer_labels(["x", "a;b"])


def test_a_dynamic_batch_is_triton_s_and_not_in_the_dims() -> None:
    assert triton_config(DYNAMIC, name="net", platform="onnxruntime_onnx") == (
        'name: "net"\n'
        'platform: "onnxruntime_onnx"\n'
        'default_model_filename: "model.fp16.onnx"\n'
        "max_batch_size: 8\n"
        'input [ { name: "input", data_type: TYPE_FP32, dims: [ 3, 224, 224 ] } ]\n'
        'output [ { name: "output", data_type: TYPE_FP32, dims: [ 10 ] } ]\n'
        "dynamic_batching { preferred_batch_size: [ 4 ] }\n"
    )


def test_a_static_batch_stands_in_the_dims() -> None:
    text = triton_config(STATIC, name="net", platform="tensorrt_plan")
    assert 'default_model_filename: "model.engine"' in text
    assert "max_batch_size: 0\n" in text
    assert "dims: [ 1, 3, 224, 224 ]" in text
    assert "dynamic_batching" not in text


def test_several_profiles_are_served_by_an_engine_only() -> None:
    model = replace(DYNAMIC, profiles=((1, 1, 2), (4, 8, 16)))
    assert 'profile: [ "0", "1" ]' in triton_config(model, name="net", platform="tensorrt_plan")
    text = triton_config(model, name="net", platform="onnxruntime_onnx")
    assert "instance_group" not in text
    assert "max_batch_size: 16" in text
    assert "preferred_batch_size: [ 1, 8 ]" in text


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("float32", "FP32"), ("float16", "FP16"), ("uint8", "UINT8"), ("int64", "INT64"), ("bool", "BOOL")],
)
def test_triton_has_its_own_names_of_types(dtype: str, name: str) -> None:
    model = replace(STATIC, inputs=(TensorInfo("x", dtype, (1, 2)),))
    assert f"data_type: TYPE_{name}," in triton_config(model, name="n", platform="onnxruntime_onnx")


def test_a_dtype_that_triton_lacks_is_refused() -> None:
    model = replace(STATIC, inputs=(TensorInfo("x", "complex64", (1, 2)),))
    with pytest.raises(ExportError, match="input 'x' has dtype complex64"):
        triton_config(model, name="n", platform="onnxruntime_onnx")
