"""Every method of the search through a whole build, with what it needs of the user's files; and cooked again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from soup import SoupError
from soup.build_folder import read_build
from soup.checkpoint import read_checkpoint
from soup.config import load_config
from soup.files import sha256_file
from soup.pipeline import BuildResult
from soup.recook import recook
from soup.search_sections import METHODS

Build = Callable[..., BuildResult]
VAL = 150  # images
QUICK = ("explain={contributions: false, ensemble: false, line: 0}", "search.backend=torch")
NEEDS = {
    "ranked": ("search.budget={evaluations: 3}",), "wise_ft": ("checkpoints.base=base.pt",),
    "model_stock": ("checkpoints.base=base.pt",),
}  # fmt: skip


def write_base(project: Path) -> Path:
    """A base that the ingredients scatter around: their mean, moved a little, so that all angles are acute."""
    models = [torch.load(path)["model"] for path in sorted((project / "runs").iterdir())]
    random = torch.Generator().manual_seed(0)
    base = {}
    for name, tensor in models[0].items():
        mean = torch.stack([model[name].double() for model in models]).mean(0)
        if tensor.is_floating_point() and "running" not in name:
            mean += 0.02 * torch.randn(mean.shape, generator=random, dtype=torch.float64)
        base[name] = mean.to(tensor.dtype)
    torch.save({"model": base}, project / "base.pt")
    return project / "base.pt"


def spoil_singles(project: Path) -> None:
    """Other statistics than the layers receive, so that a soup, whose are measured again, wins."""
    for path in (project / "runs").iterdir():
        saved = torch.load(path)
        saved["model"]["1.running_mean"] += 5
        torch.save(saved, path)


def with_method(project: Path, out: Path, build_at: Build, method: str, *overrides: str) -> BuildResult:
    if "checkpoints.base=base.pt" in NEEDS.get(method, ()):
        write_base(project)
    return build_at(project, out, f"search.methods=[{method}]", *NEEDS.get(method, ()), *QUICK, *overrides)


def silent(what: str, done: int, total: int) -> None:
    """Shows nothing."""


def recipe_of(result: BuildResult) -> dict[str, Any]:
    return dict(json.loads((result.folder / "recipe.json").read_bytes()))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_its_answer_and_a_model_that_reads_back(
    small: Path, build_at: Build, tmp_path: Path, method: str
) -> None:
    result = with_method(small, tmp_path / "out", build_at, method)
    assert [answer.method for answer in result.record.answers] == ["single", method]
    assert {trial.method for trial in result.trials} == {"single", method}
    assert result.record.answers[1].val is not None
    assert (result.record.answers[1].competing is not None) == method.startswith("learned")
    read_build(result.folder)
    first = {name: (result.folder / name).read_bytes() for name in ("soup.safetensors", "recipe.json")}
    again = with_method(small, result.folder, build_at, method)
    assert not any(again.record.cost.forwarded.values())
    assert again.not_reused == ()
    assert {name: (again.folder / name).read_bytes() for name in first} == first


@pytest.mark.parametrize("method", ["wise_ft", "model_stock", "learned", "learned_layers", "ema", "greedy_repeated"])
def test_a_soup_with_shares_is_cooked_again_from_its_recipe_to_the_same_bytes(
    small: Path, build_at: Build, tmp_path: Path, method: str
) -> None:
    spoil_singles(small)
    built = with_method(small, tmp_path / "out", build_at, method)
    assert built.record.winner.method == method
    overrides = NEEDS.get(method, ()) if "base" in "".join(NEEDS.get(method, ())) else ()
    config = load_config(small / "val.yaml", overrides=overrides)
    done = recook(config, built.folder / "recipe.json", tmp_path / "again", progress=silent)
    for name in ("soup.safetensors", "recipe.json"):
        assert sha256_file(done.folder / name) == sha256_file(built.folder / name)


def test_a_recipe_with_a_base_is_refused_without_it_or_with_another(
    small: Path, build_at: Build, tmp_path: Path
) -> None:
    spoil_singles(small)
    built = with_method(small, tmp_path / "out", build_at, "wise_ft")
    recipe = built.folder / "recipe.json"
    base = read_checkpoint(small / "base.pt").sha256
    assert recipe_of(built)["base"] == base
    assert base in recipe_of(built)["weights"]
    with pytest.raises(SoupError, match=rf"checkpoints\.base: the SHA-256 is none, expected {base}"):
        recook(load_config(small / "val.yaml"), recipe, tmp_path / "again", progress=silent)
    saved = torch.load(small / "base.pt")
    saved["model"]["9.bias"] += 1
    torch.save(saved, small / "base.pt")
    other = load_config(small / "val.yaml", overrides=["checkpoints.base=base.pt"])
    with pytest.raises(SoupError, match=rf"checkpoints\.base: the SHA-256 is [0-9a-f]+, expected {base}"):
        recook(other, recipe, tmp_path / "again", progress=silent)


def test_the_base_is_no_ingredient(small: Path, build_at: Build, tmp_path: Path) -> None:
    result = with_method(small, tmp_path / "out", build_at, "wise_ft")
    base = read_checkpoint(small / "base.pt").sha256
    assert len(recipe_of(result)["ingredients"]) == 3
    assert base not in recipe_of(result)["ingredients"]
    with pytest.raises(SoupError, match=r"checkpoints\.base: '.*epoch-5\.pt' is one of checkpoints\.files too"):
        build_at(small, tmp_path / "other", "search.methods=[wise_ft]", "checkpoints.base=runs/epoch-5.pt")


def test_model_stock_takes_two_ingredients(small: Path, build_at: Build, tmp_path: Path) -> None:
    write_base(small)
    option = "checkpoints={files: [runs/epoch-5.pt], base: base.pt}"
    single = build_at(small, tmp_path / "out", option, "search.methods=[model_stock]", *QUICK)
    assert [answer.method for answer in single.record.answers] == ["single"]


def test_wise_ft_interpolates_also_a_lone_ingredient(small: Path, build_at: Build, tmp_path: Path) -> None:
    write_base(small)
    option = "checkpoints={files: [runs/epoch-5.pt], base: base.pt}"
    result = build_at(small, tmp_path / "out", option, "search.methods=[wise_ft]", *QUICK)
    assert [answer.method for answer in result.record.answers] == ["single", "wise_ft"]


def test_ranked_spends_its_budget_and_no_more(small: Path, build_at: Build, tmp_path: Path) -> None:
    result = with_method(small, tmp_path / "out", build_at, "ranked")
    assert sum(trial.method == "ranked" for trial in result.trials) == 3
    assert result.record.cost.forwarded["candidates"] <= 3 * VAL


@pytest.mark.parametrize(("order", "pilots"), [("recorded", False), ("pilot", True)])
def test_a_pilot_runs_where_nothing_is_recorded_or_it_is_asked_for(
    small: Path, build_at: Build, tmp_path: Path, order: str, pilots: bool
) -> None:
    """The order in which singles are tried shows in the ledger's questions; with a pilot it is that of SHA-256."""
    for index, path in enumerate(sorted((small / "runs").iterdir())):
        saved = torch.load(path)
        torch.save({**saved, "val_acc": [0.7, 0.9, 0.8][index]}, path)
    option = f"checkpoints={{files: ['runs/*.pt'], order: {order}}}"
    result = build_at(small, tmp_path / "out", option, "search.methods=[uniform]", *QUICK)
    tried = [line.split(" ")[0] for line in result.not_reused if "(own, val)" in line]
    by_sha = [path.name for path in sorted((small / "runs").iterdir(), key=lambda path: read_checkpoint(path).sha256)]
    assert tried == (by_sha if pilots else ["epoch-5.pt", "epoch-6.pt", "epoch-3.pt"])


