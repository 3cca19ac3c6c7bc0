"""Why a search ended as it did: figures against a plain computation, and one real small project for each cause."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from soup.alike import agreement
from soup.build_folder import BuildRecord, read_build
from soup.checkpoint import load_state, read_checkpoint
from soup.pipeline import BuildResult
from soup.search_records import Explanation
from soup.statistics import paired_difference
from tests.conftest import train

State = dict[str, torch.Tensor]
Build = Callable[..., BuildResult]


def told(result: BuildResult) -> Explanation:
    assert result.record.explanation is not None
    return result.record.explanation


def causes(result: BuildResult) -> str:
    """What the report would say, the likeliest first; the soup has failed."""
    assert len(result.record.winner.weights) == 1
    return "\n".join(told(result).causes)


def paths(record: BuildRecord) -> dict[str, str]:
    return {one.sha256: Path(one.path).name for one in record.ingredients}


def state_of(folder: Path, name: str) -> State:
    return dict(torch.load(folder / "runs" / name)["model"])


def keep_only(folder: Path, states: dict[str, State]) -> None:
    """The project's checkpoints are these, and no others."""
    shutil.rmtree(folder / "runs")
    (folder / "runs").mkdir()
    for name, state in states.items():
        torch.save({"model": state}, folder / "runs" / name)


@pytest.fixture(scope="session")
def stranger(slim: Path, tmp_path_factory: pytest.TempPathFactory) -> State:
    """The same network trained from another start."""
    folder = Path(shutil.copytree(slim, tmp_path_factory.mktemp("stranger") / "project"))
    train(folder, epochs=7, keep=1, seed=5)
    return state_of(folder, "epoch-6.pt")


@pytest.fixture(scope="session")
def apart(slim: Path, stranger: State, build_at: Build, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """A build of two networks of independent start."""
    folder = Path(shutil.copytree(slim, tmp_path_factory.mktemp("apart") / "project"))
    keep_only(folder, {"a.pt": state_of(slim, "epoch-6.pt"), "b.pt": stranger})
    return build_at(folder, folder / "out")


def plain_logits(folder: Path, state: State, split: str = "val") -> np.ndarray:
    from soup.models import build_model

    network = build_model("./models.py:build", {}, folder=folder).eval()
    network.load_state_dict(state)
    with np.load(folder / f"{split}.npz") as arrays, torch.no_grad():
        pixels = (torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).float() / 255 - 0.3) / 0.35
        return np.asarray(network(pixels))


def labels_of(folder: Path) -> np.ndarray:
    with np.load(folder / "val.npz") as arrays:
        return np.asarray(arrays["labels"])


def test_a_contribution_is_what_the_model_loses_without_the_ingredient(
    slim: Path, build_at: Build, plain_accuracy: Callable[..., float], tmp_path: Path
) -> None:
    """Against weights averaged by hand, under the policy that ships."""
    result = build_at(
        slim, tmp_path / "out", "search.bn_policy=averaged", "data.train=null", "search.methods=[uniform]"
    )
    record, states = result.record, {sha: state_of(slim, name) for sha, name in paths(result.record).items()}
    assert [one.sha256 for one in told(result).contributions] == sorted(record.winner.weights)
    for one in told(result).contributions:
        rest = [states[sha] for sha in record.winner.weights if sha != one.sha256]
        mean = {
            name: sum(state[name].double() for state in rest).div(len(rest)).to(value.dtype)  # type: ignore[union-attr]
            for name, value in rest[0].items()
        }
        without = plain_accuracy(slim, mean, "val")
        assert one.without == pytest.approx(without)
        assert one.difference.estimate == pytest.approx(record.winner.val - without)  # type: ignore[operator]
        assert one.difference.n == 150


def test_what_a_pair_loses_without_one_of_them_is_the_other_alone_with_its_own_statistics(
    small: Path, build_at: Build
) -> None:
    (small / "runs/epoch-5.pt").unlink()
    result = build_at(small, small / "out", "search.methods=[uniform]")
    singles = {one.sha256: one.val for one in result.record.ingredients}
    assert len(result.record.winner.weights) == 2
    for one in told(result).contributions:
        (other,) = singles.keys() - {one.sha256}
        assert one.without == singles[other]


