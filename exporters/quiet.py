"""Libraries that print, kept off stdout: one JSON document goes there and nothing else."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Drop what is printed within, from Python and to descriptor 1 from C++; gives the warnings that were raised.

    What C++ writes to descriptor 2 still comes out. Holds for the whole process, other threads included.
    """
    sys.stdout.flush()
    stdout = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    noise = StringIO()
    try:
        with redirect_stdout(noise), redirect_stderr(noise), warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            yield heard
    finally:
        ctypes.CDLL(None).fflush(None)  # what C++ holds back must not come out after the switch
        os.dup2(stdout, 1)
        os.close(stdout)
