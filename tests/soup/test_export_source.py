"""An export starts from exactly what was built: weights, data and code, or it does not start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from soup import SoupError
from soup.build_folder import read_build
from soup.export_source import Source, exported_config, open_build
from soup.files import sha256_file


def silent(what: str, done: int, total: int) -> None:
    pass


def opened(project: Path, *overrides: str) -> Source:
    built = read_build(project / "soup-out")
    return open_build(built, exported_config(built, overrides), progress=silent)


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """The built project, to be changed."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


def test_the_model_scores_what_the_build_said(built: Path) -> None:
    """Correctness 25: the weights that were scored are the weights that are exported."""
    source = opened(built)
    winner = source.built.per_sample("winner", "val")["correct"]
    assert source.answers["val"].per_sample["correct"].tolist() == winner.tolist()
    assert source.answers["val"].value == source.built.record.winner.val
    assert not source.model.training
    assert source.batch == 1


def test_golden_samples_are_the_hardest_and_a_spread_over_the_classes(built: Path) -> None:
    source = opened(built, "release.golden={count: 40, from: test}", "export.batch={min: 1, opt: 2, max: 8}")
    logits = np.sort(next(iter((source.answers["test"].outputs or {}).values())), axis=1)
    hardest = np.argsort(logits[:, -1] - logits[:, -2], kind="stable")[:10]
    rows = source.golden_rows.tolist()
    assert len(set(rows)) == 40
    assert set(hardest.tolist()) <= set(rows)
    rest = [row for row in rows if row not in hardest.tolist()]
    assert np.bincount(source.golden.targets["label"][rest], minlength=10).tolist() == [3] * 10
    assert source.batch == (1, 2, 8)
    assert len(source.golden_inputs["input"]) == 40


@pytest.mark.parametrize("name", ["recipe.json", "soup.safetensors", "evaluations.safetensors", "trials.json"])
def test_a_file_of_the_build_that_changed_is_refused_by_name(copy: Path, name: str) -> None:
    file = copy / "soup-out" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(SoupError, match=rf"{name}: is missing or not as soup build wrote it"):
        opened(copy)


def test_weights_that_are_not_the_build_s_are_refused_even_where_the_record_follows(copy: Path) -> None:
    out = copy / "soup-out"
    content = bytearray((out / "soup.safetensors").read_bytes())
    content[-1] ^= 1
    (out / "soup.safetensors").write_bytes(content)
    record = json.loads((out / "build.json").read_bytes())
    record["files"]["soup.safetensors"] = sha256_file(out / "soup.safetensors")
    (out / "build.json").write_text(json.dumps(record))
    with pytest.raises(SoupError, match=r"soup\.safetensors: its tensors are not those of build\.json"):
        opened(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "'schema_version': Field required"), ('{"schema_version": 1', "Invalid JSON"), ("", "Invalid JSON")],
)
def test_a_damaged_record_is_one_sentence(copy: Path, content: str, message: str) -> None:
    (copy / "soup-out" / "build.json").write_text(content)
    with pytest.raises(SoupError, match=message) as raised:
        opened(copy)
    assert str(raised.value).startswith(f"{copy}/soup-out/build.json: ")
    assert str(raised.value).endswith("Build again.")


def test_other_samples_than_at_the_build_are_refused(copy: Path) -> None:
    arrays = dict(np.load(copy / "val.npz"))
    arrays["images"][7, 0, 0, 0] ^= 1
    np.savez(copy / "val.npz", **arrays)
    with pytest.raises(SoupError, match=r"data\.val: has other samples than when the soup was built"):
        opened(copy)


def test_labels_that_changed_are_refused(copy: Path) -> None:
    """The best single was judged by the old ones: a comparison with it would mean nothing."""
    arrays = dict(np.load(copy / "val.npz"))
    arrays["labels"] = np.roll(arrays["labels"], 1)
    np.savez(copy / "val.npz", **arrays)
    with pytest.raises(SoupError, match=r"data\.val: has other labels or groups"):
        opened(copy)


def test_code_that_builds_another_network_is_refused(copy: Path) -> None:
    (copy / "models.py").write_text((copy / "models.py").read_text().replace("width=8", "width=9"))
    with pytest.raises(SoupError):
        opened(copy)


@pytest.mark.parametrize("override", ["model=./models.py:other", "search.methods=[uniform]", "data.val=test.npz"])
def test_only_gates_export_and_release_may_differ_from_the_build(built: Path, override: str) -> None:
    with pytest.raises(SoupError, match="the build has fixed it; only gates, export, quantization, release may differ"):
        opened(built, override)


def test_a_project_that_moved_as_a_whole_still_exports(built: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(built, tmp_path / "a folder" / "moved"))
    assert opened(moved).answers["val"].value == read_build(built / "soup-out").record.winner.val
