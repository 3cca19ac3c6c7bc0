"""What other pipelines find beside a release: written for its target, naming its files, and never over a sealed one."""

from __future__ import annotations

import configparser
import json
import os
from pathlib import Path

import pytest

from soup.export_proof import Options
from soup.files import sha256_file
from soup.gates import Exit
from soup.manifest import read_manifest
from soup.ship import ExportResult, export


def silent(what: str, done: int, total: int) -> None:
    pass


def run(built: Path, out: Path, *overrides: str, trt: bool = False) -> ExportResult:
    return export(built / "soup-out", out, overrides=overrides, options=Options(trt=trt), progress=silent)


@pytest.fixture(scope="module")
def jetson(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release for a Jetson, its engine still to be built there. Read only."""
    out = tmp_path_factory.mktemp("jetson") / "release"
    asked = ("export.target=jetson-orin-jp6.0", "export.precision=[fp16]", "export.batch={min: 1, opt: 2, max: 4}")
    result = run(built, out, *asked, trt=True)
    assert result.exit_code == Exit.OK
    assert any("built on the device itself: soup verify RELEASE --finish" in note for note in result.findings.notes)
    return out


def test_a_jetson_s_lines_are_for_its_tensorrt_and_the_graph_that_ships(jetson: Path) -> None:
    script = jetson / "companions/trtexec.sh"
    assert os.access(script, os.X_OK)
    line = script.read_text().splitlines()[-1].split()
    assert line[0] == "trtexec"
    assert {"--onnx=../model.fp16.onnx", "--fp16", "--minShapes=input:1x1x8x8", "--maxShapes=input:4x1x8x8"} <= set(
        line
    )
    assert read_manifest(jetson).facts["onnx"]["opset"] == 17  # type: ignore[index, call-overload]


def test_nothing_that_they_write_lands_in_the_sealed_release(jetson: Path) -> None:
    for name in ("trtexec.sh", "polygraphy.sh"):
        assert "/tmp/model.engine" in (jetson / "companions" / name).read_text()
        assert "../model.engine" not in (jetson / "companions" / name).read_text()


def test_deepstream_gets_the_normalisation_of_val_yaml(jetson: Path) -> None:
    parser = configparser.ConfigParser()
    parser.read(jetson / "companions/nvinfer.txt")
    keys = parser["property"]
    assert float(keys["net-scale-factor"]) == pytest.approx(1 / (255 * 0.35))
    assert float(keys["offsets"]) == pytest.approx(255 * 0.3)
    assert (keys["onnx-file"], keys["batch-size"]) == ("../model.fp16.onnx", "4")
    labels = (jetson / "companions/labels.txt").read_text().strip().split(";")
    assert len(labels) == 10


def test_a_dla_core_reaches_every_file_that_can_name_one(built: Path, tmp_path: Path) -> None:
    asked = ("export.target=jetson-agx-orin-jp6.2", "export.precision=[fp16]", "export.engine.dla_core=1")
    assert run(built, tmp_path / "release", *asked, trt=True).exit_code == Exit.OK
    companions = tmp_path / "release/companions"
    parser = configparser.ConfigParser()
    parser.read(companions / "nvinfer.txt")
    assert (parser["property"]["enable-dla"], parser["property"]["use-dla-core"]) == ("1", "1")
    assert "--useDLACore=1" in (companions / "trtexec.sh").read_text()


def test_python_too_old_on_the_device_leaves_a_shell_check_with_hashes_and_golden_samples(
    built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "release"
    assert run(built, out, "export.target=jetson-xavier-jp5.1", "export.precision=[fp32]").exit_code == Exit.OK
    sums = dict(reversed(line.split("  ")) for line in (out / "check_device.sha256").read_text().splitlines())
    assert sums["model.onnx"] == sha256_file(out / "model.onnx")
    assert all(sha256_file(out / name) == digest for name, digest in sums.items())
    assert (out / "check_device.sh").read_text().startswith("#!/bin/sh")
    listed = json.loads((out / "manifest.json").read_bytes())["files"]
    assert "check_device.sh" in listed


def test_without_engine_or_target_nobody_asked_for_them(released: Path) -> None:
    assert not (released / "companions").exists()
