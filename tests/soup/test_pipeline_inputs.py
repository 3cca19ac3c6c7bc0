"""`soup build` on inputs of every kind, and where it is broken off: what the folder holds then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from soup import SoupError
from soup.build_folder import read_build
from soup.checkpoint import state_sha256
from soup.files import STAGING_PREFIX, sha256_file
from soup.pipeline import BuildResult

Build = Callable[..., BuildResult]
Accuracy = Callable[..., float]
UNIFORM = "search.methods=[uniform]"


def recipe_of(result: BuildResult) -> dict[str, Any]:
    return dict(json.loads((result.folder / "recipe.json").read_bytes()))


def report_of(result: BuildResult) -> str:
    return (result.folder / "report.md").read_text()


def only(folder: Path, *names: str) -> None:
    for path in (folder / "runs").iterdir():
        if path.name not in names:
            path.unlink()


def test_one_checkpoint_is_the_model_and_the_report_says_that_there_was_nothing_to_average(
    small: Path, build_at: Build, tmp_path: Path
) -> None:
    """Correctness 6 and 28: bit-identical to its file."""
    only(small, "epoch-5.pt")
    result = build_at(small, tmp_path / "out")
    soup, file = load_file(result.folder / "soup.safetensors"), torch.load(small / "runs/epoch-5.pt")["model"]
    assert state_sha256(soup) == state_sha256(file)
    assert (result.record.winner.method, result.record.winner.bn_policy) == ("single", "own")
    assert [trial.method for trial in result.trials] == ["single"]
    assert "one checkpoint: there was nothing to average, and it is the model" in result.record.notes
    assert "with one checkpoint there was nothing to average" in report_of(result)
    assert recipe_of(result)["bn"] == {"policy": "own"}


def test_copies_of_one_checkpoint_are_that_checkpoint(small: Path, build_at: Build, tmp_path: Path) -> None:
    """Correctness 16 and 28: copies by bytes, and by tensors in another file."""
    only(small, "epoch-5.pt")
    saved = torch.load(small / "runs/epoch-5.pt")
    shutil.copy(small / "runs/epoch-5.pt", small / "runs/copy.pt")
    torch.save({"state_dict": saved["model"]}, small / "runs/resaved.pt")
    result = build_at(small, tmp_path / "out")
    assert state_sha256(load_file(result.folder / "soup.safetensors")) == state_sha256(saved["model"])
    assert len(result.record.ingredients) == 1
    assert report_of(result).count("counted once") == 2


def test_a_model_without_batchnorm_passes_through_and_the_report_says_so(
    small: Path, build_at: Build, tmp_path: Path
) -> None:
    """Correctness 26: two linear models, bad by themselves, whose average holds the mean image of each class."""
    (small / "plain.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    only(small, "epoch-5.pt", "epoch-6.pt")
    with np.load(small / "train.npz") as arrays:
        flat = torch.from_numpy(arrays["images"]).float().reshape(-1, 64) / 255
        means = torch.stack([flat[arrays["labels"] == label].mean(0) for label in range(10)])
    bias, noise = -means.square().sum(1) / 2, torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    for name, sign in (("epoch-5.pt", 1), ("epoch-6.pt", -1)):
        torch.save({"1.weight": means + sign * noise, "1.bias": bias}, small / "runs" / name)
    result = build_at(small, tmp_path / "out", "model=./plain.py:build", "preprocess={color: gray}", UNIFORM)
    assert "the network has no BatchNorm: nothing to recalibrate" in result.record.notes
    assert (result.record.winner.method, result.record.winner.bn_policy) == ("uniform", "averaged")
    assert recipe_of(result)["bn"] == {"policy": "averaged"}
    assert [hop.name for hop in result.record.hops] == ["best single → soup"]
    assert result.record.batchnorm_layers == result.record.cost.forwarded.get("recalibration", 0) == 0
    assert "## BatchNorm" not in report_of(result)


def test_tied_weights_stay_tied(small: Path, build_at: Build, plain_accuracy: Accuracy, tmp_path: Path) -> None:
    """Correctness 5."""
    (small / "tied.py").write_text(
        "from torch import nn\nimport models\n\n\ndef build():\n    net = models.build()\n"
        "    net.add_module('10', nn.Linear(10, 10))\n    net.add_module('11', nn.Linear(10, 10))\n"
        "    net[11].weight = net[10].weight\n    return net\n"
    )
    for path in (small / "runs").iterdir():
        state, square = torch.load(path)["model"], torch.eye(10) + float(path.stem[-1]) / 10
        torch.save(
            {**state, "10.weight": square, "10.bias": square[0], "11.weight": square, "11.bias": square[1]}, path
        )
    result = build_at(small, tmp_path / "out", "model=./tied.py:build", UNIFORM)
    soup = load_file(result.folder / "soup.safetensors")
    assert torch.equal(soup["10.weight"], soup["11.weight"])
    assert plain_accuracy(small, soup, "val", model="./tied.py:build") == result.record.winner.val


def test_a_network_whose_names_share_a_prefix_is_built(small: Path, build_at: Build, tmp_path: Path) -> None:
    """Reading strips `model.`; what is read back is named as the network names it."""
    (small / "wrapped.py").write_text(
        "from torch import nn\nimport models\n\n\nclass Wrapped(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.model = models.build()\n\n"
        "    def forward(self, x):\n        return self.model(x)\n"
    )
    for path in (small / "runs").iterdir():
        torch.save({f"model.{name}": tensor for name, tensor in torch.load(path)["model"].items()}, path)
    result = build_at(small, tmp_path / "out", "model=./wrapped.py:Wrapped", UNIFORM)
    assert all(name.startswith("model.") for name in load_file(result.folder / "soup.safetensors"))


def test_a_mix_of_raw_and_ema_weights_is_refused_and_one_policy_is_taken(
    small: Path, build_at: Build, tmp_path: Path
) -> None:
    """Correctness 13."""
    saved = torch.load(small / "runs/epoch-5.pt")
    averaged = {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in saved["model"].items()}
    torch.save({"model": saved["model"], "model_ema": averaged}, small / "runs/epoch-5.pt")
    with pytest.raises(SoupError, match=r"ema weights in 1 .* and raw weights in 2 .* expected one kind"):
        build_at(small, tmp_path / "out")
    result = build_at(small, tmp_path / "out", UNIFORM, "checkpoints.use=raw")
    assert {one.weights for one in result.record.ingredients} == {"raw"}
    assert recipe_of(result)["use"] == "raw"


def test_class_names_are_carried_from_the_folders_of_val(small: Path, build_at: Build, tmp_path: Path) -> None:
    names = [f"digit {index}" for index in range(10)]
    with np.load(small / "val.npz") as arrays:
        for row, (image, label) in enumerate(zip(arrays["images"], arrays["labels"], strict=True)):
            (small / "val" / names[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(small / "val" / names[label] / f"{row}.png")
    result = build_at(small, tmp_path / "out", "data.val=val", UNIFORM)
    assert read_build(result.folder).record.class_names == tuple(names)


def interrupting(stage: str, done: int) -> Callable[[str, int, int], None]:
    """Ctrl-C as soon as the work that begins with `stage` has come so far."""

    def progress(what: str, now: int, total: int) -> None:
        if what.startswith(stage) and now >= done:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    ("stage", "done"),
    [("reading", 2), ("decoding val", 9), ("scoring", 500), ("judging", 64)],
)
def test_an_interrupt_leaves_nothing_half_written(
    slim: Path, build_at: Build, tmp_path: Path, stage: str, done: int
) -> None:
    """Only the decoded images and the ledger stay, whole, for the next build to reuse."""
    with pytest.raises(KeyboardInterrupt):
        build_at(slim, tmp_path / "out", progress=interrupting(stage, done))
    left = {path.name for path in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
    assert left <= {"cache", "ledger.sqlite"}
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(STAGING_PREFIX)]
    assert not [path for path in slim.rglob("*") if path.name.startswith(STAGING_PREFIX)]


def test_a_build_that_fails_leaves_the_earlier_one_as_it_was(
    small: Path, build_at: Build, slim_built: BuildResult, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(slim_built.folder, tmp_path / "out"))
    (out / "ledger.sqlite").unlink()  # nothing would be scored with it

    def files() -> dict[Path, str]:
        return {path: sha256_file(path) for path in out.iterdir() if path.is_file() and path.name != "ledger.sqlite"}

    before = files()
    with pytest.raises(KeyboardInterrupt):
        build_at(small, out, progress=interrupting("scoring", 100))

    def trainer(what: str, done: int, total: int) -> None:
        if what.startswith("judging"):
            (small / "runs/epoch-6.pt").write_bytes((small / "runs/epoch-6.pt").read_bytes() + b"more")

    with pytest.raises(SoupError, match="changed since it was checked"):
        build_at(small, out, progress=trainer)
    assert files() == before
    assert read_build(out).record.state_sha256 == slim_built.record.state_sha256


def test_a_second_build_takes_the_place_of_the_first(small: Path, build_at: Build, tmp_path: Path) -> None:
    build_at(small, tmp_path / "out", UNIFORM)
    only(small, "epoch-5.pt")
    second = build_at(small, tmp_path / "out", UNIFORM)
    read = read_build(tmp_path / "out")
    assert read.record.state_sha256 == second.record.state_sha256
    assert [Path(one.path).name for one in read.record.ingredients] == ["epoch-5.pt"]
