"""A recipe cooked again gives the bytes that were built, or says why it cannot (correctness 3, 23, 44)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from soup import SoupError
from soup.checkpoint import load_state, read_checkpoint, state_sha256
from soup.config import load_config
from soup.files import sha256_file
from soup.pipeline import BuildResult
from soup.recook import Recooked, recook


@pytest.fixture
def recipe(slim_built: BuildResult, tmp_path: Path) -> Path:
    """recipe.json of a finished build, alone in a folder: nothing else of the build is needed."""
    return Path(shutil.copy(slim_built.folder / "recipe.json", tmp_path / "recipe.json"))


def cook(project: Path, recipe: Path, *overrides: str, out: str = "again") -> Recooked:
    def silent(what: str, done: int, total: int) -> None:
        """Shows nothing."""

    config = load_config(project / "val.yaml", overrides=overrides)
    return recook(config, recipe, recipe.parent / out, progress=silent)


def edit(recipe: Path, **changes: object) -> None:
    recipe.write_text(json.dumps(json.loads(recipe.read_bytes()) | changes))


def test_soup_and_recipe_have_the_bytes_that_were_built(slim: Path, slim_built: BuildResult, recipe: Path) -> None:
    done = cook(slim, recipe)
    for name in ("soup.safetensors", "recipe.json"):
        assert (done.folder / name).read_bytes() == (slim_built.folder / name).read_bytes()
    assert {path.name for path in done.folder.iterdir()} == {"soup.safetensors", "recipe.json", "cache"}
    assert {sha256_file(path) for path in done.ingredients} == set(slim_built.record.winner.weights)
    assert done.state_sha256 == slim_built.record.state_sha256


def test_the_recipe_decides_and_not_what_val_yaml_says_by_now(
    small: Path, slim_built: BuildResult, recipe: Path
) -> None:
    """Moved and renamed checkpoints, others beside them that cannot be read, other settings."""
    (small / "runs").rename(small / "kept")
    (small / "kept/epoch-6.pt").rename(small / "kept/best.pt")
    (small / "kept/broken.pt").write_text("not a checkpoint")
    done = cook(
        small, recipe, "checkpoints.files=['kept/*']", "checkpoints.dtype=float16", "checkpoints.use=ema",
        "batchnorm={samples: 3, batch: 2}", "search={methods: [greedy], bn_policy: averaged}",
    )  # fmt: skip
    assert sha256_file(done.folder / "soup.safetensors") == sha256_file(slim_built.folder / "soup.safetensors")


def test_a_missing_checkpoint_is_named_by_its_hash(small: Path, slim_built: BuildResult, recipe: Path) -> None:
    missing = next(sha for sha in slim_built.record.winner.weights)
    path = next(path for path in (small / "runs").iterdir() if sha256_file(path) == missing)
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(SoupError, match=f"none of 3 checkpoints has the SHA-256 {missing}"):
        cook(small, recipe)
    assert not (recipe.parent / "again").exists()


def test_other_recalibration_images_are_refused_with_both_hashes(small: Path, recipe: Path) -> None:
    with np.load(small / "train.npz") as arrays:
        images, labels = arrays["images"].copy(), arrays["labels"]
    images[0, 0, 0] ^= 1
    np.savez(small / "train.npz", images=images, labels=labels)
    pinned = json.loads(recipe.read_bytes())["bn"]["samples_sha256"]
    with pytest.raises(SoupError, match=rf"data\.train: .* list SHA-256 [0-9a-f]{{64}}, expected {pinned}"):
        cook(small, recipe)
    with pytest.raises(SoupError, match=f"list SHA-256 none, expected {pinned}"):
        cook(small, recipe, "data.train=null", "search.bn_policy=averaged")


def test_statistics_that_differ_are_an_environment_error_with_both_hashes(
    slim: Path, slim_built: BuildResult, recipe: Path
) -> None:
    """As on another machine: the same list, other bits."""
    edit(recipe, state_sha256="0" * 64)
    with pytest.raises(SoupError) as caught:
        cook(slim, recipe)
    assert (
        f"recalibrated statistics differ: the state SHA-256 is {slim_built.record.state_sha256}, expected {'0' * 64}"
        in str(caught.value)
    )
    assert caught.value.kind == "environment"
    assert not (recipe.parent / "again/soup.safetensors").exists()


def test_weights_that_were_edited_without_recalibration_are_refused(small: Path, recipe: Path) -> None:
    edit(recipe, bn={"policy": "averaged"})
    with pytest.raises(SoupError, match="the weights differ: the state SHA-256 is"):
        cook(small, recipe)


def test_a_single_is_cooked_without_any_recalibration(small: Path, recipe: Path) -> None:
    """With the policy of a single, from a recipe written by hand."""
    path = small / "runs/epoch-5.pt"
    edit(
        recipe, weights={sha256_file(path): 1.0}, bn={"policy": "own"},
        state_sha256=state_sha256(load_state(read_checkpoint(path))),
    )  # fmt: skip
    done = cook(small, recipe)
    assert done.ingredients == (path.resolve(),)
    written = load_state(read_checkpoint(done.folder / "soup.safetensors"))
    assert all(torch.equal(tensor, written[name]) for name, tensor in torch.load(path)["model"].items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "recipe.json: Invalid JSON"),
        ("[]", "recipe.json: Input should be an object"),
        ('{"schema_version": 1}', "'weights': Field required"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_entry(slim: Path, recipe: Path, text: str, expected: str) -> None:
    recipe.write_text(text)
    with pytest.raises(SoupError, match=expected):
        cook(slim, recipe)


def test_a_missing_recipe_and_one_of_a_later_version_are_refused(slim: Path, recipe: Path) -> None:
    edit(recipe, schema_version=2)
    with pytest.raises(SoupError, match="schema_version 2, expected 1"):
        cook(slim, recipe)
    recipe.unlink()
    with pytest.raises(SoupError, match="cannot be read: No such file"):
        cook(slim, recipe)


def test_a_finished_build_is_not_cooked_over(slim: Path, slim_built: BuildResult, recipe: Path) -> None:
    shutil.copytree(slim_built.folder, recipe.parent / "built")
    with pytest.raises(SoupError, match="built: holds a build"):
        cook(slim, recipe, out="built")


def test_the_command_line_cooks_in_another_process_and_says_what(
    slim: Path, slim_built: BuildResult, recipe: Path, soup: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Bit-stable across processes with the same number of threads."""
    out = recipe.parent / "again"
    done = soup("build", "--val", slim / "val.yaml", "--recipe", recipe, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["command"] == "build --recipe"
    assert document["result"]["state_sha256"] == slim_built.record.state_sha256
    assert sha256_file(out / "soup.safetensors") == sha256_file(slim_built.folder / "soup.safetensors")
    refused = soup("build", "--val", slim / "val.yaml", "--recipe", slim / "val.yaml", "-o", recipe.parent / "other")
    assert refused.returncode == 2
    assert refused.stderr.startswith("soup build --recipe: ")
