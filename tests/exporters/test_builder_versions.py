"""What cannot run here, on a TensorRT that knows the names of its version and no others: which calls are made where."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters import ExportError
from exporters.build_request import Request
from exporters.engine_builder import build
from exporters.engine_settings import EngineSettings
from exporters.trt_api import FEATURES

from .strict_tensorrt import PUBLISHED, STORED, Told, strict_tensorrt

onnx = pytest.importorskip("onnx")
STRONG = ("10.3", "10.13", "11.4")
Building = Callable[..., dict[str, Any]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model.onnx")


def write(path: Path, *, kind: str = "fp32", opset: int = 17, batch: int | str = 1) -> Path:
    """conv0 → activation0 → conv1, float outside; in FP16 between casts, or with Q/DQ before conv0."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    dtype = np.float16 if "fp16" in kind else np.float32
    weights = {"w0": np.ones((4, 3, 1, 1), dtype), "w1": np.ones((2, 4, 1, 1), np.float32)}
    nodes, source = [], "input"
    if "int8" in kind:
        weights |= {"scale": np.float32(0.1), "zero": np.int8(0)}
        nodes.append(helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"], name="quantize"))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="dequantize"))
        source = "dq"
    if "fp16" in kind:
        nodes.append(helper.make_node("Cast", [source], ["half"], name="to_half", to=onnx.TensorProto.FLOAT16))
        source = "half"
    nodes.append(helper.make_node("Conv", [source, "w0"], ["c0"], name="conv0"))
    nodes.append(helper.make_node("Relu", ["c0"], ["r0"], name="activation0"))
    source = "r0"
    if "fp16" in kind:
        nodes.append(helper.make_node("Cast", ["r0"], ["full"], name="to_full", to=onnx.TensorProto.FLOAT))
        source = "full"
    nodes.append(helper.make_node("Conv", [source, "w1"], ["output"], name="conv1"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [batch, 2, 16, 16])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString())
    return path


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Building:
    def run(told: Told, model: Path, *, profiles: Any = (), **settings: Any) -> dict[str, Any]:
        monkeypatch.setitem(sys.modules, "tensorrt", strict_tensorrt(told))
        folder = model.parent
        request = Request(
            str(model), str(folder / "model.engine"), str(folder / "model.layers.json"), "tensorrt", tuple(profiles),
            EngineSettings(**{"workspace_bytes": 2**28, **settings}), has_gpu=True,
        )  # fmt: skip
        return build(request, lambda event: None)

    return run


def failure(building: Building, told: Told, model: Path, **settings: Any) -> ExportError:
    with pytest.raises(ExportError) as raised:
        building(told, model, **settings)
    return raised.value


@pytest.mark.parametrize("version", STRONG)
@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8", "int8 fp16"])
def test_from_10_on_the_network_is_strongly_typed_and_no_precision_flag_is_set(
    building: Building, tmp_path: Path, version: str, kind: str
) -> None:
    told = Told(version)

    result = building(told, write(tmp_path / "model.onnx", kind=kind))

    flags = strict_tensorrt(told).NetworkDefinitionCreationFlag
    assert told.network_flags == 1 << flags.STRONGLY_TYPED
    assert (result["typing"], told.flags, told.types) == ("strong", set(), {})


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("fp32", set()),
        ("fp16", {"FP16", "OBEY_PRECISION_CONSTRAINTS"}),
        ("int8", {"INT8"}),
        ("int8 fp16", {"INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"}),
    ],
)
def test_8_6_gets_the_flags_of_the_graphs_own_precision(
    building: Building, tmp_path: Path, kind: str, flags: set[str]
) -> None:
    told = Told("8.6")

    result = building(told, write(tmp_path / "model.onnx", kind=kind))

    assert told.network_flags == 1 << strict_tensorrt(told).NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    assert (result["typing"], result["version"], told.flags) == ("weak", "8.6.1", flags)


