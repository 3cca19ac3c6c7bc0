"""The shell check, run for real by sh with a stand-in for trtexec that computes with ONNX Runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from exporters import ExportError
from exporters.companions import Model
from exporters.device_check import device_check_files
from exporters.onnx_facts import inspect_onnx
from exporters.runtimes import TensorInfo, open_onnx
from exporters.targets import TARGETS

JP5 = TARGETS["jetson-xavier-jp5.1"]

# trtexec as far as the script uses it: the "engine" is a copy of the ONNX file, the answer ONNX Runtime's, and the JSON
# as trtexec's exportJSONOutput writes it (six digits, as C++ streams). FAKE_* make it fail
# in the ways that the real one does.
FAKE_TRTEXEC = f"""#!{sys.executable}
import os, shutil, sys
sys.stdout.write("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # " + " ".join(sys.argv) + "\\n")
options = dict(one.lstrip("-").partition("=")[::2] for one in sys.argv[1:])
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if "onnx" in options:
    if os.environ.get("FAKE_BUILD") == "fails":
        sys.exit("[E] Error[4]: no importer registered for op: Foo")
    if os.environ.get("FAKE_BUILD") != "writes nothing":
        shutil.copy(options["onnx"], options["saveEngine"])
    sys.exit(0)
if os.environ.get("FAKE_RUN") == "fails":
    sys.exit("[E] The engine plan file is not compatible with this version of TensorRT")
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(options["loadEngine"], providers=["CPUExecutionProvider"])
shapes = dict(one.split(":") for one in options.get("shapes", "").split(",") if one)
feed = {{}}
for one in options["loadInputs"].split(","):
    name, _, path = one.partition(":")
    (info,) = [info for info in session.get_inputs() if info.name == name]
    shape = [int(axis) for axis in shapes[name].split("x")] if name in shapes else info.shape
    feed[name] = np.fromfile(path, np.float32).reshape(shape)
off = float(os.environ.get("FAKE_OFF", "0"))
with open(options["exportOutput"], "w") as out:
    out.write("[\\n")
    separator = "  "
    for info, array in zip(session.get_outputs(), session.run(None, feed)):
        out.write(separator + '{{ "name" : "' + info.name + '"\\n')
        separator = ", "
        out.write('  , "dimensions" : "' + "x".join(map(str, array.shape)) + '"\\n')
        values = [f"{{value + off:.6g}}" for value in array.ravel().tolist()]
        if os.environ.get("FAKE_NAN") and values:
            values[-1] = "-nan"
        values = values[: int(os.environ.get("FAKE_KEEP", len(values)))]
        out.write('  , "values" : [ ' + ", ".join(values) + " ]\\n  }}\\n")
    out.write("]\\n")
