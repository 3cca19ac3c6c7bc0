from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from exporters import ExportError, onnx_to_tensorrt
from exporters.build_request import Request, read_request
from exporters.engine_builder import peak_memory_bytes
from exporters.engine_files import store
from exporters.engine_settings import EngineSettings, settings_facts, settings_from
from exporters.flavours import import_flavour
from exporters.gpu import Gpu, find_gpu
from exporters.memory import available_bytes
from exporters.onnx_to_tensorrt import Builder, EngineBuild, find_builder
from exporters.plan import inspect_engine

onnx = pytest.importorskip("onnx")
needs_rtx = pytest.mark.skipif(
    (builder := find_builder()) is None or builder.flavour != "tensorrt_rtx", reason="tensorrt_rtx builds these engines"
)


# A parent that tells its child's pid at the first phase, while the child waits: its log is more than a pipe holds.
BUILDING = """
import os, pathlib, sys, time
from exporters.onnx_to_tensorrt import onnx_to_tensorrt

folder, told = pathlib.Path(sys.argv[1]), []

def progress(phase, done, total):
    if not told:
        told.append(phase)
        print(pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1], flush=True)
        time.sleep(60)  # until the signal

onnx_to_tensorrt(folder / "model.onnx", folder / "model.engine", progress=progress)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a file system can be mounted only by root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def write_onnx(
    path: Path,
    *,
    batch: int | str = 1,
    blocks: int = 1,
    dtype: type = np.float32,
    activation: str = "Relu",
    opset: int = 18,
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
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString())
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


def at_first_phase(action: Callable[[int], object]) -> Callable[[str, int, int], None]:
    """A progress callback that does something to the builder's process while that is still at work.

    The model must log more than a pipe holds (64 KiB), so that the builder waits for the reader, which is in here.
    """
    done: list[str] = []

    def progress(phase: str, steps: int, total: int) -> None:
        if not done:
            done.append(phase)
            action(children()[-1])

    return progress


@needs_rtx
def test_a_static_graph_becomes_an_engine_that_is_hashed_as_it_lies_on_disk(tmp_path: Path) -> None:
    """Correctness 47: what is read back is what was built."""
    phases: list[str] = []

    built = build(write_onnx(tmp_path / "model.onnx"), progress=lambda phase, done, total: phases.append(phase))

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
        ("orin", "input", "engine settings: compute capabilities 'orin', expected the form 8.6."),
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
        ("/dev/full", "/dev/full: is there and no plain file. Choose another name."),
        ("model.onnx/model.engine", "model.onnx/model.engine: cannot be read or written: Not a directory."),
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
        build(write_onnx(tmp_path / "model.onnx", opset=17))


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


def test_tensorrt_8_5_is_an_environment_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("__version__ = '8.5.2'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    with pytest.raises(ExportError, match=r"tensorrt: version 8\.5\.2, expected 8\.6 or newer.*trtexec") as raised:
        import_flavour("tensorrt")

    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    assert raised.value.kind == "environment"


@needs_rtx
def test_every_step_of_a_phase_is_told_up_to_the_last(tmp_path: Path) -> None:
    steps: dict[str, list[tuple[int, int]]] = {}

    build(
        write_onnx(tmp_path / "model.onnx", blocks=3),
        progress=lambda phase, done, total: steps.setdefault(phase, []).append((done, total)),
    )

    assert "Building engine" in steps
    for told in steps.values():
        assert all(0 <= done <= total for done, total in told)
        assert told[0][0] == 0
        assert told[-1][0] == told[-1][1]
    assert max(total for _, total in steps["Building engine"]) > 1


@needs_rtx
def test_several_profiles_are_built_and_a_bigger_engine_comes_of_it(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "model.onnx", batch="n")
    whole = {"input": ((8, 3, 16, 16), (16, 3, 16, 16), (32, 3, 16, 16))}

    one = build(model, profiles=[(1, 1, 4)]).size_bytes
    two = build(model, profiles=[(1, 1, 4), whole], must_take=20)

    assert two.size_bytes > one
    assert two.corners is None
    assert any("corners" in note for note in two.notes)


@needs_rtx
def test_a_profile_that_excludes_the_golden_batch_is_refused_before_any_work(tmp_path: Path) -> None:
    error = failure(write_onnx(tmp_path / "model.onnx", batch="n"), profiles=[(1, 2, 4), (8, 8, 8)], must_take=6)

    assert error.kind == "input"
    assert "the engine would take batches of 1 to 4, 8, expected 6 among them" in str(error)


@needs_rtx
@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        ({"version_compatible": True}, "environment", "has not version compatibility: the lean runtime"),
        ({"hardware": "ampere_plus"}, "environment", "has not a hardware compatibility level"),
        ({"refit": True, "strip_weights": True}, "environment", "refit: without a GPU"),
        ({"dla_core": 0}, "environment", "has not a DLA: it is for RTX GPUs"),
        ({"optimization_level": 6}, "input", "optimization_level is 6, expected 0 to 5"),
        ({"int8_ranges": {"input": (0.0, 1.0)}}, "input", "int8_ranges without dla_core"),
        ({"timing_cache_sha256": "0" * 64}, "input", "timing_cache_sha256 without timing_cache"),
    ],
)
def test_a_setting_that_tensorrt_rtx_has_not_without_a_gpu_is_refused_not_ignored(
    tmp_path: Path, settings: dict[str, Any], kind: str, expected: str
) -> None:
    if find_gpu() and kind == "environment":
        pytest.skip("with a GPU some of these can be had")
    error = failure(write_onnx(tmp_path / "model.onnx"), settings=EngineSettings(**settings))

    assert error.kind == kind
    assert expected in str(error)
    assert not (tmp_path / "model.engine").exists()


@needs_rtx
def test_what_tensorrt_rtx_takes_on_a_cpu_is_built_and_a_timing_cache_is_said_to_be_without_effect(
    tmp_path: Path,
) -> None:
    settings = EngineSettings(optimization_level=1, max_aux_streams=0, timing_cache=tmp_path / "timing.cache")

    built = build(write_onnx(tmp_path / "model.onnx"), settings=settings)

    assert (built.typing, built.timing_cache_sha256) == ("strong", None)
    assert any("timing caches have been without effect" in note for note in built.notes)
    assert not (tmp_path / "timing.cache").exists()


@needs_rtx
def test_without_a_workspace_half_of_the_free_memory_is_the_limit(tmp_path: Path) -> None:
    if find_gpu():
        pytest.skip("where there is a GPU its own memory counts")
    built = build(write_onnx(tmp_path / "model.onnx"))

    assert built.workspace_bytes is not None
    assert built.workspace_bytes == pytest.approx(available_bytes() / 2, rel=0.2)
    assert built.workspace_bytes % 2**20 == 0


@needs_rtx
def test_an_operator_that_came_with_a_later_opset_is_told_with_that_opset(tmp_path: Path) -> None:
    error = failure(write_onnx(tmp_path / "model.onnx", activation="RegexFullMatch"))

    assert "node 'activation0' (RegexFullMatch)" in str(error)
    assert "(ONNX has this operator since opset 20)" in str(error)


@needs_rtx
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_a_signal_to_the_parent_ends_a_running_build_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    """A SIGKILL that the parent cannot answer too: the system ends the builder with it."""
    write_onnx(tmp_path / "model.onnx", blocks=200)
    with subprocess.Popen([sys.executable, "-c", BUILDING, tmp_path], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        child = os.pidfd_open(pid)
        os.kill(pid, signal.SIGSTOP)  # it does nothing by itself, not even notice that nobody reads

        parent.send_signal(signal.Signals[name])
        parent.wait(timeout=20)

        ended, _, _ = select.select([child], [], [], 20)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)
    assert ended
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@needs_rtx
def test_a_disk_too_small_for_the_engine_is_told_and_left_as_it_was(tmp_path: Path, disk: Path) -> None:
    """Correctness 47. The disk has 256 KiB, the engine about 400."""
    model = write_onnx(tmp_path / "model.onnx")

    with pytest.raises(ExportError) as raised:
        onnx_to_tensorrt.onnx_to_tensorrt(model, disk / "model.engine")

    assert raised.value.kind == "input"
    assert str(raised.value) == (
        f"{disk}/model.engine: cannot be read or written: No space left on device. Check the disk and its free space."
    )
    assert list(disk.iterdir()) == []


def test_bytes_that_a_disk_does_not_give_back_are_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # which /dev/null has not

    with pytest.raises(ExportError, match=r"/dev/null: reads back as .*, expected .* as built"):
        store(Path("/dev/null"), b"plan")


def test_settings_travel_as_json_and_come_back_equal(tmp_path: Path) -> None:
    settings = EngineSettings(
        workspace_bytes=2**28, compute_capabilities=("8.6",), hardware="ampere_plus", timing_cache=tmp_path / "cache",
        timing_cache_sha256="0" * 64, dla_core=0, gpu_fallback=False, int8_ranges=MappingProxyType({"x": (-1.5, 2.0)}),
    )  # fmt: skip

    facts = json.loads(json.dumps(settings_facts(settings)))

    assert settings_from(facts) == replace(settings, int8_ranges={"x": (-1.5, 2.0)})
    assert settings_facts(EngineSettings()) == {}
    assert settings_from({}) == EngineSettings()
    with pytest.raises(ExportError, match="'wrong' not known to this version"):
        settings_from({"wrong": 1})


def test_a_request_travels_as_one_line_and_comes_back_equal() -> None:
    shapes = {"input": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
    request = Request(
        "a.onnx", "a.engine", "a.layers.json", "tensorrt_rtx", (shapes,), EngineSettings(refit=True), True, 7
    )

    line = request.to_json()

    assert "\n" not in line
    assert read_request(line) == request


def test_the_peak_memory_of_this_process_is_known_and_of_an_absent_one_is_zero() -> None:
    assert peak_memory_bytes("self") > 2**20
    assert peak_memory_bytes(2**22 + 1) == 0


def test_the_gpu_is_told_by_the_driver_or_is_none() -> None:
    gpu = find_gpu()

    assert gpu is None or float(gpu.compute_capability) >= 3.0
