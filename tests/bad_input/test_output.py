"""Output that has no place to go: folders that cannot be written, hold other things, or are on a full disk."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load as load_arrays

from .conftest import Accepted, Refused, contents

TRIED = 128  # images that a backend is tried on
WRITERS = {
    "build": ("build",),
    "export": ("export",),
    "verify": ("verify", "soup-out/release"),
}


@contextlib.contextmanager
def room(size_bytes: int) -> Iterator[None]:
    """No file may grow beyond this size: what a full disk is to whoever writes one."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, earlier[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a file system can be mounted only by root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def leave(disk: Path, size_bytes: int) -> Path:
    """Fill it until so much is free; gives the file that fills it."""
    room = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize - size_bytes))
    return filler


def images_kept(out: Path) -> int:
    """Images that the ledger of `out`, which must be intact, saves the next build."""
    with contextlib.closing(sqlite3.connect(out / "ledger.sqlite")) as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = ledger.execute("SELECT kind, facts, arrays FROM records").fetchall()
    evaluated = sum(int(load_arrays(data)["000000 seen"].sum()) for kind, _, data in rows if kind == "evaluation")
    measured = [json.loads(facts) for kind, facts, _ in rows if kind == "arrays"]
    tried = sum(facts["what"]["kind"] == "backend" for facts in measured)
    return evaluated + tried * TRIED + sum(facts.get("batchnorm", {}).get("samples", 0) for facts in measured)


def forwarded(out: Path) -> int:
    """Images that the last build in `out` forwarded."""
    return sum(json.loads((out / "build.json").read_bytes())["cost"]["forwarded"].values())


@pytest.fixture
def exported(copied: Path, released: Path) -> Path:
    """`copied` with its release in soup-out/release."""
    (copied / "soup-out/release").symlink_to(released)
    return copied


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("out", ["models.py", "models.py/below", "/proc/soup", "circle"])
def test_an_output_folder_that_cannot_be_written_is_refused(
    exported: Path, refused: Refused, command: str, out: str
) -> None:
    """As root, who may write anywhere else: a file, what is below a file, /proc, and a link to itself."""
    (exported / "circle").symlink_to("circle")
    told = refused(exported, *WRITERS[command], "-o", out)
    assert re.fullmatch(r".*(models\.py|soup|circle).*: (is a file|is not writable|cannot be written: \w+).*", told)


@pytest.mark.parametrize("command", WRITERS)
def test_an_output_folder_that_holds_other_things_is_refused(exported: Path, refused: Refused, command: str) -> None:
    (exported / "mine").mkdir()
    (exported / "mine/thesis.tex").write_text("years of work")
    told = refused(exported, *WRITERS[command], "-o", "mine")
    assert told.startswith("mine: holds 'thesis.tex', which ")
    assert told.endswith("-o.")


def test_a_build_does_not_take_a_project_for_its_own_folder(project: Path, refused: Refused) -> None:
    assert refused(project, "build", "-o", ".").startswith(".: holds 'models.py', which soup build did not write.")


def test_an_export_does_not_take_a_build_for_a_release(copied: Path, refused: Refused) -> None:
    assert refused(copied, "export", "-o", "soup-out").startswith(
        "soup-out: holds 'build.json', which no intact release"
    )


def test_reports_are_not_written_into_the_release_that_they_are_about(release: Path, refused: Refused) -> None:
    told = refused(release, "verify", ".", "-o", "reports")
    assert told == "reports: is inside the release, whose manifest would no longer hold. Choose another -o."


@pytest.mark.parametrize("out", ["none/val.yaml", "models.py/val.yaml", "/proc/val.yaml"])
def test_a_starter_that_cannot_be_written_is_refused(project: Path, refused: Refused, out: str) -> None:
    assert refused(project, "init", "runs", "-o", out).startswith(f"{out}: cannot be written: ")


def test_a_starter_never_takes_the_place_of_a_val_yaml(project: Path, refused: Refused) -> None:
    assert refused(project, "init", "runs") == (
        "val.yaml: exists already and is left as it is. Choose another name with -o."
    )


@pytest.mark.parametrize("size_bytes", [30_000, 46_000], ids=["images", "their hashes"])
def test_a_disk_too_full_for_the_decoded_images_is_told_and_leaves_nothing(
    project: Path, refused: Refused, size_bytes: int
) -> None:
    own = ("--set", "data.cache.dir=null")  # in the build folder, which was not there before
    with room(size_bytes):
        told = refused(project, "build", *own)
    assert told == "soup-out/cache: cannot be written: File too large. Free some space or choose another folder."


