"""The example's detectors, CenterNet's heads (Zhou et al. 2019, arXiv 1904.07850) on a backbone: a small one, or
EfficientNet-Lite0 where a folder of photographs is given. All of convolutions with BatchNorm, at a stride of 4."""

from __future__ import annotations

import torch
from torch import nn

STRIDE = 4


def build(num_classes: int = 10, backbone: str = "small") -> nn.Module:
    """Images float32 (n, 3, h, w) → class logits (n, num_classes, h/4, w/4), sizes and offsets (n, 2, h/4, w/4).

    Sizes are width and height in cells of 4 pixels; offsets are the centre's place within its cell, x and y.
    """
    return Detector(Small() if backbone == "small" else Lite0(), num_classes)


class Detector(nn.Module):
    """Three heads on the backbone's features."""

    def __init__(self, backbone: Small | Lite0, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = _block(backbone.width, backbone.width)
        self.heat = nn.Conv2d(backbone.width, num_classes, 1)
        self.size = nn.Conv2d(backbone.width, 2, 1)
        self.offset = nn.Conv2d(backbone.width, 2, 1)
        nn.init.constant_(self.heat.bias, -4.6)  # every cell begins at a probability of 0.01
        nn.init.constant_(self.size.bias, 5.0)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.neck(self.backbone(images))
        return self.heat(features), self.size(features), self.offset(features)


class Small(nn.Module):
    """Residual blocks at strides 4 and 8, joined at 4: with the heads 0.3 million weights."""

    width = 48

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, 24, stride=2), _block(24, 48, stride=2), Residual(48))
        self.deep = nn.Sequential(_block(48, 96, stride=2), Residual(96))
        self.lateral = nn.Conv2d(96, 48, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shallow = self.stem(images)
        return shallow + nn.functional.interpolate(self.lateral(self.deep(shallow)), scale_factor=2.0)


class Residual(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(width, width), _block(width, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.body(features)


TAPS = {2: 24, 4: 40, 10: 112}  # EfficientNet-Lite0's block → channels, at strides 4, 8 and 16


class Lite0(nn.Module):
    """EfficientNet-Lite0 down to stride 16, its features joined at stride 4 from the top down."""

    width = 64

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        whole = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0)
        self.stem = nn.Sequential(whole._conv_stem, whole._bn0, nn.ReLU6())
        self.blocks = whole._blocks[: max(TAPS) + 1]
        self.laterals = nn.ModuleList(nn.Conv2d(channels, self.width, 1) for channels in TAPS.values())
        self.smooth = nn.ModuleList(_block(self.width, self.width) for _ in TAPS)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features, taps = self.stem(images), []
        for number, block in enumerate(self.blocks):
            features = block(features)
            if number in TAPS:
                taps.append(features)
        joined = None
        for lateral, smooth, tap in reversed(list(zip(self.laterals, self.smooth, taps, strict=True))):
            own = lateral(tap)
            joined = smooth(own if joined is None else own + nn.functional.interpolate(joined, scale_factor=2.0))
        assert joined is not None
        return joined


def _block(inputs: int, outputs: int, *, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
