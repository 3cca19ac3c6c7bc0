"""A recipe becomes a scored network: cook → BN policy → load → evaluate, always as it will ship."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from calib import CalibError
from calib.batchnorm import Recalibration, recalibrate, statistics
from calib.samples import list_sha256
from soup import SoupError
from soup.average import cook, cook_to_file
from soup.checkpoint import Checkpoint, StateDict, load_state, read_checkpoint, state_sha256, with_names
from soup.data import Split
from soup.evaluate import Evaluation, evaluate
from soup.models import load, to_device, torch_predict
from soup.rounding import cooked_dtype
from soup.search import Rule, Weights
from soup.sources import several
from soup.tasks import Metric

Policy = Literal["own", "averaged", "recalibrated"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What BatchNorm sees again: a split, indices drawn from it in order, and the batch size; the recipe pins all."""

    split: Split
    order: np.ndarray
    batch: int

    @property
    def list_sha256(self) -> str:
        """Of the content hashes of the images in their order."""
        return list_sha256([self.split.hashes[index] for index in self.order])


@dataclass(slots=True)
class Kitchen:
    """One network that takes the weights of each candidate in turn; candidates tried twice are evaluated once.

    Outputs are kept of the best single and of the best soup so far, which the report compares; of others only their
    per-sample statistics. `images` counts forward passes, in images, by what they were for; `planned` is how many of
    them the search expects.
    """

    model: nn.Module
    device: torch.device
    ingredients: Mapping[str, Checkpoint]
    dtype: Literal["same", "float32", "float16", "bfloat16"]
    policy: Policy
    batchnorm: bool
    calibration: Calibration | None
    val: Split
    metric: Metric
    rule: Rule
    batch: int
    planned: int
    progress: Callable[[str, int, int], None]
    images: dict[str, int] = field(default_factory=lambda: {"evaluation": 0, "recalibration": 0})
    stored: dict[str, torch.dtype] = field(default_factory=dict)
    known: dict[tuple[object, ...], Evaluation] = field(default_factory=dict)
    measured: dict[tuple[object, ...], tuple[Recalibration, StateDict]] = field(default_factory=dict)

    def score(self, weights: Weights, must_beat: float | None) -> Evaluation:
        """The evaluation on val of these weights under the search's BN policy."""
        key = _key(weights)
        if key not in self.known:
            self.prepare(weights, self.policy_for(weights))
            self.known[key] = self.evaluate(self.val, must_beat=must_beat, keep_outputs=True)
            self._forget_outputs(single=len(weights) == 1)
        return self.known[key]

    def with_outputs(self, weights: Weights) -> Evaluation:
        """The same evaluation with its outputs: as kept, or made again from the weights now loaded."""
        known = self.score(weights, None)
        return known if known.outputs is not None else self.evaluate(self.val, keep_outputs=True)

    def policy_for(self, weights: Weights) -> Policy:
        """A single keeps its own statistics: it is what would ship without a soup."""
        return "own" if len(weights) == 1 else self.policy

    def prepare(self, weights: Weights, policy: Policy) -> Recalibration | None:
        """Cook and load into the network, in place; recalibrate where the policy says so and there is BatchNorm.

        Statistics are measured once per candidate, so what ships is what was scored, also on a GPU that rounds anew.
        """
        cooked = cook(weights, self.ingredients, dtype=self.dtype)
        self.load(cooked)
        own = {name: tensor.dtype for name, tensor in self.model.state_dict().items()}
        self.stored = {name: _no_wider(tensor.dtype, own[name]) for name, tensor in cooked.items()}
        if policy != "recalibrated" or self.calibration is None:
            return None
        key = _key(weights)
        if key not in self.measured:
            with self._naming(weights):
                self.measured[key] = self._recalibrate(self.calibration)
        done, buffers = self.measured[key]
        self.load(cooked | buffers)
        for name in buffers:
            del self.stored[name]
        return done

    def load(self, state: StateDict) -> None:
        """Put these weights into the network, in place."""
        load(self.model, state)

    def evaluate(
        self, split: Split, *, must_beat: float | None = None, keep_outputs: bool = False, whose: str = "the model"
    ) -> Evaluation:
        """The network as now loaded, on `split`; `whose` weights these are is told with the progress."""
        evaluation = evaluate(
            torch_predict(self.model, device=self.device), split, self.metric,
            batch=self.batch, must_beat=must_beat, keep_outputs=keep_outputs,
            progress=partial(self._tell, f"{whose} on {split.name}"),
        )  # fmt: skip
        self.images["evaluation"] += int(evaluation.seen.sum())
        return evaluation

    def state(self) -> StateDict:
        """A copy of what `prepare` loaded, on the CPU, in the dtypes it is stored in.

        Weights have the ingredients' dtype, from which they came, or the network's own where that is narrower, as it
        was scored. Statistics that were measured keep the network's own: a variance in FP16 would lose their gain.
        """
        return {
            name: tensor.detach().to("cpu", self.stored.get(name, tensor.dtype), copy=True)
            for name, tensor in self.model.state_dict().items()
        }

    def _forget_outputs(self, *, single: bool) -> None:
        """Keep them of the best in its class only: outputs of every candidate would not fit in memory."""
        peers = {key: one for key, one in self.known.items() if one.outputs is not None and (len(key) == 1) == single}
        best = min(peers, key=lambda key: self.rule.rank(value_of(peers[key])))
        for key in peers.keys() - {best}:
            self.known[key] = replace(peers[key], outputs=None)

    def _recalibrate(self, calibration: Calibration) -> tuple[Recalibration, StateDict]:
        if not any(self.images.values()):  # nothing was evaluated: a network that raises is told by its own first image
            torch_predict(self.model, device=self.device)({"input": calibration.split.inputs(calibration.order[:1])})
        self.model.to(self.device).to(memory_format=torch.channels_last)  # as evaluated, whichever comes first
        done = recalibrate(self.model, self._calibration_batches(calibration), device=self.device)
        self.images["recalibration"] += len(calibration.order)
        buffers = statistics(self.model, done.layers)
        return done, {name: tensor.to("cpu", copy=True) for name, tensor in buffers.items()}

    @contextmanager
    def _naming(self, weights: Weights) -> Iterator[None]:
        """A pass that fails says whose weights it was made with: one ingredient may have gone astray."""
        try:
            yield
        except CalibError as error:
            paths = several([str(self.ingredients[sha].path) for sha in sorted(weights)])
            raise SoupError(f"the average of {paths}: {error}", kind=error.kind) from error

    def _calibration_batches(self, calibration: Calibration) -> Iterator[torch.Tensor]:
        order = calibration.order.tolist()
        for index, (rows, inputs, _) in enumerate(calibration.split.batches(calibration.batch, order=order)):
            yield to_device(next(iter(inputs.values())), self.device)
            self._tell("recalibrating the model", index * calibration.batch + len(rows), len(order))

    def _tell(self, what: str, done: int, total: int) -> None:
        """The search as one bar over all of its images; what comes after it pass by pass."""
        before = sum(self.images.values())
        if before < self.planned:
            self.progress("scoring candidates", before + done, self.planned)
        else:
            self.progress(f"judging: {what}", done, total)


