"""A command's work becomes what is shown and an exit code: each kind of failure is told here, and only here."""

from __future__ import annotations

from collections.abc import Callable

import typer

from calib import CalibError
from exporters import ExportError
from soup import Progress, SoupError
from soup.files import DISK_FULL
from soup.gates import Exit

_EXIT_OF_KIND = {"input": Exit.INPUT, "environment": Exit.ENVIRONMENT, "build": Exit.BUILD}
_NEEDED_TO_BUILD = ("torch", "torchvision")  # imported at the top of modules that a device never reaches


def run_command(command: str, work: Callable[[Progress], tuple[object, int]], *, json: bool) -> None:
    """Do the work, show what came of it or what went wrong, and end with the exit code."""
    from soup import render
    from soup.progress import progress

    try:
        with progress() as report:
            result, code = work(report)
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
