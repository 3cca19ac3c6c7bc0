"""`soup inspect` says what a file is, and opens nothing that could run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exporters import ExportError
from soup import SoupError
from soup.files import sha256_file
from soup.inspect import inspect
from soup.manifest import read_manifest

WITHOUT_TORCH = """
import json, sys
from pathlib import Path
for name in ("torch", "onnx", "onnxruntime", "tensorrt_rtx", "tensorrt"):
    sys.modules[name] = None
from soup import SoupError
from soup.inspect import inspect
print(json.dumps([inspect(Path(path)).kind for path in sys.argv[2:]]))
try:
    inspect(Path(sys.argv[1]))
except SoupError as error:
    print(error.kind, error)
"""


def test_a_release_shows_its_digest_its_files_and_what_was_proved(released: Path) -> None:
    found = inspect(released)
    assert (found.kind, found.facts["digest"]) == ("release", read_manifest(released).self_sha256)
    assert found.facts["files"]["model.onnx"] == (released / "model.onnx").stat().st_size  # type: ignore[index,call-overload]
    assert found.facts["exit_code"] == 0
    assert "verified" in found.facts


def test_a_build_shows_its_winner(built: Path) -> None:
    found = inspect(built / "soup-out")
    assert (found.kind, found.facts["ingredients"]) == ("build", 4)
    assert json.dumps(found.facts["winner"])


def test_a_model_shows_its_interface_opset_and_metadata(shipped: Any) -> None:
    found = inspect(shipped.folder / "model.onnx")
    assert (found.kind, found.facts["opset"], found.facts["external_data"]) == ("onnx", 18, False)
    assert found.facts["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    assert "soup.recipe_sha256" in found.facts["metadata"]  # type: ignore[operator]


def test_an_engine_shows_what_it_was_built_for(shipped: Any, needs_rtx: None) -> None:
    """Correctness 43: it is read, never deserialised."""
    found = inspect(shipped.folder / "model.engine")
    assert (found.kind, found.facts["flavour"]) == ("engine", "tensorrt_rtx")
    assert found.facts["compute_capabilities"] == ["8.6", "8.9"]


def test_golden_samples_show_what_they_hold(released: Path) -> None:
    found = inspect(released / "golden.safetensors")
    assert (found.kind, found.facts["samples"]) == ("golden samples", 64)
    assert found.facts["inputs"] == {"input": "float32 [64, 1, 8, 8]"}
    assert found.facts["answers"] == ["model.onnx", "torch"]


@pytest.mark.parametrize("name", ["epoch-6.pt", "soup.safetensors"])
def test_a_checkpoint_shows_its_container_and_tensors(built: Path, name: str) -> None:
    path = built / ("soup-out" if name.endswith("safetensors") else "runs") / name
    found = inspect(path)
    assert (found.kind, found.facts["sha256"]) == ("checkpoint", sha256_file(path))
    assert found.facts["tensors"] == 14
    assert found.facts["shapes"]["0.weight"] == [8, 1, 3, 3]  # type: ignore[index,call-overload]


def test_a_record_shows_its_top_level(built: Path, released: Path) -> None:
    recipe = inspect(built / "soup-out" / "recipe.json")
    assert (recipe.kind, recipe.facts["ingredients"], recipe.facts["metric"]) == ("record", "4 entries", "accuracy")
    assert inspect(built / "soup-out" / "trials.json").facts.keys() == {"top level"}
    assert inspect(released / "manifest.json").facts["exit_code"] == 0


def test_what_is_nothing_known_is_one_sentence(tmp_path: Path, released: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "golden.safetensors").write_bytes(b"")
    damaged = Path(shutil.copytree(released, tmp_path / "damaged"))
    (damaged / "manifest.json").write_text("{}")
    for path, message in {
        tmp_path / "absent": "no such file or folder",
        tmp_path / "text.onnx": "not an ONNX file",
        tmp_path / "broken.json": "cannot be read as JSON",
        tmp_path / "golden.safetensors": "no golden samples",
        damaged: "does not end with its own SHA-256",
        tmp_path: "is a folder without",
    }.items():
        with pytest.raises((SoupError, ExportError), match=message) as raised:
            inspect(path)
        assert raised.value.kind == "input"
        assert str(raised.value).startswith(str(path))


def test_all_but_checkpoints_can_be_inspected_without_torch(built: Path, shipped: Any) -> None:
    engines = [str(path) for path in shipped.folder.glob("*.engine")]
    files = [shipped.folder, shipped.folder / "model.onnx", shipped.folder / "golden.safetensors", built / "soup-out"]
    command = [sys.executable, "-c", WITHOUT_TORCH, built / "runs" / "epoch-6.pt", *files, *engines]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    kinds, refusal = done.stdout.splitlines()
    assert json.loads(kinds) == ["release", "onnx", "golden samples", "build", *["engine"] * len(engines)]
    assert refusal.startswith("environment ")
    assert refusal.endswith("reading a checkpoint needs torch. pip install 'edgesoup[build]'")
