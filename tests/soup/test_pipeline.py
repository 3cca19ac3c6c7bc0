"""`soup build` as a whole, on real checkpoints: what ships is what was scored, and nothing else changes it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calib.samples import list_sha256, sample_sha256
from soup import SoupError
from soup.build_folder import read_build
from soup.checkpoint import state_sha256
from soup.gates import Exit
from soup.pipeline import BuildResult

Build = Callable[..., BuildResult]
Accuracy = Callable[..., float]
SAME_BYTES = ("soup.safetensors", "recipe.json", "evaluations.safetensors")
UNIFORM = "search.methods=[uniform]"


def recipe_of(result: BuildResult) -> dict[str, Any]:
    return dict(json.loads((result.folder / "recipe.json").read_bytes()))


def report_of(result: BuildResult) -> str:
    return (result.folder / "report.md").read_text()


def only(folder: Path, *names: str) -> None:
    for path in (folder / "runs").iterdir():
        if path.name not in names:
            path.unlink()


def opposites(folder: Path, *, mean: float | None = None) -> None:
    """Two checkpoints, bad by themselves, whose average is epoch-6; with `mean`, under useless BatchNorm statistics."""
    only(folder, "epoch-5.pt", "epoch-6.pt")
    state = torch.load(folder / "runs/epoch-6.pt")["model"]
    if mean is not None:
        state |= {name: torch.full_like(tensor, mean) for name, tensor in state.items() if "running_mean" in name}
    torch.manual_seed(0)
    moved = [name for name, tensor in state.items() if tensor.ndim > 1]
    noise = {name: torch.randn_like(state[name]) * state[name].std() for name in moved}
    for path, sign in ((folder / "runs/epoch-5.pt", 1), (folder / "runs/epoch-6.pt", -1)):
        torch.save({**state, **{name: state[name] + sign * noise[name] for name in moved}}, path)


def test_the_saved_soup_scores_what_was_recorded_in_plain_torch(
    slim: Path, slim_built: BuildResult, plain_accuracy: Accuracy
) -> None:
    """Correctness 25 and 31: by value on val and test, and by hash."""
    record, soup = slim_built.record, load_file(slim_built.folder / "soup.safetensors")
    assert plain_accuracy(slim, soup, "val") == record.winner.val
    assert plain_accuracy(slim, soup, "test") == record.winner.test
    assert state_sha256(soup) == record.state_sha256
    best = torch.load(slim / record.ingredients[0].path)["model"]
    assert plain_accuracy(slim, best, "val") == record.best_single.val
    assert plain_accuracy(slim, best, "test") == record.best_single.test


def test_the_saved_weights_are_the_plain_mean_of_the_ingredients(small: Path, build_at: Build, tmp_path: Path) -> None:
    """Correctness 3 and 24, end to end."""
    opposites(small, mean=3.0)
    result = build_at(small, tmp_path / "out", UNIFORM)
    assert result.record.winner.method == "uniform"
    states = [torch.load(path) for path in (small / "runs").iterdir()]
    for name, tensor in load_file(result.folder / "soup.safetensors").items():
        if not any(part in name for part in ("running", "num_batches")):
            mean = torch.stack([state[name].double() for state in states]).mean(0)
            torch.testing.assert_close(tensor.double(), mean, rtol=1e-7, atol=0)


def test_recalibrated_statistics_ship_where_the_averaged_ones_are_stale(
    small: Path, build_at: Build, tmp_path: Path
) -> None:
    """Correctness 23 and 24: measured on the pinned list, and bit-stable."""
    opposites(small, mean=3.0)
    one, other = (build_at(small, tmp_path / name, UNIFORM, "batchnorm={samples: 120, batch: 50}") for name in "ab")
    record, recipe = one.record, recipe_of(one)
    assert record.winner.bn_policy == recipe["bn"]["policy"] == "recalibrated"
    assert record.policies["recalibrated"] == record.winner.val
    assert (record.policies["averaged"] or 0) < (record.winner.val or 0)
    assert recipe["bn"].keys() == {"policy", "samples", "samples_sha256", "batch", "statistics_sha256"}
    assert (recipe["bn"]["samples"], recipe["bn"]["batch"]) == (120, 50)
    assert recipe["bn"] == recipe_of(other)["bn"]
    assert (load_file(one.folder / "soup.safetensors")["1.running_mean"] != 3.0).all()
    assert [hop.name for hop in record.hops] == ["best single → soup", "soup → recalibrated"]


def test_averaged_statistics_ship_where_the_training_images_are_like_no_others(
    small: Path, build_at: Build, tmp_path: Path
) -> None:
    """Both policies are measured for the winner, whichever the search used; the better ships, the report shows both."""
    opposites(small)
    noise = np.random.default_rng(0).integers(0, 255, (250, 8, 8, 1), np.uint8)
    np.savez(small / "train.npz", images=noise, labels=np.arange(250) % 10)
    result = build_at(small, tmp_path / "out", UNIFORM, "search.bn_policy=averaged")
    record = result.record
    assert (record.winner.method, record.winner.bn_policy) == ("uniform", "averaged")
    assert record.policies.keys() == {"averaged", "recalibrated"}
    assert (record.policies["recalibrated"] or 0) < (record.winner.val or 0)
    assert recipe_of(result)["bn"] == {"policy": "averaged"}
    assert [hop.name for hop in record.hops] == ["best single → soup"]
    assert "2 layers." in report_of(result)
    assert torch.equal(
        load_file(result.folder / "soup.safetensors")["1.running_mean"],
        torch.load(small / "runs/epoch-6.pt")["1.running_mean"],
    )


def test_calibration_images_are_of_no_content_that_val_or_test_holds(
    small: Path, build_at: Build, tmp_path: Path
) -> None:
    """Correctness 23: by content, under whatever index."""
    with np.load(small / "train.npz") as train, np.load(small / "val.npz") as val, np.load(small / "test.npz") as test:
        images, labels = train["images"].copy(), train["labels"]
        images[:40], images[-40:] = val["images"][5:45], test["images"][:40]
    np.savez(small / "train.npz", images=images, labels=labels)
    opposites(small, mean=3.0)
    result = build_at(small, tmp_path / "out", UNIFORM, "data.max_overlap=1")
    allowed = [sample_sha256(image) for image in images[40:-40]]
    recipe = recipe_of(result)
    assert recipe["bn"]["samples"] == len(set(allowed)) == 170
    assert len(result.record.overlaps) == 2
    assert "data.train and data.val share 40 images" in report_of(result)


def test_a_train_split_that_is_all_val_leaves_nothing_to_recalibrate_on(
    small: Path, build_at: Build, tmp_path: Path
) -> None:
    shutil.copy(small / "val.npz", small / "train.npz")
    with pytest.raises(SoupError, match=r"data\.train: nothing to recalibrate BatchNorm on"):
        build_at(small, tmp_path / "out", "data.max_overlap=1")
    with pytest.raises(SoupError, match=r"data\.train and data\.val share 150 images"):
        build_at(small, tmp_path / "out")


def bytes_of(result: BuildResult) -> dict[str, bytes]:
    return {name: (result.folder / name).read_bytes() for name in SAME_BYTES}


def test_the_same_settings_give_the_same_bytes_in_another_folder(
    slim: Path, slim_built: BuildResult, build_at: Build, tmp_path: Path
) -> None:
    """Correctness 44 and 46: other places, other names, another order of checkpoints and images, a later clock."""
    moved = Path(shutil.copytree(slim, tmp_path / "far/away"))
    (moved / "more").mkdir()
    (moved / "runs/epoch-6.pt").rename(moved / "more/a.pt")
    (moved / "runs/epoch-3.pt").rename(moved / "runs/z.pt")
    with np.load(moved / "train.npz") as arrays:  # the list to recalibrate on is drawn by content, not by place
        np.savez(moved / "train.npz", **{name: array[::-1] for name, array in arrays.items()})
    again = build_at(moved, tmp_path / "again", "checkpoints.files=['runs/z.pt', 'more/*.pt', 'runs/*-5.pt']")
    assert bytes_of(again) == bytes_of(slim_built)
    assert again.record.comparison == slim_built.record.comparison


def test_a_loss_chooses_the_lowest_and_calls_a_fall_better(slim: Path, build_at: Build, tmp_path: Path) -> None:
    """Correctness 18, end to end."""
    result = build_at(slim, tmp_path / "out", "metric=cross_entropy", "gates={gain: {min: 0.0}}")
    record, values = result.record, [one.val for one in result.record.ingredients if one.val is not None]
    assert values == sorted(values)
    assert record.best_single.val == values[0]
    assert record.winner.val is not None
    assert record.winner.val <= values[0]
    assert not record.higher_is_better
    difference, gain = record.comparison, record.checks[0]
    assert record.winner.test is not None
    assert record.best_single.test is not None
    assert difference.estimate == pytest.approx(record.winner.test - record.best_single.test)
    if difference.verdict == "better":
        assert (difference.high or 0) < 0
    assert gain.measured == pytest.approx(-(difference.estimate or 0))
    kept = [trial.val for trial in result.trials if trial.method == "greedy" and trial.kept]
    assert kept == sorted(kept, reverse=True)


def test_groups_are_resampled_whole(small: Path, build_at: Build, tmp_path: Path) -> None:
    for name in ("val", "test"):
        with np.load(small / f"{name}.npz") as arrays:
            groups = np.arange(len(arrays["labels"])) // 10
            np.savez(small / f"{name}.npz", **arrays, groups=groups)
    record = build_at(small, tmp_path / "out", UNIFORM).record
    assert (record.comparison.method, record.comparison.groups, record.comparison.n) == (
        "paired bootstrap of groups",
        13,
        130,
    )
    assert {hop.difference.groups for hop in record.hops} <= {15}
    assert record.splits["test"].groups == 13


def test_without_a_test_split_val_judges_and_the_report_says_so(slim: Path, build_at: Build, tmp_path: Path) -> None:
    result = build_at(slim, tmp_path / "out", UNIFORM, "data.test=null")
    assert (result.record.judged_on, result.record.winner.test) == ("val", None)
    assert result.record.comparison.n == 150
    assert "compared on val, which the search has seen; expect less" in report_of(result)
    assert not [name for name in read_build(result.folder).evaluations if name.startswith("test/")]


def test_where_no_soup_is_kept_the_best_single_ships_bit_for_bit(slim: Path, build_at: Build, tmp_path: Path) -> None:
    """Correctness 28, all rejected: no error by itself, and a failed gain gate ends with exit code 3."""
    result = build_at(slim, tmp_path / "out", "search={methods: [greedy], min_gain: 1}", "gates={gain: {min: 0}}")
    best = slim / result.record.ingredients[0].path
    assert state_sha256(load_file(result.folder / "soup.safetensors")) == state_sha256(torch.load(best)["model"])
    assert {one["reason"] for one in recipe_of(result)["rejected"]} == {"worse"}
    assert "no soup of the 3 did better" in report_of(result)
    assert result.exit_code == Exit.ACCURACY
    assert [(check.kind, check.verdict) for check in result.record.checks] == [("gain", "fail")]


def test_a_gain_beyond_reach_fails_and_one_that_is_shown_passes(small: Path, build_at: Build, tmp_path: Path) -> None:
    opposites(small)
    failed = build_at(small, tmp_path / "a", UNIFORM, "gates={gain: {min: 0.99}}")
    passed = build_at(small, tmp_path / "b", UNIFORM, "gates={gain: {min: 0.01}}")
    assert (failed.exit_code, passed.exit_code) == (Exit.ACCURACY, Exit.OK)
    assert read_build(failed.folder).record.checks[0].verdict == "fail"


def test_fp16_ingredients_make_an_fp16_soup_with_whole_statistics(
    small: Path, build_at: Build, plain_accuracy: Accuracy, tmp_path: Path
) -> None:
    """Correctness 4 and 25: dtype kept, recalibrated statistics in FP32, the score that of the file."""
    opposites(small, mean=3.0)
    for path in (small / "runs").iterdir():
        state = torch.load(path)
        torch.save(
            {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, path
        )
    result = build_at(small, tmp_path / "out", UNIFORM)
    soup = load_file(result.folder / "soup.safetensors")
    assert {tensor.dtype for name, tensor in soup.items() if "running" in name} == {torch.float32}
    assert soup["0.weight"].dtype == soup["1.bias"].dtype == torch.float16
    assert state_sha256(soup) == result.record.state_sha256
    assert plain_accuracy(small, soup, "val") == result.record.winner.val


def test_the_statistics_in_the_recipe_are_those_of_the_file(small: Path, build_at: Build, tmp_path: Path) -> None:
    """Correctness 44: the hash that pins them, worked out from the file by its definition."""
    opposites(small, mean=3.0)
    result = build_at(small, tmp_path / "out", UNIFORM)
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(result.folder / "soup.safetensors").items()):
        if "running" in name or "num_batches" in name:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert recipe_of(result)["bn"]["statistics_sha256"] == digest.hexdigest()
    with np.load(small / "train.npz") as train:
        assert recipe_of(result)["bn"]["samples_sha256"] != list_sha256(sample_sha256(one) for one in train["images"])