def test_the_ensemble_is_the_accuracy_of_averaged_logits(slim: Path, slim_built: BuildResult) -> None:
    record = slim_built.record
    logits = [
        plain_logits(slim, state_of(slim, paths(record)[sha])).astype(np.float64) for sha in record.winner.weights
    ]
    expected = float((np.mean(logits, axis=0).argmax(axis=1) == labels_of(slim)).mean())
    assert told(slim_built).ensemble == pytest.approx(expected)


def test_the_line_goes_from_the_best_single_to_its_farthest_companion_in_equal_steps(
    slim: Path, build_at: Build, plain_accuracy: Callable[..., float], tmp_path: Path
) -> None:
    """Averaged statistics, so that a soup is plain arithmetic."""
    result = build_at(
        slim, tmp_path / "out", "search.bn_policy=averaged", "data.train=null", "search.methods=[uniform]",
        "explain.line=4",
    )  # fmt: skip
    record, line = result.record, told(result).line
    assert line is not None
    states = {sha: state_of(slim, name) for sha, name in paths(record).items()}

    def flat(sha: str) -> torch.Tensor:
        learned = [one for name, one in states[sha].items() if "running" not in name and "num_batches" not in name]
        return torch.cat([one.double().flatten() for one in learned])

    (best,) = record.best_single.weights
    away = {sha: float((flat(sha) - flat(best)).norm()) for sha in states if sha != best}
    assert (line.first, line.second) == (best, max(away, key=away.__getitem__))
    assert [point.share for point in line.points] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    for point in line.points:
        mixed = {
            name: (one.double() * (1 - point.share) + states[line.second][name].double() * point.share).to(one.dtype)
            for name, one in states[line.first].items()
        }
        assert point.value == pytest.approx(plain_accuracy(slim, mixed, "val"))
        assert point.images == 150


