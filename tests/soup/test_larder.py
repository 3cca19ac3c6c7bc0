"""Checkpoints found, read and compared; splits loaded and told apart (correctness 13, 16, 17, 23)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calib.samples import list_sha256
from soup import SoupError
from soup.config import Config, load_config
from soup.files import sha256_file
from soup.larder import Larder, find_overlaps, gather, load_data, preprocess_of, split_record
from soup.preprocess import Letterbox


def silent(what: str, done: int, total: int) -> None:
    """Shows nothing."""


def config_of(folder: Path, *overrides: str) -> Config:
    return load_config(folder / "val.yaml", overrides=overrides)


def gathered(folder: Path, *overrides: str, exclude: Path | None = None, only: set[str] | None = None) -> Larder:
    return gather(config_of(folder, *overrides), exclude=exclude, only=only, progress=silent)


def paths_of(larder: Larder) -> set[str]:
    return {one.path.name for one in larder.ingredients.values()}


def images_as(folder: Path, name: str, *, classes: list[str]) -> None:
    """An image folder of one noisy image per class."""
    random = np.random.default_rng(len(name))
    for one in classes:
        (folder / name / one).mkdir(parents=True)
        Image.fromarray(random.integers(0, 255, (8, 8), np.uint8)).save(folder / name / one / "a.png")


def test_ingredients_are_known_by_the_sha256_of_their_files(slim: Path) -> None:
    larder = gathered(slim)
    assert {sha: one.path.name for sha, one in larder.ingredients.items()} == {
        sha256_file(path): path.name for path in (slim / "runs").iterdir()
    }
    assert (larder.set_aside, larder.notes, larder.preflight.findings) == ((), (), ())


def test_an_earlier_output_folder_inside_the_input_is_left_out_and_told(small: Path) -> None:
    """Correctness 16: neither this build's own folder, nor what another build or an export wrote, is an ingredient."""
    for folder in ("runs/out", "runs/other", "runs/out/release"):
        (small / folder).mkdir(parents=True)
    for name in ("runs/out/soup", "runs/other/soup", "runs/other/evaluations", "runs/out/release/golden"):
        (small / f"{name}.safetensors").write_bytes(b"never read")
    for name in ("runs/out/recipe", "runs/other/recipe", "runs/out/release/manifest"):
        (small / f"{name}.json").touch()
    pattern = "checkpoints.files=['runs/**/*.pt', 'runs/**/*.safetensors']"
    larder = gathered(small, pattern, exclude=small / "runs/out")
    assert paths_of(larder) == {"epoch-3.pt", "epoch-5.pt", "epoch-6.pt"}
    told = {note.removeprefix(f"{small}/runs/") for note in larder.notes}
    assert told == {
        "out/soup.safetensors: left out, part of the output folder",
        "out/release/golden.safetensors: left out, part of the output folder",
        "other/soup.safetensors: left out, part of an earlier build",
        "other/evaluations.safetensors: left out, part of an earlier build",
    }
    assert paths_of(gathered(small, pattern)) == paths_of(larder)


def test_copies_links_and_hidden_files_are_counted_once_and_told(small: Path) -> None:
    """Correctness 16."""
    runs = small / "runs"
    shutil.copy(runs / "epoch-5.pt", runs / "copy.pt")
    shutil.copy(runs / "epoch-5.pt", runs / ".partial.pt")
    (runs / "link.pt").symlink_to("epoch-6.pt")
    larder = gathered(small)
    assert len(larder.ingredients) == 3
    told = [*larder.notes, *(f"{one.where}: {one.what}" for one in larder.preflight.findings)]
    assert [line.removeprefix(f"{runs}/") for line in told] == [
        ".partial.pt: left out, hidden",
        f"link.pt: left out, the same file as {runs}/epoch-6.pt",
        f"epoch-5.pt: is a copy of '{runs}/copy.pt', counted once.",
    ]


