"""Whether the soup costs more than the best single checkpoint: both exported alike and timed in turns, in one run."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from exporters.device_state import state_reader
from exporters.interleaved import Pair, Turns, measure_pair
from exporters.latency import Contract
from exporters.runtimes import OnnxRuntime
from exporters.torch_to_onnx import torch_to_onnx
from soup import SoupError
from soup.checkpoint import load_state, read_checkpoint, with_names
from soup.export_proof import Job
from soup.export_source import Source
from soup.models import load
from soup.proof import as_fed

_TRACED = 8  # samples that the exporter traces with


_TURNS = Turns(blocks=40, max_seconds=15.0)


def compare_cost(job: Job) -> Pair | str:
    """The soup's time over the best single's, with its interval; or why it could not be measured.

    Both run in ONNX Runtime from graphs that the same exporter made, with the batch that is timed.
    """
    source = job.source
    if source.built.record.winner.method == "single":
        return "the model is the best single checkpoint: there is nothing to compare its time with"
    try:
        single = _single(source)
    except SoupError as error:
        return f"the soup's time was not compared with the best single's: {job.unlocated(str(error))}"
    job.progress("timing the soup against the best single", 0, 0)
    with _opened(source, source.model) as soup, _opened(source, single) as other:
        count = source.batch if isinstance(source.batch, int) else source.batch[1]
        rows = np.arange(count) % len(source.golden_rows)
        inputs = {name: array[rows] for name, array in source.golden_inputs.items()}
        feed = as_fed(inputs, soup.inputs)
        contract: Contract = {"batch": count, "runtime": "onnxruntime", "provider": soup.info.provider}
        return measure_pair(
            lambda: soup(feed), lambda: other(feed), turns=_TURNS, contract=contract, state=state_reader()
        )


def _single(source: Source) -> nn.Module:
    """The network with the best single's weights, read again from its checkpoint."""
    record, use = source.built.record, source.config.checkpoints
    sha = next(iter(record.best_single.weights))
    path = source.config.folder / next(one.path for one in record.ingredients if one.sha256 == sha)
    checkpoint = read_checkpoint(path, use=use.use, drop=use.drop, expected_sha256=sha)
    single = copy.deepcopy(source.model)
    load(single, load_state(with_names(checkpoint, single.state_dict())))
    return single


def _opened(source: Source, model: nn.Module) -> OnnxRuntime:
    example = {name: array[np.arange(_TRACED) % len(array)] for name, array in source.golden_inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timed.onnx"
        torch_to_onnx(
            replace(source, model=model).prepared(), example, path, inputs={}, outputs={}, batch=source.batch,
            opset=source.config.export.opset, metadata={},
        )  # fmt: skip
        return OnnxRuntime(path.read_bytes(), where="the timed graph", batch=source.batch)
