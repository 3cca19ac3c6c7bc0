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

from soup import Progress, __version__
from soup.gates import Exit
from soup.outcome import run_command

app = typer.Typer(
    name="soup",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


Val = Annotated[Path, typer.Option("--val", help="The val.yaml that names model, checkpoints and data.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
Sets = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of val.yaml, as search.methods=[greedy]; may be repeated."
    ),
]
Allow = Annotated[bool, typer.Option("--allow-inconclusive", help="Exit 0 where a gate could not be decided (else 5).")]
Device = Annotated[
    str | None, typer.Option("--device", help="What you call this device, as gates.latency.device names it.")
]


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

        config = load_config(val, overrides=sets)
        if recipe:
            from soup.recook import recook

            return recook(config, recipe, out, progress=progress), Exit.OK
        from soup.pipeline import build as run

        result = run(config, out, allow_inconclusive=allow_inconclusive, show_reuse=explain, progress=progress)
        return result, result.exit_code

    run_command("build --recipe" if recipe else "build", work, json=json)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Build folder.")] = Path("soup-out"),
    trt: Annotated[
        bool, typer.Option("--trt", help="Build a TensorRT engine too, and run it where there is a GPU.")
    ] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Release folder (default: DIR/release).")] = None,
    compute_capability: Annotated[
        str, typer.Option("--compute-capability", help="GPUs to build for ahead of time, as 8.6,8.9 (tensorrt_rtx).")
    ] = "",
    workspace_mb: Annotated[
        int | None, typer.Option("--workspace-mb", min=1, help="Limit of TensorRT's workspace.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="The release that this one follows.")] = None,
    device: Device = None,
    precision: Annotated[
        str, typer.Option("--precision", metavar="LIST", help="In order, as int8,fp16: the first that passes ships.")
    ] = "",
    target: Annotated[
        str | None, typer.Option("--target", help="The device it is for, as jetson-orin-jp6.2 or rtx-4060.")
    ] = None,
    gates: Annotated[
        list[str],
        typer.Option("--gate", metavar="KEY=VALUE", help="A gate, as accuracy.max_drop=0.005; may be repeated."),
    ] = [],  # noqa: B006  (typer copies it)
    sets: Sets = [],  # noqa: B006  (typer copies it)
    allow_inconclusive: Allow = False,
    json: Json = False,
) -> None:
    """Turn a build into a release: ONNX, a precision that passes the gates, engine, manifest.

    Every hop is compared with the one before it, on outputs and on the metric over all of val; latency is measured.
    Where a lower precision fails an accuracy gate, the layers that it must not have are looked for and kept higher.

    Example: soup export --trt --precision int8,fp16 --gate accuracy.max_drop=0.005
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.export_proof import Options
        from soup.ship import export as run

        options = Options(
            trt=trt,
            compute_capabilities=tuple(part.strip() for part in compute_capability.split(",") if part.strip()),
            workspace_bytes=None if workspace_mb is None else workspace_mb << 20,
            baseline=baseline,
            device=device,
            allow_inconclusive=allow_inconclusive,
        )
        overrides = [*sets, *(f"gates.{gate}" for gate in gates)]
        overrides += [f"export.precision=[{precision}]"] if precision else []
        overrides += [f"export.target={target}"] if target else []
        result = run(folder, out or folder / "release", overrides=overrides, options=options, progress=progress)
        return result, result.exit_code

    run_command("export", work, json=json)


@app.command()
def verify(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Release folder; it is only read.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the reports of this verification, or the kit, here.")
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Build the engine on this device, prove it, and write a kit to -o.")
    ] = False,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Find the first layer where two graphs depart; exit 1 if one does.")
    ] = False,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", metavar="A", help="For --bisect: the graph to look into.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="B", help="For --bisect: the reference (default: model.onnx).")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0, help="For --bisect: largest relative error of a layer.")
    ] = None,
    device: Device = None,
    allow_inconclusive: Allow = False,
    json: Json = False,
) -> None:
    """Prove a release again, where it is.

    Hashes first; then outputs, metric and latency from the golden samples, on whatever runtime is there. Needs no
    PyTorch, and only reads the folder. With --finish the device builds its own engine; `soup merge` brings it home.

    Example: soup verify soup-out/release --finish -o kit --device orin-nano
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup import release as proof

        asked = {"--onnx": onnx, "--against": against, "--threshold": threshold}
        proof.refuse_mixed(out, finish=finish, bisect=bisect, for_bisect=asked)
        if bisect:
            from soup.bisect import bisect as look

            layers = look(release, onnx=onnx, against=against, threshold=threshold, progress=progress)
            return layers, layers.exit_code
        if finish and out is not None:
            from soup.kit import finish as build_here

            kit = build_here(release, out, device=device, allow_inconclusive=allow_inconclusive, progress=progress)
            return kit, kit.exit_code
        result = proof.verify(release, out=out, device=device, allow_inconclusive=allow_inconclusive, progress=progress)
        return result, result.exit_code

    run_command("verify --finish" if finish else "verify --bisect" if bisect else "verify", work, json=json)


@app.command()
def merge(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="The release that the kits were made from.")],
    kits: Annotated[list[Path], typer.Argument(metavar="KIT...", help="Folders that `soup verify --finish` wrote.")],
    allow_inconclusive: Allow = False,
    json: Json = False,
) -> None:
    """Bring what devices built home into their release, below device/.

    Nothing that was sealed is touched. Says what gates.require still misses (exit 6).

    Example: soup merge soup-out/release kit-orin kit-rtx
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.merge import merge as run

        result = run(release, kits, allow_inconclusive=allow_inconclusive)
        return result, result.exit_code

    run_command("merge", work, json=json)


@app.command()
def bench(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file, an engine, or a release folder.")],
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Images per call (default: as the graph has it, or 1).")
    ] = None,
    batches: Annotated[str, typer.Option("--batches", metavar="LIST", help="Sweep images per call, as 1,2,4,8.")] = "",
    threads: Annotated[str, typer.Option("--threads", metavar="LIST", help="Sweep ONNX Runtime's threads.")] = "",
    paced: Annotated[
        float | None, typer.Option("--paced", metavar="HZ", min=0.01, help="A call per frame of a camera, as 30.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Another model: time both in turns (exit 4 if this one is slower).")
    ] = None,
    provider: Annotated[str, typer.Option("--provider", help="cpu, cuda or tensorrt, for an .onnx file.")] = "cpu",
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph", help="Replay a captured CUDA graph (engines).")] = False,
    transfers: Annotated[
        bool, typer.Option("--transfers/--no-transfers", help="Count the copies to the device and back.")
    ] = True,
    trtexec: Annotated[
        str, typer.Option("--trtexec", metavar="LINE", help="Run this trtexec line too; its figure stands beside.")
    ] = "",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write table, picture and JSON here.")] = None,
    json: Json = False,
) -> None:
    """Time a model file on this machine.

    One call at a time, after a warm-up until it is stable; a percentile is bounded only where there are enough calls
    for it, and a device that was throttled meanwhile makes the figures invalid.

    Example: soup bench soup-out/release/model.onnx --batches 1,2,4,8 --threads 1,2 -o bench-out
    """

    def work(progress: Progress) -> tuple[object, int]:
        from soup.bench import bench as run
        from soup.bench_options import BenchOptions, numbers, provider_named, trtexec_command

        options = BenchOptions(
            batches=numbers(batches, option="--batches"),
            threads=numbers(threads, option="--threads"),
            paced_hz=paced,
            against=against,
            provider=provider_named(provider),
            cuda_graph=cuda_graph,
            transfers=transfers,
            trtexec=trtexec_command(trtexec) if trtexec else (),
            out=out,
        )
        result = run(model, batch=batch, options=options, progress=progress)
        return result, result.exit_code

    run_command("bench", work, json=json)


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.excepthook = _bug
    sys.stdout, sys.stderr = sys.stdout or StringIO(), sys.stderr or StringIO()  # None where the shell closed them
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as JSON must be, whatever the locale
    typer.main.get_command(app)()  # calling `app` would put an excepthook of typer's in the place of ours


def _bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What no command expects keeps its traceback, and ends with a code of its own."""
    sys.__excepthook__(kind, error, trace)
    sys.exit(Exit.BUG)
