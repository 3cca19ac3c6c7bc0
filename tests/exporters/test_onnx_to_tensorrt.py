from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from exporters import ExportError, onnx_to_tensorrt
from exporters.engine_builder import peak_memory_bytes
from exporters.flavours import import_flavour
from exporters.gpu import Gpu, find_gpu
from exporters.onnx_to_tensorrt import Builder, EngineBuild, find_builder
from exporters.plan import inspect_engine

onnx = pytest.importorskip("onnx")
needs_rtx = pytest.mark.skipif(
    (builder := find_builder()) is None or builder.flavour != "tensorrt_rtx", reason="tensorrt_rtx builds these engines"
)


def write_onnx(
    path: Path, *, batch: int | str = 1, blocks: int = 1, dtype: type = np.float32, activation: str = "Relu"
) -> Path:
    """`blocks` of convolution and activation, pooling, and a linear head: [batch, 3, 16, 16] → [batch, 10]."""
    helper, random = onnx.helper, np.random.default_rng(0)
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, weights, last = [], {"head.weight": random.normal(size=(4, 10))}, "input"
    for block in range(blocks):
        weights[f"{block}.weight"] = random.normal(size=(4, 3 if block == 0 else 4, 3, 3))
        conv, last = f"{block}.conv", f"{block}.out"
        inputs = [f"{block - 1}.out" if block else "input", f"{block}.weight"]
        nodes.append(helper.make_node("Conv", inputs, [conv], name=f"conv{block}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node(activation, [conv], [last], name=f"activation{block}"))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    nodes.append(helper.make_node("MatMul", ["flat", "head.weight"], ["output"], name="head"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", code, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("output", code, [batch, 10])],
        [onnx.numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
    return path


def build(model: Path, **options: object) -> EngineBuild:
    arguments: dict[str, object] = {"profile": None, "workspace_bytes": None, **options}
    return onnx_to_tensorrt.onnx_to_tensorrt(model, model.with_suffix(".engine"), **arguments)  # type: ignore[arg-type]


def failure(model: Path, **options: object) -> ExportError:
    with pytest.raises(ExportError) as raised:
        build(model, **options)
    return raised.value


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def at_first_phase(action: Callable[[int], object]) -> Callable[[str], None]:
    """A progress callback that does something to the builder's process while that is still at work.

    The model must log more than a pipe holds (64 KiB), so that the builder waits for the reader, which is in here.
    """
    done: list[str] = []

    def progress(phase: str) -> None:
        if not done:
            done.append(phase)
            action(children()[-1])

    return progress


@needs_rtx
def test_a_static_graph_becomes_an_engine_that_is_hashed_as_it_lies_on_disk(tmp_path: Path) -> None:
    """Correctness 47: what is read back is what was built."""
    phases: list[str] = []

    built = build(write_onnx(tmp_path / "model.onnx"), progress=phases.append)

    facts = inspect_engine(built.path)
    assert (facts.sha256, facts.size_bytes) == (built.sha256, built.size_bytes)
    assert (facts.flavour, facts.version) == ("tensorrt_rtx", built.version)
    assert built.compute_capabilities == ()
    assert built.seconds > 0
    assert built.peak_memory_bytes > 10 * 2**20
    assert phases[0] == "Building engine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.engine", "model.layers.json", "model.onnx"]


@needs_rtx
def test_a_dynamic_batch_is_built_ahead_of_time_for_the_capabilities_asked_for(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "model.onnx", batch="n")

    built = build(model, profile=(1, 4, 8), compute_capabilities=("8.6", "8.9", "8.6"), workspace_bytes=2**28)

    assert built.compute_capabilities == ("8.6", "8.9")
    assert inspect_engine(built.path).compute_capabilities == ("8.6", "8.9")


@needs_rtx
@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "Float"), (np.float16, "Half")])
def test_the_layer_record_tells_the_precision_that_was_obtained(tmp_path: Path, dtype: type, name: str) -> None:
    """Correctness 39: read back from the engine's layers, not taken from what was asked for."""
    built = build(write_onnx(tmp_path / "model.onnx", dtype=dtype))

    record = json.loads(built.layers_path.read_text())
    assert record["readable"] is True
    assert built.layers == len(record["layers"])
    assert dict(built.dtypes) == {name: built.layers}
    fused = next(layer for layer in record["layers"] if "conv0" in layer["onnx_nodes"])
    assert fused["onnx_nodes"] == ["conv0", "activation0"]
    assert {tensor["dtype"] for tensor in (*fused["inputs"], *fused["outputs"])} == {name}


