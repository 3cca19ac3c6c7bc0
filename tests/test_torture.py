"""What `make torture` does a hundred times, a few times; and that it would see a build that ends otherwise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "torture.py"
FORGETS = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import torture
from soup.ledger import Ledger
keep = Ledger.keep
def spoilt(ledger, key, evaluation):
    evaluation.seen[:] = True  # as if an unfinished evaluation were a finished one
    keep(ledger, key, evaluation)
def torment(*arguments, **options):
    Ledger.keep = spoilt
    right(*arguments, **options)
right, torture.torment = torture.torment, torment
sys.exit(torture.main())
"""


def run(*command: str | Path, kills: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command, "--kills", str(kills)], capture_output=True, text=True)


@pytest.mark.slow
def test_builds_killed_at_random_moments_end_as_if_left_alone() -> None:
    done = run(SCRIPT, kills=3)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = dict(re.findall(r"^ *(\S.*?) {2,}(\S.*)$", done.stdout, re.MULTILINE))
    assert figures["kills"] == "3"
    assert figures["differences from the undisturbed build"] == "0"


@pytest.mark.slow
def test_a_build_that_ends_otherwise_after_a_kill_is_found() -> None:
    done = run("-c", FORGETS, kills=6)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "other bytes" in done.stdout or "a build ended with" in done.stdout
