"""The smallest real segmentation project: scenes of a bar and a disc with soft borders, and a 550-weight network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

IGNORED = 255
CLASSES = ("ground", "bar", "disc")
SPLITS = {"train": 24, "val": 16, "test": 16}
MODELS = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.classes = nn.Conv2d(width, num_classes, 1)
        self.aux = nn.Conv2d(width, num_classes, 1)

    def forward(self, images):
        early = self.first(images)
        return {"out": self.classes(self.second(early)), "aux": self.aux(early)}


def build(num_classes=3, width=6):
    return Net(num_classes, width)
"""
MEAN, STD = 0.45, 0.25
VAL: Mapping[str, Any] = {
    "model": "./models.py:build",
    "checkpoints": {"files": ["runs/*.pt"]},
    "task": "segmentation",
    "segmentation": {"classes": list(CLASSES)},
    "data": {name: name for name in SPLITS},
    "preprocess": {"mean": [MEAN], "std": [STD]},
    "search": {"methods": ["uniform"]},
    "batchnorm": {"samples": 24, "batch": 8},
    "explain": {"contributions": False, "line": 0},
    "gates": {"accuracy": {"max_drop": 0.2}},
}


def write_project(folder: Path) -> None:
    """models.py, val.yaml, three checkpoints in runs/, and train, val and test with images/ and masks/."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models.py").write_text(MODELS)
    write_val(folder)
    for seed, (name, count) in enumerate(SPLITS.items()):
        write_scenes(folder / name, count, seed=seed)
    train(folder)


def write_val(folder: Path, **changes: object) -> None:
    """val.yaml with some of its keys replaced."""
    (folder / "val.yaml").write_text(yaml.safe_dump({**VAL, **changes}))


def write_scenes(folder: Path, count: int, *, seed: int, size: tuple[int, int] = (24, 32), first: int = 0) -> None:
    """`count` images [height, width] as images/NN.png, with masks/NN.png."""
    random = np.random.default_rng([seed, *size])
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        pixels, mask = scene(random, size)
        Image.fromarray(pixels).save(folder / "images" / f"{index:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index:02d}.png")


def scene(random: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [h, w, 3] and its classes uint8 [h, w]: a disc over a bar; a ring about the disc counts for nothing."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    mask = np.zeros(size, np.uint8)
    left = random.integers(0, width - 6)
    mask[:, left : left + 6] = 1
    top, center = random.integers(5, height - 5), random.integers(5, width - 5)
    distance = np.hypot(rows - top, columns - center)
    mask[distance < 6] = IGNORED
    mask[distance < 5] = 2
    colours = np.array([[110, 110, 110], [150, 110, 90], [90, 120, 160]], np.float64)
    pixels = colours[np.where(mask == IGNORED, random.integers(0, 3, size), mask)] + random.normal(0, 38, (*size, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), mask


def train(folder: Path, *, epochs: int = 14, keep: int = 3) -> None:
    """SGD at a constant rate; writes runs/epoch-N.pt as {"model", "epoch"} for the last epochs."""
    import torch
    from torch import nn

    namespace: dict[str, Any] = {}
    exec(MODELS, namespace)
    torch.manual_seed(0)
    model = namespace["build"]()
    images, masks = (torch.stack(parts) for parts in zip(*map(tensors, sorted_masks(folder / "train")), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    (folder / "runs").mkdir(exist_ok=True)
    for epoch in range(epochs):
        for rows in torch.randperm(len(images)).split(8):
            answers = model(images[rows])
            loss = sum(
                weight * nn.functional.cross_entropy(answers[name], masks[rows], ignore_index=IGNORED)
                for name, weight in (("out", 1.0), ("aux", 0.4))
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch >= epochs - keep:
            torch.save({"model": model.state_dict(), "epoch": epoch}, folder / "runs" / f"epoch-{epoch}.pt")


def sorted_masks(split: Path) -> list[Path]:
    """The masks of a split, in the order of its samples."""
    return sorted((split / "masks").iterdir())


def tensors(mask: Path) -> tuple[Any, Any]:
    """float32 [3, h, w] as the network is fed, and its mask int64 [h, w]."""
    import torch

    with Image.open(mask.parents[1] / "images" / mask.name) as image, Image.open(mask) as truth:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255).sub(MEAN).div(STD)
        return pixels, torch.from_numpy(np.array(truth)).long()
