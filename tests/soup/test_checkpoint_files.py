"""Which files glob patterns stand for (order, links, hidden files, earlier output), and folders as checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from soup import SoupError
from soup.checkpoint import find_checkpoints, load_state, read_checkpoint, state_sha256
from soup.files import canonical_json, sha256_bytes


def make(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def found(folder: Path, *patterns: str, exclude: Path | None = None) -> tuple[list[str], tuple[str, ...]]:
    paths, notes = find_checkpoints(patterns, folder=folder, exclude=exclude)
    return [path.relative_to(folder.resolve()).as_posix() for path in paths], notes


def test_the_order_is_that_of_the_paths_whatever_the_patterns(tmp_path: Path) -> None:
    """Correctness 16."""
    make(tmp_path, "runs/b/last.pt", "runs/a/last.pt", "runs/c/last.pt", "z.pt")
    names = ["runs/a/last.pt", "runs/b/last.pt", "runs/c/last.pt", "z.pt"]
    assert found(tmp_path, "runs/*/last.pt", "z.pt") == (names, ())
    assert found(tmp_path, "z.pt", "runs/c/*.pt", "runs/[ab]/*", "**/*.pt")[0] == names
    assert found(tmp_path, str(tmp_path / "runs" / "*" / "*.pt"))[0] == names[:3]
    assert found(tmp_path / "runs", "../runs/?/*.pt")[0] == [name.removeprefix("runs/") for name in names[:3]]


def test_links_are_followed_and_a_file_is_taken_once(tmp_path: Path) -> None:
    """Correctness 16."""
    make(tmp_path, "epoch_9.pt")
    (tmp_path / "last.pt").symlink_to("epoch_9.pt")
    (tmp_path / "linked").symlink_to(tmp_path, target_is_directory=True)
    names, notes = found(tmp_path, "*.pt", "linked/epoch_9.pt")
    assert names == ["epoch_9.pt"]
    assert notes == (
        f"{tmp_path / 'last.pt'}: left out, the same file as {tmp_path / 'epoch_9.pt'}",
        f"{tmp_path / 'linked/epoch_9.pt'}: left out, the same file as {tmp_path / 'epoch_9.pt'}",
    )


def test_hidden_files_are_left_out_unless_named(tmp_path: Path) -> None:
    """Correctness 16."""
    make(tmp_path, "a.pt", ".b.pt", ".cache/c.pt")
    names, notes = found(tmp_path, "**/*.pt")
    assert names == ["a.pt"]
    assert notes == tuple(f"{tmp_path / name}: left out, hidden" for name in (".b.pt", ".cache/c.pt"))
    assert found(tmp_path, ".b.pt", ".cache/*.pt") == ([".b.pt", ".cache/c.pt"], ())


def test_a_folder_that_is_itself_hidden_hides_nothing(tmp_path: Path) -> None:
    make(tmp_path / ".home", "a.pt")
    assert found(tmp_path / ".home", "*.pt") == (["a.pt"], ())


def test_a_folder_named_like_a_pattern_is_a_folder(tmp_path: Path) -> None:
    make(tmp_path / "run[1]", "a.pt")
    assert found(tmp_path / "run[1]", "*.pt") == (["a.pt"], ())


def test_the_output_folder_and_earlier_soups_are_left_out(tmp_path: Path) -> None:
    """Correctness 16."""
    make(tmp_path, "a.safetensors", "soup-out/soup.safetensors", "older/soup.safetensors", "older/recipe.json")
    names, notes = found(tmp_path, "**/*.safetensors", exclude=tmp_path / "soup-out")
    assert names == ["a.safetensors"]
    assert notes == (
        f"{tmp_path / 'older/soup.safetensors'}: left out, part of an earlier build",
        f"{tmp_path / 'soup-out/soup.safetensors'}: left out, part of the output folder",
    )


def test_a_matched_folder_is_taken_where_it_is_a_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, "a/model.safetensors.index.json", "b/log.txt", "c.pt")
    names, notes = found(tmp_path, "*")
    assert names == ["a", "c.pt"]
    assert notes == (f"{tmp_path / 'b'}: left out, a folder that is no checkpoint",)
    assert found(tmp_path, "b")[0] == ["b"], "a folder that was named is refused when it is read"


def test_nothing_found_or_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "a.pt")
    (tmp_path / "broken.pt").symlink_to("gone.pt")
    with pytest.raises(SoupError, match=r"no checkpoint matches '\*\.ckpt', 'x/\*'\. Correct"):
        found(tmp_path, "*.ckpt", "x/*")
    with pytest.raises(SoupError, match=r"b\.pt: does not exist\. Correct"):
        found(tmp_path, "a.pt", "b.pt")
    with pytest.raises(SoupError, match=r"broken\.pt: does not exist \(a link to what does not exist\)"):
        found(tmp_path, "broken.pt")
    assert found(tmp_path, "*.pt")[1] == (f"{tmp_path / 'broken.pt'}: left out, a link to what does not exist",)


def huggingface(folder: Path, *, shards: int = 2) -> dict[str, torch.Tensor]:
    state, weight_map = {"0.weight": torch.randn(2, 3), "0.bias": torch.randn(2), "1.weight": torch.randn(3)}, {}
    names = list(state)
    folder.mkdir()
    for number in range(shards):
        shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        held = {name: state[name] for name in names[number::shards]}
        save_file(held, folder / shard)
        weight_map |= dict.fromkeys(held, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return state


def test_a_sharded_hugging_face_folder_is_one_checkpoint(tmp_path: Path) -> None:
    """Correctness 11."""
    state = huggingface(tmp_path / "model")
    checkpoint = read_checkpoint(tmp_path / "model")
    assert state_sha256(load_state(checkpoint)) == state_sha256(state)
    hashes = {stamp.path.name: stamp.sha256 for stamp in checkpoint.files}
    assert len(hashes) == 2
    assert checkpoint.sha256 == sha256_bytes(canonical_json(hashes))
    with pytest.raises(SoupError, match="is one shard of several"):
        read_checkpoint(checkpoint.files[0].path)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "model" / "model.safetensors.index.json").unlink()
    (tmp_path / "model.safetensors").rename(tmp_path / "model" / "model.safetensors")
    whole = read_checkpoint(tmp_path / "model")
    assert whole.sha256 == read_checkpoint(tmp_path / "model" / "model.safetensors").sha256


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            {"0.weight": "model-00002-of-00002.safetensors"},
            "1 tensors are not where it lists them, '0.weight' the first",
        ),
        ({"more": "model-00002-of-00002.safetensors"}, "'more' the first"),
        ({"0.weight": "../outside.safetensors"}, "lists no shards in its own folder"),
        ({"0.weight": 5}, "is no index of shards"),
        ({"0.weight": "model-00003-of-00002.safetensors"}, "cannot be read: No such file"),
    ],
)
def test_an_index_that_its_shards_do_not_bear_out_is_refused(
    damage: dict[str, object], reason: str, tmp_path: Path
) -> None:
    huggingface(tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"] |= damage
    index.write_text(json.dumps(listed))
    with pytest.raises(SoupError, match=reason):
        read_checkpoint(tmp_path / "model")


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    """Correctness 11."""
    with pytest.raises(SoupError, match=r"is a folder without model\.safetensors"):
        read_checkpoint(tmp_path)
    (tmp_path / ".metadata").touch()
    with pytest.raises(SoupError, match="dcp_to_torch_save"):
        read_checkpoint(tmp_path)
