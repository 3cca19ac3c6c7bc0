"""Exact BatchNorm statistics for weights that were averaged: one pass over images, pooled in float64."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # private, but the one ancestor of all kinds, timm's included
from torch.nn.modules.lazy import LazyModuleMixin

from calib import CalibError, DivergedError
from calib.moments import Moments, distance, pool, rounded_once
from calib.received import recorded

Device = str | torch.device


@dataclass(frozen=True, slots=True)
class BatchMoments:
    """What one batch showed to each layer that it reached, the calls of a shared layer pooled."""

    samples: int
    layers: Mapping[str, Moments]


@dataclass(frozen=True, slots=True)
class Recalibration:
    """What a pass did to a model: the layers that got new statistics, and those that did not."""

    layers: tuple[str, ...]
    frozen: Mapping[str, str]  # name → why it was left alone
    unreached: tuple[str, ...]  # no batch went through them: they keep the statistics they had
    samples: int
    batches: int
    sha256: str  # of the new statistics: names, dtypes, shapes, bytes
    convergence: float | None  # largest `moments.distance` of half the batches from all; None for fewer than two


def recalibrate(
    model: nn.Module, batches: Iterable[object], *, device: Device = "cpu", frozen: Collection[str] = ()
) -> Recalibration:
    """Give each BatchNorm the population mean and unbiased variance of what it receives in one pass over `batches`.

    Changes running_mean and running_var of `model` in place, summed in float64 and rounded once to their dtype, and
    sets num_batches_tracked to the number of batches. A failure or an interrupt leaves the model as it was.
    `measure` says what a batch is and how the pass runs, `batchnorm_layers` which layers take part. A model without any
    passes through: nothing is changed and no batch is read. The same batches in the same order give the same bits on
    the same machine with the same number of threads.
    """
    measured = measure(model, batches, device=device, frozen=frozen) if batchnorm_layers(model, frozen=frozen) else []
    return install(model, measured, frozen=frozen)


def batchnorm_layers(model: nn.Module, *, frozen: Collection[str] = ()) -> dict[str, _BatchNorm]:
    """The layers that `recalibrate` would give new statistics, by their first name in the model.

    Left alone are layers at or below a module named in `frozen`; without running statistics; in eval mode while the
    model itself is in training mode; whose parameters need no gradient while others of the model do; and classes such
    as FrozenBatchNorm2d that hold running statistics without being a BatchNorm.

    Raises CalibError for a lazy layer that has seen no input, and for a name in `frozen` that matches no layer.
    """
    return _sorted_out(model, frozen)[0]


def measure(
    model: nn.Module, batches: Iterable[object], *, device: Device = "cpu", frozen: Collection[str] = ()
) -> list[BatchMoments]:
    """What each batch shows to each layer while BatchNorm normalises with its batch and all else is in eval mode.

    A batch is an array; a tuple or list that begins with the input; or a dict of forward's keyword arguments. It is
    moved to `device`, where the model must be. Autocast and gradients are off. Afterwards the model is as it was.
    A batch's moments depend on that batch alone: workers may share the batches out, and `install` their lists in order.
    (SyncBatchNorm in a process group of several normalises with the batches of all of them, as it does in training.)

    Raises CalibError, with batch and layer, for NaN or Inf and where a layer gets fewer than two values per channel.
    """
    layers = batchnorm_layers(model, frozen=frozen)
    calls: list[tuple[str, Moments]] = []
    full_precision = torch.autocast(torch.device(device).type, enabled=False)
    with _only_batchnorm_trains(model, layers), recorded(layers, calls), torch.no_grad(), full_precision:
        numbered = enumerate(batches, start=1)
        return [_measure_batch(model, batch, index=index, calls=calls, device=device) for index, batch in numbered]


def install(model: nn.Module, measured: Sequence[BatchMoments], *, frozen: Collection[str] = ()) -> Recalibration:
    """Pool what was measured and write it to the model's BatchNorm layers; a failure leaves all of them as they were.

    Raises CalibError where there are layers but no batch, and where a statistic does not fit its buffer's dtype.
    """
    layers, reasons = _sorted_out(model, frozen)
    if layers and not measured:
        raise CalibError(
            f"BatchNorm recalibration: got 0 batches for {len(layers)} layers, expected at least 1. "
            "Give it images, and not an iterator that was already read to its end."
        )
    pooled = _pool_batches(measured)
    reached = tuple(name for name in layers if name in pooled)
    kept = _buffers(layers)
    try:
        for name in reached:
            _write(name, layers[name], received=pooled[name], batches=len(measured))
    except BaseException:
        _put_back(kept)
        raise
    return Recalibration(
        layers=reached,
        frozen=reasons,
        unreached=tuple(name for name in layers if name not in pooled),
        samples=sum(batch.samples for batch in measured),
        batches=len(measured),
        sha256=_sha256(statistics(model, reached)),
        convergence=_convergence(measured),
    )


def statistics(model: nn.Module, layers: Collection[str]) -> dict[str, torch.Tensor]:
    """The buffers of these layers as the state dict names them, under each of its names where a layer is shared."""
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted = {id(modules[name]) for name in layers}
    return {
        f"{name}.{buffer}" if name else buffer: tensor
        for name, module in modules.items()
        if id(module) in wanted
        for buffer, tensor in module.named_buffers(recurse=False)
    }


def _sorted_out(model: nn.Module, frozen: Collection[str]) -> tuple[dict[str, _BatchNorm], dict[str, str]]:
    """The layers to recalibrate, and the reason for each one that is left alone."""
    layers, reasons = dict[str, _BatchNorm](), dict[str, str]()
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            if getattr(module, "running_mean", None) is not None:
                reasons[name] = f"{type(module).__name__} is not a BatchNorm that trains"
        elif reason := _frozen_reason(name, module, model=model, frozen=frozen):
            reasons[name] = reason
        else:
            layers[name] = module
    unknown = [entry for entry in frozen if not any(_covers(entry, name) for name in (*layers, *reasons))]
    if unknown:
        raise CalibError(
            f"frozen: no BatchNorm at or below {unknown}, expected names of modules that are or hold one. "
            f"The model has {[*layers, *reasons]}."
        )
    return layers, reasons


def _frozen_reason(name: str, layer: _BatchNorm, *, model: nn.Module, frozen: Collection[str]) -> str | None:
    if any(_covers(entry, name) for entry in frozen):
        return "it is named as frozen"
    if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
        raise CalibError(
            f"BatchNorm '{name}': is lazy and has seen no input, expected a known number of channels. "
            "First load weights into the model, or run it once on an image."
        )
    if layer.running_mean is None or layer.running_var is None or not layer.track_running_stats:
        return "it keeps no running statistics"
    if model.training and not layer.training:
        return "it is in eval mode while the model is in training mode"
    own = [parameter.requires_grad for parameter in layer.parameters(recurse=False)]
    if own and not any(own) and any(parameter.requires_grad for parameter in model.parameters()):
        return "its parameters need no gradient while others of the model do"
    return None


def _covers(entry: str, name: str) -> bool:
    return name == entry or name.startswith(f"{entry}.")


@contextlib.contextmanager
def _only_batchnorm_trains(model: nn.Module, layers: Mapping[str, _BatchNorm]) -> Iterator[None]:
    """With track_running_stats off a layer in training mode normalises with its batch and leaves its buffers alone."""
    modes = [(module, module.training) for module in model.modules()]
    kept = _buffers(layers)
    try:
        # Set as attributes, since a model may override train() to keep some of its layers frozen.
        for module, _ in modes:
            module.training = False
        for layer in layers.values():
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer in layers.values():
            layer.track_running_stats = True
        for module, mode in modes:
            module.training = mode
        _put_back(kept)  # a subclass whose forward is its own may have written to them


def _measure_batch(
    model: nn.Module, batch: object, *, index: int, calls: list[tuple[str, Moments]], device: Device
) -> BatchMoments:
    args, kwargs, samples = _arguments(batch, index, device=device)
    calls.clear()
    try:
        model(*args, **kwargs)
    except ValueError:  # torch refuses a single value per channel without saying where
        _check(calls, index)
        raise
    _check(calls, index)
    names = {name for name, _ in calls}
    return BatchMoments(samples, {name: pool([part for called, part in calls if called == name]) for name in names})


def _arguments(batch: object, index: int, *, device: Device) -> tuple[Sequence[object], dict[str, object], int]:
    """Positional and keyword arguments of forward, and how many samples they hold."""
    named = batch if isinstance(batch, Mapping) else {}
    positional = () if named else batch[:1] if isinstance(batch, (tuple, list)) else (batch,)
    keywords = {name: _moved_to(device, value) for name, value in named.items()}
    args = [_moved_to(device, value) for value in positional]
    first = next(iter([*args, *keywords.values()]), None)
    if not isinstance(first, (torch.Tensor, list)):
        raise CalibError(
            f"batch {index}: is {type(batch).__name__} of {type(first).__name__}, expected a tensor, a tuple or list "
            "that begins with one, or a dict of forward's keyword arguments."
        )
    return args, keywords, len(first)


def _moved_to(device: Device, value: object) -> object:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return torch.as_tensor(value, device=device)
    if isinstance(value, (tuple, list)):
        return [_moved_to(device, item) for item in value]
    return value


def _check(calls: Sequence[tuple[str, Moments]], index: int) -> None:
    for name, received in calls:
        where = f"batch {index}: BatchNorm '{name}' received"
        if received.count < 2:
            advice = "Choose a batch size that leaves no single image over."
            raise CalibError(f"{where} {received.count} value per channel, expected 2 or more. {advice}")
        if not np.isfinite(received.squares).all():
            advice = "Look for a bad image in this batch, or for weights that overflow."
            raise DivergedError(f"{where} NaN or Inf, expected finite activations. {advice}")


def _pool_batches(measured: Sequence[BatchMoments]) -> dict[str, Moments]:
    names = {name for batch in measured for name in batch.layers}
    return {name: pool([batch.layers[name] for batch in measured if name in batch.layers]) for name in names}


def _convergence(measured: Sequence[BatchMoments]) -> float | None:
    if len(measured) < 2:
        return None
    half, whole = _pool_batches(measured[: (len(measured) + 1) // 2]), _pool_batches(measured)
    return max((distance(half[name], whole[name]) for name in half), default=0.0)


def _write(name: str, layer: _BatchNorm, *, received: Moments, batches: int) -> None:
    variance = received.squares / (received.count - 1)
    for buffer, exact in (("running_mean", received.mean), ("running_var", variance)):
        target = layer.get_buffer(buffer)
        rounded = rounded_once(exact, target.dtype)
        if not rounded.isfinite().all():
            raise DivergedError(
                f"BatchNorm '{name}': {buffer} reaches {np.abs(exact).max():.3g}, expected a number that "
                f"{target.dtype} holds. Look for weights that overflow, or keep the buffers of BatchNorm in float32."
            )
        target.copy_(rounded)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(batches)


def _buffers(layers: Mapping[str, _BatchNorm]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(buffer, buffer.clone()) for layer in layers.values() for buffer in layer.buffers(recurse=False)]


def _put_back(kept: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for buffer, value in kept:
        buffer.copy_(value)


def _sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
