"""How fast a model file is on this machine: alone, over batches and threads, at a camera's rate, against another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from exporters.device_state import state_reader
from exporters.engine import open_engine
from exporters.interleaved import Pair, measure_pair
from exporters.latency import Contract, Latency
from exporters.pacing import Timing
from exporters.plan import plan_flavour
from exporters.runtimes import Runtime, RuntimeInfo, TensorInfo, open_onnx
from exporters.trtexec import TrtexecFigure, run_trtexec
from soup import Progress, SoupError, silent
from soup.bench_options import BenchOptions
from soup.bench_picture import BenchRow, bench_markdown, bench_svg
from soup.build_folder import claim_folder
from soup.files import readable_json, sha256_file, staged
from soup.gates import Exit
from soup.manifest import FILE_NAME, read_manifest
from soup.proof import TIMED, TIMING, Artifact, time_runtime
from soup.release import refuse_inside
from soup.release_facts import facts_of

FILES = ("bench.json", "bench.md", "bench.svg")
_EXITS = {"pass": Exit.OK, "fail": Exit.LATENCY, "inconclusive": Exit.UNDECIDED, "invalid": Exit.UNDECIDED}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same timed in turns with another model: `pair.ratio` is this one's time over the other's."""

    model: Path
    info: RuntimeInfo
    pair: Pair


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What `soup bench` tells of one model file on this machine; `latency` is the first row's."""

    model: Path
    info: RuntimeInfo
    latency: Latency
    rows: tuple[BenchRow, ...] = ()
    against: Comparison | None = None
    trtexec: TrtexecFigure | None = None
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def verdicts(self) -> tuple[str, ...]:
        """A sentence for each setting whose figures do not hold, one for the comparison, one of trtexec."""
        slowed = [
            f"{'invalid':<13}batch {row.batch}: the device was slowed down: {'; '.join(row.latency.throttled)}"
            for row in self.rows
            if row.latency.throttled
        ]
        others = [_comparison_text(self.model, self.against)] if self.against else []
        return (*slowed, *others, *([_trtexec_text(self.trtexec)] if self.trtexec else []))

    @property
    def exit_code(self) -> Exit:
        """Not 0 where another model was named, and this one is slower (4) or it could not be decided (5)."""
        return _EXITS[self.against.pair.verdict] if self.against else Exit.OK