def test_every_point_of_the_line_is_measured_on_the_same_part_of_a_large_val(
    small: Path, build_at: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soup.why.MOST_SAMPLES", 60)
    line = told(build_at(small, small / "out")).line
    assert line is not None
    assert [point.images for point in line.points] == [64] * 5  # one batch


def test_the_middle_of_the_line_is_a_soup_that_the_search_knows(
    small: Path, build_at: Build
) -> None:  # fmt: skip
    (small / "runs/epoch-5.pt").unlink()
    result = build_at(small, small / "out", "explain.line=1", "explain.contributions=false", "explain.ensemble=false")
    assert "explaining" not in result.record.cost.forwarded
    assert result.record.cost.reused.get("explaining", 0) == 0  # nothing was there from an earlier build


def test_the_plane_keeps_the_distances_of_all_checkpoints_and_the_model(slim: Path, slim_built: BuildResult) -> None:
    places = told(slim_built).plane
    assert [place.label for place in places[:3]] == [Path(one.path).name for one in slim_built.record.ingredients]
    assert (places[3].label, places[3].kind) == ("model", "model")
    assert [place.value for place in places[:3]] == [one.val for one in slim_built.record.ingredients]

    def flat(name: str) -> torch.Tensor:
        state = state_of(slim, name)
        return torch.cat(
            [state[key].double().flatten() for key in sorted(state) if "running" not in key and "num" not in key]
        )

    for one in places[:3]:
        for other in places[:3]:  # three points and their mean lie in a plane, so that it loses nothing
            drawn = np.hypot(one.x - other.x, one.y - other.y)
            assert drawn == pytest.approx(float((flat(one.label) - flat(other.label)).norm()), abs=1e-6)


def test_what_is_not_wanted_is_not_measured(slim: Path, build_at: Build, tmp_path: Path) -> None:
    result = build_at(
        slim, tmp_path / "out", "explain.contributions=false", "explain.ensemble=false", "explain.line=0"
    )  # fmt: skip
    assert dataclasses.replace(told(result), plane=()) == Explanation()
    assert "explaining" not in result.record.cost.forwarded


def test_one_checkpoint_needs_no_explanation(small: Path, build_at: Build) -> None:
    keep_only(small, {"a.pt": state_of(small, "epoch-6.pt")})
    assert told(build_at(small, small / "out")) == Explanation()


def test_the_search_s_own_cost_does_not_grow_by_what_explains_it(
    slim: Path, build_at: Build, slim_built: BuildResult, tmp_path: Path
) -> None:
    bare = build_at(slim, tmp_path / "out", "explain.contributions=false", "explain.ensemble=false", "explain.line=0")
    explained = dict(slim_built.record.cost.forwarded)
    assert explained.pop("explaining") > 0
    assert explained == bare.record.cost.forwarded


def test_the_same_build_again_explains_the_same_without_a_forward_pass(apart: BuildResult, build_at: Build) -> None:
    """With every part: a line, a plane and causes."""
    again = build_at(apart.folder.parent, apart.folder)
    assert again.record.cost.forwarded == {}
    assert told(again) == told(apart)
    assert read_build(apart.folder).record.explanation == told(again)


def test_networks_of_independent_start_are_told_by_their_weights_and_the_barrier(apart: BuildResult) -> None:
    first, *_, last = told(apart).causes
    assert first.startswith("Independent initialisation: 'a.pt' and 'b.pt' share no starting point, the cosine of ")
    assert last.startswith("A barrier: halfway between 'a.pt' and 'b.pt' the soup scores ")
    line = told(apart).line
    assert line is not None
    assert f"{line.points[2].value * 100:.2f} %, worse than both ends" in last  # type: ignore[operator]
    a, b = (
        torch.cat(
            [
                one.double().flatten()
                for one in load_state(read_checkpoint(apart.folder.parent / "runs" / name)).values()
                if one.ndim > 1
            ]
        )
        for name in ("a.pt", "b.pt")
    )
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
    assert f"weights is {float(cosine):.2f}, and" in first


def test_labels_in_another_order_are_told_by_predictions_that_agree_once_renumbered(
    small: Path, build_at: Build
) -> None:
    state, order = state_of(small, "epoch-6.pt"), torch.arange(10).roll(3)
    permuted = state | {name: state[name][order] for name in ("9.weight", "9.bias")}
    keep_only(small, {"a.pt": state, "b.pt": permuted})
    text = causes(build_at(small, small / "out"))
    assert "Permuted labels: 'a.pt' and 'b.pt' agree on 0 % of val, and on 100 % once the classes of one" in text
    assert "Independent" not in text


def test_heads_trained_apart_are_told_by_layers_that_differ_far_more_than_the_body(
    small: Path, build_at: Build
) -> None:
    state = state_of(small, "epoch-6.pt")
    generator = torch.Generator().manual_seed(0)
    fresh = torch.randn(state["9.weight"].shape, generator=generator) * state["9.weight"].std()
    keep_only(small, {"a.pt": state, "b.pt": state | {"9.weight": fresh}})
    text = causes(build_at(small, small / "out"))
    assert "Separately trained heads: the last layers of 'a.pt' and 'b.pt' are 1." in text
    assert "apart, the layers before them 0.00" in text


def test_a_val_set_too_small_to_tell_says_how_many_samples_would_decide(small: Path, build_at: Build) -> None:
    """As many as shrink the interval's arm, which goes with the root of the number, to the difference."""
    (small / "runs/epoch-3.pt").unlink()
    result = build_at(small, small / "out", "search.methods=[uniform]")
    arrays = read_build(result.folder)
    soup = load_file(result.folder / "evaluations.safetensors")["val/trial-002/correct"]
    interval = paired_difference(soup, arrays.per_sample("best_single", "val")["correct"])
    assert interval.estimate == pytest.approx(-1 / 150)
    assert causes(result).startswith(
        "val is too small to tell: the best soup ('epoch-5.pt'; 'epoch-6.pt') differs by −0.67 points, 95 % interval "
    )
    needed = 150 * ((interval.high - interval.estimate) / interval.estimate) ** 2
    (told_as,) = (line.split("about ")[1].split(" would")[0] for line in told(result).causes if "too small" in line)
    assert float(told_as.replace(",", "")) == pytest.approx(needed, rel=0.05)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("search.min_gain=0.5", "gained +1.33 points, and search.min_gain asks for +50.00 points."),
        (
            "search.confidence=0.999",
            "gained +1.33 points, which may be chance, and search.confidence asks to be 99.9 %",
        ),
    ],
)
def test_a_rule_that_asks_for_more_than_the_soup_gained_is_named_first(
    small: Path, build_at: Build, override: str, sentence: str
) -> None:
    (small / "runs/epoch-5.pt").unlink()
    first = causes(build_at(small, small / "out", override, "search.methods=[greedy]")).splitlines()[0]
    assert first.startswith("The rule is strict: the best soup ('epoch-3.pt'; 'epoch-6.pt') gained")
    assert sentence in first


