from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import soup.estimate
from soup import render
from soup.check import CheckedIngredient, CheckedSplit, CheckResult, check
from soup.config import load_config
from soup.estimate import Estimate
from soup.expect import Comparison
from soup.gates import Exit
from soup.pipeline import build
from soup.suspects import Attempt

GOLDEN = Path(__file__).parent / "golden"


def look(folder: Path, settings: Sequence[str] = ()) -> CheckResult:
    config = load_config(folder / "val.yaml", overrides=settings)
    return check(config, folder / "soup-out", progress=lambda what, done, total: None)


def test_a_sound_project_is_told_whole_and_nothing_but_the_cache_is_written(project: Path) -> None:
    before = {path.name for path in project.iterdir()}
    result = look(project)

    assert (result.refused, result.warnings, result.comparison, result.exit_code) == ((), (), None, Exit.OK)
    assert [one.path for one in result.ingredients] == [f"runs/epoch-{epoch}.pt" for epoch in range(3, 7)]
    assert result.ingredients[0].cosine == pytest.approx(1.0)
    assert all(0.5 < (one.cosine or 0) <= 1 for one in result.ingredients)
    assert {name: (split.n, split.classes) for name, split in result.splits.items()} == {
        "train": (700, 10), "val": (400, 10), "test": (600, 10),
    }  # fmt: skip
    assert any("expect is not given" in note and "runs/epoch-3.pt" in note for note in result.notes)
    assert {path.name for path in project.iterdir()} - before == {"soup-out"}
    assert [path.name for path in (project / "soup-out").iterdir()] == ["cache"]


def test_all_that_a_build_would_refuse_is_listed_in_one_run(project: Path) -> None:
    states = {epoch: torch.load(project / f"runs/epoch-{epoch}.pt") for epoch in (3, 4)}
    states[3]["model"]["0.weight"][0] = float("nan")
    torch.save(states[3], project / "runs/epoch-3.pt")
    del states[4]["model"]["9.bias"]
    torch.save(states[4], project / "runs/epoch-4.pt")
    (project / "runs/epoch-5.pt").write_bytes((project / "runs/epoch-5.pt").read_bytes()[:2000])
    shutil.copy(project / "val.npz", project / "test.npz")
    (project / "soup-out").mkdir()
    (project / "soup-out" / "thesis.tex").touch()
    result = look(project, ["data.train=nowhere"])

    expected = [
        "holds 'thesis.tex', which soup build did not write",
        "epoch-5.pt: ",
        "epoch-4.pt: lacks ",
        "epoch-3.pt: tensor '0.weight' holds NaN",
        "nowhere: no such file or folder",
        "data.val and data.test share 400 images",
    ]
    for part in expected:
        assert [part in line for line in result.refused].count(True) == 1, part
    assert len(result.refused) == len(expected)
    assert [one.path for one in result.ingredients] == ["runs/epoch-6.pt"]
    assert (result.estimate, result.exit_code) == (None, Exit.INPUT)


def test_what_is_set_aside_is_listed_and_refuses_nothing(project: Path) -> None:
    (project / "runs/epoch-5.pt").write_bytes(b"")
    result = look(project, ["checkpoints.on_bad_ingredient=skip"])

    ((path, reason),) = result.set_aside
    assert path.endswith("epoch-5.pt")
    assert not reason.startswith(path)
    assert (len(result.ingredients), result.refused, result.exit_code) == (3, (), Exit.OK)


def test_copies_dropped_tensors_and_independent_networks_are_told(project: Path) -> None:
    shutil.copy(project / "runs/epoch-3.pt", project / "runs/epoch-3-again.pt")
    other = torch.load(project / "runs/epoch-4.pt")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in other["model"].items():
        if tensor.ndim > 1:
            other["model"][name] = torch.randn(tensor.shape, generator=generator)
    torch.save(other, project / "runs/epoch-4.pt")
    for epoch in range(3, 7):
        content = torch.load(project / f"runs/epoch-{epoch}.pt")
        content["model"]["teacher.weight"] = torch.zeros(2, 2)
        torch.save(content, project / f"runs/epoch-{epoch}.pt")
    shutil.copy(project / "runs/epoch-3.pt", project / "runs/epoch-3-again.pt")
    result = look(project, ["checkpoints.drop=[teacher.*]"])

    assert any("is a copy of" in note for note in result.notes)
    assert "in 4 of 4 checkpoints: dropped: 'teacher.weight'" in result.notes
    (warning,) = result.warnings
    assert "epoch-4.pt: the cosine of its weights" in warning
    assert not any("cosine" in note for note in result.notes)


def test_a_network_that_cannot_take_the_images_is_refused_without_a_traceback(project: Path) -> None:
    result = look(project, ["preprocess.color=rgb"])
    (line,) = result.refused
    assert line.startswith("model: forward of input (64, 3, 8, 8): raised RuntimeError")
    assert result.exit_code == Exit.INPUT


def test_splits_with_other_classes_are_refused(project: Path) -> None:
    for shade, place in enumerate(("v/cat", "v/dog", "t/cat", "t/eel")):
        (project / place).mkdir(parents=True)
        Image.new("L", (8, 8), shade).save(project / place / "1.png")
    (line,) = look(project, ["data.val=v", "data.test=t"]).refused
    assert line.startswith("data.test: has other classes than data.val ('dog' is only in one of them)")


