"""What a soup is, and whether it may ship."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

__version__ = "0.1.0"

Kind = Literal["input", "environment", "build"]
Progress = Callable[[str, int, int], None]
"""(what, done, total): `what` is "stage" or "stage: step", a total of 0 is not known."""


def silent(what: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


class SoupError(Exception):
    """What the user can act on: `kind` decides the exit code (input 2, environment 6, build 7)."""

    def __init__(self, message: str, *, kind: Kind = "input") -> None:
        super().__init__(message)
        self.kind: Kind = kind