def test_8_6_holds_every_layer_to_the_type_that_the_graph_gives_it(building: Building, tmp_path: Path) -> None:
    told = Told("8.6")

    building(told, write(tmp_path / "model.onnx", kind="fp16"))

    half, full = {"HALF", "0:HALF"}, {"FLOAT", "0:FLOAT"}
    assert told.types == {"to_half": half, "conv0": half, "activation0": half, "to_full": full, "conv1": full}


def test_8_6_leaves_layers_at_quantizers_to_the_quantizers(building: Building, tmp_path: Path) -> None:
    told = Told("8.6")

    building(told, write(tmp_path / "model.onnx", kind="int8 fp16"))

    assert set(told.types) == {"conv0", "activation0", "to_full", "conv1"}  # not quantize, dequantize and what reads it


def test_8_6_refuses_an_opset_that_its_parser_does_not_know(building: Building, tmp_path: Path) -> None:
    error = failure(building, Told("8.6"), write(tmp_path / "model.onnx", opset=18))

    assert error.kind == "environment"
    assert "has opset 18, expected 17 or less: TensorRT 8.6.1 reads no newer one" in str(error)


@pytest.mark.parametrize("version", PUBLISHED)
def test_what_was_obtained_is_read_back_from_the_engine(building: Building, model: Path, version: str) -> None:
    """Correctness 39."""
    result = building(Told(version), model)

    record = json.loads((model.parent / "model.layers.json").read_text())
    assert (record["source"], record["readable"], result["layers"]) == ("engine inspector", True, 1)
    assert result["dtypes"] == {"Float": 1}
    assert record["layers"][0]["onnx_nodes"] == ["conv0"]


@pytest.mark.parametrize("version", PUBLISHED)
def test_every_corner_of_every_profile_is_offered_to_the_new_engine(
    building: Building, tmp_path: Path, version: str
) -> None:
    told, shape = Told(version), (3, 16, 16)
    profiles = [{"input": ((1, *shape), (2, *shape), (4, *shape))}, {"input": ((8, *shape),) * 3}]

    result = building(told, write(tmp_path / "model.onnx", batch="n"), profiles=profiles)

    assert told.profiles == profiles
    assert told.corners == [(0, "input", (n, *shape)) for n in (1, 2, 4)] + [(1, "input", (8, *shape))] * 3
    assert result["corners"] == 6
    told.refused_corner = (4, *shape)
    with pytest.raises(
        ExportError, match=r"the engine refuses \(4, 3, 16, 16\) for 'input', a corner of its profile 0"
    ):
        building(told, tmp_path / "model.onnx", profiles=profiles)


@pytest.mark.parametrize("version", PUBLISHED)
def test_each_option_reaches_the_builder_or_is_refused_with_the_version_that_has_it(
    building: Building, model: Path, version: str
) -> None:
    told = Told(version)
    old = version == "8.6"

    building(
        told,
        model,
        version_compatible=True,
        refit=True,
        optimization_level=5,
        max_aux_streams=0,
        hardware="ampere_plus",
    )

    assert told.flags == {"VERSION_COMPATIBLE", "REFIT"}
    assert (told.config.pop("monitor", None) is None) == old
    assert told.config == {
        "level": 5, "aux": 0, "hardware": "AMPERE_PLUS", "verbosity": "DETAILED", "host_code": True,
    }  # fmt: skip
    assert told.workspace == 2**28
    if old:
        assert "an engine without its weights, which is in TensorRT 10.0 or newer" in str(
            failure(building, told, model, strip_weights=True)
        )
    else:
        result = building(Told(version), model, strip_weights=True)
        assert result["layers"] is None  # it is not opened
    error = failure(building, told, model, compute_capabilities=("8.6",))
    assert "builds for the GPU of its own machine only" in str(error)


