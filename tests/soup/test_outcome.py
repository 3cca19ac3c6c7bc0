"""What a command came to, where a signal ended it."""

from __future__ import annotations

import contextlib
import signal

import pytest
import typer

from soup import Progress
from soup.gates import Exit
from soup.outcome import interrupt, run_command


def test_an_interrupt_that_a_library_swallows_ends_the_command_at_its_next_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As torch does while it is being imported: the export went on by another route and ended with 0."""
    reached = []

    def work(progress: Progress) -> tuple[object, int]:
        with contextlib.suppress(KeyboardInterrupt):
            interrupt(signal.SIGTERM, None)
        progress("the next step", 0, 1)
        reached.append("the end")
        return None, Exit.OK

    with pytest.raises(typer.Exit) as ended:
        run_command("export", work, json=False)
    assert ended.value.exit_code == Exit.INTERRUPTED
    assert not reached
    assert "nothing was left half-written" in capsys.readouterr().err


def test_the_next_command_knows_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        interrupt(signal.SIGINT, None)
    with pytest.raises(typer.Exit) as ended:
        run_command("doctor", _examined, json=True)
    assert ended.value.exit_code == Exit.OK
    assert '"command": "doctor"' in capsys.readouterr().out


def _examined(progress: Progress) -> tuple[object, int]:
    from pathlib import Path

    from soup.doctor import examine

    progress("looking", 0, 0)
    return examine(Path.cwd()), Exit.OK
