"""What a build writes down: recipe.json without history, trials.json with it, per-sample results of every candidate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from soup.bookkeeping import _trial
from soup.build_folder import read_build
from soup.checkpoint import load_state, read_checkpoint, state_sha256
from soup.evaluate import Evaluation
from soup.files import sha256_file
from soup.pipeline import BuildResult
from soup.search import Rule, Trial
from soup.statistics import paired_difference
from soup.tasks import metric_named

Build = Callable[..., BuildResult]
ACCURACY = metric_named("classification", "accuracy")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_bytes())


def strings(value: object) -> list[str]:
    """Every string of a JSON value, keys included."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *strings(item))]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_the_recipe_says_what_was_cooked_from_what(slim: Path, slim_built: BuildResult) -> None:
    recipe, record = read(slim_built.folder, "recipe.json"), slim_built.record
    files = sorted(sha256_file(path) for path in (slim / "runs").iterdir())
    assert recipe["ingredients"] == files
    assert recipe["weights"] == dict(record.winner.weights)
    assert set(recipe["weights"]) <= set(files)
    assert (recipe["metric"], recipe["dtype"], recipe["use"], recipe["base"]) == ("accuracy", "same", "raw", None)
    soup = load_state(read_checkpoint(slim_built.folder / "soup.safetensors"))
    assert recipe["state_sha256"] == record.state_sha256 == state_sha256(soup)


def test_the_recipe_lists_kept_trials_with_their_score_and_rejected_ones_with_a_reason(slim_built: BuildResult) -> None:
    recipe, trials = read(slim_built.folder, "recipe.json"), slim_built.trials
    methods = [trial for trial in trials if trial.method != "single"]
    assert [(one["method"], one["added"], one["val"], sorted(one["weights"])) for one in recipe["kept"]] == [
        (trial.method, trial.added, trial.val, list(trial.ingredients)) for trial in methods if trial.kept
    ]
    assert [(one["method"], one["reason"], sorted(one["weights"])) for one in recipe["rejected"]] == [
        (trial.method, trial.reason, list(trial.ingredients)) for trial in methods if not trial.kept
    ]
    assert recipe["rejected"]


