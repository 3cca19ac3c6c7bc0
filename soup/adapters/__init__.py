"""Networks as they come, made to return what every consumer reads: boxes and scores, or one map of logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from soup import SoupError
from soup.adapters import centernet, detr, yolo
from soup.adapters.instance import Forward, attach, detach, raw_forward
from soup.adapters.raw_outputs import lengths
from soup.adapters.segmentation import adapt_segmentation
from soup.adapters.torchvision_heads import refuse_tensorrt, torchvision_forward, transform_note
from soup.callables import call, resolve

__all__ = ["adapt", "adapt_segmentation", "detach", "refuse_tensorrt", "transform_note"]

_NAMES = ("torchvision", "centernet", "yolo", "detr", "none")
_DECODERS: Mapping[str, Callable[..., object]] = {
    "centernet": centernet.decode, "yolo": yolo.decode, "detr": detr.decode,
    "none": lambda raw, images: raw,
}  # fmt: skip


def adapt(
    model: nn.Module,
    spec: str,
    args: Mapping[str, object],
    *,
    folder: Path,
    input_size: tuple[int, int] | None = None,
    channels: int = 3,
) -> nn.Module:
    """The same network, in place, whose forward gives decoded detections; its names and state dict stay as they were.

    It takes images float32 [n, channels, h, w] as the preprocessing made them and returns {"boxes": float32 [n, A, 4],
    x1, y1, x2, y2 in pixels of these images, "scores": float32 [n, A, C], probabilities}; where suppression is inside,
    {"boxes": [n, D, 4], "scores": [n, D], "labels": [n, D]}. `spec` is torchvision, centernet, yolo, detr, none (it
    returns them already, as a dict or in this order), or './file.py:fn' (from `folder`) or 'package.module:fn', called
    as fn(raw_outputs, images, **args), which returns the tensors as a dict or in this order, by torch operations alone.

    Where `input_size` (height, width) is given, it is tried on one black image. The model has to be in evaluation mode.
    Adapting again replaces the adapter; `detach` undoes it. Raises SoupError for an unknown adapter or argument, an
    output that is missing or has another shape, and whatever the network or the user's function raises; the model then
    has no adapter.
    """
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        raise SoupError(f"adapter '{spec}': module '{training[0]}' is in training mode. Call model.eval() first.")
    attach(model, _forward(model, spec, args, folder=folder))
    try:
        if input_size is not None:
            _try(model, spec, (channels, *input_size))
    except BaseException:
        detach(model)
        raise
    return model


def _forward(model: nn.Module, spec: str, args: Mapping[str, object], *, folder: Path) -> Forward:
    where = f"adapter '{spec}'"
    if spec == "torchvision":
        _check_arguments(torchvision_forward, args, taken=1, where=where)
        decoded = torchvision_forward(model, **args)  # type: ignore[arg-type]  # its own check tells
        return lambda self, images: _named(decoded(self, images), where=where)
    if spec not in _DECODERS and ":" not in spec:
        known = ", ".join(_NAMES)
        raise SoupError(f"{where}: is not known, expected {known}, './file.py:fn' or 'package.module:fn'.")
    decode = _DECODERS[spec] if spec in _DECODERS else resolve(spec, folder=folder)
    if spec in _DECODERS:
        _check_arguments(decode, args, taken=2, where=where)
    own = raw_forward(model)
    return lambda self, images: _named(decode(own(self, images), images, **args), where=where)


def _check_arguments(function: Callable[..., object], args: Mapping[str, object], *, taken: int, where: str) -> None:
    """Raise SoupError for names that a built-in adapter does not take, and for those that it lacks."""
    parameters = list(inspect.signature(function).parameters.values())[taken:]
    names = [one.name for one in parameters]
    expected = f"expected some of {', '.join(names)}" if names else "expected none"
    unknown = [name for name in args if name not in names]
    if unknown:
        raise SoupError(f"{where}: argument '{unknown[0]}' is not known, {expected}.")
    missing = [one.name for one in parameters if one.default is one.empty and one.name not in args]
    if missing:
        raise SoupError(f"{where}: argument '{missing[0]}' is missing, {expected}.")


def _try(model: nn.Module, spec: str, axes: tuple[int, int, int]) -> None:
    """One black image through the network; our own errors come out as they are."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    images = torch.zeros(1, *axes, device=device)
    told: list[SoupError] = []

    def attempt() -> None:
        try:
            with torch.no_grad():
                model(images)
        except SoupError as error:
            told.append(error)

    call(attempt, where=f"adapter '{spec}': forward of one image {tuple(images.shape)}")
    if told:
        raise told[0]


def _named(decoded: object, *, where: str) -> dict[str, Tensor]:
    """boxes, scores and, with suppression inside, labels; from a dict or a tuple in this order."""
    names = ("boxes", "scores", "labels")
    if isinstance(decoded, Mapping):
        found = {name: decoded[name] for name in names if name in decoded}
    else:
        found = dict(zip(names, decoded if isinstance(decoded, Sequence) else (), strict=False))
    if len(found) < 2 or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        given = f"a dict of {', '.join(map(repr, decoded))}" if isinstance(decoded, Mapping) else type(decoded).__name__
        raise SoupError(f"{where}: gave {given}, expected the tensors boxes and scores, as a dict or in this order.")
    boxes, scores = found["boxes"].float(), found["scores"].float()
    inside = "labels" in found
    axes = (3, 2, 2) if inside else (3, 3)
    shapes = {name: lengths(tensor) for name, tensor in found.items()}
    counts = {shape[0] for shape in shapes.values() if shape}
    fits = tuple(tensor.ndim for tensor in found.values()) == axes and len(counts) == 1 and shapes["boxes"][1] == 4
    if not fits:
        expected = "(n, D, 4), (n, D) and (n, D)" if inside else "(n, A, 4) and (n, A, classes)"
        given = ", ".join(f"{name} (n, {', '.join(map(str, shape))})" for name, shape in shapes.items())
        raise SoupError(f"{where}: gave {given}, expected {expected}.")
    return {"boxes": boxes, "scores": scores, **({"labels": found["labels"]} if inside else {})}
