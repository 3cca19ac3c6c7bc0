"""What a build will cost in time, disk and memory, from a few batches measured on this machine."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from calib.batchnorm import measure
from soup.average import cook
from soup.data import Split
from soup.evaluate import KEPT_BYTES
from soup.models import load, to_device, torch_predict
from soup.score import Kitchen
from soup.search import evaluations_needed

_SAMPLE = 512  # images of val that an evaluation is timed on
_FILES = 3  # soup.safetensors, model.onnx and an engine, each about the size of the weights
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of a whole build, at most: as if a greedy search kept every ingredient."""

    seconds: float
    evaluations: int  # of val; test is evaluated twice on top
    seconds_per_evaluation: float
    recalibrations: int
    seconds_per_recalibration: float
    timed_images: int
    decoded_bytes: int  # in the cache by now
    written_bytes: int  # by the build, and by an export with an engine
    free_disk_bytes: int
    memory_bytes: int  # the process at its peak; decoded images are mapped from the cache and not counted
    total_memory_bytes: int


def estimate(kitchen: Kitchen, splits: Mapping[str, Split], *, methods: Sequence[str], out: Path) -> Estimate:
    """Time the cooking, evaluation and recalibration of one ingredient on samples, and multiply.

    That ingredient's weights stay in the kitchen's network.
    """
    count, first = len(kitchen.ingredients), min(kitchen.ingredients)
    state, per_cook = _timed(lambda: cook({first: 1.0}, kitchen.ingredients, dtype=kitchen.dtype))
    load(kitchen.model, state)
    timed = min(_SAMPLE, len(kitchen.val))
    bytes_per_image, per_image = _evaluated(kitchen, timed)
    per_recalibration = _recalibration_seconds(kitchen)
    evaluations, recalibrations = _passes(kitchen, methods)
    images = evaluations * len(kitchen.val) + 2 * len(splits.get("test", ()))
    soup_bytes = sum(tensor.nbytes for tensor in state.values())
    output_bytes = min(bytes_per_image * len(kitchen.val), KEPT_BYTES)
    return Estimate(
        seconds=images * per_image + recalibrations * per_recalibration + _ingredients_read(count, methods) * per_cook,
        evaluations=evaluations,
        seconds_per_evaluation=per_image * len(kitchen.val),
        recalibrations=recalibrations,
        seconds_per_recalibration=per_recalibration,
        timed_images=timed,
        decoded_bytes=sum(split.images.nbytes for split in splits.values()),
        written_bytes=_FILES * soup_bytes,
        free_disk_bytes=shutil.disk_usage(next(path for path in (out, *out.absolute().parents) if path.exists())).free,
        # On top of what is loaded now: the winner under both BN policies, and the outputs that the report compares.
        memory_bytes=_peak_bytes() + 2 * soup_bytes + 3 * output_bytes,
        total_memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _passes(kitchen: Kitchen, methods: Sequence[str]) -> tuple[int, int]:
    """Evaluations of val and recalibrations: those of the search, and the winner's under each BN policy."""
    count = len(kitchen.ingredients)
    candidates = evaluations_needed(count, methods)
    if kitchen.calibration is None or count == 1:
        return candidates, 0
    return candidates + 1, 1 + (candidates - count if kitchen.policy == "recalibrated" else 0)


def _ingredients_read(count: int, methods: Sequence[str]) -> int:
    """Each alone; in the search's soups; and in the winner, cooked under two policies and written."""
    greedy = count * (count + 1) // 2 - 1 if "greedy" in methods else 0
    return count + (count if "uniform" in methods else 0) + greedy + 3 * count


def _evaluated(kitchen: Kitchen, count: int) -> tuple[int, float]:
    """Bytes of outputs and seconds per image, from `count` images of val after a batch that warms up."""
    predict, batch = torch_predict(kitchen.model, device=kitchen.device), min(kitchen.batch, count)
    outputs = predict({"input": kitchen.val.inputs(np.arange(batch))})

    def evaluate() -> None:
        for _, inputs, targets in kitchen.val.batches(batch, order=range(count)):
            kitchen.metric.per_sample(kitchen.metric.task.answers(predict(inputs), targets), targets)

    return sum(array.nbytes for array in outputs.values()) // batch, _timed(evaluate)[1] / count


def _recalibration_seconds(kitchen: Kitchen) -> float:
    """From the first two batches; 0 where nothing is recalibrated. The network's statistics stay as they are."""
    calibration = kitchen.calibration
    if calibration is None:
        return 0.0
    order = calibration.order[: 2 * calibration.batch].tolist()
    batches = (inputs["input"] for _, inputs, _ in calibration.split.batches(calibration.batch, order=order))
    tensors = (to_device(array, kitchen.device) for array in batches)
    _, seconds = _timed(lambda: measure(kitchen.model, tensors, device=kitchen.device))
    return seconds / len(order) * len(calibration.order)


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def _peak_bytes() -> int:
    """Of this process so far: torch, the network, and a batch's activations."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
