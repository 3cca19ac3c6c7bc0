from __future__ import annotations

from pathlib import Path

import pytest

from exporters.gpu import Gpu
from soup import doctor
from soup.doctor import Ability, examine

ALL = {
    "torch": "2.6",
    "onnx": "1.17",
    "onnxscript": "0.3",
    "onnxruntime-gpu": "1.20",
    "tensorrt": "10.3",
    "pycuda": "2024.1",
}


def abilities(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], gpu: Gpu | None) -> dict[str, Ability]:
    monkeypatch.setattr(doctor, "versions", lambda: installed)
    monkeypatch.setattr(doctor, "find_gpu", lambda: gpu)
    return {one.name: one for one in examine(Path.cwd()).abilities}


def test_engines_run_only_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without = abilities(monkeypatch, ALL, None)
    assert without["running engines"] == Ability("running engines", "no", "no GPU here", None)
    assert without["export --trt for this GPU"].state == "no"
    there = abilities(monkeypatch, ALL, Gpu("Orin", "8.7"))
    assert there["running engines"] == Ability("running engines", "yes", "tensorrt 10.3, pycuda 2024.1", None)


def test_an_ability_names_every_library_that_is_lacking_and_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = abilities(monkeypatch, {"torch": "2.6", "onnxruntime": "1.20"}, None)
    assert found["soup init, check, build"].state == "yes"
    export = found["soup export"]
    assert (export.state, export.detail) == ("no", "onnx is not installed; onnxscript is not installed")
    assert export.remedy == "pip install 'edgesoup[build]'"


def test_any_flavour_of_onnxruntime_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert abilities(monkeypatch, ALL, None)["soup verify and bench on ONNX Runtime"].detail == "onnxruntime-gpu 1.20"
