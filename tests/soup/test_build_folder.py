"""What a build leaves behind: claimed, written whole, read back, refused where a byte changed (correctness 46, 47)."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from soup import SoupError
from soup.build_folder import BuildFolder, claim_folder, read_build
from soup.pipeline import BuildResult
from soup.search_records import Difference, difference_record
from soup.statistics import Interval


@pytest.fixture
def copied(slim_built: BuildResult, tmp_path: Path) -> Path:
    """A finished build that a test may change."""
    return Path(shutil.copytree(slim_built.folder, tmp_path / "copied"))


def test_a_build_reads_back_as_the_records_that_were_written(slim_built: BuildResult) -> None:
    read = read_build(slim_built.folder)
    assert isinstance(read, BuildFolder)
    assert dataclasses.replace(read.record, files={}) == slim_built.record
    assert set(read.record.files) == {
        "soup.safetensors", "soup.svg", "recipe.json", "trials.json", "evaluations.safetensors", "report.md",
        "report.html",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["soup.safetensors", "recipe.json", "trials.json", "evaluations.safetensors", "report.md", "report.html"]
)
def test_one_flipped_byte_in_any_file_is_refused_by_name(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(SoupError, match=f"{name}: is missing or not as soup build wrote it"):
        read_build(copied)


def test_a_missing_file_is_refused_by_name(copied: Path) -> None:
    (copied / "trials.json").unlink()
    with pytest.raises(SoupError, match=r"trials\.json: is missing"):
        read_build(copied)


@pytest.mark.parametrize("name", ["recipe.json", "build.json"])
def test_a_folder_without_its_last_files_is_no_finished_build(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(SoupError, match="no finished build here"):
        read_build(copied)


def test_a_damaged_build_json_is_named_with_the_entry_that_is_wrong(copied: Path) -> None:
    record = json.loads((copied / "build.json").read_bytes())
    (copied / "build.json").write_text(json.dumps(record | {"seconds": "long"}))
    with pytest.raises(SoupError, match=r"build\.json: 'seconds'"):
        read_build(copied)
    (copied / "build.json").write_bytes(b"\xff{")
    with pytest.raises(SoupError, match=r"build\.json"):
        read_build(copied)


def test_a_record_of_a_later_version_asks_for_an_upgrade(copied: Path) -> None:
    record = json.loads((copied / "build.json").read_bytes())
    (copied / "build.json").write_text(json.dumps(record | {"schema_version": 2}))
    with pytest.raises(SoupError, match="Upgrade edgesoup"):
        read_build(copied)


def test_per_sample_results_are_found_by_model_and_split(slim_built: BuildResult) -> None:
    read, arrays = read_build(slim_built.folder), load_file(slim_built.folder / "evaluations.safetensors")
    for model, split in (("best_single", "val"), ("winner", "val"), ("best_single", "test"), ("winner", "test")):
        found = read.per_sample(model, split)
        assert list(found) == ["correct"]
        np.testing.assert_array_equal(found["correct"], arrays[f"{split}/{model}/correct"])
    assert read.per_sample("winner", "train") == {}


def test_what_is_no_number_is_recorded_as_null() -> None:
    open_ended = difference_record(Interval(0.1, -math.inf, math.inf, 0.95, "none", 2, 2), "undecided")
    assert open_ended == Difference(0.1, None, None, 0.95, "none", 2, 2, "undecided")
    unknown = difference_record(Interval(math.nan, math.nan, math.nan, 0.95, "none", 2), "undecided")
    assert unknown == Difference(None, None, None, 0.95, "none", 2, None, "undecided")


def test_an_absent_an_empty_and_an_earlier_output_folder_are_free(tmp_path: Path, copied: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new/and/deep", copied):
        claim_folder(folder)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_other_files_is_refused_by_one_of_their_names(copied: Path) -> None:
    (copied / "holiday.jpg").touch()
    with pytest.raises(SoupError, match=r"holds 'holiday\.jpg', which soup build did not write"):
        claim_folder(copied)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(SoupError, match="taken: is a file, expected a folder"):
        claim_folder(tmp_path / "taken" / below)


def test_a_folder_that_may_not_be_written_to_is_refused_before_the_work(tmp_path: Path) -> None:
    """As an ordinary user in a process of its own, since root may write anywhere."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    become = "os.setuid(65534)" if os.getuid() == 0 else "pass"
    code = (
        f"import os, sys; from pathlib import Path; from soup.build_folder import claim_folder; {become}\n"
        f"try: claim_folder(Path({str(locked / 'out')!r}))\n"
        "except Exception as error: sys.exit(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == f"{locked}: is not writable. Choose another -o."
