"""What an export starts from: a build as it was written, its data as they were, and what the model answers in torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import nn

from exporters.runtimes import Arrays
from soup import Progress, SoupError
from soup.adapters import detach
from soup.build_folder import SOUP, BuildFolder, BuildRecord, SplitRecord
from soup.callables import call, resolve
from soup.checkpoint import load_state, read_checkpoint, state_sha256, with_names
from soup.chosen_resolution import install_statistics, label_of
from soup.config import Config, apply_overrides
from soup.data import Split
from soup.evaluate import Evaluation, evaluate
from soup.golden import choose_golden
from soup.larder import load_data, split_record
from soup.models import in_parts, load, select_device, torch_predict
from soup.network import adapted, network_of
from soup.own_metric import metric_of
from soup.pipeline import cache_folder
from soup.search_records import ResolutionPoint
from soup.task_settings import evaluation_batch
from soup.tasks import Metric
from soup.trials import value_of

_SAME = 0.01  # by how much the same model may score otherwise on another device
_LOWERED = 0.05  # and by how much in another precision, where the build scored it in one


@dataclass(frozen=True, slots=True)
class Source:
    """The built model in torch on the CPU, the splits it is proved on, and what it answered there."""

    built: BuildFolder
    config: Config
    model: nn.Module
    metric: Metric
    splits: Mapping[str, Split]
    answers: Mapping[str, Evaluation]  # of `model` on each split, with outputs
    golden_rows: np.ndarray  # of the split that the golden samples come from
    frames: Literal["rgb", "bgr", "gray"] | None = None  # channel order, where the graph takes uint8 frames
    point: ResolutionPoint | None = None  # the test resolution, where it is not the one that the build judged at

    @property
    def batch(self) -> int | tuple[int, int, int]:
        """Samples per call: static, or (min, opt, max)."""
        batch = self.config.export.batch
        return batch if isinstance(batch, int) else (batch.min, batch.opt, batch.max)

    @property
    def label(self) -> str:
        """Of the model in torch, as hops name it."""
        return self.built.record.winner.label if self.point is None else label_of(self.point)

    @property
    def val(self) -> Split:
        """The split on which every hop is judged."""
        return self.splits["val"]

    @property
    def golden(self) -> Split:
        """The split that the golden samples come from."""
        return self.splits[self.config.release.golden.split]

    @property
    def golden_inputs(self) -> Arrays:
        """The golden samples as the network is fed."""
        return {"input": self.golden.inputs(self.golden_rows)}

    @property
    def golden_outputs(self) -> Arrays:
        """What torch answers to the golden samples."""
        outputs = self.answers[self.golden.name].outputs or {}
        if self.golden_rows.max(initial=0) < len(next(iter(outputs.values()), ())):
            return {name: array[self.golden_rows] for name, array in outputs.items()}
        return in_parts(torch_predict(self.model, device=torch.device("cpu")), self.golden_inputs)  # they were not kept

    @property
    def finds_boxes(self) -> bool:
        """Whether the network thins its boxes out itself, as one with two stages does: boxes, scores and labels."""
        return self.config.task == "detection" and len(self.answers["val"].outputs or {}) > 2

    def framed(self) -> Source:
        """The same with its splits as a graph is fed that does the normalisation itself: uint8 [n, h, w, channels].

        Raises SoupError where there is nothing to normalise, or the frames have other channels than the model.
        """
        preprocess, frames = self.config.preprocess, self.config.export.frames
        if preprocess is None:
            raise SoupError(
                "export.preprocess: in_graph puts `preprocess` into the graph, which is not given: the data are float "
                "tensors. Leave it outside."
            )
        if frames is not None and (frames == "gray") != (preprocess.color == "gray"):
            raise SoupError(f"export.frames: is {frames}, and preprocess.color {preprocess.color}. Leave it out.")
        source = replace(self, frames=frames or preprocess.color)
        return replace(source, splits={name: source.as_fed(split) for name, split in self.splits.items()})

    def as_fed(self, split: Split) -> Split:
        """A split that gives what the graph takes: frames where it normalises, else what the network takes."""
        if self.frames is None or split.preprocess is None:
            return split
        swapped = self.frames != split.preprocess.color
        return replace(split, images=split.images[..., ::-1] if swapped else split.images, preprocess=None)

    def prepared(self) -> nn.Module:
        """The model as it is exported: after the user's `export.prepare`, where there is one.

        That gets a copy of the raw network, without its adapter, and what it gives back is decoded as the network was.
        """
        spec = self.config.export.prepare
        if spec is None:
            return self.model
        raw = call(copy.deepcopy, self.model, where=f"export.prepare '{spec}': a copy of the model for it")
        assert isinstance(raw, nn.Module)
        detach(raw)
        model = call(resolve(spec, folder=self.config.folder), raw, where=f"export.prepare '{spec}'")
        if not isinstance(model, nn.Module):
            raise SoupError(f"export.prepare '{spec}': returned {type(model).__name__}, expected a torch.nn.Module.")
        model = adapted(self.config, model.eval())
        answers = torch_predict(model, device=torch.device("cpu"))({"input": self.golden.inputs(self.golden_rows[:2])})
        if len(answers) != (expected := len(self.answers["val"].outputs or {})):
            counts = f"{len(answers)} outputs, expected {expected}"
            raise SoupError(f"export.prepare '{spec}': the model has {counts} as before it. Leave none out, add none.")
        return model.eval()


def exported_config(built: BuildFolder, overrides: Sequence[str], *, point: ResolutionPoint | None = None) -> Config:
    """The build's own val.yaml (at another test resolution where one is given), with what an export may change over it.

    Raises SoupError for anything else.
    """
    values = dict(built.record.config) | ({} if point is None else {"preprocess": dict(point.preprocess)})
    return apply_overrides(values, overrides, folder=built.path / built.record.val_folder)


def open_build(
    built: BuildFolder, config: Config, *, point: ResolutionPoint | None = None, progress: Progress
) -> Source:
    """Load the built model and evaluate it under its `exported_config`, as the reference of all that follows.

    Raises SoupError where the build, its data or the model's code are no longer what they were.
    """
    folder, record = built.path, built.record
    model = network_of(config)
    state = load_state(with_names(read_checkpoint(folder / SOUP), model.state_dict()))
    if state_sha256(state) != record.state_sha256:
        raise SoupError(f"{folder / SOUP}: its tensors are not those of build.json. Build again.")
    load(model, state)
    if point is not None:
        install_statistics(model, built, point)
    names = tuple(dict.fromkeys(("val", config.release.golden.split)))
    splits = load_data(config, names, cache=cache_folder(config, folder), progress=progress)
    for name, split in splits.items():
        if point is None:
            _refuse_changes(name, split_record(split), record.splits[name])
        elif name == "val":
            _refuse_changes(name, split_record(split), point)
    metric = metric_of(config.task, config.metric, record.settings, folder=config.folder)
    predict = torch_predict(model, device=select_device(config.device))
    answers = {
        name: evaluate(
            predict, split, metric, batch=evaluation_batch(config), keep_outputs=True,
            progress=partial(progress, f"torch on {name}"),
        )
        for name, split in splits.items()
    }  # fmt: skip
    _refuse_other_model(answers["val"], record, expected=record.winner.val if point is None else point.val)
    golden = config.release.golden
    rows = _golden_rows(splits[golden.split], answers[golden.split], metric, count=golden.count)
    return Source(built, config, model.to("cpu"), metric, splits, answers, rows, point=point)


def _refuse_changes(name: str, found: SplitRecord, built: SplitRecord | ResolutionPoint) -> None:
    """What the best single scored holds for the very samples and labels that it was scored on."""
    differ = "samples" if found.list_sha256 != built.list_sha256 else "labels or groups"
    if (found.list_sha256, found.targets_sha256) != (built.list_sha256, built.targets_sha256):
        raise SoupError(f"data.{name}: has other {differ} than when the soup was built. Restore them, or build again.")


def _refuse_other_model(answers: Evaluation, record: BuildRecord, *, expected: float | None) -> None:
    """The weights are those of the build, by hash; what the code makes of them shows in the score."""
    found, expected = value_of(answers), math.nan if expected is None else expected
    share = _SAME if record_precision(record) == "fp32" else _LOWERED
    if not abs(found - expected) <= share * max(1.0, abs(expected)):
        raise SoupError(
            f"model '{record.config['model']}': scores {found:g} on data.val, expected {expected:g} as it was built. "
            "Restore its code (or build.json), or build again."
        )


def record_precision(record: BuildRecord) -> str:
    """What the build scored its candidates in."""
    search = record.config.get("search", {})
    return str(search.get("precision", "fp32")) if isinstance(search, Mapping) else "fp32"


def _golden_rows(split: Split, answers: Evaluation, metric: Metric, *, count: int | str) -> np.ndarray:
    wanted = len(split) if count == "all" else int(count)
    margins = metric.task.margins(answers.answers or {}, answers.outputs or {})
    return choose_golden(split.targets.get("label", np.zeros(len(split), np.int64)), margins, count=wanted)
