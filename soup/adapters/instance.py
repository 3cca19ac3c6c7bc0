"""Another forward for one network: its class, its names and its state dict stay as they were."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

from torch import Tensor, nn

Forward = Callable[[nn.Module, Tensor], object]


def attach(model: nn.Module, forward: Forward) -> None:
    """Let `model(images)` be `forward(model, images)`, in place, until `detach`; what was attached before is dropped.

    Bound to the instance, as a method: hooks, torch.export and the exporters call it as they call any forward, and a
    deep copy of the model is bound to the copy. (A function that closed over the model would go on with the first one's
    weights.)
    """
    detach(model)

    def adapted(self: nn.Module, images: Tensor) -> object:
        return forward(self, images)

    adapted.earlier = vars(model).get("forward")  # type: ignore[attr-defined]
    vars(model)["forward"] = MethodType(adapted, model)


def detach(model: nn.Module) -> None:
    """Undo `attach`, in place; a model without is left alone."""
    own = getattr(vars(model).get("forward"), "__func__", None)
    if own is None or not hasattr(own, "earlier"):
        return
    if own.earlier is None:
        del vars(model)["forward"]
    else:
        vars(model)["forward"] = own.earlier


def raw_forward(model: nn.Module) -> Callable[..., object]:
    """The network's own forward beneath any adapter, as a function of (model, images): it belongs to no instance."""
    own = vars(model).get("forward")
    own = getattr(getattr(own, "__func__", None), "earlier", own)
    if own is None:
        return type(model).forward
    if isinstance(own, MethodType) and own.__self__ is model:
        return own.__func__
    return lambda _model, images: own(images)
