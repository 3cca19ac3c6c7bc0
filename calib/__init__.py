"""What a model must see again after its weights changed. Knows nothing of soups."""

from __future__ import annotations

from typing import Literal

Kind = Literal["input", "environment", "build"]


class CalibError(Exception):
    """What the user can act on: `kind` decides the exit code (input 2, environment 6, build 7)."""

    def __init__(self, message: str, *, kind: Kind = "input") -> None:
        super().__init__(message)
        self.kind: Kind = kind


class DivergedError(CalibError):
    """A network whose activations, or their statistics, are no finite numbers: its weights may have gone astray."""
