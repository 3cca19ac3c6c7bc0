"""The demo's network: three convolutions with BatchNorm, 24,000 weights."""

from __future__ import annotations

from torch import nn


def build(num_classes: int = 10, channels: int = 1, width: int = 16) -> nn.Module:
    """Images float32 (n, channels, 28, 28) → logits (n, num_classes)."""
    return nn.Sequential(
        *_block(channels, width),
        nn.MaxPool2d(2),
        *_block(width, 2 * width),
        nn.MaxPool2d(2),
        *_block(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
