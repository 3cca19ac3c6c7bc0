"""A recipe as a scored network: cooked, its BatchNorm as the policy says, evaluated as it will ship."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from calib.batchnorm import recalibrate
from calib.samples import list_sha256
from soup.average import cook
from soup.checkpoint import load_state, read_checkpoint, state_sha256
from soup.config import load_config
from soup.evaluate import evaluate
from soup.larder import gather, load_data
from soup.models import build_model, load, torch_predict
from soup.pipeline import BuildResult, open_kitchen
from soup.score import Kitchen
from soup.serving import write_soup
from soup.tensors import StateDict

Open = Callable[..., Kitchen]


@pytest.fixture
def open_at(tmp_path: Path) -> Open:
    """(project, *overrides) → a kitchen on it."""

    def silent(what: str, done: int, total: int) -> None:
        """Shows nothing."""

    def run(folder: Path, *overrides: str) -> Kitchen:
        config = load_config(folder / "val.yaml", overrides=("search.backend=torch", *overrides))
        larder = gather(config, exclude=None, progress=silent)
        splits = load_data(config, ("train", "val", "test"), cache=tmp_path / "cache", progress=silent)
        return open_kitchen(config, larder, splits, progress=silent)

    return run


def plain_network(folder: Path) -> nn.Module:
    return build_model("./models.py:build", {}, folder=folder)


def tensors(folder: Path, name: str, rows: np.ndarray | slice = slice(None)) -> torch.Tensor:
    """A split's images as val.yaml normalises them, without this project's data code."""
    with np.load(folder / f"{name}.npz") as arrays:
        return torch.from_numpy(arrays["images"][rows]).permute(0, 3, 1, 2).float().div(255).sub(0.3).div(0.35)


def accuracy(model: nn.Module, folder: Path, name: str) -> float:
    """Plain torch, one batch."""
    with torch.no_grad(), np.load(folder / f"{name}.npz") as arrays:
        right = model.eval()(tensors(folder, name)).argmax(1).numpy() == arrays["labels"]
    return int(right.sum()) / len(right)


def equal(kitchen: Kitchen, count: int = 3) -> dict[str, float]:
    return dict.fromkeys(sorted(kitchen.ingredients)[:count], 1.0)


def batchnorm_of(state: StateDict) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if "running" in name}


def test_a_single_is_scored_with_its_own_statistics_as_plain_torch_scores_it(slim: Path, open_at: Open) -> None:
    """Correctness 31: 150 images in batches of 64, each counted once."""
    kitchen = open_at(slim)
    for sha, checkpoint in kitchen.ingredients.items():
        model = plain_network(slim)
        model.load_state_dict(torch.load(checkpoint.path)["model"])
        evaluation = kitchen.score({sha: 1.0}, None)
        assert evaluation.value == accuracy(model, slim, "val")
        assert evaluation.per_sample["correct"].shape == (150,)
        assert evaluation.seen.all()
    assert kitchen.images == {"singles": 450}


def test_a_soup_is_scored_as_averaged_weights_with_statistics_measured_on_the_drawn_images(
    slim: Path, open_at: Open
) -> None:
    """Correctness 19 and 25, by hand: mean of the weights, one pass in plain torch, accuracy."""
    kitchen = open_at(slim)
    weights, calibration = equal(kitchen), kitchen.calibration
    assert calibration is not None
    model = plain_network(slim)
    states = [torch.load(one.path)["model"] for one in kitchen.ingredients.values()]
    model.load_state_dict({name: sum(state[name].double() for state in states) / 3 for name in states[0]})
    recalibrate(model, tensors(slim, "train", calibration.order).split(calibration.batch))
    assert kitchen.score(weights, None).value == accuracy(model, slim, "val")
    for name, tensor in batchnorm_of(kitchen.state()).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_no_statistics_are_left_over_from_the_candidate_before(slim: Path, open_at: Open) -> None:
    """Correctness 24: every buffer is the candidate's own, whatever the network held."""
    kitchen = open_at(slim)
    first, *others = sorted(kitchen.ingredients)
    weights = equal(kitchen)
    kitchen.prepare(weights, "averaged")
    fresh = state_sha256(kitchen.state())
    assert fresh == state_sha256(cook(weights, kitchen.ingredients))
    kitchen.prepare(weights, "recalibrated")
    assert state_sha256(kitchen.state()) != fresh
    kitchen.prepare({first: 1.0}, "own")
    assert state_sha256(kitchen.state()) == state_sha256(load_state(kitchen.ingredients[first]))
    kitchen.prepare(dict.fromkeys(others, 1.0), "recalibrated")
    kitchen.prepare(weights, "averaged")
    assert state_sha256(kitchen.state()) == fresh


