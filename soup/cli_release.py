"""The commands from a build to the device and back: export, verify, merge, bench; `cli` puts them into the program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from soup import Progress, SoupError
from soup.cli_options import Allow, Device, Json, Sets
from soup.outcome import run_command


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
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="Held against: a release, ONNX file or JSON."),
    ] = None,
    device: Device = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="LIST", help="In order, as int8,fp16: the first to pass ships."),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option("--resolution", metavar="SCALE", help="best, or a scale that build --resolutions measured."),
    ] = None,
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

        if not trt:
            _refuse_idle({"--compute-capability": compute_capability, "--workspace-mb": workspace_mb})
        options = Options(
            trt=trt,
            compute_capabilities=tuple(part.strip() for part in compute_capability.split(",") if part.strip()),
            baseline=baseline,
            device=device,
            allow_inconclusive=allow_inconclusive,
            resolution=resolution,
        )
        overrides = [*sets, *(f"gates.{gate}" for gate in gates)]
        overrides += [] if precision is None else [f"export.precision=[{precision}]"]
        overrides += [] if target is None else [f"export.target={target}" if target else "export.target=''"]
        overrides += [] if workspace_mb is None else [f"export.engine.workspace_mb={workspace_mb}"]
        result = run(folder, out or folder / "release", overrides=overrides, options=options, progress=progress)
        return result, result.exit_code

    run_command("export", work, json=json)


def _refuse_idle(for_engines: Mapping[str, object]) -> None:
    """An option for an engine that nobody asked for is a slip that would ship a release without one."""
    if given := [name for name, value in for_engines.items() if value]:
        raise SoupError(f"{' and '.join(given)}: only for an engine, which was not asked for. Add --trt.")


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
        str, typer.Option("--trtexec", metavar="LINE", help="Run this trtexec line too, or auto: the release's own.")
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
        from soup.bench_options import BenchOptions, numbers, provider_named, thread_numbers, trtexec_command

        options = BenchOptions(
            batches=numbers(batches, option="--batches"),
            threads=thread_numbers(threads),
            paced_hz=paced,
            against=against,
            provider=provider_named(provider),
            cuda_graph=cuda_graph,
            transfers=transfers,
            trtexec=trtexec_command(trtexec, model=model) if trtexec else (),
            out=out,
        )
        result = run(model, batch=batch, options=options, progress=progress)
        return result, result.exit_code

    run_command("bench", work, json=json)
