"""`soup bench` on real models: what is timed, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters import ExportError
from soup import SoupError
from soup import bench as bench_module
from soup.bench import bench


def test_bench_times_a_model_and_a_release_at_the_graphs_own_batch(released: Path, shipped: Any) -> None:
    """Correctness 41: 500 calls, with a bound for each percentile."""
    static = bench(released)
    assert static.model == released / "model.onnx"
    assert (static.latency.samples, static.latency.contract["batch"]) == (500, 1)
    assert static.latency.p99_upper_ms is not None
    assert static.info.provider == "CPUExecutionProvider"
    assert bench(shipped.folder / "model.onnx", batch=3).latency.contract["batch"] == 3
    assert bench(shipped.folder / "model.onnx").latency.contract["batch"] == 1
    with pytest.raises(SoupError, match=r"takes 1 samples per call, expected --batch 1 and not 4"):
        bench(released / "model.onnx", batch=4)


def test_bench_opens_no_file_whose_hash_is_not_the_manifest_s(shipped: Any, tmp_path: Path) -> None:
    """Correctness 43: an engine is code."""
    folder = Path(shutil.copytree(shipped.folder, tmp_path / "release"))
    for path in (*folder.glob("*.engine"), folder / "model.onnx"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(ExportError, match="SHA-256 is") as raised:
            bench(path)
        assert raised.value.kind == "input"


def test_bench_of_an_engine_without_a_gpu_says_where_it_runs(shipped: Any, needs_rtx: None) -> None:
    with pytest.raises(ExportError, match="an engine needs an NVIDIA GPU") as raised:
        bench(shipped.folder / "model.engine")
    assert raised.value.kind == "environment"


def test_bench_of_what_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ExportError, match="not an ONNX file"):
        bench(tmp_path / "text.onnx")
    with pytest.raises(SoupError, match=r"not found, expected an \.onnx file, an engine, or a release folder"):
        bench(tmp_path / "absent.onnx")


def test_the_same_inputs_are_timed_every_time(released: Path) -> None:
    from exporters.runtimes import TensorInfo

    infos = (TensorInfo("a", "float32", ("n", 3)), TensorInfo("b", "int64", (4, 2)))
    one, other = (bench_module._random_inputs(infos, 4) for _ in range(2))
    assert {name: (array.dtype.name, array.shape) for name, array in one.items()} == {
        "a": ("float32", (4, 3)), "b": ("int64", (4, 2)),
    }  # fmt: skip
    assert all(np.array_equal(one[name], other[name]) for name in one)
