"""Progress is one bar for each stage on a terminal, and never a flood in a log."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from soup.progress import drawn_bars, plain_lines, progress


class Clock:
    """Seconds that pass only when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def drawn() -> Bars:
    return Bars(console=Console(file=io.StringIO(), force_terminal=True), auto_refresh=False)


def test_the_steps_of_a_stage_share_one_bar_that_starts_anew_with_each(drawn: Bars) -> None:
    report = drawn_bars(drawn, Clock())
    report("judging: the model on test", 2000, 2000)
    report("judging: the best single on test", 64, 2000)
    report("building the engine: Timing tactics", 0, 0)
    starting, judging, engine = drawn.tasks
    assert not starting.visible
    assert (judging.description, judging.completed, judging.total) == ("judging: the best single on test", 64, 2000)
    assert not judging.finished
    assert (engine.total, engine.fields["count"]) == (None, "")


def test_no_thread_draws_while_a_model_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would show in the 99th percentile (correctness 41)."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    before = threading.active_count()
    with progress() as report:
        report("timing model.onnx", 0, 0)
        assert threading.active_count() == before


def test_a_bar_is_drawn_at_most_ten_times_a_second(drawn: Bars, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[int] = []
    monkeypatch.setattr(drawn, "refresh", lambda: frames.append(1))
    clock = Clock()
    report = drawn_bars(drawn, clock)
    for done in range(1, 1000):
        clock.now = done * 0.001
        report("scoring candidates", done, 1000)
    assert 10 <= len(frames) <= 14  # in one second, from "starting" on


def test_a_log_is_told_the_time_that_the_step_has_left_and_not_that_of_the_one_before() -> None:
    stream, clock = io.StringIO(), Clock()
    report = plain_lines(stream, clock)
    for second in range(40):
        clock.now = float(second)
        what = "judging: the model on test" if second < 15 else "judging: the best single on test"
        report(what, 100 * (second % 15 + 1), 4000)
    assert stream.getvalue().splitlines() == [
        "judging: the model on test: 100/4,000",
        "judging: the model on test: 1,100/4,000, about 29 s left",
        "judging: the best single on test: 600/4,000, about 34 s left",
        "judging: the best single on test: 100/4,000",
    ]
