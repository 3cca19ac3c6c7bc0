"""Segmentation networks that return dicts: only the main head's logits, as one tensor."""

from __future__ import annotations

from torch import Tensor, nn

from soup import SoupError
from soup.adapters.instance import attach, raw_forward
from soup.adapters.raw_outputs import Key, tensor_at


def adapt_segmentation(model: nn.Module, output: Key = "out") -> nn.Module:
    """The same network, in place, whose forward returns the tensor `output` of what it returned, or its only tensor.

    `output` is the name in a dict (torchvision: out), an attribute (Hugging Face: logits) or a position. Logits stay at
    the network's own size, [n, classes, h, w]; Hugging Face's are at a quarter of the image's. An auxiliary head keeps
    its place in the state dict and is averaged and recalibrated with the rest; nothing reads it in an exported graph,
    so that none of its weights are in there. `detach` undoes it.

    Raises SoupError, on the first call, where the output is missing or no [n, classes, h, w] or [n, h, w].
    """
    where = "adapter of segmentation"
    own = raw_forward(model)

    def forward(self: nn.Module, images: Tensor) -> Tensor:
        raw = own(self, images)
        logits = raw if isinstance(raw, Tensor) else tensor_at(raw, output, where=where)
        if logits.ndim not in (3, 4):
            raise SoupError(f"{where}: '{output}' is {tuple(logits.shape)}, expected (n, classes, h, w) or (n, h, w).")
        return logits

    attach(model, forward)
    return model
