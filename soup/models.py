"""The user's network: built from a callable or a library's name, loaded strictly, run as a Predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from exporters.runtimes import Arrays, Predict
from soup import SoupError
from soup.callables import call, resolve
from soup.checkpoint import StateDict

_DOWNLOADS = {"weights", "weights_backbone", "pretrained", "pretrained_backbone"}


def build_model(spec: str, args: Mapping[str, object], *, folder: Path) -> nn.Module:
    """The network in evaluation mode: `./file.py:fn`, `package.module:fn`, `torchvision:name` or `timm:name`.

    Raises SoupError when it cannot be built, or when `args` would download weights (no command opens a socket).
    """
    asked = sorted(name for name in _DOWNLOADS & set(args) if args[name])
    if asked:
        raise SoupError(
            f"model_args: '{asked[0]}' would download weights, and the checkpoints replace them anyway. Remove it."
        )
    model = call(_builder(spec, folder), where=f"model '{spec}'", **args)
    if not isinstance(model, nn.Module):
        raise SoupError(f"model '{spec}': returned {type(model).__name__}, expected a torch.nn.Module.")
    if lazy := [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]:
        raise SoupError(
            f"model '{spec}': '{lazy[0]}' is lazy, expected a tensor of known shape. Run it on an image first."
        )
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    own = {name for name, _ in tensors}
    if renamed := sorted(model.state_dict().keys() - own):
        raise SoupError(
            f"model '{spec}': its state_dict has '{renamed[0]}', expected only the names of its parameters and "
            "buffers. Return the network inside, or remove its own state_dict and get_extra_state."
        )
    return model.eval()


def tensor_table(model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → (shape, dtype) of every parameter and persistent buffer, as its checkpoints must have them."""
    return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in model.state_dict().items()}


def load(model: nn.Module, state: StateDict) -> None:
    """Put `state` into `model`, in place; every name and shape must match (no strict=False anywhere)."""
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise SoupError(f"model: the weights do not fit: {str(error).splitlines()[-1].strip()}") from error


def select_device(wanted: str) -> torch.device:
    """`auto` is CUDA where torch sees it, else the CPU. Raises SoupError (environment) for one that is not there."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        message = f"device: '{wanted}' was asked for, but torch sees no CUDA device here. Set device: auto."
        raise SoupError(message, kind="environment")
    if device.index is not None and device.index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise SoupError(f"device: '{wanted}' is not here, expected cuda:0 to cuda:{count - 1}.", kind="environment")
    return device


def torch_predict(model: nn.Module, *, device: torch.device) -> Predict:
    """The network as a Predict: float32 arrays in, floats out as float32, inference mode, channels_last for images."""
    model.to(device).to(memory_format=torch.channels_last).eval()

    def predict(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            tensors = {name: to_device(array, device) for name, array in inputs.items()}
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
            positional, named = (list(tensors.values()), {}) if len(tensors) == 1 else ([], tensors)
            output = call(model, *positional, where=f"model: forward of {shapes}", **named)
            return {name: _widened(tensor).cpu().numpy() for name, tensor in named_outputs(output).items()}

    return predict


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """Floats as float32; numbers of classes as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def in_parts(predict: Predict, inputs: Arrays, *, rows: int = 16) -> Arrays:
    """All outputs of any number of samples, a few at a time."""
    count = len(next(iter(inputs.values())))
    parts = [predict({name: array[at : at + rows] for name, array in inputs.items()}) for at in range(0, count, rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array as a tensor on `device`; 4-d arrays (n, c, h, w) in channels_last."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def named_outputs(output: object) -> dict[str, torch.Tensor]:
    """A tensor is `output`; a list or tuple `output_0`, `output_1`, …; a dict keeps its keys."""
    if isinstance(output, torch.Tensor):
        return {"output": output}
    pairs = output.items() if isinstance(output, Mapping) else None
    if isinstance(output, list | tuple):
        pairs = {f"output_{index}": item for index, item in enumerate(output)}.items()
    if pairs is None or not all(isinstance(item, torch.Tensor) for _, item in pairs):
        raise SoupError(
            f"model: forward returned {type(output).__name__}, expected a tensor, or a list or dict of tensors."
        )
    return dict(pairs)


def _builder(spec: str, folder: Path) -> Callable[..., object]:
    library, _, name = spec.partition(":")
    if library == "torchvision":
        return _torchvision(name)
    if library == "timm":
        return _timm(name)
    return resolve(spec, folder=folder)


def _torchvision(name: str) -> Callable[..., object]:
    import torchvision

    if name not in torchvision.models.list_models():
        raise SoupError(f"model: torchvision has no model '{name}'. `torchvision.models.list_models()` lists them.")
    return lambda **args: torchvision.models.get_model(name, **{"weights": None, **args})


def _timm(name: str) -> Callable[..., object]:
    try:
        import timm
    except ImportError as error:
        raise SoupError("model: 'timm:' needs timm. pip install 'edgesoup[timm]'", kind="environment") from error
    if not timm.is_model(name):
        raise SoupError(f"model: timm has no model '{name}'. `timm.list_models()` lists them.")
    return lambda **args: timm.create_model(name, **{"pretrained": False, **args})
