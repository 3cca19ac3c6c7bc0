"""The winner at other test resolutions and crops: the curve of the metric over the time, and the point to take.

Training crops objects larger than test-time resizing shows them, so a network often does better at a higher test
resolution, once its BatchNorm has seen it (Touvron et al. 2019, FixRes, arXiv 1906.06423, sections 3 and 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from calib.batchnorm import statistics
from exporters.latency import measure
from exporters.pacing import Timing
from soup import Progress, SoupError
from soup.bookkeeping import Settled
from soup.config import Config
from soup.data import Split
from soup.evaluate import Evaluation, evaluate
from soup.files import finite
from soup.gates import compare
from soup.judge import paired
from soup.larder import classes_of, open_split, preprocess_of, split_record
from soup.models import torch_predict
from soup.preprocess import scaled_sides
from soup.recalibration import Calibration, recalibrated, shown_weights
from soup.score import Kitchen
from soup.search_records import ResolutionPoint, difference_record
from soup.sections import Preprocess, Size

_TIMING = Timing(iterations=40, max_seconds=4.0)


@dataclass(frozen=True, slots=True)
class Sweep:
    """The points, and BatchNorm's statistics at each, as `INDEX/NAME`."""

    points: tuple[ResolutionPoint, ...] = ()
    statistics: Mapping[str, np.ndarray] | None = None


def sweep(config: Config, kitchen: Kitchen, settled: Settled, *, cache: Path, progress: Progress) -> Sweep:
    """Evaluate the winner on val at each scale and crop of `preprocess.sweep`; nothing without one.

    A point that the network or the data do not take is kept with its reason. The kitchen's network holds other
    statistics afterwards.
    """
    if config.preprocess is None or config.preprocess.sweep is None:
        return Sweep()
    points: list[ResolutionPoint] = []
    kept: dict[str, np.ndarray] = {}
    places = list(_places(config.preprocess))
    base: Evaluation | None = None
    for index, (scale, crop_ratio, wanted) in enumerate(places):
        if (same := next((one for one in points if one.preprocess == _told(wanted)), None)) is not None:
            points.append(ResolutionPoint(scale, crop_ratio, _told(wanted), same.size, note=f"as × {same.scale:g}"))
            continue
        progress(f"test resolution × {scale:g}", index, len(places))
        at = config.model_copy(update={"preprocess": wanted})
        try:
            evaluation, val, measured = _evaluate(at, kitchen, settled, cache=cache, progress=progress)
        except SoupError as error:
            points.append(ResolutionPoint(scale, crop_ratio, _told(wanted), note=str(error)))
            continue
        base = evaluation if wanted == config.preprocess.model_copy(update={"sweep": None}) else base
        kept |= {f"{index}/{name}": tensor.numpy() for name, tensor in measured.items()}
        points.append(_point(kitchen, val, evaluation, base, scale, crop_ratio, wanted))
    kitchen.loaded = None
    return Sweep(tuple(points), kept)


def scaled(given: Preprocess, scale: float, crop_ratio: float | None = None) -> Preprocess:
    """The same with its sizes times `scale`, each a multiple of what it was one of (32, 16, …): networks need that.

    `crop_ratio` is the crop over the resized shorter side, where an image is resized by its shorter side and cropped.
    """
    crop = _size(given.crop, scale)
    resize = _size(given.resize, scale)
    if isinstance(given.resize, int) and isinstance(crop, int):
        ratio = crop_ratio or given.crop / given.resize  # type: ignore[operator]  # an int, as `crop` is
        resize = max(crop, round(crop / ratio))
    letterbox = given.letterbox
    if letterbox is not None:
        sides = {key: _size(getattr(letterbox, key), scale) for key in ("size", "shorter")}
        letterbox = letterbox.model_copy(update=sides)
    return given.model_copy(update={"resize": resize, "crop": crop, "letterbox": letterbox, "sweep": None})


def _places(given: Preprocess) -> Iterator[tuple[float, float | None, Preprocess]]:
    """The one as trained first: all others are compared with it. Rounding may bring two to the same size."""
    assert given.sweep is not None
    own = given.model_copy(update={"sweep": None})
    yield 1.0, None, own
    for scale in given.sweep.scales:
        for ratio in (None, *given.sweep.crop_ratios):
            if (scale, ratio) != (1.0, None):
                yield scale, ratio, scaled(given, scale, ratio)


def _size(size: Size | None, scale: float) -> Size | None:
    if size is None:
        return None
    if isinstance(size, int):
        return scaled_sides([size], scale)[0]
    height, width = scaled_sides(size, scale)
    return height, width


def _evaluate(
    config: Config, kitchen: Kitchen, settled: Settled, *, cache: Path, progress: Progress
) -> tuple[Evaluation, Split, dict[str, torch.Tensor]]:
    """The winner on val at this resolution, and the statistics that it has there."""
    preprocess, calibration = preprocess_of(config), kitchen.calibration
    val = open_split(config, "val", cache=cache, progress=progress, preprocess=preprocess)
    kitchen.prepare(settled.trial.weights, settled.policy)
    predict = torch_predict(kitchen.model, device=kitchen.device)
    predict({"input": val.inputs(np.arange(1))})  # a network that does not take this size says so here
    measured: dict[str, torch.Tensor] = {}
    if settled.policy == "recalibrated" and calibration is not None:
        train = open_split(
            config, "train", cache=cache, progress=progress, preprocess=preprocess, classes=classes_of(val)
        )
        if train.ids != calibration.split.ids:
            raise SoupError("data.train: holds other images at this resolution. Repair those that cannot be read.")
        kitchen.loaded = None
        again = Calibration(train, calibration.order, calibration.batch)
        paths = [shown_weights(settled.trial.weights, kitchen.ingredients)]
        done = recalibrated(kitchen.model, again, device=kitchen.device, paths=paths, tell=progress)
        measured = {name: one.to("cpu", copy=True) for name, one in statistics(kitchen.model, done.layers).items()}
    evaluation = evaluate(
        predict, val, kitchen.metric, batch=kitchen.batch,
        progress=lambda done, total: progress("evaluating at another resolution", done, total),
    )  # fmt: skip
    kitchen.images["resolutions"] += len(val)
    return evaluation, val, measured


def _point(
    kitchen: Kitchen, val: Split, evaluation: Evaluation, base: Evaluation | None, scale: float,
    crop_ratio: float | None, wanted: Preprocess,
) -> ResolutionPoint:  # fmt: skip
    record, difference = split_record(val), None
    if base is not None and base is not evaluation and len(base.seen) == len(evaluation.seen):
        metric = kitchen.metric
        interval = paired(metric, evaluation.per_sample, base.per_sample, groups=val.groups)
        difference = difference_record(interval, compare(interval, higher_is_better=metric.higher_is_better))
    predict, image = torch_predict(kitchen.model, device=kitchen.device), {"input": val.inputs(np.arange(1))}
    latency = measure(lambda: predict(image), _TIMING, contract={"batch": 1, "runtime": "torch"})
    shape = val.inputs(np.arange(1)).shape
    value = None if evaluation.value is None else finite(evaluation.value)
    return ResolutionPoint(
        scale, crop_ratio, _told(wanted), (shape[2], shape[3]), value, difference, latency.p50_ms,
        record.list_sha256, record.targets_sha256,
    )  # fmt: skip


def _told(preprocess: Preprocess) -> dict[str, object]:
    return preprocess.model_dump(mode="json", exclude={"sweep"})
