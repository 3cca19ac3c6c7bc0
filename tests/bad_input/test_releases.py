"""Releases and files that are damaged or something else, for commands that only look: verify, bench, inspect, init."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from soup.manifest import read_manifest, seal

from .conftest import Accepted, Refused

Arrays = dict[str, np.ndarray]


@pytest.mark.parametrize("folder", ["none", "runs", "val.yaml", "circle"])
def test_what_is_no_release_is_not_verified(project: Path, refused: Refused, folder: str) -> None:
    (project / "circle").symlink_to("circle")
    told = refused(project, "verify", folder)
    assert told.startswith(f"{folder}/manifest.json: not found, expected a release's manifest. Give the folder that ")


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda folder: (folder / "golden.safetensors").unlink(), "'golden.safetensors' is missing"),
        (lambda folder: (folder / "golden.safetensors").write_text("x"), "'golden.safetensors' has 1 bytes, expected "),
        (
            lambda folder: (folder / "manifest.json").write_text("x"),
            "'manifest.json' does not end with its own SHA-256",
        ),
        (lambda folder: (folder / "manifest.json").write_text(""), "'manifest.json' does not end with its own SHA-256"),
        (lambda folder: (folder / "circle").symlink_to("circle"), "'circle' is not listed in manifest.json"),
        (lambda folder: os.mkfifo(folder / "pipe"), "'pipe' is not listed in manifest.json"),
        (lambda folder: (folder / os.fsdecode(b"\xff")).touch(), r"'\udcff' is not listed in manifest.json"),
    ],
    ids=["no golden", "golden", "manifest", "empty manifest", "circle", "pipe", "not UTF-8"],
)
def test_a_damaged_release_fails_and_names_the_file(
    release: Path, accepted: Accepted, spoil: Callable[[Path], object], line: str
) -> None:
    spoil(release)
    stdout = accepted(release, "verify", ".", code=1)
    assert line in stdout.splitlines()[0]
    assert stdout.splitlines()[0].startswith("fail ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("target.label"), "golden.safetensors: no golden samples: expected inputs, targets"),
        (lambda arrays: arrays.pop("output.torch.output"), "golden.safetensors: no golden samples: expected inputs"),
        (lambda arrays: arrays.update({"target.label": arrays["target.label"][:4]}), "golden.safetensors: no golden"),
        (
            lambda arrays: arrays.update({"input.x": arrays.pop("input.input")}),
            "model.onnx: input 'x' is not one of the model's: ['input']; input 'input' is missing.",
        ),
        (
            lambda arrays: arrays.update({"input.input": arrays["input.input"][:, :, :4]}),
            "model.onnx: input 'input' has shape (64, 1, 4, 8), expected ('n', 1, 8, 8).",
        ),
    ],
    ids=["no targets", "no outputs", "fewer targets", "other name", "other shape"],
)
def test_golden_samples_that_do_not_fit_are_refused_however_they_came_to_be_sealed(
    release: Path, refused: Refused, change: Callable[[Arrays], object], message: str
) -> None:
    arrays = load_file(release / "golden.safetensors")
    change(arrays)
    save_file(arrays, release / "golden.safetensors")
    reseal(release)
    assert refused(release, "verify", ".").startswith(message)


def test_an_artifact_outside_of_the_release_is_refused(release: Path, refused: Refused) -> None:
    artifacts = list(read_manifest(release).facts["artifacts"])
    shutil.copy(release / "model.onnx", release.parent / "other.onnx")
    reseal(release, artifacts=[*artifacts, {**artifacts[0], "file": "../other.onnx"}])
    told = refused(release, "verify", ".")
    assert told == "manifest.json: lists no file '../other.onnx', its artifact. Export the release again."


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none.onnx", None, "none.onnx: not found, expected an .onnx file, an engine, or a release folder."),
        ("x.onnx", b"garbage", "x.onnx: not an ONNX file (unknown wire type 7 at byte 1)."),
        ("x.onnx", b"", "x.onnx: ONNX Runtime cannot load it: "),
        ("runs", None, "runs/model.onnx: not found, expected an .onnx file, an engine, or a release folder."),
        ("runs/epoch-3.pt", None, "runs/epoch-3.pt: not an ONNX file ("),
    ],
)
def test_what_is_no_model_is_not_timed(
    project: Path, refused: Refused, name: str, data: bytes | None, message: str
) -> None:
    if data is not None:
        (project / name).write_bytes(data)
    assert refused(project, "bench", name).startswith(message)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none", None, "none: no such file or folder."),
        ("x.onnx", b"garbage", "x.onnx: not an ONNX file ("),
        ("x.onnx", b"", "x.onnx: not an ONNX file (0 graphs, expected 1)."),
        ("x.pt", b"garbage", "x.pt: is text ('garbage'), not a checkpoint."),
        ("x.pt", b"", "x.pt: is empty (0 bytes)."),
        ("x.pt", b"PK\x03\x04", "x.pt: is a truncated or damaged zip: "),
        ("runs", None, "runs: is a folder without "),
        ("/dev/null", None, "/dev/null: is a pipe or a device, expected a file."),
    ],
)
def test_what_is_of_no_known_kind_is_not_inspected(
    project: Path, refused: Refused, name: str, data: bytes | None, message: str
) -> None:
    if data is not None:
        (project / name).write_bytes(data)
    assert refused(project, "inspect", name).startswith(message)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("none", "none: no such folder. Name the folder that your training runs write to."),
        ("empty", "empty: no checkpoint below it, expected files ending in "),
        ("garbage", "garbage/x.pt: is text ('garbage'), not a checkpoint."),
        ("val.yaml", "val.yaml: no such folder."),
    ],
)
def test_a_folder_without_checkpoints_gets_no_starter(project: Path, refused: Refused, runs: str, message: str) -> None:
    (project / "empty").mkdir()
    (project / "garbage").mkdir()
    (project / "garbage/x.pt").write_text("garbage")
    assert refused(project, "init", runs, "-o", "starter.yaml").startswith(message)


def reseal(folder: Path, **changes: object) -> None:
    """Write the manifest anew, as someone would who wants to be believed."""
    facts = {**read_manifest(folder).facts, **changes}
    (folder / "manifest.json").unlink()
    seal(folder, facts)