def test_methods_along_a_trajectory_need_one(small: Path, build_at: Build, tmp_path: Path) -> None:
    for path in (small / "runs").iterdir():
        torch.save({"model": torch.load(path)["model"]}, path)
    with pytest.raises(SoupError, match=r"search\.methods: 'last_k' orders checkpoints by epoch, which not all"):
        build_at(small, tmp_path / "out", "search.methods=[last_k]", *QUICK)


def test_last_k_and_ema_go_from_the_oldest_to_the_newest(small: Path, build_at: Build, tmp_path: Path) -> None:
    result = build_at(small, tmp_path / "out", "search.methods=[last_k, ema]", *QUICK)
    epochs = {read_checkpoint(path).sha256: int(path.stem[-1]) for path in (small / "runs").iterdir()}
    last_k = [sorted(epochs[sha] for sha in trial.ingredients) for trial in result.trials if trial.method == "last_k"]
    assert last_k == [[5, 6], [3, 5, 6]]
    for trial in result.trials:
        if trial.method == "ema":
            assert trial.weights is not None
            weights = [trial.weights[sha] for sha in sorted(epochs, key=lambda sha: epochs[sha])]
            assert weights == sorted(weights)  # type: ignore[type-var]
            assert weights[-1] == 1


def test_what_fits_on_val_competes_on_what_no_fit_has_seen(small: Path, build_at: Build, tmp_path: Path) -> None:
    result = with_method(small, tmp_path / "out", build_at, "learned, learned_layers, uniform")
    for answer in result.record.answers:
        assert answer.competing is not None
        share = answer.competing * VAL / 2  # of about half the images, a whole number of right ones
        assert 0 < share < VAL
    _, plain, layered, _ = result.record.answers
    assert all(isinstance(weight, float) for weight in plain.weights.values())
    assert not any(isinstance(weight, float) for weight in layered.weights.values())
    assert result.record.cost.forwarded["fitting"] > 0


def test_the_model_of_a_layered_soup_is_what_its_recipe_says(small: Path, build_at: Build, tmp_path: Path) -> None:
    """Against the formula in numpy, tensor by tensor; statistics are measured anew and are not compared."""
    spoil_singles(small)
    result = with_method(small, tmp_path / "out", build_at, "learned_layers")
    assert result.record.winner.method == "learned_layers"
    shares = {sha: dict(weight) for sha, weight in result.record.winner.weights.items()}  # type: ignore[arg-type]
    assert all("" in weight for weight in shares.values())
    files = {read_checkpoint(path).sha256: torch.load(path)["model"] for path in (small / "runs").iterdir()}
    soup = load_file(result.folder / "soup.safetensors")
    for name in ("0.weight", "1.weight", "4.weight", "9.weight", "9.bias"):
        layer = name.partition(".")[0]
        parts = [shares[sha][layer] * files[sha][name].double().numpy() for sha in sorted(shares)]
        expected = sum(parts) / sum(shares[sha][layer] for sha in shares)
        np.testing.assert_allclose(soup[name].numpy(), expected, rtol=1e-6, atol=1e-7)