def write_soup(
    path: Path, kitchen: Kitchen, weights: Weights, *, state: StateDict, measured: Recalibration | None
) -> None:
    """Stream the average to `path`, but for what `state` measured or rounded; it is read back and compared."""
    replaced = set(statistics(kitchen.model, measured.layers)) if measured else set()
    parts = [kitchen.ingredients[sha].tensors for sha in weights]
    for name, tensor in state.items():
        if cooked_dtype((part[name].dtype for part in parts), kitchen.dtype) != tensor.dtype:
            replaced.add(name)
    cook_to_file(
        weights, kitchen.ingredients, path, dtype=kitchen.dtype, metadata={"format": "pt"},
        replace={name: state[name] for name in replaced},
    )  # fmt: skip
    written = with_names(read_checkpoint(path), state)
    if state_sha256(load_state(written)) != state_sha256(state):
        raise AssertionError(f"{path}: what was written is not what was scored")


def value_of(evaluation: Evaluation) -> float:
    """The score, NaN where there is none."""
    return math.nan if evaluation.value is None else evaluation.value


def _no_wider(dtype: torch.dtype, own: torch.dtype) -> torch.dtype:
    """What a tensor is stored as: as it was averaged, but not wider than the network that was scored with it."""
    return dtype if torch.promote_types(dtype, own) == own else own


def _key(weights: Weights) -> tuple[object, ...]:
    return tuple(sorted(weights.items()))
