"""A model in, a file out, and does it still say the same. Knows nothing of soups."""

from __future__ import annotations

from typing import Literal

Kind = Literal["input", "environment", "build"]


class ExportError(Exception):
    """What the user can act on: `kind` decides the exit code (input 2, environment 6, build 7)."""

    def __init__(self, message: str, *, kind: Kind = "build") -> None:
        super().__init__(message)
        self.kind: Kind = kind
