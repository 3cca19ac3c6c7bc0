"""Coefficients of a soup learned by gradient, one per ingredient or one per ingredient and layer, on a part of val."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from soup import SoupError
from soup.callables import call
from soup.data import Split
from soup.models import named_outputs, to_device
from soup.tensors import StateDict
from soup.weights import Weights, weight_of

_DECIMALS = 6
_FALL = 1e-3  # of the loss: an epoch that gains less counts as one that gained nothing
_PATIENCE = 2  # such epochs in a row end the fit
_Batch = tuple[torch.Tensor, torch.Tensor]  # inputs and labels


@dataclass(frozen=True, slots=True)
class Learned:
    """What a fit found; the losses are means over all its images, of equal shares and of `weights` as they stand."""

    weights: Weights
    loss_before: float
    loss_after: float
    images: int  # forward passes, in images; each step's also went backward


@dataclass(frozen=True, slots=True)
class _Mixture:
    """One network whose tensors are mixed anew for each step, and what they are mixed of: all on `device`."""

    model: nn.Module
    parts: Mapping[str, Sequence[torch.Tensor]]  # what is averaged, one part per ingredient
    dtypes: Mapping[str, torch.dtype]  # that the network holds these tensors as
    fixed: Mapping[str, torch.Tensor]  # what is not: counters, masks, buffers that no checkpoint holds
    trained: Sequence[str]  # the parameters among the parts
    prefixes: Mapping[str, int]  # of tensor names → row of the coefficients; one past the last where there is no layer
    row_of: Mapping[str, int]  # by tensor
    sizes: np.ndarray  # int64[rows]: elements of the parameters

    def whole(self, shares: np.ndarray) -> np.ndarray:
        """float64[rows + 1, K]: the shares and, below them, their mean over all parameters."""
        return np.vstack([shares, self.sizes @ shares / self.sizes.sum()])


def fit_part(
    n: int, *, labels: np.ndarray | None, groups: np.ndarray | None, hashes: Sequence[str] | None = None, seed: int = 0
) -> np.ndarray:
    """bool[n]: about half of the samples, to fit on, so that the rest has been seen by no fit.

    Groups stay whole, and so do samples of equal content (`hashes`). From the largest unit down, each goes to the side
    that evens out the classes (each difference by its class's size) and the total; a draw goes to the part. Units of
    one size come in the order of a hash of content and `seed`, so that the part is the same however samples are listed;
    without `hashes` their position counts as content. Raises SoupError where there are not two units.
    """
    contents = [str(sample) for sample in range(n)] if hashes is None else hashes
    units = _units(n, [contents] if groups is None else [contents, groups])
    if len(units) < 2:
        raise SoupError(
            f"val: its {n} samples are of {len(units)} group, expected 2 or more, so that coefficients are fitted on "
            "one part and judged on the other. Add groups, or leave the learned methods out."
        )
    classes = np.zeros(n, np.int64) if labels is None else np.unique(labels, return_inverse=True)[1].reshape(-1)
    sizes, lead = np.bincount(classes), np.zeros(classes.max() + 1, np.int64)
    part = np.zeros(n, bool)
    for unit in sorted(units, key=lambda unit: (-len(unit), _mixed_up(min(contents[one] for one in unit), seed))):
        counts = Counter(classes[unit].tolist())
        tilt = math.fsum(lead[one] * count / sizes[one] for one, count in counts.items()) + lead.sum() * len(unit) / n
        part[unit] = tilt <= 0
        for one, count in counts.items():
            lead[one] += count if tilt <= 0 else -count
    return part


def learn_coefficients(
    model: nn.Module,
    states: Mapping[str, StateDict],
    split: Split,
    rows: np.ndarray,
    *,
    per_layer: bool,
    loss: Literal["cross_entropy"],
    epochs: int = 10,
    lr: float = 0.1,
    batch: int = 64,
    device: torch.device,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Learned:
    """Shares of each ingredient that lower the loss on the samples `rows` (int64) of `split`.

    The learned soup of arXiv 2203.05482, appendix I, without its temperature; with `per_layer` each layer has shares of
    its own, as in AdaMerging (arXiv 2310.02575), which fits them to another loss. They are a softmax, so not negative
    and of sum 1, begin equal, and follow Adam. A layer is a module that owns parameters, and its prefix is the module's
    name; layers that share a parameter share their coefficients. "" stands for whatever has no layer: the mean over
    all parameters. Shares have six decimals; an ingredient that has none anywhere is left out.

    One network and one graph are alive at a time, yet all ingredients are held on `device`. BatchNorm is in evaluation
    mode with averaged buffers, through which no gradient goes: what the fit sees is not yet what ships, and the caller
    recalibrates and scores the result as any other soup. Each epoch ends with the loss over all `rows`. The fit ends
    where that stops falling, and where a loss is no number; its answer is the lowest.

    `model` is left as it was, whatever happens. The order of `rows` and of `states` does not matter; the same samples
    and threads give the same coefficients on a CPU, while a GPU may add up in another order. `states` fit the network
    (see preflight). Raises SoupError where the network fails or gives no gradient.
    """
    shas, images = sorted(states), 0
    if not shas or not len(rows) or loss != "cross_entropy":
        raise ValueError(f"{len(shas)} ingredients, {len(rows)} rows and loss {loss!r}, expected some of each")
    order = np.array(sorted(rows.tolist(), key=lambda row: (split.hashes[row], row)), np.int64)
    random = np.random.default_rng(seed)

    def batches(shuffled: bool) -> Iterator[_Batch]:
        nonlocal images
        wanted = random.permutation(order) if shuffled else order
        for indices, inputs, targets in split.batches(batch, order=wanted.tolist()):
            images += len(indices)
            yield to_device(next(iter(inputs.values())), device), torch.from_numpy(targets["label"]).to(device)
            if progress:
                progress(images, len(rows) * (1 + 2 * epochs))

    with _evaluating(model), torch.enable_grad():
        mixture = _mixture(model, [states[sha] for sha in shas], per_layer=per_layer, device=device)
        shares, before, after = _descend(mixture, batches, epochs=epochs, lr=lr)
    return Learned(_weights(shas, mixture, shares, per_layer=per_layer), before, after, images)


def layers(model: nn.Module) -> dict[str, int]:
    """Prefix of each layer → its number; layers that share a parameter have one number, so that it stays shared."""
    named = model.named_parameters(remove_duplicate=False)
    owners = [(name.rpartition(".")[0], id(parameter)) for name, parameter in named]
    units = _units(len(owners), list(zip(*owners, strict=True)))
    return {owners[at][0]: number for number, unit in enumerate(units) for at in unit}


def _descend(
    mixture: _Mixture, batches: Callable[[bool], Iterator[_Batch]], *, epochs: int, lr: float
) -> tuple[np.ndarray, float, float]:
    """The best shares seen, the loss of equal ones, and theirs."""
    logits = torch.zeros(len(mixture.sizes), len(next(iter(mixture.parts.values()))), dtype=torch.float64)
    adam = torch.optim.Adam([logits], lr=lr)
    best = _rounded(logits)
    before = least = _loss_over(mixture, best, batches(False))
    stale = 0
    for _ in range(epochs if math.isfinite(before) else 0):
        went_through = _epoch(mixture, logits, adam, batches(True))
        now = _loss_over(mixture, _rounded(logits), batches(False))
        stale = 0 if now < least * (1 - _FALL) else stale + 1
        if now < least:
            best, least = _rounded(logits), now
        if stale == _PATIENCE or not (went_through and math.isfinite(now)):
            break
    return best, before, least


def _units(n: int, partitions: Sequence[Sequence[object] | np.ndarray]) -> list[list[int]]:
    """0 to n - 1, those together that have a name in common in any of the partitions, in the order of their first."""
    parents = list(range(n))

    def root(sample: int) -> int:
        while parents[sample] != sample:
            parents[sample] = sample = parents[parents[sample]]
        return sample

    for names in partitions:
        first: dict[object, int] = {}
        for sample, name in enumerate(names):
            parents[root(sample)] = root(first.setdefault(name, sample))
    units: dict[int, list[int]] = {}
    for sample in range(n):
        units.setdefault(root(sample), []).append(sample)
    return list(units.values())


def _mixed_up(content: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {content}".encode()).hexdigest()


def _mixture(model: nn.Module, states: Sequence[StateDict], *, per_layer: bool, device: torch.device) -> _Mixture:
    own = dict([*model.named_parameters(), *model.named_buffers()])
    stored = model.state_dict().keys() & own.keys()
    averaged = [name for name in own if name in stored and (own[name].is_floating_point() or own[name].is_complex())]
    fixed = {name: states[0][name] if name in stored else own[name] for name in own.keys() - set(averaged)}
    trained = [name for name, _ in model.named_parameters() if name in averaged]
    numbers = layers(model) if per_layer else {"": 0}
    prefixes = {"": max(numbers.values()) + 1} | numbers
    row_of = {name: int(weight_of(prefixes, name)) for name in averaged}
    owners, elements = [row_of[name] for name in trained], [own[name].numel() for name in trained]
    sizes = np.bincount(owners, elements, minlength=max(numbers.values()) + 1)
    return _Mixture(
        model,
        {name: [state[name].to(device) for state in states] for name in averaged},
        {name: own[name].dtype for name in averaged},
        {name: tensor.to(device) for name, tensor in fixed.items()},
        trained, prefixes, row_of, sizes,
    )  # fmt: skip


def _mix(mixture: _Mixture, shares: np.ndarray) -> dict[str, torch.Tensor]:
    """Tensors of their own, Σ share·x, in the network's dtypes."""
    whole = mixture.whole(shares)
    mixed = {name: tensor.detach().clone() for name, tensor in mixture.fixed.items()}
    with torch.no_grad():
        for name, parts in mixture.parts.items():
            wide = torch.promote_types(mixture.dtypes[name], torch.float64)
            total = torch.zeros(parts[0].shape, dtype=wide, device=parts[0].device)
            for part, share in zip(parts, whole[mixture.row_of[name]].tolist(), strict=True):
                total.add_(part, alpha=share)
            total = total.to(mixture.dtypes[name])
            mixed[name] = total.contiguous(memory_format=torch.channels_last) if total.ndim == 4 else total
    return mixed


def _loss(mixture: _Mixture, mixed: dict[str, torch.Tensor], batch: _Batch) -> torch.Tensor:
    inputs, labels = batch
    where = f"model: forward of {tuple(inputs.shape)}"
    output = call(functional_call, mixture.model, mixed, (inputs,), where=where)
    return nn.functional.cross_entropy(next(iter(named_outputs(output).values())).float(), labels)


def _loss_over(mixture: _Mixture, shares: np.ndarray, batches: Iterator[_Batch]) -> float:
    with torch.no_grad():
        mixed = _mix(mixture, shares)
        told = [(float(_loss(mixture, mixed, batch)), len(batch[1])) for batch in batches]
    return sum(value * count for value, count in told) / sum(count for _, count in told)


def _epoch(mixture: _Mixture, logits: torch.Tensor, adam: torch.optim.Optimizer, batches: Iterator[_Batch]) -> bool:
    """Moves the logits, in place, by one step per batch; False where a loss or a gradient was no number."""
    for batch in batches:
        value, slope = _gradient(mixture, logits.softmax(dim=1).numpy(), batch)
        if not (math.isfinite(value) and np.isfinite(slope).all()):
            return False
        logits.grad = torch.from_numpy(slope)
        adam.step()
    return True


def _gradient(mixture: _Mixture, shares: np.ndarray, batch: _Batch) -> tuple[float, np.ndarray]:
    """The mean loss of a batch, and its gradient (float64[rows, K]) by the logits of the softmax that `shares` are.

    With θ = Σ α_k x_k and one backward pass to g = dL/dθ, dL/dα_k is <g, x_k>, and the softmax makes that
    α_k <g, x_k - θ>: the difference is taken first, since ingredients have nearly all of their weights in common.
    """
    mixed = _mix(mixture, shares)
    leaves = [mixed[name].requires_grad_() for name in mixture.trained]
    loss = _loss(mixture, mixed, batch)
    slopes = call(torch.autograd.grad, loss, leaves, where="model: its gradient, to learn from", allow_unused=True)
    assert isinstance(slopes, tuple)
    pulls = torch.zeros(len(mixture.trained), shares.shape[1], dtype=torch.float64, device=loss.device)
    with torch.no_grad():
        for at, (name, slope) in enumerate(zip(mixture.trained, slopes, strict=True)):
            for k, part in enumerate(mixture.parts[name] if slope is not None else ()):
                step = part.to(torch.promote_types(part.dtype, torch.float64)) - mixed[name]
                pulls[at, k] = torch.vdot(slope.to(step.dtype).reshape(-1), step.reshape(-1)).real
    slope_of_shares = np.zeros_like(shares)
    np.add.at(slope_of_shares, [mixture.row_of[name] for name in mixture.trained], pulls.cpu().numpy())
    return float(loss.detach()), shares * slope_of_shares


def _rounded(logits: torch.Tensor) -> np.ndarray:
    """float64[rows, K]: shares as a recipe writes them, over their sum, as they are averaged."""
    shares: np.ndarray = logits.softmax(dim=1).numpy().round(_DECIMALS)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _weights(shas: Sequence[str], mixture: _Mixture, shares: np.ndarray, *, per_layer: bool) -> Weights:
    whole = mixture.whole(shares).round(_DECIMALS)
    used = [k for k in range(len(shas)) if whole[:, k].any()]
    if not per_layer or len(used) == 1:
        return {shas[k]: float(whole[0, k]) for k in used}
    rows = sorted(mixture.prefixes.items())
    return {shas[k]: {prefix: float(whole[row, k]) for prefix, row in rows} for k in used}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own flag again afterwards."""
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in flags.items():
            module.training = training