def test_all_unreadable_checkpoints_are_refused_together_by_name(small: Path) -> None:
    (small / "runs/epoch-3.pt").write_bytes(b"")
    (small / "runs/epoch-5.pt").write_bytes((small / "runs/epoch-5.pt").read_bytes()[:-300])
    with pytest.raises(SoupError) as caught:
        gathered(small)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{small}/runs/epoch-3.pt", f"{small}/runs/epoch-5.pt"]


def test_unusable_checkpoints_are_set_aside_with_the_reason_where_val_yaml_says_so(small: Path) -> None:
    """Correctness 17: one unreadable, one with a NaN whose tensor is named."""
    (small / "runs/epoch-3.pt").write_text("not a checkpoint")
    saved = torch.load(small / "runs/epoch-5.pt")
    saved["model"]["4.weight"][0, 0] = torch.nan
    torch.save(saved, small / "runs/epoch-5.pt")
    larder = gathered(small, "checkpoints.on_bad_ingredient=skip")
    assert paths_of(larder) == {"epoch-6.pt"}
    reasons = {Path(path).name: reason for path, reason in larder.set_aside}
    assert reasons.keys() == {"epoch-3.pt", "epoch-5.pt"}
    assert "'4.weight' holds NaN or Inf" in reasons["epoch-5.pt"]
    with pytest.raises(SoupError, match=r"'4.weight' holds NaN or Inf"):
        gathered(small, "checkpoints.files=[runs/epoch-5.pt]")


def test_a_folder_without_one_readable_checkpoint_is_refused_even_with_skip(small: Path) -> None:
    for path in (small / "runs").iterdir():
        path.write_text("text")
    with pytest.raises(SoupError, match="none of them can be read"):
        gathered(small, "checkpoints.on_bad_ingredient=skip")


def test_names_under_a_prefix_that_the_model_itself_has_are_given_back(small: Path) -> None:
    (small / "wrapped.py").write_text(
        "from torch import nn\nimport models\n\n\nclass Wrapped(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.model = models.build()\n\n"
        "    def forward(self, x):\n        return self.model(x)\n"
    )
    for path in (small / "runs").iterdir():
        state = torch.load(path)["model"]
        torch.save({f"model.{name}": tensor for name, tensor in state.items()}, path)
    larder = gathered(small, "model=./wrapped.py:Wrapped")
    assert all(name.startswith("model.") for one in larder.ingredients.values() for name in one.tensors)


def test_a_recipe_takes_its_ingredients_by_content_and_names_each_one_missing(small: Path) -> None:
    runs = small / "runs"
    gone, kept = sha256_file(runs / "epoch-3.pt"), sha256_file(runs / "epoch-6.pt")
    (runs / "epoch-3.pt").rename(runs / "renamed.pt")
    (runs / "epoch-5.pt").write_text("damaged, and not asked for")
    assert paths_of(gathered(small, only={gone, kept})) == {"renamed.pt", "epoch-6.pt"}
    assert paths_of(gathered(small, only={kept})) == {"epoch-6.pt"}
    (runs / "renamed.pt").unlink()
    with pytest.raises(SoupError) as caught:
        gathered(small, only={gone, kept, "0" * 64})
    named = [line for line in str(caught.value).splitlines() if "has the SHA-256" in line]
    assert [line[-65:] for line in named] == [f"{'0' * 64}.", f"{gone}."]


def test_splits_that_val_yaml_does_not_name_are_absent(slim: Path, tmp_path: Path) -> None:
    splits = load_data(config_of(slim, "data.test=null"), ("train", "val", "test"), cache=tmp_path, progress=silent)
    assert list(splits) == ["train", "val"]
    assert len(splits["val"]) == 150


def test_splits_with_other_class_folders_are_refused_although_one_between_them_has_none(
    small: Path, tmp_path: Path
) -> None:
    images_as(small, "train", classes=["cat", "dog", "eel"])
    images_as(small, "test", classes=["cat", "eel"])
    with pytest.raises(SoupError, match=r"data\.test: has other classes than data\.train \('dog' is only in one"):
        load_data(
            config_of(small, "data.train=train", "data.test=test"),
            ("train", "val", "test"),
            cache=tmp_path,
            progress=silent,
        )


