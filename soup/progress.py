"""How far a command is: a bar with the remaining time on a terminal, plain lines elsewhere; on stderr."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from soup import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_PLAIN_SECONDS = 10.0  # how often a log without a terminal gets a line
_DRAW_SECONDS = 0.1  # how often a bar is drawn


@contextmanager
def progress() -> Iterator[Progress]:
    """Show what the callback is told; bars are gone in the end, whatever ended it.

    Nothing is drawn between two calls, so that whatever is timed there has the processor to itself.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield plain_lines(sys.stderr, time.monotonic)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    count, console = TextColumn("{task.fields[count]}"), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn(elapsed_when_finished=True))
    with Bars(*columns, console=console, transient=True, auto_refresh=False) as bars:
        yield drawn_bars(bars, time.monotonic)


def drawn_bars(bars: Bars, clock: Callable[[], float]) -> Progress:
    """A bar for each stage, drawn when it begins or ends and otherwise at most ten times a second."""
    tasks: dict[str, TaskID] = {}
    starting = bars.add_task("starting", total=None, count="")
    drawn = -math.inf

    def report(what: str, done: int, total: int) -> None:
        nonlocal drawn
        stage, now = _stage(what), clock()
        begins = stage not in tasks
        if begins:
            tasks[stage] = bars.add_task(what, total=None, count="")
        elif bars.tasks[tasks[stage]].description != what:
            bars.reset(tasks[stage])
        bars.update(starting, visible=False)
        count = f"{done:,}/{total:,}" if total else ""
        bars.update(tasks[stage], description=what, completed=done, total=total or None, count=count)
        if begins or done == total or now - drawn >= _DRAW_SECONDS:
            bars.refresh()
            drawn = now

    return report


def plain_lines(stream: TextIO, clock: Callable[[], float]) -> Progress:
    """A line when a stage begins, and while it lasts one at most every ten seconds, with the time that is left."""
    began: dict[str, tuple[float, int]] = {}
    last: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        stage, now = _stage(what), clock()
        since, before = began.setdefault(what, (now, done))
        if now - last.get(stage, -math.inf) < _PLAIN_SECONDS:
            return
        last[stage] = now
        left = (now - since) * (total - done) / (done - before) if done > before else None
        remaining = "" if left is None else f", about {duration_text(left)} left"
        say(f"{what}: {done:,}/{total:,}{remaining}" if total else what, stream)

    return report


def say(line: str, stream: TextIO) -> None:
    """Print a line at once. A reader that has gone (`| head`) is no failure, nor is a log that cannot be written."""
    try:
        print(line, file=stream, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python meets the error again as it ends
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            raise


def duration_text(seconds: float) -> str:
    """In the unit that one would say it in."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _stage(what: str) -> str:
    return what.partition(": ")[0]