@pytest.mark.parametrize("version", ["8.6", "10.3"])
def test_an_option_that_came_later_is_refused_by_all_that_is_asked(
    building: Building, model: Path, version: str
) -> None:
    error = failure(building, Told(version), model, hardware="same_compute_capability", compute_capabilities=("8.6",))

    assert error.kind == "environment"
    assert f"tensorrt {PUBLISHED[version]}: has not hardware compatibility within one compute capability" in str(error)
    assert "10.13 or newer; has not compute capabilities" in str(error)


@pytest.mark.parametrize("version", PUBLISHED)
def test_a_timing_cache_is_written_whole_and_read_again_by_its_hash(
    building: Building, model: Path, version: str
) -> None:
    cache, told = model.parent / "timing.cache", Told(version)

    first = building(told, model, timing_cache=cache)
    assert (told.cache_read, cache.read_bytes()) == (b"", b"+measured")
    assert first["timing_cache_sha256"] == hashlib.sha256(b"+measured").hexdigest()

    second = building(told, model, timing_cache=cache, timing_cache_sha256=first["timing_cache_sha256"])
    assert (told.cache_read, cache.read_bytes()) == (b"+measured", b"+measured+measured")
    assert second["timing_cache_sha256"] == hashlib.sha256(cache.read_bytes()).hexdigest()


def test_a_timing_cache_of_another_hash_or_version_is_refused_by_name(building: Building, model: Path) -> None:
    cache, told = model.parent / "timing.cache", Told("10.3")
    cache.write_bytes(b"other")

    pinned = failure(building, told, model, timing_cache=cache, timing_cache_sha256="0" * 64)
    assert pinned.kind == "input"
    assert f"{cache}: the timing cache has SHA-256 " in str(pinned)
    assert told.cache_read is None

    told.cache_complaint = "The timing cache will not be used!"
    sha256 = hashlib.sha256(b"other").hexdigest()
    foreign = failure(building, told, model, timing_cache=cache, timing_cache_sha256=sha256)
    assert f"{cache}: the timing cache is not one of this TensorRT and GPU: The timing cache will not be used!" in str(
        foreign
    )
    assert cache.read_bytes() == b"other"


DLA_LOG = [
    "---------- Layers Running on DLA ----------",
    "[DlaLayer] {ForeignNode[conv0...activation0]}",
    "---------- Layers Running on GPU ----------",
    "[GpuLayer] CONVOLUTION: conv1",
]


@pytest.mark.parametrize("version", ["8.6", "10.3", "11.4"])
def test_a_dla_gets_the_fp16_graph_and_tells_what_fell_back(building: Building, tmp_path: Path, version: str) -> None:
    told = Told(version)
    told.log = DLA_LOG

    result = building(told, write(tmp_path / "model.onnx", kind="fp16"), dla_core=1)

    weak = version != "11.4"
    assert (told.config["device"], told.config["core"]) == ("DLA", 1)
    assert told.flags == {"GPU_FALLBACK"} | ({"FP16", "OBEY_PRECISION_CONSTRAINTS"} if weak else set())
    assert result["typing"] == ("weak" if weak else "strong")
    assert (result["dla_layers"], result["gpu_layers"]) == (("conv0", "activation0"), ("conv1",))
    record = json.loads((tmp_path / "model.layers.json").read_text())
    assert record["dla"] == {"dla": ["conv0", "activation0"], "gpu": ["conv1"], "share": 2 / 3}


def test_a_dla_without_fallback_is_built_without_the_flag(building: Building, tmp_path: Path) -> None:
    told = Told("10.3")

    result = building(told, write(tmp_path / "model.onnx", kind="fp16"), dla_core=0, gpu_fallback=False)

    assert "GPU_FALLBACK" not in told.flags
    assert (result["dla_layers"], result["gpu_layers"]) == (None, None)  # the log tells nothing