def test_an_empty_class_folder_keeps_the_numbers_of_the_others(small: Path, tmp_path: Path) -> None:
    images_as(small, "train", classes=["cat", "dog", "eel"])
    images_as(small, "held", classes=["cat", "eel"])
    (small / "held/dog").mkdir()
    splits = load_data(
        config_of(small, "data.train=train", "data.val=held"), ("train", "val"), cache=tmp_path, progress=silent
    )
    assert splits["val"].class_names == ("cat", "dog", "eel")
    assert splits["val"].targets["label"].tolist() == [0, 2]


def test_a_split_can_come_from_a_function_of_a_file_beside_val_yaml(small: Path, tmp_path: Path) -> None:
    (small / "rows.py").write_text(
        "import numpy as np\nfrom pathlib import Path\n\n\ndef rows():\n"
        "    arrays = np.load(Path(__file__).parent / 'val.npz')\n"
        "    return list(zip(arrays['images'], arrays['labels']))\n"
    )
    config = config_of(small, "data.test=./rows.py:rows")
    splits = load_data(config, ("val", "test"), cache=tmp_path, progress=silent)
    assert splits["test"].hashes == splits["val"].hashes


def share(folder: Path, count: int) -> None:
    """Make the first images of test those of val."""
    with np.load(folder / "val.npz") as val, np.load(folder / "test.npz") as test:
        images, labels = test["images"].copy(), test["labels"]
        images[:count] = val["images"][:count]
    np.savez(folder / "test.npz", images=images, labels=labels)


def test_shared_images_are_refused_above_max_overlap_and_listed_below_it(small: Path, tmp_path: Path) -> None:
    share(small, 13)
    config, stricter = (config_of(small, f"data.max_overlap={share}") for share in (0.1, 0.0999))
    splits = load_data(config, ("train", "val", "test"), cache=tmp_path, progress=silent)
    line = "data.val and data.test share 13 images (10.00% of the smaller), as '0' = '0'"
    with pytest.raises(SoupError) as caught:
        find_overlaps(stricter, splits)
    assert str(caught.value) == f"{line}, more than data.max_overlap = 0.0999. Split them anew."
    assert find_overlaps(config, splits) == (line,)


def test_the_record_of_a_split_holds_its_list_and_its_groups(small: Path, tmp_path: Path) -> None:
    with np.load(small / "val.npz") as arrays:
        np.savez(small / "val.npz", **arrays, groups=np.repeat(np.arange(30), 5))
    val = load_data(config_of(small), ("val",), cache=tmp_path, progress=silent)["val"]
    record = split_record(val)
    assert (record.n, record.groups, record.skipped) == (150, 30, ())
    assert record.list_sha256 == list_sha256(val.hashes)


def test_preprocessing_reaches_the_data_layer_as_written(slim: Path) -> None:
    plain = preprocess_of(config_of(slim))
    assert plain is not None
    assert (plain.color, plain.mean, plain.std, plain.letterbox) == ("gray", (0.3,), (0.35,), None)
    boxed = preprocess_of(config_of(slim, "preprocess.letterbox={size: [4, 6], pad: 7, centered: false}"))
    assert boxed is not None
    assert boxed.letterbox == Letterbox((4, 6), 7, centered=False)
    assert preprocess_of(config_of(slim, "preprocess=null")) is None


def test_an_independent_initialisation_is_told_before_any_image_is_looked_at(
    slim: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(slim, tmp_path / "other"))
    first, *_ = sorted((folder / "runs").iterdir())
    saved = torch.load(first, weights_only=True)
    random = torch.Generator().manual_seed(1)
    state = {n: torch.randn(t.shape, generator=random) if t.ndim > 1 else t for n, t in saved["model"].items()}
    torch.save({**saved, "model": state}, folder / "runs" / "stranger.pt")
    for split in folder.glob("*.npz"):
        split.unlink()
    gather(load_config(folder / "val.yaml"), exclude=None, progress=lambda what, done, total: None)
    assert "stranger.pt" in caplog.text
    assert "independent" in caplog.text
