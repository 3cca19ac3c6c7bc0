"""One command at a time in a folder, and no trace of a lock when it is over, however it ended."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from soup import SoupError
from soup.lock import locked

HOLDER = """
import sys
from pathlib import Path
from soup.lock import locked
with locked(Path(sys.argv[1]), "soup build"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_who_is_at_work_and_since_when(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as process:
        with pytest.raises(SoupError) as caught, locked(tmp_path, "soup build"):
            pass
        assert caught.value.kind == "input"
        told = re.sub(r"since \d\d:\d\d\.", "since 12:03.", str(caught.value))
        assert told == (
            f"{tmp_path}: soup build (pid {process.pid}) is working here since 12:03. "
            "Wait for it, or choose another -o."
        )
        assert (tmp_path / ".soup-lock").exists()


def test_since_has_its_date_where_it_is_not_of_today(tmp_path: Path) -> None:
    with locked(tmp_path, "soup build"):
        started = time.mktime((2024, 2, 3, 4, 5, 6, 0, 0, -1))
        (tmp_path / ".soup-lock").write_text(json.dumps({"pid": 12, "command": "soup build", "since": started}))
        with pytest.raises(SoupError, match="since 2024-02-03 04:05"), locked(tmp_path, "soup export"):
            pass


@pytest.mark.parametrize("text", ["", '{"pid": 1', "[]", '{"pid": null, "command": "x", "since": 1}'])
def test_an_owner_that_has_not_signed_yet_is_told_too(tmp_path: Path, text: str) -> None:
    with locked(tmp_path, "soup build"):
        (tmp_path / ".soup-lock").write_text(text)
        with pytest.raises(SoupError, match=r"another soup is working here\. Wait"), locked(tmp_path, "soup build"):
            pass


def test_a_killed_owner_blocks_nobody_and_its_file_goes_with_the_next(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / ".soup-lock").exists()
    with locked(tmp_path, "soup build"):
        assert json.loads((tmp_path / ".soup-lock").read_bytes())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_made_goes_if_it_is_empty_and_one_that_was_there_stays(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    with pytest.raises(FileExistsError), locked(deep, "soup build"):
        (deep / ".soup-lock").touch(exist_ok=False)
    assert not list(tmp_path.iterdir())
    with locked(tmp_path, "soup build"):
        pass
    assert tmp_path.exists()
    with locked(deep, "soup build"):
        (deep / "soup.txt").touch()
    assert [path.name for path in deep.iterdir()] == ["soup.txt"]


def test_a_refused_folder_is_left_as_it_was(tmp_path: Path) -> None:
    with locked(tmp_path / "out", "soup build"):
        for _ in range(2):
            with pytest.raises(SoupError), locked(tmp_path / "out", "soup build"):
                pass
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".soup-lock"]


def test_a_lock_file_removed_by_its_owner_between_opening_and_locking_is_not_taken_for_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, removed = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append((tmp_path / ".soup-lock").unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path, "soup build"):
        monkeypatch.undo()
        with pytest.raises(SoupError), locked(tmp_path, "soup build"):
            pass


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_a_link_is_never_written_through(tmp_path: Path, kind: str) -> None:
    elsewhere, lock = tmp_path / "elsewhere", tmp_path / "out" / ".soup-lock"
    lock.parent.mkdir()
    if kind == "link":
        elsewhere.write_text("mine")
    if kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(elsewhere)
    message = r"\.soup-lock: is a link or a folder, expected a file of soup's own\. Remove it"
    with pytest.raises(SoupError, match=message), locked(lock.parent, "soup build"):
        pass
    assert lock.is_symlink() or lock.exists()
    assert elsewhere.read_text() == "mine" if kind == "link" else not elsewhere.exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_without_locks_it_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def refused(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    with locked(tmp_path / "out", "soup build"):
        assert (tmp_path / "out").is_dir()
    assert not list(tmp_path.iterdir())
    assert "the file system has no locks" in caplog.text


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    message = r"out: cannot be written: No space left on device\. Free some space or choose another folder\."
    with pytest.raises(SoupError, match=message), locked(tmp_path / "out", "soup build"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_one_is_told_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"cannot be written: .*\. Check its permissions or choose another folder"
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(SoupError, match=message), locked(folder, "soup build"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
