"""Files are whole or not there, have the user's permissions, and equal content has equal bytes (correctness 46, 47)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from soup import SoupError
from soup.files import array_entry, canonical_json, staged, staged_folder, unlocated, write_file, write_safetensors


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": [1, 2]}) == canonical_json({"a": [1, 2], "b": 1}) == b'{"a":[1,2],"b":1}'


def test_canonical_json_refuses_a_number_that_is_none() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_a_message_that_travels_names_files_without_this_machines_folders(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    text = f"{tmp_path}/there/model.onnx: as {tmp_path}/link/val.yaml has it"
    assert unlocated(text, tmp_path / "link") == "model.onnx: as val.yaml has it"
    assert unlocated(text, tmp_path / "link", tmp_path) == "model.onnx: as val.yaml has it"
    assert unlocated(text) == text


def test_a_written_file_has_the_users_normal_permissions(tmp_path: Path) -> None:
    earlier = os.umask(0o022)
    try:
        write_file(tmp_path / "a", b"x")
    finally:
        os.umask(earlier)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"first")

    def chunks():
        yield b"second"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_file(tmp_path / "a", chunks())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"first"


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
def test_safetensors_bytes_depend_on_the_content_alone(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("s")
    arrays = {name: np.arange(index + 1, dtype=np.float32) for index, name in enumerate(names)}
    metadata = {"b": "2", "a": "1"}
    write_safetensors(folder / "x", {n: array_entry(a) for n, a in arrays.items()}, metadata=metadata)
    write_safetensors(folder / "y", {n: array_entry(arrays[n]) for n in reversed(names)}, metadata=metadata)
    data = (folder / "x").read_bytes()
    assert data == (folder / "y").read_bytes()
    for name, array in load(data).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_safetensors_holds_zero_dimensional_and_empty_arrays(tmp_path: Path) -> None:
    arrays = {"scalar": np.array(3, np.int64), "empty": np.zeros((0, 4), np.float16), "flag": np.array([True, False])}
    write_safetensors(tmp_path / "x", {name: array_entry(array) for name, array in arrays.items()})
    back = load((tmp_path / "x").read_bytes())
    assert {name: (array.shape, array.dtype) for name, array in back.items()} == {
        name: (array.shape, array.dtype) for name, array in arrays.items()
    }


def test_staged_files_appear_together_and_the_last_is_the_sign_of_success(tmp_path: Path) -> None:
    with staged(tmp_path / "out", last="recipe.json") as stage:
        (stage / "recipe.json").write_text("1")
        (stage / "soup").write_text("1")
        assert not (tmp_path / "out" / "soup").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["recipe.json", "soup"]


def test_a_failure_leaves_earlier_output_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("earlier")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):  # noqa: PT012, SIM117  (the failure is inside the block, as a user's would be)
            with staged(tmp_path, last="recipe.json") as stage:
                (stage / "recipe.json").write_text("new")
                raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("recipe.json", "earlier")]


def test_a_staged_folder_replaces_the_earlier_one_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(RuntimeError), staged_folder(folder) as stage:
        raise RuntimeError
    assert (folder / "old").exists()
    with staged_folder(folder) as stage:
        (stage / "new").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".soup-tmp-{dead.pid}-x").mkdir()
    (tmp_path / f".soup-tmp-{os.getpid()}-x").mkdir()
    with staged(tmp_path, last="a") as stage:
        (stage / "a").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".soup-tmp-{os.getpid()}-x", "a"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    code = (
        "import resource, signal, pathlib, soup.files as f\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"f.write_file(pathlib.Path({str(tmp_path / 'big')!r}), b'x' * 5000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "SoupError" in done.stderr
    assert "Free some space" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SoupError, match="cannot be written"), staged(tmp_path / "file" / "out", last="x"):
        raise AssertionError
