"""BatchNorm recalibration beside torch's update_bn and fvcore's update_bn_stats: error against float64, and time."""

from __future__ import annotations

import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from calib.batchnorm import recalibrate

Batches = Sequence[torch.Tensor]
Row = dict[str, str | float | None]


def run(*, quick: bool = False) -> dict[str, list[Row]]:
    """`errors`: per case and tool, the worst over layers and channels; `times`: medians of alternating repeats.

    Errors are in float32 units in the last place (ulp: 0.5 is the best a float32 can do) and, for the variance, as a
    fraction of it too. The truth is the float64 population of what each layer receives with BatchNorm alone in training
    mode; a tool that leaves dropout on measures another population. A tool that is not installed has None and a note.
    """
    errors = [
        {"case": case, "tool": tool, **_error(make_model, batches, estimate=estimate)}
        for case, (make_model, batches) in _cases().items()
        for tool, estimate in _tools().items()
    ]
    return {"errors": errors, "times": _times(images=200 if quick else 1000, repeats=2 if quick else 5)}


def _tools() -> dict[str, Callable[[nn.Module, Batches], object] | None]:
    tools: dict[str, Callable[[nn.Module, Batches], object] | None] = {
        "calib.recalibrate": recalibrate,
        "torch update_bn": lambda model, batches: update_bn(batches, model),
        "fvcore update_bn_stats": None,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # fvcore scripts a function at import
            from fvcore.nn import update_bn_stats
    except ImportError:
        return tools
    tools["fvcore update_bn_stats"] = lambda model, batches: update_bn_stats(model.train(), batches, len(batches))
    return tools


def _cases() -> dict[str, tuple[Callable[[], nn.Module], Batches]]:
    """Images that grow brighter along the list, as in a folder sorted by scene, so that weighting matters."""
    torch.manual_seed(0)
    noise = torch.randn(407, 3, 16, 16)
    ramp = torch.linspace(0, 2, 407)[:, None, None, None]
    return {
        "unequal batches (4 x 100, 7)": (
            lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 16, 3), nn.ReLU(), nn.BatchNorm2d(16)),
            (noise + ramp).split(100),
        ),
        "mean 1000, variance 0.01": (lambda: nn.Sequential(nn.BatchNorm2d(3)), (noise * 0.1 + 1000).split(100)),
        "dropout upstream": (
            lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm2d(16)),
            (noise[:400] + ramp[:400]).split(100),
        ),
    }


def _error(
    make_model: Callable[[], nn.Module], batches: Batches, *, estimate: Callable[[nn.Module, Batches], object] | None
) -> Row:
    if estimate is None:
        absent = "not installed: pip install fvcore==0.1.5.post20221221"
        return {"mean_ulp": None, "var_ulp": None, "var_relative": None, "note": absent}
    torch.manual_seed(0)
    model = make_model().eval()
    truth = _population(model, batches)
    estimate(model, batches)
    mean_ulp, var_ulp, var_relative = [], [], []
    for name, (mean, variance) in truth.items():
        layer = model.get_submodule(name)
        off_mean = np.abs(layer.running_mean.double().numpy() - mean)
        off_variance = np.abs(layer.running_var.double().numpy() - variance)
        mean_ulp.append((off_mean / np.spacing(np.abs(mean).astype(np.float32))).max())
        var_ulp.append((off_variance / np.spacing(variance.astype(np.float32))).max())
        var_relative.append((off_variance / variance).max())
    return {
        "mean_ulp": float(max(mean_ulp)),
        "var_ulp": float(max(var_ulp)),
        "var_relative": float(max(var_relative)),
        "note": "",
    }


def _population(model: nn.Module, batches: Batches) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and unbiased variance in float64 of what each layer receives, recorded by hooks on a copy."""
    model = copy.deepcopy(model).eval()
    received: dict[str, list[np.ndarray]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            layer.train()
            layer.register_forward_pre_hook(
                lambda _, args, name=name: received.setdefault(name, []).append(args[0].double().numpy())
            )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    pooled = {name: np.concatenate(arrays).swapaxes(0, 1) for name, arrays in received.items()}
    flat = {name: values.reshape(len(values), -1) for name, values in pooled.items()}
    return {name: (values.mean(axis=1), values.var(axis=1, ddof=1)) for name, values in flat.items()}


def _times(*, images: int, repeats: int) -> list[Row]:
    from torchvision.models import mobilenet_v3_small

    model = mobilenet_v3_small().eval()
    batches = torch.rand(images, 3, 96, 96, generator=torch.Generator().manual_seed(0)).split(100)
    tools = {"forward pass alone": _forward, **{name: tool for name, tool in _tools().items() if tool is not None}}
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    for repeat in range(repeats + 1):
        for name, tool in tools.items():
            candidate = copy.deepcopy(model)
            start = time.perf_counter()
            tool(candidate, batches)
            if repeat:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) * 1000 / images)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {"tool": name, "seconds_per_1000_images": value, "forward_passes": value / medians["forward pass alone"]}
        for name, value in medians.items()
    ]


def _forward(model: nn.Module, batches: Batches) -> None:
    with torch.no_grad():
        for batch in batches:
            model.eval()(batch)


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
