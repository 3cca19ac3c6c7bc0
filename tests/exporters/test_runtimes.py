from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from exporters import ExportError
from exporters.ort_session import Provider
from exporters.runtimes import Arrays, TensorInfo, device_name, in_batches, open_onnx

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)
FLOAT = TensorProto.FLOAT


def write_matmul(path: Path, *, batch: int | str = "batch", weight: onnx.TensorProto | None = None) -> Path:
    """input [batch, 3] @ WEIGHT -> output [batch, 2]."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"])],
        "matmul",
        [helper.make_tensor_value_info("input", FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("output", FLOAT, [batch, 2])],
        [weight or numpy_helper.from_array(WEIGHT, "weight")],
    )
    return write_graph(path, graph)


def write_graph(path: Path, graph: onnx.GraphProto) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def outside_tensor(location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="weight", data_type=FLOAT, dims=[3, 2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("graph_batch", "limit"), [(1, None), (4, None), ("batch", None), ("batch", 3), ("batch", (2, 3, 5))]
)
@pytest.mark.parametrize("count", [1, 4, 11])
def test_any_number_of_samples_runs_whatever_the_batch(
    tmp_path: Path, graph_batch: int | str, limit: int | tuple[int, int, int] | None, count: int
) -> None:
    """Correctness 34: static batches, and dynamic ones at the least, at the most and between."""
    path = write_matmul(tmp_path / "m.onnx", batch=graph_batch)
    with open_onnx(path, threads=1, batch=limit) as runtime:
        outputs = runtime({"input": samples(count)})
    np.testing.assert_allclose(outputs["output"], samples(count) @ WEIGHT, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 40), least=st.integers(1, 9), extra=st.integers(0, 9))
def test_every_call_is_within_the_limits_and_no_sample_is_lost_or_added(count: int, least: int, extra: int) -> None:
    """Correctness 31."""
    sizes: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        sizes.append(len(inputs["input"]))
        return {"output": inputs["input"] * 2}

    numbers = np.arange(count)
    infos = (TensorInfo("output", "int64", ("batch",)),)
    outputs = in_batches(run, {"input": numbers}, outputs=infos, least=least, most=least + extra)
    assert outputs["output"].tolist() == (numbers * 2).tolist()
    assert all(least <= size <= least + extra for size in sizes)


def test_no_samples_give_empty_outputs_of_the_models_shape(tmp_path: Path) -> None:
    with open_onnx(write_matmul(tmp_path / "m.onnx")) as runtime:
        empty = runtime({"input": samples(0)})["output"]
    assert (empty.shape, empty.dtype) == ((0, 2), np.float32)


def test_an_output_without_the_batch_in_front_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["input"], ["output"], keepdims=1)],
        "sum",
        [helper.make_tensor_value_info("input", FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("output", FLOAT, [1, 1])],
    )
    with (
        open_onnx(write_graph(tmp_path / "m.onnx", graph)) as runtime,
        pytest.raises(ExportError, match=r"'output' has shape \(1, 1\), expected 4 samples"),
    ):
        runtime({"input": samples(4)})


@pytest.mark.parametrize(
    ("provider", "name"), [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")]
)
def test_a_provider_that_is_not_there_is_the_environments_failure_and_never_the_cpu(
    tmp_path: Path, provider: Provider, name: str
) -> None:
    """tensorrt.md: without a GPU these silently fall back to the CPU."""
    if name in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has it")
    with pytest.raises(ExportError, match=f"this ONNX Runtime has no {name}, only .*onnxruntime-gpu") as caught:
        open_onnx(write_matmul(tmp_path / "m.onnx"), provider=provider)
    assert caught.value.kind == "environment"


def test_a_provider_that_does_not_start_is_told_by_what_the_session_says_that_it_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime-gpu without a driver: the provider is available, and the session runs on the CPU."""
    real, asked = onnxruntime.InferenceSession, list[list[str]]()

    def session(model: bytes, options: object, *, providers: list[str], enable_fallback: int) -> object:
        asked.append(providers)
        assert enable_fallback == 0  # it prints to stdout
        return real(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    there = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    path = write_matmul(tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"TensorrtExecutionProvider did not start, .* run on CPUExec") as caught:
        open_onnx(path, provider="tensorrt")
    assert caught.value.kind == "environment"
    with pytest.raises(ExportError, match="CUDAExecutionProvider did not start"):
        open_onnx(path, provider="cuda")
    assert asked == [there, there[1:]]


def test_the_provider_device_and_number_of_threads_are_as_they_are(tmp_path: Path) -> None:
    with open_onnx(write_matmul(tmp_path / "m.onnx"), threads=2) as runtime:
        assert runtime.info.provider == "CPUExecutionProvider"
        assert (runtime.info.runtime, runtime.info.device) == ("onnxruntime", device_name())
        assert (runtime.last_gpu_ms, runtime.cuda_graph, runtime.notes) == (None, False, ())


def test_a_resident_call_runs_one_batch_without_copies(tmp_path: Path) -> None:
    with open_onnx(write_matmul(tmp_path / "m.onnx"), batch=(1, 2, 4)) as runtime:
        call = runtime.resident({"input": samples(3)})
        call()
        call()
        with pytest.raises(ExportError, match="5 samples, expected 1 to 4 in one call"):
            runtime.resident({"input": samples(5)})
        with pytest.raises(ExportError, match="has dtype float64"):
            runtime.resident({"input": np.zeros((2, 3))})


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_onnx_runtime_agrees_with_itself_on_the_gpu(tmp_path: Path, provider: Provider) -> None:
    path = write_matmul(tmp_path / "m.onnx")
    with open_onnx(path, provider=provider) as runtime:
        assert runtime.info.provider != "CPUExecutionProvider"
        np.testing.assert_allclose(runtime({"input": samples(5)})["output"], samples(5) @ WEIGHT, rtol=1e-2, atol=1e-2)
        runtime.resident({"input": samples(5)})()


def test_inputs_and_outputs_are_described(tmp_path: Path) -> None:
    with open_onnx(write_matmul(tmp_path / "m.onnx")) as runtime:
        assert runtime.inputs == (TensorInfo("input", "float32", ("batch", 3)),)
        assert runtime.outputs == (TensorInfo("output", "float32", ("batch", 2)),)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input": np.zeros((2, 3))}, "input 'input' has dtype float64, expected float32"),
        ({"input": np.zeros((2, 4), np.float32)}, r"input 'input' has shape \(2, 4\), expected \('n', 3\)"),
        ({"input": np.zeros(3, np.float32)}, r"input 'input' has shape \(3,\)"),
        (
            {"image": np.zeros((2, 3), np.float32)},
            r"'image' is not one of the model's: \['input'\]; input 'input' is missing",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_what_was_expected(
    tmp_path: Path, inputs: Arrays, message: str
) -> None:
    with open_onnx(write_matmul(tmp_path / "m.onnx")) as runtime, pytest.raises(ExportError, match=message) as caught:
        runtime(inputs)
    assert caught.value.kind == "input"
    assert str(caught.value).startswith(str(tmp_path / "m.onnx"))


def test_inputs_of_different_lengths_are_refused(tmp_path: Path) -> None:
    infos = [helper.make_tensor_value_info(name, FLOAT, ["batch", 3]) for name in ("a", "b", "sum")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["sum"])], "add", infos[:2], infos[2:])
    with (
        open_onnx(write_graph(tmp_path / "m.onnx", graph)) as runtime,
        pytest.raises(ExportError, match=r"number of samples: \{'a': 1, 'b': 4\}"),
    ):
        runtime({"a": samples(1), "b": samples(4)})


