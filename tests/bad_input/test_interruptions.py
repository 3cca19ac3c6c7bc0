"""What ends a command from outside: Ctrl-C, SIGTERM, a reader that goes, a shell that gives it no output; and a bug."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from soup.cli import main

from .conftest import contents
from .test_locks import ENVIRONMENT, assert_same_build, held_build, soup, with_gate
from .test_output import forwarded, images_kept

SOUP = [sys.executable, "-m", "soup"]
SLOW = """
import time

import numpy as np

def val():
    for index in range(100_000):
        time.sleep(0.001)
        yield np.full((8, 8), index % 250, np.uint8), index % 10
"""
BUG = """
import soup.cli
import soup.doctor

def bug(folder):
    raise {}

soup.doctor.examine = bug
soup.cli.main()
"""


def ctrl_c(group: int) -> None:
    """As a terminal does, which reaches the engine's builder too."""
    os.killpg(group, signal.SIGINT)


def terminate(process: int) -> None:
    """As a supervisor does, which leaves the engine's builder to its parent."""
    os.kill(process, signal.SIGTERM)


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `soup` in a session of its own; what a test leaves running is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(folder: Path, *arguments: str, on_interrupt: int = signal.SIG_DFL) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [*SOUP, *arguments], cwd=folder, env=ENVIRONMENT, text=True, start_new_session=True, **pipes,
            preexec_fn=lambda: signal.signal(signal.SIGINT, on_interrupt),  # a background job's is ignored
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        if is_alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("when", "arguments", "stop"),
    [
        ("decoding val", ("build", "--set", "data.val=./slow.py:val"), ctrl_c),
        ("scoring candidates", ("build",), ctrl_c),
        ("scoring candidates", ("build",), terminate),
        ("exporting to ONNX", ("export",), ctrl_c),
        ("building the engine: ", ("export", "--trt"), ctrl_c),
        ("building the engine: ", ("export", "--trt"), terminate),
    ],
    ids=["decoding", "search", "search, SIGTERM", "export", "engine", "engine, SIGTERM"],
)
def test_a_command_that_is_stopped_ends_with_130_and_leaves_nothing(
    copied: Path,
    started: Callable[..., subprocess.Popen[str]],
    when: str,
    arguments: tuple[str, ...],
    stop: Callable[[int], None],
) -> None:
    if "--trt" in arguments and importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    (copied / "slow.py").write_text(SLOW)
    before = contents(copied)
    process = started(copied, *arguments)
    assert process.stderr is not None
    assert any(line.startswith(when) for line in process.stderr)
    stop(process.pid)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    kept = " The next build goes on from what was evaluated." if arguments[0] == "build" else ""
    assert stderr.splitlines()[-1] == f"soup {arguments[0]}: interrupted; nothing was left half-written.{kept}"
    assert "Traceback" not in stdout + stderr
    assert contents(copied) == before
    assert not is_alive(process.pid), "a child outlived the command"


def test_sigterm_ends_a_background_job_which_ignores_sigint(
    copied: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    process = started(copied, "build", on_interrupt=signal.SIG_IGN)
    assert process.stderr is not None
    assert any(line.startswith("scoring candidates") for line in process.stderr)
    terminate(process.pid)
    process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.parametrize("stop", [ctrl_c, terminate])
def test_a_search_that_is_stopped_goes_on_with_the_next_build(
    project: Path, built: Path, stop: Callable[[int], None]
) -> None:
    out, reference = project / "soup-out", built / "soup-out"
    with held_build(with_gate(project)) as process:
        stop(process.pid)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    told = "soup build: interrupted; nothing was left half-written. The next build goes on from what was evaluated."
    assert stderr.splitlines() == [told]
    assert {path.name for path in out.iterdir()} == {"cache", "ledger.sqlite"}
    kept = images_kept(out)
    assert kept > 0
    assert soup(project, "build").returncode == 0
    assert_same_build(out, reference)
    assert forwarded(out) == forwarded(reference) - kept


def test_a_reader_that_goes_early_is_no_failure(copied: Path) -> None:
    """As in `soup inspect … | head -1`: the exit code stays the command's own."""
    for arguments in (["inspect", "soup-out"], ["doctor", "--json"]):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen([*SOUP, *arguments], cwd=copied, env=ENVIRONMENT, **pipes) as process:
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("command", "code"),
    [("doctor >&-", 0), ("doctor --json >&- 2>&-", 0), ("verify none 2>&-", 2), ("verify none 2>/dev/full", 2)],
)
def test_a_shell_that_takes_no_output_changes_no_exit_code(tmp_path: Path, command: str, code: int) -> None:
    done = shell(command, tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("json", ["", " --json"])
def test_a_full_disk_under_stdout_is_one_sentence(tmp_path: Path, json: str) -> None:
    done = shell(f"doctor{json} >/dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (2, "soup doctor: disk: No space left on device. Free some space.\n")


def test_a_terminal_without_unicode_gets_text_all_the_same(copied: Path) -> None:
    done = subprocess.run(
        [*SOUP, "inspect", "soup-out", "--json"], cwd=copied, env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8").startswith("{")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'."),
        (["verify", ".", "--foo"], "No such option: --foo"),
        (["verify"], "Missing argument 'RELEASE'."),
        (["export", "--workspace-mb", "0"], "Invalid value for '--workspace-mb'"),
        (["build", "-o", "a\0b"], "Invalid value for '-o'"),
    ],
)
def test_a_command_line_that_cannot_be_meant_ends_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["soup", *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # main sets its own
    earlier = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", ["RuntimeError('a bug')", "PermissionError(13, 'a bug')"])
def test_a_bug_keeps_its_traceback_and_ends_with_70(tmp_path: Path, error: str) -> None:
    """What no command expects, an OSError that is no full disk among it, is not dressed up as the user's."""
    command = [sys.executable, "-c", BUG.format(error), "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 70
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "a bug" in done.stderr.splitlines()[-1]


def is_alive(group: int) -> bool:
    """Whether any process of the group runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `soup` with these arguments and redirections through a shell."""
    line = f"{' '.join(SOUP)} {command}"
    return subprocess.run(["sh", "-c", line], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
