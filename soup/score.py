"""A recipe becomes a scored network: cook → BN policy → load → evaluate, always as it will ship."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import nn

from calib.batchnorm import Recalibration, recalibrate, statistics
from soup.average import cook
from soup.checkpoint import Checkpoint, StateDict
from soup.data import Split
from soup.evaluate import Evaluation, evaluate
from soup.models import load, to_device, torch_predict
from soup.search import Rule, Weights
from soup.tasks import Metric

Policy = Literal["own", "averaged", "recalibrated"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What BatchNorm sees again: a split, the indices drawn from it in order, and the batch size; all pinned in the recipe."""

    split: Split
    order: np.ndarray
    batch: int


@dataclass(slots=True)
class Kitchen:
    """One network that takes the weights of each candidate in turn; candidates tried twice are evaluated once.

    Outputs are kept of the best single and of the best soup so far, which the report compares; of others only their
    per-sample statistics. `planned` is how many evaluations the search expects; `images` counts forward passes, in
    images, by what they were for.
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

    def score(self, weights: Weights, must_beat: float | None) -> Evaluation:
        """The evaluation on val of these weights under the search's BN policy."""
        key = tuple(sorted(weights.items()))
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
        """Cook and load into the network, in place; recalibrate where the policy says so and there is BatchNorm."""
        cooked = cook(weights, self.ingredients, dtype=self.dtype)
        self.load(cooked)
        self.stored = {name: tensor.dtype for name, tensor in cooked.items()}
        if policy != "recalibrated" or self.calibration is None:
            return None
        calibration = self.calibration
        batches = calibration.split.batches(calibration.batch, order=calibration.order.tolist())
        self.images["recalibration"] += len(calibration.order)
        self.model.to(self.device)
        done = recalibrate(
            self.model,
            (to_device(next(iter(inputs.values())), self.device) for _, inputs, _ in batches),
            device=self.device,
        )
        for name in statistics(self.model, done.layers):
            del self.stored[name]
        return done

    def load(self, state: StateDict) -> None:
        """Put these weights into the network, in place."""
        load(self.model, state)

    def evaluate(self, split: Split, *, must_beat: float | None = None, keep_outputs: bool = False) -> Evaluation:
        """The network as now loaded, on `split`."""
        evaluation = evaluate(
            torch_predict(self.model, device=self.device), split, self.metric,
            batch=self.batch, must_beat=must_beat, keep_outputs=keep_outputs,
            progress=lambda done, total: self._tell(split, done, total),
        )  # fmt: skip
        self.images["evaluation"] += int(evaluation.seen.sum())
        return evaluation

    def state(self) -> StateDict:
        """A copy of what `prepare` loaded, on the CPU, in the dtypes it is stored in.

        Weights have the ingredients' dtype, from which they came, so nothing is rounded here; statistics that were
        measured keep the network's own, since a variance in FP16 would lose what recalibration gained.
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

    def _tell(self, split: Split, done: int, total: int) -> None:
        """The search as one bar, so that its remaining time is the remaining time; other evaluations by their split."""
        if split is self.val and len(self.known) < self.planned:
            self.progress("scoring candidates", len(self.known) * total + done, self.planned * total)
        else:
            self.progress(f"judging on {split.name}", done, total)


def value_of(evaluation: Evaluation) -> float:
    """The score, NaN where there is none."""
    return math.nan if evaluation.value is None else evaluation.value