def test_checkpoints_that_hardly_differ_are_told(small: Path, build_at: Build) -> None:
    state = state_of(small, "epoch-6.pt")
    keep_only(small, {"a.pt": state, "b.pt": state | {"0.weight": state["0.weight"] * (1 + 1e-6)}})
    text = causes(
        build_at(small, small / "out", "search.min_gain=0.01", "search.bn_policy=averaged", "search.methods=[greedy]")
    )
    assert "The checkpoints hardly differ: " in text
    assert " of their norm apart, so that their average is the same model." in text
    assert "too small" not in text


def test_averaged_statistics_that_fail_where_measured_ones_do_not_are_told(small: Path, build_at: Build) -> None:
    """One checkpoint was saved with statistics that have nothing to do with its weights."""
    state, stale = state_of(small, "epoch-6.pt"), state_of(small, "epoch-5.pt")
    keep_only(small, {"a.pt": state, "b.pt": stale | {"5.running_mean": stale["5.running_mean"] + 9}})
    first = causes(build_at(small, small / "out", "search.bn_policy=averaged")).splitlines()[0]
    assert first.startswith("BatchNorm: halfway between 'a.pt' and 'b.pt' the soup scores ")
    assert first.endswith("set search.bn_policy to recalibrated.")


def test_a_barrier_without_training_images_is_told_as_batchnorm_s(small: Path, build_at: Build) -> None:
    """Two checkpoints of one function, whose BatchNorm undoes a change of sign, but not in an average."""
    state = state_of(small, "epoch-6.pt")
    turned = {name: -state[name] for name in ("0.weight", "1.running_mean", "1.weight")}
    keep_only(small, {"a.pt": state, "b.pt": state | turned})
    text = causes(build_at(small, small / "out", "search.bn_policy=averaged", "data.train=null"))
    assert "BatchNorm: without data.train the statistics of 2 layers are averaged" in text
    assert "A barrier: " in text


def test_a_soup_that_is_no_number_is_told(small: Path, build_at: Build) -> None:
    state = state_of(small, "epoch-6.pt")
    keep_only(small, {"a.pt": state, "b.pt": state | {"9.weight": torch.full_like(state["9.weight"], 3e38)}})
    text = causes(build_at(small, small / "out", "search.bn_policy=averaged", "metric=cross_entropy"))
    assert "The best soup ('a.pt'; 'b.pt') gives NaN or Inf for 150 of 150 images of val." in text


def test_a_barrier_of_a_loss_is_above_both_ends(small: Path, build_at: Build, stranger: State) -> None:
    keep_only(small, {"a.pt": state_of(small, "epoch-6.pt"), "b.pt": stranger})
    text = causes(build_at(small, small / "out", "metric=cross_entropy"))
    assert "A barrier: halfway between " in text


def test_predictions_agree_once_the_commonest_pairs_of_classes_are_matched() -> None:
    first = np.array([0, 0, 0, 1, 1, 2, 2, -1])
    second = np.array([1, 1, 2, 0, 0, 2, 0, -1])
    assert agreement(first, second) == (1 / 8, 5 / 8)
    assert agreement(first[:0], second[:0]) == (0.0, 0.0)


def test_renumbering_finds_the_best_of_all_where_classes_are_only_permuted() -> None:
    random = np.random.default_rng(0)
    first = random.integers(0, 7, 300)
    second = np.where(random.random(300) < 0.9, random.permutation(7)[first], random.integers(0, 7, 300))
    table = np.array([[int(((first == a) & (second == b)).sum()) for b in range(7)] for a in range(7)])
    best = max(
        sum(table[row, column] for row, column in enumerate(order)) for order in itertools.permutations(range(7))
    )
    assert agreement(first, second) == (float((first == second).mean()), best / 300)
