"""The command line: parse → one call → render → exit code. Imports stand inside the commands, so that help is quick."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from calib import CalibError
from exporters import ExportError
from soup import SoupError, __version__
from soup.files import DISK_FULL
from soup.gates import Exit

app = typer.Typer(
    name="soup",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tuned checkpoints in; one better model, and a release proved on the way to edge GPUs, out.",
)

Progress = Callable[[str, int, int], None]
_NEEDED_TO_BUILD = ("torch", "torchvision")  # imported at the top of modules that a device never reaches
_EXIT_OF_KIND = {"input": Exit.INPUT, "environment": Exit.ENVIRONMENT, "build": Exit.BUILD}

Val = Annotated[Path, typer.Option("--val", help="The val.yaml that names model, checkpoints and data.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
Sets = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key of val.yaml; may be repeated.")]
Allow = Annotated[bool, typer.Option("--allow-inconclusive", help="Exit 0 where a gate could not be decided (else 5).")]
Device = Annotated[str | None, typer.Option("--device", help="What you call this device, as gates.latency.device names it.")]


@app.command()
def init(
    runs: Annotated[Path, typer.Argument(metavar="RUNS_DIR", help="Folder with checkpoints.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")] = Path("val.yaml"),
    json: Json = False,
) -> None:
    """Write a commented val.yaml from what a folder of checkpoints shows.

    Example: soup init runs/
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.starter import write_starter

        return {"path": str(write_starter(runs, out))}, Exit.OK

    _run("init", work, json=json)


@app.command()
def check(
    val: Val = Path("val.yaml"),
    out: Annotated[Path, typer.Option("-o", "--out", help="Where decoded images are cached; a later build reuses it.")] = Path("soup-out"),
    sets: Sets = [],  # noqa: B006  (typer copies it)
    json: Json = False,
) -> None:
    """Look before the build: checkpoints, data, and one checkpoint against the figure its trainer reported (expect).

    Example: soup check --val val.yaml
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.check import check as run
        from soup.config import load_config

        result = run(load_config(val, overrides=sets), out, progress=progress)
        return result, result.exit_code

    _run("check", work, json=json)


@app.command()
def build(
    val: Val = Path("val.yaml"),
    out: Annotated[Path, typer.Option("-o", "--out", help="Build folder.")] = Path("soup-out"),
    sets: Sets = [],  # noqa: B006
    allow_inconclusive: Allow = False,
    json: Json = False,
) -> None:
    """Search which checkpoints to average; each candidate is recalibrated and judged as it will ship.

    Example: soup build --val val.yaml -o soup-out
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.config import load_config
        from soup.pipeline import build as run

        result = run(load_config(val, overrides=sets), out, allow_inconclusive=allow_inconclusive, progress=progress)
        return result, result.exit_code

    _run("build", work, json=json)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Build folder.")] = Path("soup-out"),
    trt: Annotated[bool, typer.Option("--trt", help="Build a TensorRT engine too, and run it where there is a GPU.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Release folder (default: DIR/release).")] = None,
    compute_capability: Annotated[
        str, typer.Option("--compute-capability", help="GPUs to build for ahead of time, as 8.6,8.9 (tensorrt_rtx).")
    ] = "",
    workspace_mb: Annotated[int | None, typer.Option("--workspace-mb", min=1, help="Limit of TensorRT's workspace.")] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="The release that this one follows.")] = None,
    device: Device = None,
    sets: Sets = [],  # noqa: B006
    allow_inconclusive: Allow = False,
    json: Json = False,
) -> None:
    """Turn a build into a release: ONNX, engine, parity and latency, gates, manifest.

    Example: soup export --trt --compute-capability 8.6,8.9
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.ship import Options
        from soup.ship import export as run

        options = Options(
            trt=trt,
            compute_capabilities=tuple(part.strip() for part in compute_capability.split(",") if part.strip()),
            workspace_bytes=None if workspace_mb is None else workspace_mb << 20,
            baseline=baseline,
            device=device,
            allow_inconclusive=allow_inconclusive,
        )
        result = run(folder, out or folder / "release", overrides=sets, options=options, progress=progress)
        return result, result.exit_code

    _run("export", work, json=json)


@app.command()
def verify(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Release folder; it is only read.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the reports of this verification here.")] = None,
    device: Device = None,
    allow_inconclusive: Allow = False,
    json: Json = False,
) -> None:
    """Prove a release again where it is: hashes, then outputs, metric and latency. Needs no PyTorch.

    Example: soup verify soup-out/release
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.release import verify as run

        result = run(release, out=out, device=device, allow_inconclusive=allow_inconclusive)
        return result, result.exit_code

    _run("verify", work, json=json)


@app.command()
def bench(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file, an engine, or a release folder.")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per call.")] = 1,
    json: Json = False,
) -> None:
    """Latency of a model file on this machine, with percentiles that the number of calls can bear.

    Example: soup bench soup-out/release/model.onnx
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.release import bench as run

        return run(model, batch=batch), Exit.OK

    _run("bench", work, json=json)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="ONNX, engine, checkpoint, or a release or build folder.")],
    json: Json = False,
) -> None:
    """Say what a file is, without running it.

    Example: soup inspect runs/a/last.pt
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.inspect import inspect as run

        return run(file), Exit.OK

    _run("inspect", work, json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """Say what this machine can do, and which command brings what is missing.

    Example: soup doctor
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.doctor import examine

        return examine(Path.cwd()), Exit.OK

    _run("doctor", work, json=json)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edgesoup {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Fine-tuned checkpoints in; one better model, and a release proved on the way to edge GPUs, out.

    Exit codes: 0 nothing failed, 1 a check failed, 2 input you can fix, 3 accuracy gate, 4 latency gate, 5 undecided,
    6 environment, 7 build failed, 70 a bug, 130 interrupted.
    """


def main() -> None:
    """The `soup` script. SIGTERM ends it as Ctrl-C does, so that a cancelled job leaves nothing half-written."""
    # Read when torch loads. Threads that spin while they wait made evaluation six to ten times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    app()


def _run(command: str, work: Callable[[Progress], tuple[object, int]], *, json: bool) -> None:
    """Do the work, show what came of it or what went wrong, and end with the exit code."""
    from soup import render

    try:
        with render.progress() as progress:
            result, code = work(progress)
    except (SoupError, ExportError, CalibError) as error:
        code = _EXIT_OF_KIND[error.kind]
        render.failure(command, str(error), code=code, json=json)
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED_TO_BUILD:
            raise
        code = Exit.ENVIRONMENT
        message = f"needs {error.name}, which is not installed. pip install 'edgesoup[build]'"
        render.failure(command, message, code=code, json=json)
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
        render.failure(command, "interrupted; nothing was left half-written.", code=code, json=json)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        code = Exit.INPUT
        render.failure(command, f"{error.filename or 'disk'}: {error.strerror}. Free some space.", code=code, json=json)
    else:
        render.show(command, result, code=code, json=json)
    raise typer.Exit(code)
