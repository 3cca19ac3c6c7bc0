from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from exporters.quiet import quiet

NOISY = """
import ctypes, sys
from exporters.quiet import quiet
with quiet():
    print("from Python")
    ctypes.CDLL(None).puts(b"from C, held back in its buffer")
    print("from Python", file=sys.stderr)
print("the document")
"""


def test_only_the_document_reaches_stdout() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOISY],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # set, it would unbuffer C as well
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("the document\n", "")


def shout_and_fail() -> None:
    warnings.warn("odd", UserWarning, stacklevel=1)
    raise KeyboardInterrupt


def test_stdout_is_back_after_an_exception_and_warnings_are_handed_over(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), quiet() as heard:
        shout_and_fail()
    os.write(1, b"back")
    assert capfd.readouterr().out == "back"
    assert [str(item.message) for item in heard] == ["odd"]
