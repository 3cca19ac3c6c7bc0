"""The command line: parse → one call → render → exit code. Imports stand inside the commands, so that help is quick."""

from __future__ import annotations

import os
import signal
import sys
from io import StringIO, TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer

from soup import Progress, SoupError, __version__
from soup.cli_options import Allow, Json, Sets, Val
from soup.cli_release import bench, export, merge, verify
from soup.gates import Exit
from soup.outcome import interrupt, run_command

app = typer.Typer(
    name="soup",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def init(
    runs: Annotated[Path, typer.Argument(metavar="RUNS_DIR", help="Folder with checkpoints.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")] = Path("val.yaml"),
    json: Json = False,
) -> None:
    """Write a commented val.yaml for a folder of checkpoints.

    Found in the files: the pattern of their names, torchvision's architectures, the number of classes, the metrics that
    the trainer recorded, and train, val and test data nearby. What is guessed is marked "check".

    Example: soup init runs/ && soup check
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.starter import InitResult, write_starter

        return InitResult(write_starter(runs, out)), Exit.OK

    run_command("init", work, json=json)


@app.command()
def check(
    val: Val = Path("val.yaml"),
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Where decoded images are cached; a later build reuses it.")
    ] = Path("soup-out"),
    sets: Sets = [],  # noqa: B006  (typer copies it)
    json: Json = False,
) -> None:
    """Look before the build: checkpoints, data, score and cost.

    Lists all that a build would refuse or warn about (exit 2, or 6). With `expect` in val.yaml it evaluates that
    checkpoint on val; where the trainer's figure is missed (exit 1) it changes colour order, normalisation, weights and
    resizing one at a time, and says which change explains it.

    Example: soup check --val val.yaml --set preprocess.color=bgr
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.check import check as run
        from soup.config import load_config

        result = run(load_config(val, overrides=sets), out, progress=progress)
        return result, result.exit_code

    run_command("check", work, json=json)


@app.command()
def build(
    val: Val = Path("val.yaml"),
    out: Annotated[Path, typer.Option("-o", "--out", help="Build folder.")] = Path("soup-out"),
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="Cook this recipe.json again instead of searching.")
    ] = None,
    resolutions: Annotated[
        str | None,
        typer.Option("--resolutions", metavar="LIST", help="Measure the winner at these times its size: 0.7..1.4."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say of each evaluation why an earlier one could not be reused.")
    ] = False,
    sets: Sets = [],  # noqa: B006  (typer copies it)
    allow_inconclusive: Allow = False,
    json: Json = False,
) -> None:
    """Find the checkpoints whose average is best on val.

    Each candidate is averaged, recalibrated and judged as it will ship. The winner is compared with the best single
    checkpoint on test, and all of it is told in report.html. Every evaluation is kept in the folder's ledger: a build
    that was stopped goes on where it was, and one with another checkpoint evaluates only what is new.

    Example: soup build --val val.yaml -o soup-out
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.config import load_config

        swept = [] if resolutions is None else [f"preprocess.sweep.scales=[{', '.join(_scales(resolutions))}]"]
        config = load_config(val, overrides=[*sets, *swept])
        if recipe:
            from soup.recook import recook

            return recook(config, recipe, out, progress=progress), Exit.OK
        from soup.pipeline import build as run

        result = run(config, out, allow_inconclusive=allow_inconclusive, show_reuse=explain, progress=progress)
        return result, result.exit_code

    run_command("build --recipe" if recipe else "build", work, json=json)


def _scales(text: str) -> list[str]:
    """0.7..1.4 as eight scales a tenth apart; a list as it is."""
    first, dots, last = text.partition("..")
    if not dots:
        return [part.strip() for part in text.split(",")]
    try:
        steps = round((float(last) - float(first)) * 10)
    except ValueError:
        steps = -1
    if not 0 <= steps <= 40:
        raise SoupError(f"--resolutions {text}: expected scales from the smaller to the larger, as 0.7..1.4.")
    return [f"{float(first) + step / 10:.10g}" for step in range(steps + 1)]


for command in (export, verify, merge, bench):
    app.command()(command)


@app.command()
def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="ONNX, engine, checkpoint, or a release or build folder.")
    ],
    json: Json = False,
) -> None:
    """Say what a file is, without running it.

    Example: soup inspect runs/a/last.pt
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.inspect import inspect as run

        return run(file), Exit.OK

    run_command("inspect", work, json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """Say what this machine can do, and what brings the rest.

    Example: soup doctor
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.doctor import examine

        return examine(Path.cwd()), Exit.OK

    run_command("doctor", work, json=json)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edgesoup {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tuned checkpoints in; one better model, and a release proved on the way to edge GPUs, out.

    Exit codes: 0 nothing failed, 1 a check failed, 2 input you can fix, 3 accuracy gate, 4 latency gate, 5 undecided,
    6 environment, 7 build failed, 70 a bug, 130 interrupted.
    """


def main() -> None:
    """The `soup` script. SIGTERM ends it as Ctrl-C does, so that a cancelled job leaves nothing half-written."""
    # Read when torch loads. Threads that spin while they wait made a build ten times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A shell's background job ignores SIGINT; SIGTERM must end it all the same.
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    sys.excepthook = _bug
    sys.stdout, sys.stderr = sys.stdout or StringIO(), sys.stderr or StringIO()  # None where the shell closed them
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as JSON must be, whatever the locale
    typer.main.get_command(app)()  # calling `app` would put an excepthook of typer's in the place of ours


def _bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What no command expects keeps its traceback, and ends with a code of its own."""
    sys.__excepthook__(kind, error, trace)
    sys.exit(Exit.BUG)
