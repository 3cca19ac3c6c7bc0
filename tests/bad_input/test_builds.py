"""What lies between build and export: a build, data or code that changed, and options that cannot be meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from .conftest import Accepted, Refused

PREPARE = ("--set", "export.prepare=./prepare.py:prepare")
WRAPPED = """
from torch import nn

class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        {}

def prepare(model):
    return Wrapped(model)
"""


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("folder", ["soup-out", "runs", "val.yaml", "none"])
def test_a_folder_without_a_build_is_not_exported(project: Path, refused: Refused, folder: str) -> None:
    (project / "soup-out").mkdir()
    told = refused(project, "export", folder)
    assert told == f"{folder}: no finished build here (recipe.json and build.json). Run: soup build --val val.yaml"


@pytest.mark.parametrize("file", ["soup.safetensors", "recipe.json", "evaluations.safetensors", "trials.json"])
@pytest.mark.parametrize("spoil", [flip, Path.unlink], ids=["flipped", "missing"])
def test_a_build_of_which_a_file_changed_is_refused_by_name(
    copied: Path, refused: Refused, file: str, spoil: Callable[[Path], None]
) -> None:
    spoil(copied / "soup-out" / file)
    told = refused(copied, "export")
    if spoil is Path.unlink and file == "recipe.json":
        assert told.startswith("soup-out: no finished build here")
    else:
        assert told == f"soup-out/{file}: is missing or not as soup build wrote it (SHA-256 differs). Build again."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "soup-out/build.json: Invalid JSON: EOF while parsing an object at line 1 column 1. Build again."),
        ("[]", "soup-out/build.json: Input should be an object. Build again."),
        ("", "soup-out/build.json: Invalid JSON: EOF while parsing a value at line 1 column 0. Build again."),
    ],
)
def test_a_build_json_that_is_none_is_refused(copied: Path, refused: Refused, text: str, message: str) -> None:
    (copied / "soup-out/build.json").write_text(text)
    assert refused(copied, "export") == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda build: build.pop("winner"), "soup-out/build.json: 'winner': Field required. Build again."),
        (lambda build: build.update(schema_version=99), "soup-out/build.json: schema_version 99, expected 1. Upgrade"),
        (lambda build: build.update(state_sha256="0"), "soup-out/soup.safetensors: its tensors are not those of build"),
        (lambda build: build["config"].update(metric="luck"), "build.json: metric: 'luck' is not known for "),
        (lambda build: build["config"].update(metric="top5"), "model './models.py:build': scores 0.9"),
    ],
    ids=["key missing", "of the future", "other weights", "no metric", "other metric"],
)
def test_a_build_json_that_was_edited_is_refused(
    copied: Path, refused: Refused, change: Callable[[dict], object], message: str
) -> None:
    edit(copied / "soup-out/build.json", change)
    assert refused(copied, "export").startswith(message)


def test_data_that_changed_since_the_build_are_refused(copied: Path, refused: Refused) -> None:
    with np.load(copied / "val.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    np.savez(copied / "val.npz", images=images[::-1], labels=labels)
    told = refused(copied, "export")
    assert told == "data.val: has other samples than when the soup was built. Restore them, or build again."
    np.savez(copied / "val.npz", images=images, labels=np.roll(labels, 1))
    told = refused(copied, "export")
    assert told == "data.val: has other labels or groups than when the soup was built. Restore them, or build again."
    (copied / "val.npz").unlink()
    assert "val.npz: no such file or folder." in refused(copied, "export")


def test_code_that_changed_since_the_build_is_refused_by_what_it_scores(copied: Path, refused: Refused) -> None:
    source = (copied / "models.py").read_text()
    (copied / "models.py").write_text(source.replace("nn.ReLU()", "nn.Sigmoid()"))
    told = refused(copied, "export")
    assert told.startswith("model './models.py:build': scores 0.")
    assert told.endswith(" as it was built. Restore its code (or build.json), or build again.")
    (copied / "models.py").write_text(source.replace("AdaptiveAvgPool2d(2)", "AdaptiveAvgPool2d(1)"))
    assert refused(copied, "export").startswith("model: forward of input (64, 1, 8, 8): raised RuntimeError at ")
    (copied / "models.py").write_text(source.replace("num_classes=10", "num_classes=9"))
    assert "size mismatch for 9.bias" in refused(copied, "export")
    (copied / "models.py").unlink()
    assert "models.py': No such file or directory." in refused(copied, "export")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "'./prepare.py:prepare': cannot read '{folder}/prepare.py': No such file or directory."),
        (
            "def prepare(model):\n    raise ValueError('no')\n",
            "export.prepare './prepare.py:prepare': raised ValueError at {folder}/prepare.py:2: no.",
        ),
        (
            "def prepare(model): ...\n",
            "export.prepare './prepare.py:prepare': returned NoneType, expected a torch.nn.Module.",
        ),
        (
            WRAPPED.format("raise ValueError('late')"),
            "model: forward of input (2, 1, 8, 8): raised ValueError at {folder}/prepare.py:10: late.",
        ),
        (
            WRAPPED.format("return self.model(x), x"),
            "export.prepare './prepare.py:prepare': the model has 2 outputs, expected 1 as before it. "
            "Leave none out, add none.",
        ),
        (WRAPPED.format("return self.model(x)[:, :4]"), "data: label 9, expected 0 to 3, the outputs of the model."),
    ],
    ids=["missing", "raises", "None", "raises late", "two outputs", "fewer classes"],
)
def test_a_prepare_that_does_not_give_the_same_model_is_refused(
    copied: Path, refused: Refused, source: str | None, message: str
) -> None:
    if source is not None:
        (copied / "prepare.py").write_text(source)
    assert refused(copied, "export", *PREPARE).startswith(message.format(folder=copied))


def test_a_prepare_that_changes_what_the_model_answers_fails_its_hop(copied: Path, accepted: Accepted) -> None:
    """Correctness 40: the release is written, and its check names the hop."""
    (copied / "prepare.py").write_text(WRAPPED.format("return 2 * self.model(x) + 1"))
    stdout = accepted(copied, "export", *PREPARE, code=1)
    assert "fail         graph (ONNX), soup → ONNX: " in stdout
    assert "exit 1: a check failed" in stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "metric=top5"],
            "--set metric=top5: the build has fixed it; only gates, export, quantization, release may differ.",
        ),
        (["--set", "export.foo=1"], "--set export.foo=1: export.foo: unknown key. Known here: "),
        (["--set", "export.opset=99"], "--set export.opset=99: export.opset: expected 24 or less, got 99."),
        (
            ["--set", "export.inputs={a: float32, b: float32}"],
            "soup-out/release/model.onnx: 2 input names are given (a, b), the model has 1.",
        ),
        (
            ["--compute-capability", "8.6"],
            "--compute-capability: only for an engine, which was not asked for. Add --trt.",
        ),
        (["--workspace-mb", "64"], "--workspace-mb: only for an engine, which was not asked for. Add --trt."),
        (["--trt", "--compute-capability", "new"], "engine settings: compute capabilities 'new', expected"),
        (["--baseline", "none"], "none: cannot be read: No such file or directory, expected a release folder,"),
        (["--baseline", "models.py"], "models.py: not an ONNX file ("),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    copied: Path, refused: Refused, arguments: list[str], message: str
) -> None:
    assert refused(copied, "export", *arguments).startswith(message)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [("none.json", "none.json: cannot be read: No such file or directory."), ("models.py", "models.py: Invalid JSON")],
)
def test_a_recipe_that_is_none_is_refused(project: Path, refused: Refused, recipe: str, message: str) -> None:
    assert message in refused(project, "build", "--recipe", recipe)