@pytest.mark.parametrize("version", ["8.6", "10.3"])
def test_int8_on_a_dla_comes_from_our_ranges_as_a_calibration_cache(
    building: Building, model: Path, version: str
) -> None:
    told = Told(version)

    result = building(told, model, dla_core=0, int8_ranges={"input": (-1.0, 127.0)})

    calibrator = told.config["calibrator"]
    number = {"8.6": "8601", "10.3": "100300"}[version]
    assert calibrator.read_calibration_cache() == f"TRT-{number}-EntropyCalibration2\ninput: 3f800000\n".encode()
    assert (calibrator.get_batch(["input"]), calibrator.get_batch_size()) == (None, 1)
    assert told.flags == {"INT8", "FP16", "GPU_FALLBACK"}
    assert result["typing"] == "weak"


@pytest.mark.parametrize(
    ("version", "kind", "settings", "error_kind", "expected"),
    [
        ("10.3", "int8", {}, "environment", "quantizes with Q/DQ nodes, which no DLA takes before TensorRT 11"),
        ("10.3", "fp32", {}, "input", "is an FP32 graph, expected FP16, or FP32 with INT8 ranges"),
        ("10.3", "fp16", {"int8_ranges": {"input": (0.0, 1.0)}}, "input", "holds fp16, expected the FP32 graph"),
        ("11.4", "fp32", {"int8_ranges": {"input": (0.0, 1.0)}}, "environment", "and before 11.0"),
        ("10.3", "fp16", {"dla_core": 2}, "environment", "DLA core 2: this device has 2 DLA cores"),
    ],
)
def test_what_a_dla_cannot_do_is_refused_with_the_reason(
    building: Building,
    tmp_path: Path,
    version: str,
    kind: str,
    settings: dict[str, Any],
    error_kind: str,
    expected: str,
) -> None:
    model = write(tmp_path / "model.onnx", kind=kind)

    error = failure(building, Told(version), model, **{"dla_core": 0, **settings})

    assert error.kind == error_kind
    assert expected in str(error)


def test_a_device_without_a_dla_says_so(building: Building, tmp_path: Path) -> None:
    told = Told("10.13")
    told.cores = 0

    error = failure(building, told, write(tmp_path / "model.onnx", kind="fp16"), dla_core=0)

    assert "this device has no DLA, or its TensorRT cannot use it" in str(error)


@pytest.mark.parametrize("version", PUBLISHED)
def test_the_node_of_a_parser_error_is_named_also_where_tensorrt_tells_its_number(
    building: Building, model: Path, version: str
) -> None:
    told = Told(version)
    told.parse_failure = {"desc": "No importer.", "node": 1}

    error = failure(building, told, model)

    name = "activation0" if version == "8.6" else "told by its name"
    assert f"node '{name}' (Relu): No importer (ONNX has this operator since opset 1)" in str(error)


@pytest.mark.parametrize("version", PUBLISHED)
def test_the_table_of_features_says_what_the_wheels_say(version: str) -> None:
    """Of every classic wheel that was read: a feature is there from its first version until the one it is gone from."""
    names = {owner: set(members) for owner, members in STORED[version]["names"].items()}

    def number(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    for key, feature in FEATURES.items():
        there = all(
            name.partition(".")[2] in names.get(name.partition(".")[0], set()) if "." in name else name in names
            for name in feature.names
        )
        since, gone = feature.since, feature.gone
        expected = (
            since is not None and number(since) <= number(version) and not (gone and number(gone) <= number(version))
        )
        assert (key, there) == (key, expected)


def test_since_is_the_first_version_of_all_that_were_read() -> None:
    changes = json.loads(Path(__file__).with_name("tensorrt_since.json").read_text())
    versions, lacking = changes["versions"], changes["some_lack"]
    for feature in FEATURES.values():
        if feature.since is not None:
            having = [v for v in versions if all(v in lacking.get(name, versions) for name in feature.names)]
            assert having[0] == feature.since
            assert feature.gone == (None if having[-1] == versions[-1] else versions[versions.index(having[-1]) + 1])
