"""The device kit where it is meant to be made: packages without torch and onnx, TensorRT-RTX builds, ONNX Runtime runs.

Here the release is exported and the kit comes home; in between there is only what pip would install on a device.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import onnx
import pytest
from typer.testing import CliRunner

from exporters.gpu import find_gpu
from soup.cli import app
from soup.gates import Exit
from soup.manifest import read_manifest, seal, verify_files
from soup.merge import merge
from soup.release import verify

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None or find_gpu() is not None,
    reason="needs tensorrt_rtx and no GPU: with one the engine would run",
)


def _packaging() -> ModuleType:
    """tests/test_packaging.py, whose `install` and `python` make and use a folder of packages."""
    spec = importlib.util.spec_from_file_location("packaging_of_tests", Path(__file__).with_name("test_packaging.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


packaging = _packaging()


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a device has: edgesoup with ONNX Runtime and TensorRT-RTX."""
    return Path(packaging.install("edgesoup[ort,rtx]", tmp_path_factory.mktemp("device")))


@pytest.fixture(scope="module")
def packed(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release that prefers FP16 and packs FP32 behind it. Read only."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    folder = Path(shutil.copytree(released, tmp_path_factory.mktemp("packed") / "release"))
    half = convert_float_to_float16(onnx.load(folder / "model.onnx"), keep_io_types=True)
    (folder / "model.fp16.onnx").write_bytes(half.SerializeToString())
    candidates = [
        {"precision": precision, "file": name, "sha256": sha256(folder / name), "tolerance": 2e-2}
        for precision, name in (("fp16", "model.fp16.onnx"), ("fp32", "model.onnx"))
    ]
    return resealed(folder, build={"candidates": candidates, "batch": 1, "profiles": [], "settings": {}})


@pytest.fixture(scope="module")
def kit(packed: Path, device: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit of `packed`, made on the device. Read only."""
    folder = tmp_path_factory.mktemp("kits") / "kit"
    done = soup(device, "verify", packed, "--finish", "-o", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def home(packed: Path, tmp_path: Path) -> Path:
    """The release at home, to be merged into."""
    return Path(shutil.copytree(packed, tmp_path / "home"))


def soup(packages: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = packaging.python(packages, "-m", "soup", *map(str, arguments))
    assert "Traceback" not in done.stderr
    return done


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def resealed(folder: Path, **changes: object) -> Path:
    facts = json.loads(json.dumps(dict(read_manifest(folder).facts))) | changes
    (folder / "manifest.json").unlink()
    seal(folder, facts)
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, sha256(path))
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def test_the_device_has_neither_torch_nor_onnx(device: Path) -> None:
    for name in ("torch", "onnx"):
        assert packaging.python(device, "-c", f"import {name}").returncode == 1
    assert packaging.python(device, "-c", "import tensorrt_rtx, onnxruntime").returncode == 0


def test_a_release_is_finished_from_a_read_only_folder_and_its_kit_comes_home(
    packed: Path, device: Path, home: Path, tmp_path: Path
) -> None:
    carried = Path(shutil.copytree(packed, tmp_path / "carried"))
    before = snapshot(carried)
    for path in carried.iterdir():
        path.chmod(0o444)
    carried.chmod(0o555)
    try:
        done = soup(device, "verify", carried, "--finish", "-o", tmp_path / "kit", "--device", "Lab 1", "--json")
    finally:
        carried.chmod(0o755)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["command"], document["exit_code"]) == ("verify --finish", 0)
    assert [(one["precision"], one["outcome"]) for one in document["result"]["tried"]] == [("fp16", "ships")]
    proofs = {proof["artifact"]: proof for proof in document["result"]["findings"]["verified"]}
    assert proofs["model.fp16.onnx"]["runtime"] == "onnxruntime"
    assert proofs["model.engine"]["proved"][-1] == "not run"
    assert snapshot(carried) == before

    sealed = snapshot(home)
    result = merge(home, [tmp_path / "kit"])
    assert (result.exit_code, [one.device for one in result.arrivals]) == (Exit.OK, ["lab-1"])
    assert {name: one for name, one in snapshot(home).items() if not name.startswith("device/")} == sealed
    assert all(check.verdict == "pass" for check in verify_files(home))
    assert verify(home).exit_code == Exit.OK
    again = soup(device, "verify", home)
    assert again.returncode == 0, again.stdout
    assert "on lab-1: FP16 → engine: fp16 was asked for, the layers compute in:" in again.stdout


def test_several_kits_come_home_in_one_command_and_what_is_still_open_is_told(
    kit: Path, device: Path, packed: Path, home: Path, tmp_path: Path
) -> None:
    second = resealed(Path(shutil.copytree(kit, tmp_path / "second")), device="other")
    done = soup(device, "merge", home, kit, second)
    assert done.returncode == 0, done.stderr
    own = str(read_manifest(kit).facts["device"])
    assert sorted(path.name for path in (home / "device").iterdir()) == sorted([own, "other"])
    strict = resealed(Path(shutil.copytree(packed, tmp_path / "strict")), gates={"require": ["onnx", "device"]})
    asked = soup(device, "verify", strict, "--finish", "-o", tmp_path / "third")
    assert asked.returncode == 6, asked.stderr
    open_still = soup(device, "merge", strict, tmp_path / "third")
    assert open_still.returncode == 6, open_still.stderr
    assert "pending      device, gate: 'device' required by gates.require, was not run here" in open_still.stdout


def test_the_kit_of_another_release_is_refused_in_one_sentence(kit: Path, device: Path, released: Path,
                                                               tmp_path: Path) -> None:  # fmt: skip
    other = Path(shutil.copytree(released, tmp_path / "other"))
    done = soup(device, "merge", other, kit)
    assert done.returncode == 2
    assert done.stderr.startswith(f"soup merge: {kit}: its engine was built from a model.fp16.onnx with SHA-256")
    assert done.stderr.count("\n") == 1
    assert not (other / "device").exists()


def test_a_tampered_engine_does_not_come_home(kit: Path, device: Path, home: Path, tmp_path: Path) -> None:
    """Correctness 43."""
    tampered = Path(shutil.copytree(kit, tmp_path / "tampered"))
    content = bytearray((tampered / "model.engine").read_bytes())
    content[len(content) // 2] ^= 1
    (tampered / "model.engine").write_bytes(content)
    done = soup(device, "merge", home, tampered)
    assert done.returncode == 1
    assert "fail         tampered/model.engine, files: 'model.engine' has SHA-256" in done.stdout
    assert not (home / "device").exists()


def test_without_a_builder_the_device_says_what_brings_one(packed: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    done = soup(packaging.install("edgesoup[ort]", bare), "verify", packed, "--finish", "-o", tmp_path / "kit")
    assert done.returncode == 6
    assert "pip install 'edgesoup[rtx]'" in done.stderr
    assert not (tmp_path / "kit").exists()


def test_without_onnx_runtime_the_engine_is_built_all_the_same(packed: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    done = soup(packaging.install("edgesoup[rtx]", bare), "verify", packed, "--finish", "-o", tmp_path / "kit")
    assert done.returncode == 0, done.stderr
    assert "model.fp16.onnx was not run here: onnxruntime is not installed" in done.stdout


def test_the_layer_that_departs_is_found_on_the_device(packed: Path, device: Path, tmp_path: Path) -> None:
    model = onnx.load(packed / "model.fp16.onnx")
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    weight = next(one for one in model.graph.initializer if one.name == gemm.input[1])
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name))
    (tmp_path / "changed.onnx").write_bytes(model.SerializeToString())
    done = soup(device, "verify", packed, "--bisect", "--onnx", tmp_path / "changed.onnx")
    assert done.returncode == 1, done.stderr
    assert f"first to depart, beyond 0.02: Gemm '{gemm.name}'" in done.stdout
    sound = soup(device, "verify", packed, "--bisect", "--onnx", "model.fp16.onnx", "--json")
    assert sound.returncode == 0, sound.stderr
    assert json.loads(sound.stdout)["result"]["first"] is None


def _started(device: Path, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(device), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", "-m", "soup", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _until(stream: IO[str] | None, text: str) -> None:
    assert stream is not None
    assert any(text in line for line in stream), f"'{text}' was never told"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_finish_leaves_no_kit_and_the_next_one_clears_up(
    packed: Path, device: Path, tmp_path: Path, how: signal.Signals
) -> None:
    """Correctness 47."""
    out = tmp_path / "kits"
    out.mkdir()
    with _started(device, "verify", packed, "--finish", "-o", out / "kit") as process:
        _until(process.stderr, "building the FP16 engine")
        process.send_signal(how)
        code = process.wait()
    left = [path.name for path in out.iterdir()]
    if how == signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert all(name.startswith(".soup-tmp-") for name in left)
        assert soup(device, "verify", packed, "--finish", "-o", out / "kit").returncode == 0
        assert [path.name for path in out.iterdir()] == ["kit"]
    else:
        assert (code, left) == (130, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--finish"], "--finish: no folder was given for the kit. Add -o KIT."),
        (["--finish", "--bisect", "-o", "kit"], "--finish and --bisect: expected one of the two."),
        (["--bisect", "-o", "kit"], "-o: --bisect writes nothing."),
        (["--onnx", "a.onnx", "--threshold", "0.1"], "--onnx and --threshold: only for --bisect"),
    ],
)
def test_options_that_say_nothing_together_are_refused(packed: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["verify", str(packed), *arguments])
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_full_disk_is_one_sentence_and_leaves_nothing(packed: Path, device: Path, tmp_path: Path,
                                                        limited: Callable[..., Any]) -> None:  # fmt: skip
    done = limited(device, "verify", packed, "--finish", "-o", tmp_path / "kits" / "kit")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("soup verify") == 1
    assert not (tmp_path / "kits").exists()


@pytest.fixture
def limited() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`soup` with files of at most 100 kB, as a full disk would have it; the signal of it is ignored."""

    def run(packages: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        code = (
            "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); from soup.cli import main; main()"
        )
        done: subprocess.CompletedProcess[str] = packaging.python(packages, "-c", code, *map(str, arguments))
        return done

    return run
