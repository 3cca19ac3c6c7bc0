"""The whole of an engine's run on a TensorRT and a CUDA made of numpy: profiles, graphs, outputs that grow, freeing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters import ExportError, cuda_graph, engine, output_allocator
from exporters.cuda import PyCuda
from exporters.cuda_graph import CudaGraph
from exporters.engine import EngineRuntime
from exporters.engine_tensors import Profile, engine_profiles, profile_for
from exporters.runtimes import TensorInfo


def _load_fake() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_tensorrt", Path(__file__).with_name("fake_tensorrt.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


fake = _load_fake()


class Opened:
    """A runtime on the fakes, and the fakes."""

    def __init__(self, runtime: EngineRuntime, made: Any, cuda: Any, driver: Any) -> None:
        self.runtime, self.engine, self.cuda, self.driver = runtime, made, cuda, driver
        self.log: list[Any] = made.memory.log

    @property
    def batches(self) -> list[tuple[int, int]]:
        """Profile and samples of each execution."""
        return [(entry[1], entry[2]) for entry in self.log if entry[0] == "execute"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Opened] = []

    def open_fake(
        *profiles: tuple[int, int, int], dynamic_output: bool = False, wide: bool = False, graph: bool = False,
        failing: tuple[str, ...] = (), limit_bytes: int | None = None,
    ) -> Opened:  # fmt: skip
        memory = fake.Memory()
        device = fake.FakeEngine(memory, profiles, dynamic_output=dynamic_output, wide=wide)
        cuda, driver = fake.FakeCuda(memory), fake.FakeDriver(device, *failing)
        monkeypatch.setattr(engine, "import_flavour", lambda flavour: fake.fake_trt(device))
        monkeypatch.setattr(engine, "open_cuda", lambda: cuda)
        monkeypatch.setattr(cuda_graph.ctypes, "CDLL", lambda name: driver)
        try:
            runtime = EngineRuntime(b"", where="m.engine", flavour="tensorrt", device="fake GPU", cuda_graph=graph)
        finally:
            open_fake.cuda = cuda  # type: ignore[attr-defined]
        memory.limit_bytes = limit_bytes
        memory.log.clear()
        made.append(Opened(runtime, device, cuda, driver))
        return made[-1]

    yield open_fake
    for one in made:
        one.runtime.close()


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, fake.WIDTH)).astype(np.float32)


@pytest.mark.parametrize("profiles", [((4, 4, 4),), ((2, 4, 8),), ((1, 1, 1), (2, 4, 8), (16, 16, 32))])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 12, 70])
def test_any_number_of_samples_runs_whatever_the_profiles(opened: Any, profiles: Any, count: int) -> None:
    """Correctness 34."""
    runtime = opened(*profiles).runtime
    np.testing.assert_array_equal(runtime({"input": samples(count)})["output"], samples(count) * 2)


def test_each_batch_runs_under_the_profile_that_is_built_for_its_size(opened: Any) -> None:
    one = opened((1, 1, 1), (2, 4, 8), (16, 32, 64))
    for count, batches in {1: [(0, 1)], 2: [(1, 2)], 8: [(1, 8)], 9: [(2, 16)], 65: [(2, 64), (0, 1)]}.items():
        one.log.clear()
        output = one.runtime({"input": samples(count)})["output"]
        assert one.batches == batches
        np.testing.assert_array_equal(output, samples(count) * 2)


def test_the_profile_and_shape_are_set_only_when_they_change(opened: Any) -> None:
    one = opened((1, 1, 1), (2, 4, 8))
    for count in (4, 4, 1, 1, 4):
        one.runtime({"input": samples(count)})
    assert [entry for entry in one.log if entry[0] == "profile"] == [("profile", 0), ("profile", 1)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4), st.data())
def test_the_chosen_profile_takes_the_samples_or_is_the_next_above(
    steps: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    profiles = [
        Profile(index, least, least + middle, least + middle + rest)
        for index, (least, middle, rest) in enumerate(steps)
    ]
    count = data.draw(st.integers(1, max(profile.most for profile in profiles)))
    chosen = profile_for(profiles, count)
    taking = [profile for profile in profiles if profile.least <= count <= profile.most]
    if taking:
        assert chosen in taking
        assert abs(chosen.opt - count) == min(abs(profile.opt - count) for profile in taking)
    else:
        assert chosen.least == min(profile.least for profile in profiles if profile.least > count)


def test_a_profile_takes_what_all_inputs_take_and_one_without_a_common_batch_is_left_out() -> None:
    shapes = {"a": [((1, 3), (4, 3), (8, 3)), ((16, 3), (16, 3), (32, 3))],
              "b": [((2, 5), (2, 5), (6, 5)), ((1, 5), (2, 5), (8, 5))]}  # fmt: skip
    device = SimpleNamespace(
        num_optimization_profiles=2, get_tensor_profile_shape=lambda name, index: shapes[name][index]
    )
    inputs = (TensorInfo("a", "float32", ("batch", 3)), TensorInfo("b", "float32", ("batch", 5)))
    assert engine_profiles(device, inputs, where="m.engine") == (Profile(0, 2, 4, 6),)
    shapes["b"][0] = ((9, 5), (9, 5), (9, 5))
    with pytest.raises(ExportError, match=r"m\.engine: its inputs have no batch in common"):
        engine_profiles(device, inputs, where="m.engine")


def test_an_input_of_which_more_than_the_batch_is_dynamic_is_refused_and_everything_freed(opened: Any) -> None:
    with pytest.raises(ExportError, match=r"input 'input' has shape .*expected only the batch to be dynamic") as caught:
        opened((1, 2, 4), wide=True)
    assert caught.value.kind == "input"
    assert opened.cuda.closed == 1


def test_the_gpus_time_is_summed_over_the_batches_of_a_call_and_not_beyond(opened: Any) -> None:
    one = opened((1, 4, 4))
    one.runtime({"input": samples(9)})
    assert one.runtime.last_gpu_ms == 4.5
    one.runtime({"input": samples(2)})
    assert one.runtime.last_gpu_ms == 1.5
    assert one.log[-6:] == ["upload", "start", ("execute", 0, 2), "stop", "download", "wait"]


def test_a_resident_call_copies_nothing(opened: Any) -> None:
    one = opened((1, 4, 8))
    call = one.runtime.resident({"input": samples(3)})
    one.log.clear()
    call()
    call()
    assert one.log == ["start", ("execute", 0, 3), "stop", "wait"] * 2
    assert one.runtime.last_gpu_ms == 1.5
    result = one.engine.memory.view(one.engine.contexts[0].addresses["output"], "float32", (3, fake.WIDTH))
    np.testing.assert_array_equal(result, samples(3) * 2)
    with pytest.raises(ExportError, match="9 samples, expected 1 to 8 in one call"):
        one.runtime.resident({"input": samples(9)})


def test_a_graph_is_captured_at_the_second_call_of_a_batch_size_and_replayed(opened: Any) -> None:
    one = opened((1, 4, 8), graph=True)
    for call in range(4):
        np.testing.assert_array_equal(one.runtime({"input": samples(3) + call})["output"], (samples(3) + call) * 2)
        assert one.runtime.cuda_graph is (call > 0)
    kinds = [entry if isinstance(entry, str) else entry[0] for entry in one.log]
    assert kinds.count("execute") == 1
    assert kinds.count("begin capture") == 1
    assert kinds.count("launch") == 3
    assert kinds.index("begin capture") > kinds.index("execute")
    assert kinds[kinds.index("launch") - 1] == "start"  # the capture is not timed
    assert one.runtime.notes == ()


def test_another_batch_size_drops_the_graph_and_runs_plainly_first(opened: Any) -> None:
    one = opened((1, 4, 8), graph=True)
    for count in (3, 3, 5, 5, 3):
        np.testing.assert_array_equal(one.runtime({"input": samples(count)})["output"], samples(count) * 2)
    assert one.batches == [(0, 3), (0, 5), (0, 3)]
    assert (one.driver.graphs, one.driver.executables) == (0, 0)


@pytest.mark.parametrize("failing", ["begin", "end", "instantiate"])
def test_where_capture_fails_it_runs_without_a_graph_and_says_so(opened: Any, failing: str) -> None:
    one = opened((1, 4, 8), graph=True, failing=(failing,))
    for _ in range(4):
        np.testing.assert_array_equal(one.runtime({"input": samples(3)})["output"], samples(3) * 2)
    assert not one.runtime.cuda_graph
    (note,) = one.runtime.notes
    assert note.startswith("no CUDA graph: CUDA: ")
    assert (one.driver.graphs, one.driver.executables) == (0, 0)
    assert len(one.batches) == 4


def test_an_execution_that_cannot_be_captured_ends_the_capture(opened: Any) -> None:
    one = opened((1, 4, 8), graph=True)
    one.engine.contexts[0].refuses_capture = True
    one.runtime({"input": samples(3)})
    one.runtime({"input": samples(3)})
    assert one.log.count("begin capture") == one.log.count("end capture") == 1
    assert one.batches == [(0, 3), (0, 3)]
    assert "cannot be captured" in one.runtime.notes[0]
    assert one.driver.graphs == 0


def test_an_exception_in_captured_work_ends_the_capture_too(opened: Any) -> None:
    driver = opened((1, 4, 8)).driver
    with pytest.raises(ZeroDivisionError):
        CudaGraph(lambda: bool(1 // 0), stream=fake.FakeCuda.stream, driver=driver)
    assert driver.log[-1] == "end capture"


def test_closing_frees_the_graph_before_cuda_and_only_once(opened: Any) -> None:
    one = opened((1, 4, 8), graph=True)
    with one.runtime as runtime:
        runtime({"input": samples(3)})
        runtime({"input": samples(3)})
    one.runtime.close()
    assert one.log[-2:] == ["graph closed", "cuda closed"]
    assert (one.cuda.closed, one.driver.executables, one.engine.memory.buffers) == (1, 0, {})
    with pytest.raises(ValueError, match="the engine is closed"):
        runtime({"input": samples(3)})
    with pytest.raises(ValueError, match="the engine is closed"):
        runtime.resident({"input": samples(3)})


def test_an_output_whose_size_the_data_decides_grows_with_it(opened: Any) -> None:
    one = opened((1, 4, 64), dynamic_output=True)
    for count in (2, 60, 5):
        data = samples(count)
        outputs = one.runtime({"input": data})
        sums = data.sum(axis=1)
        np.testing.assert_array_equal(outputs["found"], sums[sums > 0])
        np.testing.assert_array_equal(outputs["output"], data * 2)
    assert one.log.count("free") == 1  # the memory of the first run, outgrown by the second


def test_an_empty_output_is_an_empty_array(opened: Any) -> None:
    one = opened((1, 4, 8), dynamic_output=True)
    assert one.runtime({"input": -np.ones((3, fake.WIDTH), np.float32)})["found"].shape == (0,)


def test_outputs_that_belong_to_no_sample_take_one_batch_per_call(opened: Any) -> None:
    one = opened((2, 4, 8), dynamic_output=True)
    for count in (1, 9):
        with pytest.raises(ExportError, match=f"{count} samples, expected 2 to 8 in one call") as caught:
            one.runtime({"input": samples(count)})
        assert caught.value.kind == "input"


def test_no_memory_for_such_an_output_is_told_and_not_raised_through_tensorrt(opened: Any) -> None:
    one = opened((1, 4, 64), dynamic_output=True, limit_bytes=8)
    with pytest.raises(ExportError, match="CUDA: no memory for") as caught:
        one.runtime({"input": np.ones((60, fake.WIDTH), np.float32)})
    assert caught.value.kind == "environment"


def test_an_engine_with_such_an_output_has_no_graph_and_says_why(opened: Any) -> None:
    one = opened((1, 4, 8), dynamic_output=True, graph=True)
    for _ in range(3):
        one.runtime({"input": samples(3)})
    assert not one.runtime.cuda_graph
    assert one.runtime.notes == ("no CUDA graph: the data decides the size of an output; it runs without one",)


def test_the_real_bindings_accept_the_allocator() -> None:
    """What can be known without a GPU: the class can be derived from, and its own text names what it calls."""
    trt = pytest.importorskip("tensorrt_rtx")
    shapes: list[tuple[int, ...]] = []
    made = output_allocator.make_output_allocator(trt, reallocate=lambda size: size + 1, on_shape=shapes.append)
    assert isinstance(made, trt.IOutputAllocator)
    assert made.reallocate_output_async("a", None, 8, 256, 0) == made.reallocate_output("a", None, 8, 256) == 9
    made.notify_shape("a", trt.Dims([2, 3]))
    assert shapes == [(2, 3)]
    for name in ("reallocate_output", "reallocate_output_async", "notify_shape"):
        assert f"def {name}(self, tensor_name" in trt.IOutputAllocator.__doc__
    assert {"set_output_allocator", "set_optimization_profile_async"} <= set(dir(trt.IExecutionContext))


def test_the_drivers_graph_functions_are_called_by_names_that_cuda_bindings_knows() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    names = ("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch", "cuGraphDestroy",
             "cuGraphExecDestroy")  # fmt: skip
    assert all(hasattr(driver, name) for name in names)
    assert int(driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) == cuda_graph._THREAD_LOCAL


def test_pycuda_frees_one_buffer_and_no_other() -> None:
    class Buffer:
        def __init__(self, address: int) -> None:
            self.address, self.freed = address, 0

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            self.freed += 1

    buffers = [Buffer(256), Buffer(512)]
    waiting = iter(buffers)
    nothing = type("Any", (), {"push": lambda self: None, "pop": lambda self: None, "handle": 7})
    driver = type("Driver", (), {})()
    driver.Error, driver.init, driver.Event, driver.Stream = RuntimeError, lambda: None, object, nothing
    driver.Device = lambda index: type("Device", (), {"retain_primary_context": lambda self: nothing()})()
    driver.mem_alloc = lambda size: next(waiting)
    cuda = PyCuda(driver)
    cuda.device(8)
    cuda.device(8)
    cuda.free_device(512)
    assert [buffer.freed for buffer in buffers] == [0, 1]
    cuda.close()
    assert [buffer.freed for buffer in buffers] == [1, 1]
