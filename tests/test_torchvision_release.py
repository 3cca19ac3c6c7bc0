"""Real torchvision networks, fine-tuned by the demo's script, go the whole way; and never into one soup."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from soup.cli import app

EXAMPLES = Path(__file__).parents[1] / "examples"
NETWORKS = ("mobilenet_v3_small", "resnet18")
TINY = "--size 32 --epochs 2 --keep 2 --steps 2 --digits 40 120 40"
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx has no wheel for this machine"
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder for each network, side by side: val.yaml of the example, data, and two late checkpoints."""
    folder = tmp_path_factory.mktemp("torchvision")
    script = str(EXAMPLES / "demo" / "train.py")
    running = []
    for network in NETWORKS:
        command = [sys.executable, script, "--model", f"torchvision:{network}", "--out", str(folder / network)]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # the two train side by side
        running.append(subprocess.Popen([*command, *TINY.split()], env=one_thread, stdout=subprocess.DEVNULL))
    assert [process.wait() for process in running] == [0, 0]
    for network in NETWORKS:
        shutil.copy(EXAMPLES / "torchvision" / "val.yaml", folder / network)
    return folder


def soup(*arguments: object, code: int = 0) -> Any:
    """The JSON document of a command that ends with `code`."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@needs_rtx
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_is_built_exported_for_two_gpus_and_verified(
    projects: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Correctness 34, 38: parity at several batch sizes, and no claim for an engine that nobody ran."""
    monkeypatch.setenv("NETWORK", network)
    folder = projects / network
    undemanding = ("--set", "gates.accuracy.max_drop=0.5", "--set", "batchnorm.samples=100")  # 120 images decide little
    soup("build", "--val", folder / "val.yaml", "-o", folder / "soup", *undemanding)
    exported = soup("export", folder / "soup", "--trt", "--compute-capability", "8.6,8.9")["result"]
    verified = soup("verify", folder / "soup" / "release")["result"]

    release = folder / "soup" / "release"
    manifest = json.loads((release / "manifest.json").read_bytes())
    assert {"model.onnx", "model.engine", "model.layers.json", "golden.safetensors", "report.html", "junit.xml"} <= set(
        manifest["files"]
    )
    onnx, _, engine = manifest["verified"]  # FP16 between them, from which the engine is built
    assert (onnx["artifact"], onnx["proved"]) == ("model.onnx", ["outputs", "metric", "latency"])
    assert (engine["artifact"], engine["provider"]) == ("model.engine", "ahead of time")
    assert engine["proved"][0] == "built for 8.6, 8.9"
    assert engine["proved"][-1] == "not run"
    parity = [check for check in exported["findings"]["checks"] if check["kind"] == "outputs"]
    assert {check["verdict"] for check in parity} == {"pass"}
    assert parity[0]["measured"] <= manifest["artifacts"][0]["tolerance"]
    assert verified["digest"] == manifest["self_sha256"]
    assert {check["verdict"] for check in verified["findings"]["checks"]} == {"pass"}
    assert any("model.engine was not run here" in note for note in verified["findings"]["notes"])
    compare_with_torch(release / "model.onnx", folder / "soup" / "soup.safetensors", network)


def compare_with_torch(onnx: Path, weights: Path, network: str) -> None:
    """The file as ONNX Runtime alone opens it, against torchvision's network with the soup's weights."""
    model = torchvision.models.get_model(network, num_classes=10).eval()
    model.load_state_dict(load_file(weights))
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    for batch in (1, 3, 8):
        images = np.random.default_rng(batch).normal(size=(batch, 3, 32, 32)).astype(np.float32)
        with torch.inference_mode():
            expected = model(torch.from_numpy(images)).numpy()
        (answer,) = session.run(None, {"input": images})
        np.testing.assert_allclose(answer, expected, atol=1e-3 * max(1.0, float(np.abs(expected).max())))


def test_two_networks_in_one_folder_are_refused_in_two_sentences(
    projects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Correctness 14: 122 tensors against 244 are told whole, by their modules."""
    monkeypatch.setenv("NETWORK", "resnet18")
    for network in NETWORKS:
        for path in (projects / network / "checkpoints").iterdir():
            (tmp_path / f"{network}-{path.name}").hardlink_to(path)
    val = projects / "resnet18" / "val.yaml"
    files = f"checkpoints.files=['{tmp_path}/*.pt']"
    error = soup("build", "--val", val, "-o", tmp_path / "out", "--set", files, code=2)["error"]
    first, second = error["message"].splitlines()
    assert first == (
        f"{tmp_path}/mobilenet_v3_small-epoch-01.pt and 1 more: shares no tensor with the model: it is of another "
        "network. It has 'features.*', 'classifier.*'; the model has 'conv1.weight', 'bn1.*', 'layer1.*', 'layer2.*', "
        "'layer3.*', 'layer4.*', 'fc.*'."
    )
    assert second == "checkpoints: leave these out, or set on_bad_ingredient: skip."
    assert not (tmp_path / "out").exists()


def test_the_examples_script_names_only_commands_and_options_that_there_are() -> None:
    text = (EXAMPLES / "torchvision" / "run.sh").read_text(encoding="utf-8")
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    known: Any = typer.main.get_command(app)
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.strip().startswith("soup ")]
    assert [name for name, *_ in commands] == ["build", "export", "verify"]
    for name, *arguments in commands:
        known.commands[name].make_context(name, arguments)