@needs_rtx
def test_a_node_that_tensorrt_lacks_is_named_with_its_operator_and_the_reason(tmp_path: Path) -> None:
    error = failure(write_onnx(tmp_path / "model.onnx", activation="Swizzle"))

    assert error.kind == "build"
    assert str(error).startswith(
        f"{tmp_path}/model.onnx: TensorRT cannot take the graph: node 'activation0' (Swizzle): "
    )
    assert "Plugin not found" in str(error)
    assert not (tmp_path / "model.engine").exists()


@needs_rtx
@pytest.mark.parametrize(
    ("batch", "profile", "expected"),
    [
        ("n", None, "the graph has a dynamic batch, but no profile (min, opt, max) was given"),
        (1, (1, 2, 4), "the graph has a static batch, but a profile (min, opt, max) was given"),
        ("n", (4, 2, 8), "profile: batch (min, opt, max) is (4, 2, 8), expected 1 <= min <= opt <= max."),
        ("n", (0, 1, 1), "profile: batch (min, opt, max) is (0, 1, 1), expected 1 <= min <= opt <= max."),
    ],
)
def test_a_profile_that_the_graph_cannot_have_is_an_input_error(
    tmp_path: Path, batch: int | str, profile: tuple[int, int, int] | None, expected: str
) -> None:
    error = failure(write_onnx(tmp_path / "model.onnx", batch=batch), profile=profile)

    assert error.kind == "input"
    assert expected in str(error)


@needs_rtx
def test_a_dynamic_axis_beside_the_batch_is_refused_by_name(tmp_path: Path) -> None:
    model = onnx.load(write_onnx(tmp_path / "model.onnx", batch="n"))
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    (tmp_path / "wide.onnx").write_bytes(model.SerializeToString())

    error = failure(tmp_path / "wide.onnx", profile=(1, 1, 1))

    assert error.kind == "input"
    assert "input 'input' has shape (-1, 3, 16, -1), expected only its first axis to be dynamic" in str(error)


@needs_rtx
def test_too_small_a_workspace_is_told_in_tensorrts_words_without_the_noise_of_a_missing_gpu(tmp_path: Path) -> None:
    error = failure(write_onnx(tmp_path / "model.onnx"), workspace_bytes=2**20)

    assert error.kind == "build"
    assert "no tactics to implement the operation within workspace limit" in str(error)
    assert str(error).endswith("Allow a larger workspace.")
    assert "cudaError" not in str(error)
    assert ".cpp" not in str(error)


@needs_rtx
@pytest.mark.parametrize(
    ("capability", "kind", "expected"),
    [
        ("orin", "input", "compute capabilities: 'orin', expected the form 8.6."),
        ("8.7", "environment", "8.7 not known to tensorrt_rtx"),
        ("7.5", "build", "FP32 GEMM is not supported"),
    ],
)
def test_a_compute_capability_that_cannot_be_served_is_refused(
    tmp_path: Path, capability: str, kind: str, expected: str
) -> None:
    error = failure(write_onnx(tmp_path / "model.onnx"), compute_capabilities=(capability,))

    assert error.kind == kind
    assert expected in str(error)


@needs_rtx
def test_what_is_no_onnx_or_keeps_weights_outside_is_refused_before_tensorrt_sees_it(tmp_path: Path) -> None:
    """Correctness 36, 42. TensorRT takes any text for an empty graph."""
    (tmp_path / "text.onnx").write_text("hello")
    outside = onnx.load(write_onnx(tmp_path / "model.onnx"))
    onnx.save(outside, tmp_path / "outside.onnx", save_as_external_data=True, location="weights", size_threshold=0)

    messages = [failure(tmp_path / name) for name in ("text.onnx", "outside.onnx", "absent.onnx")]

    assert [error.kind for error in messages] == ["input"] * 3
    assert "not an ONNX file" in str(messages[0])
    assert "keeps weights in other files" in str(messages[1])
    assert "not found" in str(messages[2])


