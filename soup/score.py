"""A recipe becomes a scored network: cook → BN policy → load → evaluate, always as it will ship."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn

from calib.batchnorm import Recalibration, statistics
from calib.samples import list_sha256
from exporters.runtimes import Arrays, Predict
from soup.average import cook
from soup.checkpoint import Checkpoint, StateDict, state_sha256
from soup.data import Split
from soup.deployed import Deployed
from soup.evaluate import Evaluation, Memory, evaluate, outputs_and_answers, without_numbers
from soup.ledger import LARGEST_OUTPUTS_BYTES, Key, Ledger
from soup.models import load, torch_predict
from soup.recalibration import AstrayError, Calibration, recalibrated, shown_weights
from soup.runner import Runner
from soup.tasks import Metric, Settings
from soup.trials import Bar, Rule, value_of
from soup.weights import Weights, weights_key

Policy = Literal["own", "averaged", "recalibrated"]
Phase = Literal["singles", "candidates", "judging", "explaining"]
SAVE_SECONDS = 30.0  # how often an evaluation that is not finished is kept


@dataclass(slots=True)
class Kitchen:
    """One network that takes the weights of each candidate in turn; the ledger keeps what each of them answered.

    `facts` is all that a result depends on beside weights, statistics and samples. `images` counts forward passes, in
    images, by what they were for; `planned` is about how many the search may take.
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
    ledger: Ledger = field(default_factory=lambda: Ledger(None))
    facts: Mapping[str, object] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)  # of the metric
    runner: Runner | Deployed | None = None
    images: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)
    why: list[str] = field(default_factory=list)
    astray: list[str] = field(default_factory=list)  # candidates without a score, and why
    fresh: set[str] = field(default_factory=set)  # what the ledger was given in this build
    stored: dict[str, torch.dtype] = field(default_factory=dict)
    hashes: dict[tuple[object, ...], str] = field(default_factory=dict)
    samples: dict[str, dict[str, object]] = field(default_factory=dict)
    known: dict[tuple[object, ...], Evaluation] = field(default_factory=dict)
    truths: dict[str, Arrays] = field(default_factory=dict)  # `truth`, by split
    loaded: tuple[object, ...] | None = None  # whose weights the network has now, and whether as they were cooked

    def score(self, weights: Weights, bar: Bar | None) -> Evaluation:
        """On val, under the search's BN policy; what was hard for the bar goes first. It goes on where one stopped."""
        key, policy = weights_key(weights), self.policy_for(weights)
        earlier = self.known.get(key)
        if earlier is None or earlier.value is None:
            start = None if earlier is None else earlier.seen
            phase: Phase = "singles" if policy == "own" else "candidates"
            self.known[key] = self.measure(weights, policy, self.val, phase=phase, bar=bar, start=start)
        return self.known[key]

    def measure(
        self, weights: Weights, policy: Policy, split: Split, *, phase: Phase, bar: Bar | None = None,
        start: np.ndarray | None = None,
    ) -> Evaluation:  # fmt: skip
        """An evaluation of these weights on `split`, without outputs; the ledger answers what it knows.

        The network is recalibrated and asked only where that is not enough.
        """
        key = self.evaluation_key(weights, policy, split)
        earlier, kept = self.ledger.evaluation(key), None
        if earlier is None:
            self.why.append(
                f"{shown_weights(weights, self.ingredients)} ({policy}, {split.name}): {self.ledger.why_not(key)}"
            )
            memory = Memory(np.zeros(len(split), bool))
        else:
            kept = self.ledger.outputs(key)
            memory = Memory.of(earlier, kept)
        asked = _Asked(
            self, weights, policy, split, phase, key, memory, keep_outputs=earlier is None or kept is not None,
            keep_at_most=LARGEST_OUTPUTS_BYTES,  # what the ledger does not hold is not worth the memory
        )  # fmt: skip
        try:
            found = replace(asked.evaluate(bar, start), outputs=None, answers=None)
        except AstrayError as error:  # for the ledger to keep it would take its value to be a number
            self.astray += [str(error)] if str(error) not in self.astray else []
            outputs = torch_predict(self.model, device=self.device)({"input": split.inputs(np.arange(1))})
            return without_numbers(outputs, split.targets, self.metric, total=len(split))
        before = 0 if start is None else int(start.sum())
        if key.sha256 not in self.fresh:
            self.reused[phase] += int(found.seen.sum()) - before - asked.images
        self.fresh |= {key.sha256} if asked.images else set()
        return found

    def truth(self, split: Split) -> Arrays:
        """What the metric knows of a split before it asks; the masks of a large one take a while, so once."""
        if split.name not in self.truths:
            self.truths[split.name] = self.metric.known(split.targets)
        return self.truths[split.name]

    def score_in_full(self, weights: Weights, bar: Bar | None) -> Evaluation:
        """As `score`, but never stopping early."""
        return self.score(weights, None)

    def with_outputs(self, weights: Weights, policy: Policy, split: Split, *, phase: Phase = "judging") -> Evaluation:
        """The finished evaluation with its outputs; those that were too large to keep are made again."""
        evaluation, key = self.measure(weights, policy, split, phase=phase), self.evaluation_key(weights, policy, split)
        kept = self.ledger.outputs(key)
        if kept is None and not math.isnan(value_of(evaluation)):
            memory = Memory(np.zeros(len(split), bool))
            asked = _Asked(self, weights, policy, split, phase, key, memory, keep_outputs=True, keep_at_most=None)
            return asked.evaluate(None, None)
        outputs, answers = (None, None) if kept is None else outputs_and_answers(kept)
        return replace(evaluation, outputs=outputs, answers=answers)

    def policy_for(self, weights: Weights) -> Policy:
        """A single keeps its own statistics: it is what would ship without a soup."""
        return "own" if len(weights) == 1 else self.policy

    def prepare(self, weights: Weights, policy: Policy) -> Recalibration | None:
        """Cook and load into the network, in place; recalibrate where the policy says so and there is BatchNorm.

        Statistics are measured once per candidate and kept, so what ships is what was scored, also on a GPU that
        rounds anew.
        """
        self._cook(weights)
        if policy != "recalibrated" or self.calibration is None:
            return None
        done, buffers = self._statistics(weights, self.calibration)
        self.loaded = None
        for name, tensor in buffers.items():
            self.model.get_buffer(name).copy_(tensor)
            self.stored.pop(name, None)
        self.loaded = (weights_key(weights), policy)
        return done

    def state(self) -> StateDict:
        """A copy of what `prepare` loaded, on the CPU, in the dtypes it is stored in.

        Weights have the ingredients' dtype, from which they came, or the network's own where that is narrower, as it
        was scored. Statistics that were measured keep the network's own: a variance in FP16 would lose their gain.
        """
        return {
            name: tensor.detach().to("cpu", self.stored.get(name, tensor.dtype), copy=True)
            for name, tensor in self.model.state_dict().items()
        }

    def predict(self, weights: Weights, policy: Policy) -> Predict:
        """The network with these weights, by the backend that the build has chosen."""
        self.prepare(weights, policy)
        reference = torch_predict(self.model, device=self.device)
        if self.runner is None:
            return reference
        return self.runner.predict({name: one.detach() for name, one in self.model.state_dict().items()}, reference)

    def evaluation_key(self, weights: Weights, policy: Policy, split: Split) -> Key:
        """All that the evaluation of these weights on `split` depends on."""
        if split.name not in self.samples:
            self.samples[split.name] = {
                "n": len(split), "list_sha256": list_sha256(split.hashes), "targets_sha256": split.targets_sha256(),
            }  # fmt: skip
        return Key({
            **self._weights_facts("evaluation", weights, policy, split=split.name),
            "data": self.samples[split.name],
            "metric": self.metric.name,
            "backend": "torch" if self.runner is None else self.runner.name,
            "batch": self.batch,
        })  # fmt: skip

    def _weights_facts(self, kind: str, weights: Weights, policy: Policy, **what: str) -> dict[str, object]:
        label = {sha: weight if isinstance(weight, float) else dict(weight) for sha, weight in sorted(weights.items())}
        batchnorm: dict[str, object] = {"policy": policy}
        if policy == "recalibrated" and self.calibration is not None:
            calibration = self.calibration
            batchnorm |= {
                "samples": len(calibration.order), "list_sha256": calibration.list_sha256, "batch": calibration.batch,
            }  # fmt: skip
        return {
            **self.facts,
            "what": {"kind": kind, "weights": label, "policy": policy, **what},
            "cooked_sha256": self._cooked_sha256(weights),
            "batchnorm": batchnorm,
        }

    def _cook(self, weights: Weights) -> None:
        """Into the network, with averaged statistics."""
        key = weights_key(weights)
        if self.loaded == (key, "cooked"):
            return
        cooked = cook(weights, self.ingredients, dtype=self.dtype)
        self.hashes[key] = self.hashes.get(key) or state_sha256(cooked)
        self.loaded = None
        load(self.model, cooked)
        own = {name: tensor.dtype for name, tensor in self.model.state_dict().items()}
        self.stored = {name: _no_wider(tensor.dtype, own[name]) for name, tensor in cooked.items()}
        self.loaded = (key, "cooked")

    def _cooked_sha256(self, weights: Weights) -> str:
        if weights_key(weights) not in self.hashes:
            self._cook(weights)
        return self.hashes[weights_key(weights)]

    def _statistics(self, weights: Weights, calibration: Calibration) -> tuple[Recalibration, StateDict]:
        """Measured with the cooked weights that the network has now, or as they were measured before."""
        key = Key(self._weights_facts("statistics", weights, "recalibrated"))
        if kept := self.ledger.arrays(key):
            arrays, record = kept
            return _RECALIBRATION.validate_python(record), {name: torch.from_numpy(a) for name, a in arrays.items()}
        paths = [str(self.ingredients[sha].path) for sha in sorted(weights)]
        if not any(self.images.values()):  # nothing was evaluated: a network that raises is told by its own first image
            torch_predict(self.model, device=self.device)({"input": calibration.split.inputs(calibration.order[:1])})
        done = recalibrated(self.model, calibration, device=self.device, paths=paths, tell=self.tell)
        self.images["recalibration"] += len(calibration.order)
        buffers = {name: one.to("cpu", copy=True) for name, one in statistics(self.model, done.layers).items()}
        self.ledger.keep_arrays(key, {name: one.numpy() for name, one in buffers.items()}, asdict(done))
        return done, buffers

    def tell(self, what: str, done: int, total: int) -> None:
        """The search as one bar over all of its images; what comes after it pass by pass."""
        before = sum(self.images.values())
        if before < self.planned:
            self.progress("scoring candidates", before + done, self.planned)
        else:
            self.progress(f"judging: {what}", done, total)


