from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from exporters import ExportError, engine
from exporters.cuda import CudaBindings, open_cuda
from exporters.engine import EngineRuntime, open_engine
from exporters.gpu import find_gpu
from exporters.onnx_to_tensorrt import onnx_to_tensorrt
from exporters.runtimes import open_onnx

without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="shows what happens without a GPU")


def linear_onnx(path: Path, *, batch: int | str) -> np.ndarray:
    """Write output = input @ weight for input [batch, 6], and return weight float32 [6, 5]."""
    onnx = pytest.importorskip("onnx")
    helper, weight = onnx.helper, np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"], name="linear")],
        "linear",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [batch, 6])],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [batch, 5])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
    return weight


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_engine_with_another_hash_is_refused_before_anything_else_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Correctness 43."""
    path = tmp_path / "model.engine"
    path.write_bytes(b"vtrt" + bytes(100))
    expected = sha256(path)
    path.write_bytes(b"vtrt" + bytes(99) + b"\1")
    monkeypatch.setattr(engine, "find_gpu", lambda: pytest.fail("the GPU was asked for"))
    monkeypatch.setattr(engine, "EngineRuntime", lambda *_, **__: pytest.fail("the engine was opened"))

    with pytest.raises(ExportError, match=f"expected {expected}. It was not opened") as raised:
        open_engine(path, expected_sha256=expected)

    assert raised.value.kind == "input"


def test_an_absent_engine_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"model\.engine: cannot be read: No such file") as raised:
        open_engine(tmp_path / "model.engine", expected_sha256="")

    assert raised.value.kind == "input"


@without_gpu
def test_without_a_gpu_an_engine_says_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(b"vtrt" + bytes(100))

    with pytest.raises(ExportError, match="needs an NVIDIA GPU and its driver, none found here") as raised:
        open_engine(path, expected_sha256=sha256(path))

    assert raised.value.kind == "environment"


@without_gpu
def test_cuda_bindings_without_a_driver_name_the_call_and_the_error() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")

    with pytest.raises(ExportError, match="cudaStreamCreate failed with cudaErrorInsufficientDriver") as raised:
        CudaBindings(runtime)

    assert raised.value.kind == "environment"


def test_without_pycuda_and_cuda_bindings_both_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycuda.driver", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ExportError, match="neither pycuda nor cuda-bindings") as raised:
        open_cuda()

    assert raised.value.kind == "environment"
    assert "pip install 'edgesoup[pycuda]'" in str(raised.value)
    assert "pip install cuda-bindings" in str(raised.value)


@without_gpu
def test_an_engine_that_does_not_deserialise_gives_tensorrts_reason_and_frees_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    linear_onnx(tmp_path / "model.onnx", batch=2)
    built = onnx_to_tensorrt(tmp_path / "model.onnx", tmp_path / "model.engine", profile=None, workspace_bytes=None)
    closed: list[str] = []
    # Only CUDA is missing for the real runtime to try the real plan.
    monkeypatch.setattr(engine, "open_cuda", lambda: SimpleNamespace(close=lambda: closed.append("cuda")))

    with pytest.raises(ExportError, match=r"cannot open the engine: .*cudaError 35.*An engine runs on") as raised:
        EngineRuntime(built.path.read_bytes(), where="model.engine", flavour="tensorrt_rtx", device="none")

    assert raised.value.kind == "environment"
    assert closed == ["cuda"]


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "profile"), [(4, None), ("n", (2, 4, 8))])
@pytest.mark.parametrize("samples", [0, 1, 4, 19])
def test_an_engine_agrees_with_numpy_and_onnx_runtime_for_any_number_of_samples(
    tmp_path: Path, batch: int | str, profile: tuple[int, int, int] | None, samples: int
) -> None:
    """Correctness 34."""
    weight = linear_onnx(tmp_path / "model.onnx", batch=batch)
    built = onnx_to_tensorrt(tmp_path / "model.onnx", tmp_path / "model.engine", profile=profile, workspace_bytes=None)
    inputs = {"input": np.random.default_rng(1).normal(size=(samples, 6)).astype(np.float32)}

    with open_engine(built.path, expected_sha256=built.sha256) as opened:
        output = opened(inputs)["output"]
        again = opened(inputs)["output"]
        assert opened.inputs[0].shape == (batch if profile is None else "batch", 6)
        assert (opened.info.runtime, opened.info.version) == (built.flavour, built.version)
        assert (opened.last_gpu_ms > 0) == (samples > 0)

    # TensorFloat-32, which TensorRT may use, keeps 10 bits of mantissa.
    np.testing.assert_allclose(output, inputs["input"] @ weight, rtol=1e-2, atol=1e-2)
    np.testing.assert_array_equal(output, again)
    with open_onnx(tmp_path / "model.onnx", batch=profile) as reference:
        np.testing.assert_allclose(output, reference(inputs)["output"], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_an_engine_refuses_inputs_that_are_not_its_own_and_calls_after_close(tmp_path: Path) -> None:
    linear_onnx(tmp_path / "model.onnx", batch=2)
    built = onnx_to_tensorrt(tmp_path / "model.onnx", tmp_path / "model.engine", profile=None, workspace_bytes=None)

    opened = open_engine(built.path, expected_sha256=built.sha256)
    with pytest.raises(ExportError, match="input 'input' has dtype float64, expected float32"):
        opened({"input": np.zeros((2, 6))})
    with pytest.raises(ExportError, match=r"input 'input' has shape \(2, 7\)"):
        opened({"input": np.zeros((2, 7), np.float32)})
    opened.close()
    opened.close()
    with pytest.raises(ValueError, match="the engine is closed"):
        opened({"input": np.zeros((2, 6), np.float32)})


@pytest.mark.gpu
def test_a_captured_graph_gives_what_a_plain_run_gives(tmp_path: Path) -> None:
    linear_onnx(tmp_path / "model.onnx", batch="n")
    built = onnx_to_tensorrt(
        tmp_path / "model.onnx", tmp_path / "model.engine", profile=(2, 4, 8), workspace_bytes=None
    )
    batches = [np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
               for seed, count in enumerate((4, 4, 4, 7, 7, 4))]  # fmt: skip

    with (
        open_engine(built.path, expected_sha256=built.sha256) as plain,
        open_engine(built.path, expected_sha256=built.sha256, cuda_graph=True) as replayed,
    ):
        for batch in batches:
            np.testing.assert_array_equal(plain({"input": batch})["output"], replayed({"input": batch})["output"])
        replayed({"input": batches[-1]})
        assert (replayed.cuda_graph, replayed.notes) == (True, ())


@pytest.mark.gpu
@pytest.mark.parametrize("samples", [1, 3, 8, 30])
def test_an_engine_with_several_profiles_runs_any_number_of_samples(tmp_path: Path, samples: int) -> None:
    weight = linear_onnx(tmp_path / "model.onnx", batch="n")
    built = onnx_to_tensorrt(
        tmp_path / "model.onnx", tmp_path / "model.engine", profiles=((1, 1, 1), (4, 8, 8)), workspace_bytes=None
    )
    inputs = {"input": np.random.default_rng(1).normal(size=(samples, 6)).astype(np.float32)}

    with open_engine(built.path, expected_sha256=built.sha256) as opened:
        np.testing.assert_allclose(opened(inputs)["output"], inputs["input"] @ weight, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_resident_inputs_are_timed_without_copies(tmp_path: Path) -> None:
    linear_onnx(tmp_path / "model.onnx", batch=2)
    built = onnx_to_tensorrt(tmp_path / "model.onnx", tmp_path / "model.engine", profile=None, workspace_bytes=None)

    with open_engine(built.path, expected_sha256=built.sha256) as opened:
        call = opened.resident({"input": np.ones((2, 6), np.float32)})
        call()
        assert opened.last_gpu_ms is not None
        assert opened.last_gpu_ms > 0


@pytest.mark.gpu
def test_an_output_whose_size_the_data_decides_is_numpys(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["input"], ["found"])], "nonzero",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [4, 6])],
        [helper.make_tensor_value_info("found", onnx.TensorProto.INT64, [2, "n"])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    built = onnx_to_tensorrt(tmp_path / "model.onnx", tmp_path / "model.engine", profile=None, workspace_bytes=None)

    with open_engine(built.path, expected_sha256=built.sha256) as opened:
        for seed in range(3):
            data = np.random.default_rng(seed).integers(0, 2, size=(4, 6)).astype(np.float32)
            np.testing.assert_array_equal(opened({"input": data})["found"], np.array(np.nonzero(data)))


@pytest.mark.gpu
@pytest.mark.parametrize("module", ["pycuda.driver", "cuda.bindings.runtime"])
def test_bytes_go_to_the_device_and_come_back(module: str) -> None:
    pytest.importorskip(module.partition(".")[0])
    from exporters.cuda import PyCuda

    loaded = importlib.import_module(module)
    cuda = PyCuda(loaded) if module.startswith("pycuda") else CudaBindings(loaded)
    try:
        there, back, device = cuda.host(256), cuda.host(256), cuda.device(256)
        there[:] = np.arange(256, dtype=np.uint8)
        back[:] = 0
        cuda.record(cuda.start)
        cuda.upload(device, there)
        cuda.download(back, device)
        cuda.record(cuda.stop)
        assert cuda.wait() >= 0
        np.testing.assert_array_equal(back, np.arange(256, dtype=np.uint8))
    finally:
        cuda.close()
