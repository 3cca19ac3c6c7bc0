"""Whether the soup costs more than the best single checkpoint: both exported alike and timed in turns, in one run."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from exporters.interleaved import Pair
from exporters.runtimes import OnnxRuntime
from soup import SoupError
from soup.checkpoint import load_state, read_checkpoint, with_names
from soup.export_graph import export_graph
from soup.export_proof import Job
from soup.export_source import Source
from soup.models import load
from soup.network import network_of
from soup.proof import Artifact, as_fed, time_in_turns


def compare_cost(job: Job, soup: bytes) -> Pair | str:
    """The time of `soup`, a graph as exported, over the best single's, with its interval; or why it was not measured.

    Both run in ONNX Runtime, from graphs that the same exporter made in the same way, with the batch that is timed.
    """
    source = job.source
    if source.built.record.winner.method == "single":
        return "the model is the best single checkpoint: there is nothing to compare its time with"
    try:
        single = _graph(_single(source), opset=job.plan.opset)
    except SoupError as error:
        return f"the soup's time was not compared with the best single's: {job.unlocated(str(error))}"
    job.progress("timing the soup against the best single", 0, 0)
    artifact = Artifact("the soup", "onnx", "", source.batch)
    with _opened(soup, source) as ours, _opened(single, source) as other:
        return time_in_turns(ours, other, as_fed(source.golden_inputs, ours.inputs), artifact)


def _single(source: Source) -> Source:
    """The same with the best single's weights, read again from its checkpoint."""
    record, use = source.built.record, source.config.checkpoints
    sha = next(iter(record.best_single.weights))
    path = source.config.folder / next(one.path for one in record.ingredients if one.sha256 == sha)
    checkpoint = read_checkpoint(path, use=use.use, drop=use.drop, expected_sha256=sha)
    single = network_of(source.config)
    load(single, load_state(with_names(checkpoint, single.state_dict())))
    return replace(source, model=single)


def _graph(source: Source, *, opset: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return export_graph(source, Path(folder) / "single.onnx", opset=opset).path.read_bytes()


def _opened(graph: bytes, source: Source) -> OnnxRuntime:
    return OnnxRuntime(graph, where="the timed graph", batch=source.batch)