def test_recalibration_gives_the_same_bits_whatever_the_network_did_before(slim: Path, open_at: Open) -> None:
    """Correctness 23: the first thing that a network does, and the last of many."""
    kitchen, fresh = open_at(slim), open_at(slim)
    for sha in kitchen.ingredients:
        kitchen.score({sha: 1.0}, None)
    one, other = (each.prepare(equal(each), "recalibrated") for each in (kitchen, fresh))
    assert one is not None
    assert other is not None
    assert one.sha256 == other.sha256
    assert fresh.model.get_parameter("4.weight").is_contiguous(memory_format=torch.channels_last)
    assert state_sha256(kitchen.state()) == state_sha256(fresh.state())


def test_a_candidate_is_measured_once_and_loaded_again_with_the_statistics_that_were_scored(
    slim: Path, open_at: Open
) -> None:
    """Correctness 25: also where the same pass would round differently the second time, as a GPU may."""
    kitchen = open_at(slim)
    weights = equal(kitchen)
    kitchen.score(weights, None)
    scored = state_sha256(kitchen.state())
    kitchen.score({next(iter(weights)): 1.0}, None)
    kitchen.prepare(weights, "recalibrated")
    assert state_sha256(kitchen.state()) == scored
    assert kitchen.images["recalibration"] == 250


def test_a_candidate_that_comes_twice_is_evaluated_once(slim: Path, open_at: Open) -> None:
    kitchen = open_at(slim)
    weights = equal(kitchen)
    assert kitchen.score(weights, None) is kitchen.score(dict(reversed(weights.items())), None)
    assert kitchen.images == {"candidates": 150, "recalibration": 250}


@pytest.mark.parametrize("modules", [("ledger",), ("ledger", "score")])
def test_outputs_are_left_to_the_ledger_and_made_again_where_it_could_not_keep_them(
    slim: Path, open_at: Open, monkeypatch: pytest.MonkeyPatch, modules: tuple[str, ...]
) -> None:
    kitchen, weights = open_at(slim), {}
    for sha in kitchen.ingredients:
        weights = {sha: 1.0}
        assert kitchen.score(weights, None).outputs is None
    kept = kitchen.with_outputs(weights, "own", kitchen.val)
    assert kitchen.images == {"singles": 450}
    for module in modules:
        monkeypatch.setattr(f"soup.{module}.LARGEST_OUTPUTS_BYTES", 0)
    forgetful = open_at(slim)
    forgetful.score(weights, None)
    again = forgetful.with_outputs(weights, "own", forgetful.val)
    assert forgetful.images == {"singles": 150, "judging": 150}
    assert again.outputs is not None
    assert kept.outputs is not None
    np.testing.assert_array_equal(again.outputs["output"], kept.outputs["output"])


def test_the_calibration_list_is_hashed_by_content_and_order(slim: Path, open_at: Open) -> None:
    calibration = open_at(slim, "batchnorm.samples=40").calibration
    assert calibration is not None
    hashes = [calibration.split.hashes[row] for row in calibration.order]
    assert len(hashes) == 40
    assert calibration.list_sha256 == list_sha256(hashes) != list_sha256(reversed(hashes))