def test_the_recipe_is_the_same_whether_rejected_candidates_stopped_early_or_not(
    slim: Path, build_at: Build, slim_built: BuildResult, tmp_path: Path
) -> None:
    """How far a rejected one was measured is history; trials.json has it."""
    build_at(slim, tmp_path / "out", "search.early_stop=false")
    for name in ("recipe.json", "soup.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (slim_built.folder / name).read_bytes()
    assert read(tmp_path / "out", "trials.json") != read(slim_built.folder, "trials.json")


def test_the_recipe_holds_no_history_no_time_no_path_and_no_version(slim: Path, slim_built: BuildResult) -> None:
    """So that equal searches give equal bytes, whenever and wherever they run (correctness 44)."""
    recipe = read(slim_built.folder, "recipe.json")
    assert not [text for text in strings(recipe) if "/" in text or ".pt" in text or "torch" in text]
    assert not {"seconds", "images", "versions", "bound", "path", "created"} & set(strings(recipe))
    assert str(slim) not in (slim_built.folder / "build.json").read_text()


def test_trials_hold_every_candidate_in_order_with_images_and_scores(slim_built: BuildResult) -> None:
    trials = read(slim_built.folder, "trials.json")
    assert [trial["method"] for trial in trials] == ["single"] * 3 + ["uniform"] + ["greedy"] * 3
    assert [trial["reason"] for trial in trials if trial["method"] == "greedy"] == ["first", "worse", "kept"]
    singles = [trial["val"] for trial in trials[:3]]
    assert singles == sorted(singles, reverse=True)
    assert trials[4]["ingredients"] == trials[0]["ingredients"]
    assert [trial["images"] for trial in trials] == [150, 150, 150, 150, 150, 64, 150]
    assert [trial["difference"] is not None for trial in trials if trial["method"] == "greedy"] == [False, False, True]


def test_a_candidate_that_stopped_early_tells_what_was_still_in_reach(slim_built: BuildResult) -> None:
    """All that it had wrong by then, taken from a perfect rest."""
    (index, stopped), *more = [pair for pair in enumerate(slim_built.trials) if pair[1].val is None]
    assert more == []
    correct = load_file(slim_built.folder / "evaluations.safetensors")[f"val/trial-{index:03d}/correct"]
    assert stopped.bound == pytest.approx(1 - (stopped.images - correct.sum()) / 150)
    assert stopped.bound < slim_built.trials[0].val
    assert (stopped.kept, stopped.reason, stopped.difference) == (False, "worse", None)


def test_each_added_checkpoint_has_its_distance_from_the_soup_it_was_to_join(
    slim: Path, slim_built: BuildResult
) -> None:
    """Over learned tensors, by plain arithmetic; the soup at hand was the best single each time."""
    states = {sha256_file(path): torch.load(path)["model"] for path in (slim / "runs").iterdir()}
    added = [trial for trial in slim_built.trials if trial.method == "greedy" and len(trial.ingredients) > 1]
    assert len(added) == 2
    for trial in added:
        (rest,) = set(trial.ingredients) - {trial.added}
        learned = [name for name in states[rest] if "running" not in name and "num_batches" not in name]
        squares = [((states[rest][name].double() - states[trial.added][name].double()) ** 2).sum() for name in learned]
        assert trial.distance == pytest.approx(float(sum(squares)) ** 0.5)
    assert {trial.distance for trial in slim_built.trials if trial not in added} == {None}


def test_the_evaluations_hold_every_candidate_on_val_and_the_two_that_matter_on_test(slim_built: BuildResult) -> None:
    arrays, trials = load_file(slim_built.folder / "evaluations.safetensors"), slim_built.trials
    for index, trial in enumerate(trials):
        if trial.val is not None:
            assert arrays[f"val/trial-{index:03d}/correct"].mean() == pytest.approx(trial.val)
    models = {"best_single": slim_built.record.best_single, "winner": slim_built.record.winner}
    for name, model in models.items():
        assert arrays[f"val/{name}/correct"].mean() == pytest.approx(model.val)
        assert arrays[f"test/{name}/correct"].mean() == pytest.approx(model.test)
    assert len(arrays) == len(trials) + 4


def test_each_trial_is_compared_with_what_it_had_to_beat_whatever_the_order_of_methods(
    slim: Path, build_at: Build, tmp_path: Path
) -> None:
    """Uniform against the best single, greedy against the soup that it would replace."""
    result = build_at(slim, tmp_path / "out", "search.methods=[greedy, uniform]")
    arrays = load_file(tmp_path / "out/evaluations.safetensors")
    best = current = arrays["val/best_single/correct"]
    for index, trial in enumerate(result.trials):
        own = arrays[f"val/trial-{index:03d}/correct"]
        if trial.difference is not None:
            expected = paired_difference(own, best if trial.method == "uniform" else current)
            assert (trial.difference.estimate, trial.difference.low) == (expected.estimate, expected.low)
        if trial.method == "greedy" and trial.kept:
            current = own
        if trial.method == "greedy" and trial.val is not None and trial.reason != "first":
            assert trial.difference is not None


def test_the_record_says_what_each_ingredient_is(slim: Path, slim_built: BuildResult) -> None:
    record = slim_built.record
    assert {Path(one.path).name for one in record.ingredients} == {"epoch-3.pt", "epoch-5.pt", "epoch-6.pt"}
    for one in record.ingredients:
        path = slim / one.path
        assert (one.sha256, one.size_bytes) == (sha256_file(path), path.stat().st_size)
        assert (one.container, one.weights) == ("model", "raw")
        assert one.cosine is not None
        assert 0.5 < one.cosine <= 1.0 + 1e-12
    assert record.best_single.weights == {record.ingredients[0].sha256: 1.0}
    assert (record.batchnorm_layers, record.judged_on, record.class_names) == (2, "test", None)


def test_the_record_counts_the_images_that_were_forwarded(slim_built: BuildResult) -> None:
    """Each candidate on val as far as it went, each soup recalibrated once; the winner's other policy; two on test."""
    candidates = {trial.ingredients: trial.images for trial in slim_built.trials}
    soups = {one: images for one, images in candidates.items() if len(one) > 1}
    cost = slim_built.record.cost
    assert cost.forwarded["singles"] == 3 * 150
    assert cost.forwarded["candidates"] == sum(soups.values())
    assert cost.forwarded["recalibration"] == 250 * len(soups)
    assert cost.forwarded["judging"] == 150 + 2 * 130
    assert cost.textbook == {"singles": 3 * 150, "candidates": 2 * 150, "recalibration": 2 * 250}
    assert cost.backend in ("torch", "onnxruntime")


def test_a_rerun_counts_the_same_images_as_reused(small: Path, build_at: Build) -> None:
    first = build_at(small, small / "out").record
    again = build_at(small, small / "out").record
    assert again.cost.forwarded == {}
    for phase in ("singles", "candidates"):
        assert again.cost.reused[phase] == first.cost.forwarded[phase] + first.cost.reused[phase]
    assert again.cost.textbook == first.cost.textbook
    assert (again.winner, again.explanation, again.optimism) == (first.winner, first.explanation, first.optimism)


def test_every_method_s_answer_is_recorded_the_best_single_first(slim_built: BuildResult) -> None:
    single, uniform, greedy = slim_built.record.answers
    assert (single.method, single.weights) == ("single", slim_built.record.best_single.weights)
    assert (uniform.method, len(uniform.weights)) == ("uniform", 3)
    kept = [trial for trial in slim_built.trials if trial.method == "greedy" and trial.kept]
    assert (greedy.method, sorted(greedy.weights), greedy.val) == ("greedy", list(kept[-1].ingredients), kept[-1].val)
    assert [answer.competing for answer in (single, uniform, greedy)] == [None] * 3


def test_the_optimism_is_that_of_the_candidates_measured_to_the_end(slim_built: BuildResult) -> None:
    found = slim_built.record.optimism
    assert found is not None
    assert found.candidates == len({trial.ingredients for trial in slim_built.trials if trial.val is not None})
    assert found.value is not None
    assert 0 <= found.value <= (found.ceiling or 0)


def notes_of(result: BuildResult) -> str:
    return "\n".join(result.record.notes)


def test_few_calibration_images_no_test_split_and_skipped_samples_are_told(
    small: Path, build_at: Build, tmp_path: Path
) -> None:
    (small / "rows.py").write_text(
        "import numpy as np\nfrom pathlib import Path\n\n\ndef rows():\n"
        "    arrays = np.load(Path(__file__).parent / 'val.npz')\n"
        "    return [*zip(arrays['images'], arrays['labels']), ('missing.png', 3)]\n"
    )
    result = build_at(
        small, tmp_path / "out", "data.val=./rows.py:rows", "data.test=null", "data.on_bad_sample=skip",
        "batchnorm.samples=100", "search.methods=[uniform]",
    )  # fmt: skip
    told = notes_of(result)
    assert "100 images to recalibrate BatchNorm on; under 250 it did harm in trials" in told
    assert "no data.test: soup and best single are compared on val" in told
    assert "data.val: 1 skipped: 150: the image is <U11 (), expected uint8" in told
    assert result.record.splits["val"].n == 150
    assert notes_of(build_at(small, tmp_path / "other", "search.methods=[uniform]")) == ""


def test_a_build_without_training_images_says_that_statistics_are_averaged(
    slim: Path, build_at: Build, tmp_path: Path
) -> None:
    result = build_at(
        slim, tmp_path / "out", "data.train=null", "search.bn_policy=averaged", "search.methods=[uniform]"
    )
    assert "no data.train: BatchNorm statistics are averaged" in notes_of(result)
    assert read(result.folder, "recipe.json")["bn"] == {"policy": result.record.winner.bn_policy}
    assert "recalibration" not in result.record.cost.forwarded


def test_the_per_sample_statistics_of_a_loss_are_its_losses(slim: Path, build_at: Build, tmp_path: Path) -> None:
    result = build_at(slim, tmp_path / "out", "metric=cross_entropy", "search.methods=[uniform]")
    losses = read_build(result.folder).per_sample("winner", "val")["loss"]
    assert losses.dtype == np.float64
    assert losses.mean() == pytest.approx(result.record.winner.val)
    assert result.record.winner.val == min(
        value for value in (*result.record.policies.values(), result.record.best_single.val) if value is not None
    )


def test_a_soup_that_is_no_number_is_rejected_as_such(small: Path, build_at: Build, tmp_path: Path) -> None:
    """Correctness 17: a loss of NaN is never kept and sorts last; the others are averaged all the same."""
    saved = torch.load(small / "runs/epoch-3.pt")
    saved["model"]["9.weight"].fill_(3e38)  # finite in the file, Inf in every output
    torch.save(saved, small / "runs/epoch-3.pt")
    bad = sha256_file(small / "runs/epoch-3.pt")
    result = build_at(small, tmp_path / "out", "metric=cross_entropy", "search.bn_policy=averaged")
    assert [one.val is None for one in result.record.ingredients] == [False, False, True]
    assert result.record.ingredients[-1].sha256 == bad
    reasons = {one["reason"] for one in read(result.folder, "recipe.json")["rejected"] if bad in one["weights"]}
    assert reasons == {"not_a_number"}
    assert bad not in result.record.winner.weights
    assert result.record.winner.val is not None


@pytest.mark.parametrize(("right", "fragile"), [(78, False), (79, True), (80, True), (81, False)])
def test_a_greedy_decision_that_one_image_would_turn_is_fragile(right: int, fragile: bool) -> None:
    """Correctness 44: 80 of 100 to beat; 80 stays and 79 would not, 79 goes and 80 would not."""

    def trial(count: int) -> Trial:
        correct = np.arange(100) < count
        evaluation = Evaluation(100, np.ones(100, bool), {"correct": correct}, count / 100, None)
        return Trial("greedy", {"a": 1.0, "b": 1.0}, evaluation, count >= 80, "kept", "b")

    kitchen = SimpleNamespace(rule=Rule(higher_is_better=True), val=SimpleNamespace(groups=None), metric=ACCURACY)
    assert _trial(trial(right), kitchen, against=trial(80).evaluation, distance=None).fragile is fragile