@dataclass(slots=True)
class _Found:
    info: RuntimeInfo | None = None
    rows: list[BenchRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def bench(
    model: Path, *, batch: int | None = None, options: BenchOptions | None = None, progress: Progress = silent
) -> BenchResult:
    """Latency of an ONNX file, an engine, or a release's ONNX model, on random inputs (uniform in 0..1, seed 0).

    `batch` is samples per call, None the graph's own (1 where it is dynamic); `options.batches` sweeps it. With
    `options.out` the table, the picture (where matplotlib is) and the JSON are written there. Raises SoupError or
    ExportError for a file that cannot be opened here as asked, or whose hash is not the one in the manifest beside it.
    """
    options = options or BenchOptions()
    path = model_file(model)
    other = model_file(options.against) if options.against else None
    if options.out is not None:
        if (path.parent / FILE_NAME).is_file():
            refuse_inside(options.out, path.parent)
        claim_folder(options.out, ours=FILES, command="soup bench")
    _refuse_what_an_engine_has_not(path, options)
    found = _Found()
    cases = list(product(options.batches or (batch,), options.threads or (None,)))
    for done, (size, threads) in enumerate(cases):
        progress(f"timing {path.name}: {_case_text(size, threads)}, {TIMED}", done, len(cases))
        found.rows.append(_row(path, size, threads, options, found))
    progress(f"timing {path.name}: done", len(cases), len(cases))
    assert found.info is not None  # there is at least one case
    against = _compare(path, other, cases[0], options, progress) if other else None
    if options.trtexec:
        progress(f"timing with {Path(options.trtexec[0]).name}", 0, 0)
    result = BenchResult(
        path, found.info, found.rows[0].latency, tuple(found.rows), against,
        run_trtexec(options.trtexec) if options.trtexec else None, tuple(dict.fromkeys(found.notes)),
    )  # fmt: skip
    return _written(result, options.out) if options.out else result


def model_file(model: Path) -> Path:
    """The file itself, or the graph that ships of a release."""
    path = model / _shipped(model) if model.is_dir() else model
    if not path.is_file():
        raise SoupError(f"{path}: not found, expected an .onnx file, an engine, or a release folder.")
    return path


def _shipped(release: Path) -> str:
    if not (release / FILE_NAME).is_file():
        return "model.onnx"
    attempts = facts_of(read_manifest(release), where=release).precision
    return next((one.file for one in attempts if one.outcome == "ships" and one.file), "model.onnx")


def is_engine(path: Path) -> bool:
    """Whether the file is for TensorRT, by its name or its tag."""
    with path.open("rb") as file:
        return path.suffix == ".engine" or plan_flavour(file.read(64)) is not None


def _refuse_what_an_engine_has_not(path: Path, options: BenchOptions) -> None:
    if not is_engine(path):
        if options.cuda_graph:
            raise SoupError(f"{path}: is no engine, and only an engine runs in a CUDA graph. Leave --cuda-graph out.")
        return
    if options.threads:
        raise SoupError(f"{path}: is an engine, which has no threads to choose. Leave --threads out.")
    if options.provider != "cpu":
        raise SoupError(f"{path}: is an engine, which runs on TensorRT alone. Leave --provider out.")


def _row(path: Path, batch: int | None, threads: int | None, options: BenchOptions, found: _Found) -> BenchRow:
    timing: Timing = replace(TIMING, rate_hz=options.paced_hz)
    with _opened(path, batch, threads, options) as runtime:
        size = _bench_batch(path, runtime.inputs, batch, swept=options.batches)
        artifact = Artifact(path.name, "onnx", "", size)
        inputs = _random_inputs(runtime.inputs, size)
        latency = time_runtime(runtime, inputs, artifact, timing=timing, transfers=options.transfers)
        if threads is not None:
            latency = replace(latency, contract={**latency.contract, "threads": threads})
        found.info = runtime.info
        found.notes += runtime.notes
    return BenchRow(size, threads, latency)


def _opened(
    path: Path, batch: int | None, threads: int | None, options: BenchOptions
) -> AbstractContextManager[Runtime]:
    sha256 = _expected_sha256(path)
    if is_engine(path):
        return open_engine(path, expected_sha256=sha256, cuda_graph=options.cuda_graph)
    return open_onnx(path, provider=options.provider, threads=threads, expected_sha256=sha256, batch=batch)


def _compare(
    path: Path, other: Path, case: tuple[int | None, int | None], options: BenchOptions, progress: Progress
) -> Comparison:
    """Both opened at once, each with its own random inputs, in turns."""
    progress(f"timing in turns: {path.name} and {other.name}", 0, 0)
    with _ready(path, case, options) as (info, call, size), _ready(other, case, options) as (other_info, other_call, _):
        contract: Contract = {
            "batch": size,
            "transfers_included": True,
            "runtime": info.runtime,
            "provider": info.provider,
        }
        return Comparison(other, other_info, measure_pair(call, other_call, contract=contract, state=state_reader()))


@contextmanager
def _ready(
    path: Path, case: tuple[int | None, int | None], options: BenchOptions
) -> Iterator[tuple[RuntimeInfo, Callable[[], object], int]]:
    plain = options if is_engine(path) else replace(options, cuda_graph=False)
    with _opened(path, *case, plain) as runtime:
        size = _bench_batch(path, runtime.inputs, case[0], swept=())
        inputs = _random_inputs(runtime.inputs, size)
        yield runtime.info, lambda: runtime(inputs), size


def _comparison_text(model: Path, other: Comparison) -> str:
    pair = other.pair
    interval = "no interval" if pair.low is None or pair.high is None else f"{pair.low:.3f} to {pair.high:.3f}"
    said = "; ".join(pair.throttled) or f"{pair.blocks} blocks in turns, no cost up to {1 + pair.margin:.2f}"
    return (
        f"{pair.verdict:<13}{model} takes {pair.ratio:.3f} of the time of {other.model} "
        f"({interval} at {pair.confidence * 100:g} %; {said})"
    )


def _trtexec_text(figure: TrtexecFigure) -> str:
    p99 = figure.gpu.percentiles_ms.get(99.0)
    tail = "" if p99 is None else f" (p99 {p99:.2f})"
    whole = "" if figure.latency is None else f", with copies {figure.latency.median_ms:.2f} ms"
    return (
        f"{'trtexec':<13}{figure.version}: GPU {figure.gpu.median_ms:.2f} ms{tail}{whole}, "
        f"{figure.throughput_qps:,.1f} calls per second"
    )


def _written(result: BenchResult, folder: Path) -> BenchResult:
    """The result with the files that hold it; bench.json last."""
    picture = bench_svg(result.rows)
    names = [name for name in FILES if picture is not None or name != "bench.svg"]
    result = replace(result, files=tuple(folder / name for name in names))
    body = TypeAdapter(BenchResult).dump_python(result, mode="json")
    with staged(folder, last=FILES[0]) as stage:
        title = f"{result.model.name} on {result.info.device}"
        text = bench_markdown(title, result.rows, picture="bench.svg" if picture is not None else None)
        (stage / "bench.md").write_text(text, encoding="utf-8")
        if picture is not None:
            (stage / "bench.svg").write_bytes(picture)
        (stage / "bench.json").write_bytes(readable_json(body))
    return result


def _case_text(batch: int | None, threads: int | None) -> str:
    return ("its own batch" if batch is None else f"batch {batch}") + (f", {threads} threads" if threads else "")


def _expected_sha256(path: Path) -> str:
    """The hash in the manifest beside the file, where it lies in a release; else its own."""
    if (path.parent / FILE_NAME).is_file():
        listed = read_manifest(path.parent).files.get(path.name)
        if listed is not None:
            return listed.sha256
    return sha256_file(path)


def _bench_batch(path: Path, infos: Sequence[TensorInfo], asked: int | None, *, swept: Sequence[int]) -> int:
    """Samples per call. A static batch cannot be another one, let alone be swept."""
    own = infos[0].shape[0]
    if not isinstance(own, int):
        return asked or 1
    if set(swept) - {own}:
        raise SoupError(
            f"{path}: takes {own} samples per call and no other number, expected a dynamic batch to sweep over "
            f"{list(swept)}. Export one: soup export --set 'export.batch={{min: 1, opt: 1, max: {max(swept)}}}'."
        )
    if asked not in (None, own):
        raise SoupError(f"{path}: takes {own} samples per call, expected --batch {own} and not {asked}. Leave it out.")
    return own


def _random_inputs(infos: Sequence[TensorInfo], batch: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    inputs = {}
    for info in infos:
        if any(isinstance(axis, str) for axis in info.shape[1:]):
            raise SoupError(f"input '{info.name}' has shape {info.shape}: only the first axis may be dynamic.")
        shape = (batch, *(int(axis) for axis in info.shape[1:]))
        inputs[info.name] = generator.random(shape).astype(info.dtype)
    return inputs