def test_a_missing_library_is_the_environments_fault(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert look(project, ["preprocess.backend=cv2"]).exit_code == Exit.ENVIRONMENT


def test_a_missed_figure_ends_with_exit_code_1_and_still_has_an_estimate(project: Path) -> None:
    result = look(project, ["expect={checkpoint: runs/epoch-6.pt, value: 0.1}"])
    assert result.comparison is not None
    assert result.comparison.verdict == "fail"
    assert result.estimate is not None
    assert result.exit_code == Exit.CHECK


@pytest.mark.parametrize("settings", [[], ["search.methods=[greedy]"], ["search.bn_policy=averaged"]])
def test_the_estimate_bounds_what_the_build_then_does(project: Path, settings: list[str]) -> None:
    cost = look(project, settings).estimate
    assert cost is not None
    config = load_config(project / "val.yaml", overrides=settings)
    done = build(config, project / "soup-out", progress=lambda what, done, total: None).record

    evaluated = cost.evaluations * 400 + 2 * 600
    forwarded = done.cost.forwarded
    assert evaluated / 2 <= sum(forwarded.get(phase, 0) for phase in ("singles", "candidates", "judging")) <= evaluated
    assert forwarded["recalibration"] <= cost.recalibrations * 400
    assert cost.recalibrations >= 1
    assert cost.seconds > cost.evaluations * cost.seconds_per_evaluation > 0
    assert cost.decoded_bytes == (700 + 400 + 600) * 64
    written = sum(path.stat().st_size for path in (project / "soup-out").glob("*.safetensors"))
    assert 0.3 * written < cost.written_bytes
    assert cost.memory_bytes < cost.total_memory_bytes


def test_the_time_is_that_of_every_pass_over_images_and_files(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if cooking one ingredient, 400 images of val and 200 of train took a second each."""
    monkeypatch.setattr(soup.estimate, "_timed", lambda work: (work(), 1.0))
    cost = look(project).estimate
    assert cost is not None
    on_val = 4 + 1 + 3 + 1  # singles, uniform, greedy, the winner under its other BN policy
    recalibrations = 1 + 3 + 1
    cooked = 4 + 4 + (2 + 3 + 4) + 3 * 4  # singles, uniform, greedy; the winner twice and once more to its file
    assert (cost.evaluations, cost.recalibrations) == (on_val, recalibrations)
    assert cost.seconds == pytest.approx(on_val + 2 * 600 / 400 + recalibrations * 400 / 200 + cooked)


def test_a_full_disk_and_too_little_memory_are_warned_of(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(project)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    real = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else real(name))
    disk, memory = look(project).warnings
    assert disk.startswith("disk: build and export write about ")
    assert memory.startswith("memory: a build needs about ")


def test_the_cache_of_a_check_serves_the_build(project: Path) -> None:
    look(project)
    cache = {path.name: path.stat().st_mtime_ns for path in (project / "soup-out/cache").iterdir()}
    build(load_config(project / "val.yaml"), project / "soup-out", progress=lambda what, done, total: None)
    assert {path.name: path.stat().st_mtime_ns for path in (project / "soup-out/cache").iterdir()} == cache


RESULT = CheckResult(
    ingredients=(
        CheckedIngredient("runs/a.pt", "a" * 64, "raw", 4_200_000, 1.0, {"epoch": 9.0, "acc1": 88.3}, ()),
        CheckedIngredient("runs/b.pt", "b" * 64, "raw", 4_200_000, None, {}, ()),
    ),
    set_aside=(("runs/c.pt", "ends after 12 bytes."),),
    splits={"val": CheckedSplit(1000, 10, 40, (("cat/3.jpg", "truncated"),)), "test": CheckedSplit(2000, 10, None, ())},
    overlaps=("data.val and data.test share 1 images",),
    refused=(),
    warnings=("runs/b.pt: the cosine is 0.02",),
    notes=("data.val: 1 samples skipped",),
    comparison=Comparison(
        "runs/a.pt", "raw", "accuracy", 0.812, 0.883, -0.071, 0.003, "fail",
        (
            Attempt("color: bgr", "the colour order", 0.883, "explains"),
            Attempt("mean: [0.5], std: [0.5]", "mean and std", 0.85, "nearer"),
            Attempt("interpolation: area", "interpolation", None, "no"),
            Attempt("backend: cv2", "resize backend", None, "untried", "cv2 is missing"),
        ),
        ("runs/a.pt scores 0.8830 with color: bgr.",),
    ),
    estimate=Estimate(
        754.2, 5, 4.31, 3, 0.92, 512, 5_500_000, 12_600_000, 72_000_000_000, 1_250_000_000, 16_000_000_000
    ),
    exit_code=Exit.CHECK,
)  # fmt: skip


def test_the_text_is_as_it_was_read_last() -> None:
    """`SOUP_WRITE_GOLDEN=1 pytest tests/soup/test_check.py` writes it anew; read the difference before committing."""
    refused = replace(RESULT, refused=("runs/c.pt: ends after 12 bytes.",), comparison=None, estimate=None)
    with redirect_stdout(io.StringIO()) as text:
        render.show("check", RESULT, code=Exit.CHECK, json=False)
        render.show("check", refused, code=Exit.INPUT, json=False)
    if os.environ.get("SOUP_WRITE_GOLDEN"):
        (GOLDEN / "check.txt").write_text(text.getvalue(), encoding="utf-8")
    assert text.getvalue() == (GOLDEN / "check.txt").read_text(encoding="utf-8")