def half(folder: Path) -> None:
    """Save the checkpoints in FP16, as Ultralytics does."""
    for path in (folder / "runs").iterdir():
        state = torch.load(path)["model"]
        torch.save(
            {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, path
        )


def test_fp16_ingredients_stay_fp16_but_measured_statistics_are_kept_whole(small: Path, open_at: Open) -> None:
    half(small)
    kitchen = open_at(small)
    kitchen.prepare(equal(kitchen), "recalibrated")
    state = kitchen.state()
    assert {tensor.dtype for tensor in batchnorm_of(state).values()} == {torch.float32}
    assert {state[name].dtype for name in ("0.weight", "1.weight", "9.bias")} == {torch.float16}
    kitchen.prepare(equal(kitchen), "averaged")
    assert {tensor.dtype for tensor in batchnorm_of(kitchen.state()).values()} == {torch.float16}


@pytest.mark.parametrize("policy", ["averaged", "recalibrated"])
@pytest.mark.parametrize("dtype", ["same", "float16", "bfloat16"])
def test_what_is_written_is_what_was_evaluated(
    slim: Path, open_at: Open, tmp_path: Path, policy: str, dtype: str
) -> None:
    """Correctness 25: the file, loaded into a fresh network, gives the same outputs bit for bit."""
    kitchen = open_at(slim, f"checkpoints.dtype={dtype}")
    weights = equal(kitchen)
    measured = kitchen.prepare(weights, policy)  # type: ignore[arg-type]
    state, scored = kitchen.state(), kitchen.with_outputs(weights, policy, kitchen.val)  # type: ignore[arg-type]
    write_soup(tmp_path / "soup.safetensors", kitchen, weights, state=state, measured=measured)
    written = load_state(read_checkpoint(tmp_path / "soup.safetensors"))
    assert state_sha256(written) == state_sha256(state)
    fresh = open_at(slim)
    load(fresh.model, written)
    predict = torch_predict(fresh.model, device=fresh.device)
    outputs = evaluate(predict, fresh.val, fresh.metric, keep_outputs=True).outputs
    assert outputs is not None
    assert scored.outputs is not None
    np.testing.assert_array_equal(outputs["output"], scored.outputs["output"])


def test_a_file_that_is_not_what_was_scored_is_a_bug_and_says_so(slim: Path, open_at: Open, tmp_path: Path) -> None:
    """Correctness 24: averaged weights under the statistics of another model."""
    kitchen = open_at(slim)
    weights = equal(kitchen)
    measured = kitchen.prepare(weights, "recalibrated")
    stale = kitchen.state() | {"1.running_mean": torch.zeros(8)}
    with pytest.raises(AssertionError, match="what was written is not what was scored"):
        write_soup(tmp_path / "soup.safetensors", kitchen, weights, state=stale, measured=None)
    write_soup(tmp_path / "soup.safetensors", kitchen, weights, state=kitchen.state(), measured=measured)


def test_the_state_is_a_copy_that_the_next_candidate_leaves_alone(slim: Path, open_at: Open) -> None:
    kitchen = open_at(slim)
    first, second, _ = sorted(kitchen.ingredients)
    kitchen.prepare({first: 1.0}, "own")
    state = kitchen.state()
    kept = state_sha256(state)
    kitchen.prepare({second: 1.0}, "own")
    assert state_sha256(state) == kept


def test_the_search_is_told_as_one_piece_of_work_that_only_goes_forward(slim: Path, open_at: Open) -> None:
    told: list[tuple[str, int, int]] = []
    kitchen = open_at(slim)
    kitchen.progress = lambda *report: told.append(report)
    for sha in kitchen.ingredients:
        kitchen.score({sha: 1.0}, None)
    for count in (3, 2):
        kitchen.score(equal(kitchen, count), None)
    names, done, totals = zip(*told, strict=True)
    assert set(names) == {"scoring candidates"}
    assert list(done) == sorted(done)
    assert set(totals) == {6 * 150 + 3 * 250}  # 3 singles; the uniform soup and 2 greedy ones, recalibrated
    assert done[-1] == 5 * 150 + 2 * 250


def test_a_wider_checkpoint_is_stored_as_the_network_that_was_scored_with_it(
    slim: Path, tmp_path: Path, build_at: Callable[..., BuildResult]
) -> None:
    """Correctness 25: float64 files in a float32 network; what was scored is float32."""
    folder = Path(shutil.copytree(slim, tmp_path / "wide"))
    for path in (folder / "runs").iterdir():
        saved = torch.load(path, weights_only=True)
        state = {name: t.double() if t.is_floating_point() else t for name, t in saved["model"].items()}
        torch.save({**saved, "model": state}, path)
    result = build_at(folder, tmp_path / "out")
    soup = load_state(read_checkpoint(result.folder / "soup.safetensors"))
    assert {t.dtype for t in soup.values()} == {torch.float32, torch.int64}
    assert state_sha256(soup) == result.record.state_sha256