@dataclass(slots=True)
class _Asked:
    """One evaluation in progress: the network is made ready when the first image is asked for."""

    kitchen: Kitchen
    weights: Weights
    policy: Policy
    split: Split
    phase: Phase
    key: Key
    memory: Memory
    keep_outputs: bool
    keep_at_most: int | None
    images: int = 0
    network: Predict | None = None
    saved: float = field(default_factory=time.monotonic)

    def evaluate(self, bar: Bar | None, start: np.ndarray | None) -> Evaluation:
        """As `evaluate.evaluate`; what it learnt is kept."""
        bar = bar or Bar(None, None)
        self.memory.known = self.kitchen.truth(self.split)
        found = evaluate(
            self._predict, self.split, self.kitchen.metric,
            batch=self.kitchen.batch, order=self._order(bar), must_beat=bar.value, limit=bar.limit, start=start,
            memory=self.memory, keep_outputs=self.keep_outputs, keep_at_most=self.keep_at_most, progress=self._tell,
        )  # fmt: skip
        if self.images:
            self._keep()
        return found

    def _order(self, bar: Bar) -> np.ndarray | None:
        """The hardest first; mixed where only some are asked and nothing is known of them."""
        if bar.holder is not None and bar.holder.difficulty is not None:
            return np.argsort(-bar.holder.difficulty, kind="stable")
        return None if bar.limit is None else np.argsort(np.array(self.split.hashes), kind="stable")

    def _predict(self, inputs: Arrays) -> Arrays:
        if self.network is None:
            self.network = self.kitchen.predict(self.weights, self.policy)
        outputs = self.network(inputs)
        self.images += (count := len(next(iter(inputs.values()))))
        self.kitchen.images[self.phase] += count
        return outputs

    def _tell(self, done: int, total: int) -> None:
        self.kitchen.tell(f"{self.phase} on {self.split.name}", 0, total)
        if self.images and time.monotonic() - self.saved > SAVE_SECONDS:
            self._keep()

    def _keep(self) -> None:
        memory = self.memory
        stopped = not memory.seen.all()
        whole = memory.shown(memory.seen, self.kitchen.metric, stopped=stopped, keep_outputs=self.keep_outputs)
        self.kitchen.ledger.keep(self.key, whole)
        self.saved = time.monotonic()


def _no_wider(dtype: torch.dtype, own: torch.dtype) -> torch.dtype:
    """What a tensor is stored as: as it was averaged, but not wider than the network that was scored with it."""
    return dtype if torch.promote_types(dtype, own) == own else own


_RECALIBRATION = TypeAdapter(Recalibration)
