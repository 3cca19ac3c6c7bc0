"""A command's work becomes what is shown and an exit code: each kind of failure is told here, and only here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FrameType

import typer

from calib import CalibError
from exporters import ExportError
from soup import Progress, SoupError
from soup.files import DISK_FULL
from soup.gates import Exit

_EXIT_OF_KIND = {"input": Exit.INPUT, "environment": Exit.ENVIRONMENT, "build": Exit.BUILD}
_NEEDED_TO_BUILD = ("torch", "torchvision")  # imported at the top of modules that a device never reaches


_interrupted = threading.Event()


def interrupt(signum: int, frame: FrameType | None) -> None:
    """A signal's handler: KeyboardInterrupt, and a mark of it, since a half-imported library may swallow it."""
    _interrupted.set()
    raise KeyboardInterrupt


def run_command(command: str, work: Callable[[Progress], tuple[object, int]], *, json: bool) -> None:
    """Do the work, show what came of it or what went wrong, and end with the exit code."""
    from soup import render
    from soup.progress import progress

    try:
        _interrupted.clear()
        with progress() as report:
            result, code = work(_ended_by_a_signal(report))
        render.show(command, result, code=code, json=json)
    except (SoupError, ExportError, CalibError) as error:
        code, message = _EXIT_OF_KIND[error.kind], str(error)
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED_TO_BUILD:
            raise
        code, message = Exit.ENVIRONMENT, f"needs {error.name}, which is not installed. pip install 'edgesoup[build]'"
    except KeyboardInterrupt:
        kept = " The next build goes on from what was evaluated." if command == "build" else ""
        code, message = Exit.INTERRUPTED, f"interrupted; nothing was left half-written.{kept}"
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        code, message = Exit.INPUT, f"{error.filename or 'disk'}: {error.strerror}. Free some space."
    else:
        raise typer.Exit(code)
    render.failure(command, message, code=code, json=json)
    raise typer.Exit(code)


def _ended_by_a_signal(report: Progress) -> Progress:
    """The progress, which raises KeyboardInterrupt where one was swallowed since: the work ends at its next step."""

    def told(what: str, done: int, total: int) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        report(what, done, total)

    return told
