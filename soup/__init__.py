"""What a soup is, and whether it may ship."""

from __future__ import annotations

from typing import Literal

__version__ = "0.1.0"

Kind = Literal["input", "environment", "build"]


class SoupError(Exception):
    """What the user can act on: `kind` decides the exit code (input 2, environment 6, build 7)."""

    def __init__(self, message: str, *, kind: Kind = "input") -> None:
        super().__init__(message)
        self.kind: Kind = kind