@needs_rtx
def test_a_build_that_the_system_kills_is_told_with_its_memory_and_what_to_do(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "model.onnx", blocks=200)

    error = failure(model, progress=at_first_phase(lambda pid: os.kill(pid, signal.SIGKILL)))

    assert error.kind == "build"
    assert "the system killed the build (SIGKILL) at a peak of " in str(error)
    assert "Allow a smaller workspace, end other programs, or add swap." in str(error)
    assert "of 0 MiB" not in str(error)


@needs_rtx
def test_a_crash_of_the_builder_is_told_with_its_last_words(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "model.onnx", blocks=200)

    error = failure(model, progress=at_first_phase(lambda pid: os.kill(pid, signal.SIGSEGV)))

    assert error.kind == "build"
    assert "tensorrt_rtx crashed (SIGSEGV)" in str(error)
    assert "its last words: '" in str(error)
    assert "nothing was logged" not in str(error)


@needs_rtx
def test_an_interrupt_ends_the_builder_too(tmp_path: Path) -> None:
    seen: list[int] = []

    def interrupt(pid: int) -> None:
        seen.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(write_onnx(tmp_path / "model.onnx", blocks=200), progress=at_first_phase(interrupt))

    assert seen
    assert not Path(f"/proc/{seen[0]}").exists()


@needs_rtx
def test_a_build_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    before = children()

    error = failure(write_onnx(tmp_path / "model.onnx"), timeout_s=0)

    assert error.kind == "build"
    assert "the engine was not built within 0 s; the build was stopped." in str(error)
    assert children() == before


@needs_rtx
@pytest.mark.parametrize(
    ("engine_path", "expected"),
    [
        ("absent/model.engine", "absent/model.engine: cannot be read or written: No such file or directory."),
        ("/dev/full", "/dev/full: cannot be read or written: No space left on device."),
        ("/dev/null", "/dev/null: reads back as "),
    ],
)
def test_an_engine_that_does_not_get_to_disk_whole_is_an_input_error(
    tmp_path: Path, engine_path: str, expected: str
) -> None:
    """Correctness 47."""
    model = write_onnx(tmp_path / "model.onnx")

    with pytest.raises(ExportError) as raised:
        onnx_to_tensorrt.onnx_to_tensorrt(model, tmp_path / engine_path, profile=None, workspace_bytes=None)

    assert raised.value.kind == "input"
    assert expected in str(raised.value)


def test_a_bug_in_the_builders_process_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `json` imports and has a version, but is no TensorRT.
    monkeypatch.setattr(onnx_to_tensorrt, "find_builder", lambda: Builder("json", "", None))  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match=r"(?s)ended with code 1.*Traceback.*AttributeError.*ILogger"):
        build(write_onnx(tmp_path / "model.onnx"))


def test_without_a_builder_one_line_says_which_command_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    assert find_builder() is None
    error = failure(write_onnx(tmp_path / "model.onnx"))

    assert error.kind == "environment"
    assert "pip install 'edgesoup[rtx]'" in str(error)
    assert "build on the device" in str(error)
    assert "\n" not in str(error)


def test_classic_tensorrt_is_chosen_only_where_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text("__version__ = '10.3.0'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    orin = Gpu("Orin", "8.7")

    monkeypatch.setattr(onnx_to_tensorrt, "find_gpu", lambda: None)
    assert find_builder() is None
    monkeypatch.setattr(onnx_to_tensorrt, "find_gpu", lambda: orin)
    found = find_builder()
    assert found is not None
    assert (found.flavour, found.gpu) == ("tensorrt", orin)


def test_tensorrt_8_is_an_environment_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("__version__ = '8.6.2'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    with pytest.raises(ExportError, match=r"tensorrt: version 8\.6\.2, expected 10 or newer.*later version") as raised:
        import_flavour("tensorrt")

    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    assert raised.value.kind == "environment"


def test_the_peak_memory_of_this_process_is_known_and_of_an_absent_one_is_zero() -> None:
    assert peak_memory_bytes("self") > 2**20
    assert peak_memory_bytes(2**22 + 1) == 0


def test_the_gpu_is_told_by_the_driver_or_is_none() -> None:
    gpu = find_gpu()

    assert gpu is None or float(gpu.compute_capability) >= 3.0