@pytest.mark.parametrize(
    ("file", "culprit"),
    [("soup.safetensors", "soup-out/soup.safetensors"), ("report.html", "soup-out")],
)
def test_a_disk_too_full_for_a_build_leaves_the_earlier_one(
    copied: Path, refused: Refused, file: str, culprit: str
) -> None:
    with room((copied / "soup-out" / file).stat().st_size * 9 // 10):  # the second report is the shorter one
        told = refused(copied, "build", "--set", "data.cache.dir=null")  # decoded with the earlier one
    assert told == f"{culprit}: cannot be written: File too large. Free some space or choose another folder."


@pytest.mark.parametrize(
    ("file", "culprit"),
    [("model.onnx", "soup-out/release"), ("golden.safetensors", "soup-out/release/golden.safetensors")],
)
def test_a_disk_too_full_for_a_release_leaves_none(
    copied: Path, released: Path, refused: Refused, file: str, culprit: str
) -> None:
    with room((released / file).stat().st_size - 1):
        told = refused(copied, "export")
    assert told == f"{culprit}: cannot be written: File too large. Free some space or choose another folder."


def test_a_disk_too_small_for_the_decoded_images_is_told_and_left_empty(
    disk: Path, project: Path, refused: Refused
) -> None:
    leave(disk, 40_000)
    told = refused(project, "build", "-o", disk / "out", "--set", "data.cache.dir=null")
    advice = "cannot be written: No space left on device. Free some space or choose another folder."
    assert told == f"{disk}/out/cache: {advice}"
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_disk_too_small_for_the_ledger_keeps_what_fitted_and_the_next_build_goes_on(
    disk: Path, project: Path, built: Path, refused: Refused, accepted: Accepted
) -> None:
    out, reference = disk / "out", built / "soup-out"
    filler = leave(disk, 150_000)
    told = refused(project, "build", "-o", out)
    advice = "cannot be written: database or disk is full. Free some space or choose another folder."
    assert told == f"{out}/ledger.sqlite: {advice}"
    assert [path.name for path in out.iterdir()] == ["ledger.sqlite"]
    kept = images_kept(out)
    assert kept > 0
    filler.unlink()
    accepted(project, "build", "-o", out)
    assert forwarded(out) == forwarded(reference) - kept
    for name in ("soup.safetensors", "recipe.json"):
        assert (out / name).read_bytes() == (reference / name).read_bytes()


def test_a_disk_too_small_for_the_soup_keeps_the_ledger_and_the_next_build_only_writes(
    disk: Path, project: Path, built: Path, refused: Refused, accepted: Accepted
) -> None:
    out, reference = disk / "out", built / "soup-out"
    accepted(project, "build", "-o", out)
    for path in out.iterdir():
        if path.name != "ledger.sqlite":
            path.unlink()
    filler = leave(disk, 8192)  # for the lock, and half of the soup
    told = refused(project, "build", "-o", out)
    advice = "cannot be written: No space left on device. Free some space or choose another folder."
    assert told == f"{out}/soup.safetensors: {advice}"
    assert [path.name for path in out.iterdir()] == ["ledger.sqlite"]
    assert images_kept(out) > 0
    filler.unlink()
    accepted(project, "build", "-o", out)
    assert forwarded(out) == 0
    for name in ("soup.safetensors", "recipe.json"):
        assert (out / name).read_bytes() == (reference / name).read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_a_disk_too_full_for_an_engine_leaves_no_release(copied: Path, released: Path, refused: Refused) -> None:
    with room(max(path.stat().st_size for path in released.iterdir()) + 1000):
        told = refused(copied, "export", "--trt")
    reason = "cannot be read or written: File too large. Check the disk and its free space."
    assert told == f"soup-out/release/model.engine: {reason}"


@pytest.mark.parametrize(
    ("command", "flushed"), [("build", 1), ("build", 4), ("build", 9), ("export", 2), ("export", 5)]
)
def test_a_disk_that_is_found_full_only_on_flushing_leaves_the_earlier_output(
    exported: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, command: str, flushed: int
) -> None:
    """Correctness 47: for an export the second file flushed is the manifest; its release goes elsewhere."""
    calls = iter(range(1, flushed + 1))
    flush = os.fsync

    def full(descriptor: int) -> None:
        if next(calls, None) == flushed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    elsewhere = ("-o", "fresh/release") if command == "export" else ()
    told = refused(exported, command, *elsewhere)
    assert "cannot be written: No space left on device. Free some space" in told
    assert next(calls, None) is None


def test_a_full_disk_under_the_reports_of_a_verification_is_told(
    release: Path, refused: Refused, tmp_path: Path
) -> None:
    with room(2000):
        told = refused(release, "verify", ".", "-o", tmp_path / "reports")
    assert (
        told == f"{tmp_path / 'reports'}: cannot be written: File too large. Free some space or choose another folder."
    )
    assert not (tmp_path / "reports").exists()


def test_the_current_folder_may_be_read_only_where_output_goes_elsewhere(
    project: Path, accepted: Accepted, tmp_path: Path
) -> None:
    """/proc/sys/kernel stands for it, since tests may run as root."""
    out = tmp_path / "out"
    before = contents(project)
    accepted(Path("/proc/sys/kernel"), "build", "--val", project / "val.yaml", "-o", out)
    accepted(Path("/proc/sys/kernel"), "export", out)
    accepted(Path("/proc/sys/kernel"), "verify", out / "release", "-o", tmp_path / "reports")
    assert contents(project) == before


def test_folders_may_have_spaces_and_other_scripts_in_their_names(
    project: Path, accepted: Accepted, tmp_path: Path
) -> None:
    folder = project.rename(tmp_path / "mein Projekt 字")
    accepted(folder, "build")
    accepted(folder, "export")
    accepted(folder, "verify", "soup-out/release", "-o", "geprüft am 1.")