def test_a_graph_that_fails_while_running_is_a_named_error(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([2, 3]), "shape")  # a batch of two, frozen by a tracer
    infos = [helper.make_tensor_value_info(name, FLOAT, ["batch", 3]) for name in ("input", "output")]
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["input", "shape"], ["output"])], "frozen", infos[:1], infos[1:], [shape]
    )
    with (
        open_onnx(write_graph(tmp_path / "m.onnx", graph)) as runtime,
        pytest.raises(ExportError, match=r"cannot run it on \{'input': \(3, 3\)\}") as caught,
    ):
        runtime({"input": samples(3)})
    assert caught.value.kind == "build"


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    path = write_matmul(tmp_path / "m.onnx")
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    open_onnx(path, expected_sha256=right).close()
    with pytest.raises(ExportError, match=f"SHA-256 is {right}, expected {'0' * 64}") as caught:
        open_onnx(path, expected_sha256="0" * 64)
    assert caught.value.kind == "input"


@pytest.mark.parametrize("place", ["initializer", "constant in a branch"])
def test_weights_outside_of_the_file_are_refused_even_through_a_hard_link(tmp_path: Path, place: str) -> None:
    """Correctness 42: ONNX Runtime itself would read the file."""
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    os.link(tmp_path / "secret.bin", tmp_path / "weights.bin")
    tensor = outside_tensor("weights.bin")
    path = write_matmul(tmp_path / "m.onnx", weight=tensor)
    if place != "initializer":
        constant = helper.make_node("Constant", [], ["value"], value=tensor)
        branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("value", FLOAT, [3, 2])])
        graph = helper.make_graph(
            [helper.make_node("If", ["input"], ["output"], then_branch=branch, else_branch=branch)],
            "if",
            [helper.make_tensor_value_info("input", TensorProto.BOOL, [1])],
            [helper.make_tensor_value_info("output", FLOAT, [3, 2])],
        )
        write_graph(path, graph)
    with pytest.raises(ExportError, match="keeps weights in other files") as caught:
        open_onnx(path)
    assert caught.value.kind == "input"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot load"),
        (b"not a model at all", "not an ONNX file"),
        (b"\x08\x0a", "cannot load"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_onnx_file_is_one_sentence(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=message) as caught:
        open_onnx(path)
    assert caught.value.kind == "input"
    assert str(caught.value).startswith(str(path))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_matmul(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ExportError, match="not an ONNX file"):
        open_onnx(path)


def test_a_missing_onnxruntime_names_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_matmul(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"pip install 'edgesoup\[ort\]'") as caught:
        open_onnx(path)
    assert caught.value.kind == "environment"


def test_a_board_tells_its_own_name_before_the_cpus(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert device_name(proc=tmp_path) == "Some CPU @ 2 GHz"
    (tmp_path / "device-tree").mkdir()
    (tmp_path / "device-tree" / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    assert device_name(proc=tmp_path) == "NVIDIA Jetson Orin Nano Developer Kit"


def test_a_machine_that_tells_nothing_still_has_a_name(tmp_path: Path) -> None:
    assert device_name(proc=tmp_path)


def test_the_device_side_imports_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, exporters.runtimes, exporters.parity, exporters.latency, exporters.onnx_facts;"
        "sys.exit(bool({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