"""


class Release:
    """A release folder with its check, a PATH that holds the stand-in, and a folder to work in."""

    def __init__(self, root: Path, *, batch: int | str = 1, samples: int = 1) -> None:
        self.folder, self.tools, self.work = root / "release", root / "bin", root / "work"
        for folder in (self.folder, self.tools, self.work):
            folder.mkdir()
        trtexec = self.tools / "trtexec"
        trtexec.write_text(FAKE_TRTEXEC)
        trtexec.chmod(0o755)
        self.log = root / "calls.log"
        self.model = write_model(self.folder, batch=batch)
        rng = np.random.default_rng(0)
        self.inputs = {"input": rng.normal(size=(samples, 3, 4, 4)).astype(np.float32)}
        self.outputs = reference(self.folder / "model.onnx", self.inputs, batch=batch)
        self.write()

    def write(self, **changes: object) -> Mapping[str, bytes]:
        arguments = {
            "model": self.model,
            "onnx_sha256": inspect_onnx(self.folder / "model.onnx").sha256,
            "tolerance": 1e-3,
            "target": JP5,
            **changes,
        }
        files = device_check_files(self.inputs, self.outputs, **arguments)  # type: ignore[arg-type]
        for name, content in files.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_bytes(content)
        return files

    def check(self, *arguments: str, shell: str = "sh", tools: bool = True, **environment: str) -> tuple[int, str, str]:
        path = f"{self.tools}:{os.defpath}" if tools else os.defpath
        done = subprocess.run(
            [shell, str(self.folder / "check_device.sh"), *arguments],
            cwd=self.work,
            env={"PATH": path, "TMPDIR": str(self.work), "FAKE_LOG": str(self.log), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


def write_model(folder: Path, *, batch: int | str) -> Model:
    """A 3x4x4 picture to 5 scores and to one sum, both of them outputs."""
    from onnx import TensorProto, helper, save
    from onnx.numpy_helper import from_array

    weights = np.random.default_rng(1).normal(size=(48, 5)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
            helper.make_node("ReduceSum", ["scores", "axes"], ["sum"], keepdims=1),
        ],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 4, 4])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 5]),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [batch, 1]),
        ],
        [from_array(weights, "weights"), from_array(np.array([1], np.int64), "axes")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx")
    return Model(
        onnx="model.onnx",
        engine="model.engine",
        inputs=(TensorInfo("input", "float32", (batch, 3, 4, 4)),),
        outputs=(TensorInfo("scores", "float32", (batch, 5)), TensorInfo("sum", "float32", (batch, 1))),
        profiles=((1, 2, 4),) if isinstance(batch, str) else ((batch, batch, batch),),
        precision="fp16",
    )


def reference(path: Path, inputs: Mapping[str, np.ndarray], *, batch: int | str) -> dict[str, np.ndarray]:
    count = len(inputs["input"])
    size = batch if isinstance(batch, int) else count
    with open_onnx(path) as session:
        parts = []
        for start in range(0, count, size):
            picked = np.minimum(np.arange(start, start + size), count - 1)
            parts.append(dict(session({"input": inputs["input"][picked]})))
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in ("scores", "sum")}


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path)


@pytest.mark.parametrize("shell", [name for name in ("sh", "dash", "bash") if shutil.which(name)])
def test_a_release_that_answers_as_sealed_passes_and_says_so(release: Release, shell: str) -> None:
    code, said, wrong = release.check(shell=shell)
    assert (code, wrong) == (0, "")
    assert "files are as they were sealed" in said
    assert "passed: every golden sample is within tolerance" in said
    result = (release.work / "soup-device-check" / "result.txt").read_text().splitlines()
    assert len(result) == 2, "one sample, two outputs"
    assert all(line.endswith(": passed") for line in result)


def test_the_engine_is_built_with_the_flags_of_its_version_and_then_used_again(release: Release) -> None:
    assert release.check()[0] == 0
    built, *ran = release.calls()
    assert built.split()[0] == "--onnx=model.onnx"
    assert built.endswith("--fp16 --buildOnly"), "8.5 has flags, and --skipInference only since 8.6"
    assert len(ran) == 1
    assert "--loadInputs=input:golden/0000.in0.bin" in ran[0]
    code, said, _ = release.check()
    assert code == 0
    assert "the engine of an earlier run is used" in said
    assert sum("--onnx=" in call for call in release.calls()) == 1


def test_an_engine_of_another_onnx_is_built_anew(release: Release) -> None:
    assert release.check()[0] == 0
    (release.work / "soup-device-check" / "model.engine.from").write_text("of another\n")
    assert release.check()[0] == 0
    assert sum("--onnx=" in call for call in release.calls()) == 2


def test_a_dynamic_batch_is_run_at_its_best_size_and_the_rest_filled_up(tmp_path: Path) -> None:
    release = Release(tmp_path, batch="batch", samples=5)
    assert release.check()[0] == 0
    built, *ran = release.calls()
    assert "--minShapes=input:1x3x4x4 --optShapes=input:2x3x4x4 --maxShapes=input:4x3x4x4" in built
    assert [("--shapes=input:2x3x4x4" in call) for call in ran] == [True] * 3, "five samples by two"


def test_a_static_batch_that_does_not_divide_the_samples_is_filled_up(tmp_path: Path) -> None:
    release = Release(tmp_path, batch=2, samples=3)
    assert release.check()[0] == 0
    files = release.write()
    assert len(files["golden/0001.in0.bin"]) == 2 * 48 * 4
    assert len(files["golden/0001.out0.txt"].splitlines()) == 5, "the filling is not compared"


@pytest.mark.parametrize("name", ["model.onnx", "golden/0000.in0.bin", "golden/0000.out0.txt"])
def test_a_changed_file_fails_by_name_before_anything_is_built(release: Release, name: str) -> None:
    path = release.folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, _, wrong = release.check()
    assert code == 1
    assert f"{name}: FAILED" in wrong
    assert "Copy the release again" in wrong
    assert not release.log.exists()


def test_a_missing_file_fails_by_name(release: Release) -> None:
    (release.folder / "golden" / "0000.in0.bin").unlink()
    code, _, wrong = release.check()
    assert code == 1
    assert "golden/0000.in0.bin" in wrong


@pytest.mark.parametrize(("off", "code"), [("0.0005", 0), ("-0.0005", 0), ("0.1", 1), ("-0.1", 1)])
def test_outputs_pass_within_the_tolerance_and_fail_beyond(release: Release, off: str, code: int) -> None:
    found, _, wrong = release.check(FAKE_OFF=off)
    assert found == code
    assert ("output scores: largest difference 0.1" in wrong) is (code == 1)


def test_the_allowed_difference_is_that_of_parity(release: Release) -> None:
    """Five percent on either side of tolerance · max(1, largest magnitude), which is worked out here again."""
    largest = float(np.abs(release.outputs["scores"]).max())
    assert largest > 1
    small = float(np.abs(release.outputs["sum"]).max())
    limit = 1e-3 * min(largest, max(1.0, small))
    assert release.check(FAKE_OFF=f"{0.95 * limit}")[0] == 0
    assert release.check(FAKE_OFF=f"{1.05 * limit}")[0] == 1


def test_a_nan_fails_and_is_named(release: Release) -> None:
    code, _, wrong = release.check(FAKE_NAN="1")
    assert code == 1
    assert "output scores: value 5 is -nan, no finite number" in wrong


def test_an_output_of_another_size_fails(release: Release) -> None:
    code, _, wrong = release.check(FAKE_KEEP="4")
    assert code == 1
    assert "output scores: 4 values, expected 5" in wrong


def test_an_output_of_another_name_fails(release: Release) -> None:
    script = release.folder / "check_device.sh"
    script.write_text(script.read_text().replace('" 0 scores ', '" 0 logits '))
    code, _, wrong = release.check()
    assert code == 1
    assert "output logits: not among the outputs of the engine" in wrong


def test_an_absent_trtexec_is_said_with_where_it_was_looked_for(release: Release) -> None:
    code, _, wrong = release.check(tools=False)
    assert code == 6
    assert "trtexec is not found" in wrong
    assert "set TRTEXEC" in wrong


def test_trtexec_may_be_named_also_relative_to_where_the_user_stands(release: Release) -> None:
    assert release.check(tools=False, TRTEXEC="../bin/trtexec")[0] == 0


def test_a_build_that_fails_shows_why_and_leaves_no_engine(release: Release) -> None:
    code, _, wrong = release.check(FAKE_BUILD="fails")
    assert code == 7
    assert "no importer registered for op: Foo" in wrong
    assert not (release.work / "soup-device-check" / "model.engine").exists()


def test_the_engine_of_another_onnx_is_not_taken_for_a_build_that_wrote_nothing(release: Release) -> None:
    assert release.check()[0] == 0
    (release.work / "soup-device-check" / "model.engine.from").write_text("of another\n")
    assert release.check(FAKE_BUILD="writes nothing")[0] == 7


def test_an_engine_that_does_not_run_says_what_to_remove(release: Release) -> None:
    code, _, wrong = release.check(FAKE_RUN="fails")
    assert code == 7
    assert "not compatible with this version" in wrong
    assert "remove" in wrong


def test_the_release_is_left_as_it_is_and_the_folder_may_be_named(release: Release) -> None:
    before = sorted(path.relative_to(release.folder) for path in release.folder.rglob("*"))
    assert release.check("a folder")[0] == 0
    assert sorted(path.relative_to(release.folder) for path in release.folder.rglob("*")) == before
    assert (release.work / "a folder" / "model.engine").is_file()


def test_two_folders_are_a_usage_error(release: Release) -> None:
    code, _, wrong = release.check("a", "b")
    assert code == 2
    assert "Usage: sh check_device.sh [FOLDER]" in wrong


def test_shellcheck_finds_nothing_where_it_is_installed(release: Release) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ["shellcheck", "--shell=sh", release.folder / "check_device.sh"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("value", "allowed"), [(0.5, "0.001"), (-20.0, "0.02")])
def test_what_is_allowed_grows_with_the_output_but_not_below_one(release: Release, value: float, allowed: str) -> None:
    release.outputs = {"scores": np.full((1, 5), value), "sum": np.zeros((1, 1))}
    assert f'compare "$run" 0 scores {allowed} 5 ||' in release.write()["check_device.sh"].decode()


def test_equal_samples_give_equal_files(release: Release) -> None:
    assert release.write() == release.write()


def test_an_int64_input_is_written_as_the_engine_of_its_version_binds_it(release: Release) -> None:
    model = Model(
        "model.onnx",
        "model.engine",
        (TensorInfo("ids", "int64", (1, 2)),),
        (TensorInfo("y", "float32", (1,)),),
        ((1, 1, 1),),
    )
    for target, size in (("jetson-xavier-jp5.1", 8), ("jetson-orin-jp6.2", 16)):
        files = device_check_files(
            {"ids": np.array([[1, 2]])}, {"y": np.array([0.5])},
            model=model, onnx_sha256="0" * 64, tolerance=1e-3, target=TARGETS[target],
        )  # fmt: skip
        assert len(files["golden/0000.in0.bin"]) == size


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ({}, {}, "no golden samples of"),
        ({"input": np.zeros((0, 3, 4, 4))}, {"scores": np.zeros((0, 5)), "sum": np.zeros((0, 1))}, "at least one"),
        ({"input": np.zeros((2, 3, 4, 4))}, {"scores": np.zeros((1, 5)), "sum": np.zeros((2, 1))}, "differ in number"),
        ({"input": np.zeros((1, 3, 4, 4))}, {"scores": np.full((1, 5), np.nan), "sum": np.zeros((1, 1))}, "NaN or Inf"),
    ],
)
def test_golden_samples_that_prove_nothing_are_refused(
    release: Release, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], said: str
) -> None:
    release.inputs, release.outputs = inputs, outputs
    with pytest.raises(ExportError, match=said) as refused:
        release.write()
    assert refused.value.kind == "input"


@pytest.mark.parametrize("name", ["in put", "a,b", "a:b", 'a"b', "a$b", "a`b`", "é"])
def test_a_name_that_a_shell_or_trtexec_would_read_otherwise_is_refused(release: Release, name: str) -> None:
    model = Model("model.onnx", "m", (TensorInfo(name, "float32", (1, 2)),), (), ((1, 1, 1),))
    with pytest.raises(ExportError, match="cannot be given to trtexec"):
        device_check_files({name: np.zeros((1, 2))}, {}, model=model, onnx_sha256="0" * 64, tolerance=1e-3, target=JP5)
