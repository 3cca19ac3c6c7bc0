"""Moments of what each BatchNorm receives, computed once: they are recorded, and the layer normalises with them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from calib.moments import Moments, moments


@contextlib.contextmanager
def recorded(layers: Mapping[str, _BatchNorm], calls: list[tuple[str, Moments]]) -> Iterator[None]:
    """Append the name and the moments of its input to `calls` whenever a layer is called.

    A layer that then hands this very input to functional.batch_norm, to be normalised with its own moments and nothing
    tracked, gets it normalised with those just computed: torch would compute them again. Whatever else a layer does
    with its input is left to it.
    """
    normalised = _WithKnownMoments()

    def record(name: str, _module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        values = next(iter((*args, *kwargs.values())))
        with torch._C.DisableTorchFunction():  # the mode below has no say in this arithmetic
            known = moments(values)
        calls.append((name, known))
        normalised.expect(values, known)

    with contextlib.ExitStack() as entered:
        entered.enter_context(normalised)
        for name, layer in layers.items():
            entered.enter_context(layer.register_forward_pre_hook(functools.partial(record, name), with_kwargs=True))
        yield


class _WithKnownMoments(TorchFunctionMode):
    """Answers functional.batch_norm for one expected tensor, wherever it is called from; all else goes on to torch."""

    def __init__(self) -> None:
        super().__init__()
        self._expected: tuple[torch.Tensor, int, Moments] | None = None

    def expect(self, values: torch.Tensor, known: Moments) -> None:
        # An inference tensor does not count its changes, and a count below 2 is torch's to refuse.
        usable = not values.is_inference() and known.count > 1 and values.dtype in (torch.float32, torch.float64)
        self._expected = (values, values._version, known) if usable else None

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        del types
        if func is functional.batch_norm:
            func = self._batch_norm
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        values: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        *,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> torch.Tensor:
        expected, self._expected = self._expected, None
        tracked = running_mean is not None or running_var is not None
        same_dtype = all(tensor is None or tensor.dtype == values.dtype for tensor in (weight, bias))
        if expected and training and not tracked and same_dtype:
            received, version, known = expected
            if received is values and values._version == version:
                return _normalised(values, known, weight=weight, bias=bias, eps=eps)
        return functional.batch_norm(values, running_mean, running_var, weight, bias, training, momentum, eps)


def _normalised(
    values: torch.Tensor, known: Moments, *, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Training mode's output, in one pass over `values`.

    Rounds where torch's training mode does on a CPU, which gives the same bits unless two float64 sums lie on either
    side of a rounding boundary, or torch summed in float32 as it does for channels_last.
    """
    mean = torch.from_numpy(known.mean).to(values)
    variance = torch.from_numpy(known.squares).to(values.dtype) / known.count
    scale = (variance.double() + eps).rsqrt().to(values)
    if weight is not None:
        scale = scale * weight
    return functional.batch_norm(values, mean, torch.ones_like(mean), scale, bias, training=False, eps=0.0)
