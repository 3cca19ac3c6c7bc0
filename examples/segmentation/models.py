"""The example's segmentation network: a small U-Net (Ronneberger et al. 2015, arXiv 1505.04597) with BatchNorm and an
auxiliary head, as torchvision's networks have one: of use in training, and dropped from what is exported."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


def build(num_classes: int = 11, width: int = 16) -> nn.Module:
    """Images float32 (n, 3, h, w) → {"out": logits (n, num_classes, h, w), "aux": the same from coarser features}."""
    return UNet(num_classes, width)


class UNet(nn.Module):
    """Four levels, at strides 1 to 8: 0.3 million weights."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 6 * width]
        self.first = _block(3, width)
        self.down = nn.ModuleList(_pair(a, b, stride=2) for a, b in pairwise(widths))
        self.lateral = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_block(a, a) for a in widths[:-1])
        self.classes = nn.Conv2d(width, num_classes, 1)
        self.aux = nn.Conv2d(widths[2], num_classes, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        levels = [self.first(images)]
        for down in self.down:
            levels.append(down(levels[-1]))
        features, coarse = levels.pop(), None
        for lateral, up in reversed(list(zip(self.lateral, self.up, strict=True))):
            features = up(levels.pop() + nn.functional.interpolate(lateral(features), scale_factor=2.0))
            coarse = features if coarse is None else coarse
        aux = nn.functional.interpolate(self.aux(coarse), images.shape[2:], mode="bilinear", align_corners=False)
        return {"out": self.classes(features), "aux": aux}


def _pair(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    return nn.Sequential(_block(inputs, outputs, stride=stride), _block(outputs, outputs))


def _block(inputs: int, outputs: int, *, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
