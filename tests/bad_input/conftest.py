"""Bad input through the command line: one sentence per problem, the right exit code, and every file as it was."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from soup.cli import app
from soup.files import STAGING_PREFIX

Refused = Callable[..., str]
Accepted = Callable[..., str]


def contents(folder: Path) -> dict[str, str]:
    """Relative name → what is there, links not followed; without what a later build takes up, and Python's caches.

    That is whole decoded splits, the ledger, and a folder that holds nothing else.
    """
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts and not _is_taken_up(path)
    }


@pytest.fixture(scope="session")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all these tests keep decoded images, so that a project's own folder must stay as it is."""
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture
def refused(decoded: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs `soup` in a folder that must stay as it is; gives what it told, the command's name before it removed."""

    def run(folder: Path, command: str, *arguments: object, code: int = 2) -> str:
        before = contents(folder)
        monkeypatch.chdir(folder)
        result = CliRunner().invoke(app, [command, *_cache(command, decoded), *map(str, arguments)])
        told = [line for line in result.stderr.splitlines() if line.startswith(f"soup {command}")]
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert result.stdout == ""
        assert told
        assert all(line.endswith((".", "?")) or "Run: soup " in line for line in told), told
        assert contents(folder) == before
        assert not list(decoded.glob(f"{STAGING_PREFIX}*"))
        return "\n".join(line.partition(": ")[2] for line in told)

    return run


@pytest.fixture
def accepted(decoded: Path, monkeypatch: pytest.MonkeyPatch) -> Accepted:
    """Runs `soup` in a folder with another code than that of a refusal; gives stdout."""

    def run(folder: Path, command: str, *arguments: object, code: int = 0) -> str:
        monkeypatch.chdir(folder)
        result = CliRunner().invoke(app, [command, *_cache(command, decoded), *map(str, arguments)])
        assert result.exit_code == code, result.output
        assert not list(folder.rglob(f"{STAGING_PREFIX}*"))
        return result.stdout

    return run


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy of `built`, a project with a finished build, that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "copied"))


@pytest.fixture
def release(released: Path, tmp_path: Path) -> Path:
    """A copy of `released` that a test may change."""
    return Path(shutil.copytree(released, tmp_path / "release"))


def _is_taken_up(path: Path) -> bool:
    """Whether a later build opens this again: half of a decoded split's pair, the ledger, or the folder of it alone."""
    if path.is_dir():
        return [one.name for one in path.iterdir()] == ["ledger.sqlite"]
    decoded = path.parent.name == "cache" and all(path.with_suffix(one).is_file() for one in (".raw", ".json"))
    return decoded or path.name == "ledger.sqlite"


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"


def _cache(command: str, folder: Path) -> list[str]:
    return ["--set", f"data.cache.dir={folder}"] if command in ("build", "check") else []
