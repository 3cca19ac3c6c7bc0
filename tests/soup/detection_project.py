"""The smallest real detection project: a 900-weight CenterNet of convolutions with BatchNorm finds coloured squares."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

SIDE, STRIDE = 32, 4
CLASSES = ("blue", "red")
SPLITS = {"train": 40, "val": 16, "test": 16}
MODELS = """
from torch import nn


def block(inputs, outputs, stride):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Detector(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(block(3, 6, 2), block(6, 6, 2), block(6, 6, 1))
        self.heat, self.size, self.offset = (nn.Conv2d(6, width, 1) for width in (num_classes, 2, 2))

    def forward(self, images):
        features = self.body(images)
        return self.heat(features), self.size(features), self.offset(features)


def build(num_classes=2):
    return Detector(num_classes)
"""
VAL = """
model: ./models.py:build
checkpoints: {files: ["runs/*.pt"]}
task: detection
data: {train: data/train.json, val: data/val.json, test: data/test.json}
detection: {adapter: centernet, classes: [blue, red]}
preprocess: {mean: [0.3], std: [0.35]}
batchnorm: {samples: 40, batch: 20}
quantization: {samples: 32}
"""


@cache
def detector(base: Path) -> Path:
    """A project folder below `base`, made once in a run of tests: models.py, val.yaml, data/, runs/. Read only."""
    folder = base / "detector"
    folder.mkdir()
    write_scenes(folder)
    (folder / "models.py").write_text(MODELS)
    (folder / "val.yaml").write_text(VAL)
    train(folder)
    return folder


@cache
def built_detector(base: Path) -> Path:
    """A copy of `detector` with a finished build in soup-out/. Read only."""
    from soup.config import load_config
    from soup.pipeline import build

    folder = Path(shutil.copytree(detector(base), base / "built-detector"))
    build(load_config(folder / "val.yaml"), folder / "soup-out", progress=silent)
    return folder


@cache
def released_detector(base: Path) -> Path:
    """The release of `built_detector`, all of val as its golden samples. Read only."""
    from soup.ship import Options, export

    release = base / "released-detector"
    overrides = ("release.golden.count=all",)
    export(built_detector(base) / "soup-out", release, overrides=overrides, options=Options(), progress=silent)
    return release


def silent(what: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


def write_scenes(folder: Path) -> None:
    """data/NAME.json in COCO's form and data/NAME/*.png: one or two squares of 7 to 12 pixels in noise."""
    random = np.random.default_rng(0)
    for name, count in SPLITS.items():
        (folder / "data" / name).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for place in range(count):
            pixels, boxes = scene(random)
            Image.fromarray(pixels).save(folder / "data" / name / f"{place:02}.png")
            images.append({"id": place, "file_name": f"{name}/{place:02}.png", "height": SIDE, "width": SIDE})
            for label, (x, y, side) in boxes:
                box = {"image_id": place, "category_id": label + 1, "bbox": [x, y, side, side], "area": side * side}
                annotations.append({"id": len(annotations) + 1, **box})
        categories = [{"id": label + 1, "name": one} for label, one in enumerate(CLASSES)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "data" / f"{name}.json").write_text(json.dumps(document))


def scene(random: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, tuple[int, int, int]]]]:
    """(pixels uint8 [32, 32, 3], (class, (x, y, side)) of one square in the left half and maybe one in the right)."""
    pixels = random.normal(60, 35, (SIDE, SIDE, 3))
    found = []
    for half in range(int(random.integers(1, 3))):
        label, side = int(random.integers(2)), int(random.integers(7, 13))
        x, y = half * 16 + int(random.integers(0, 17 - side)), int(random.integers(0, SIDE - side))
        pixels[y : y + side, x : x + side, 0 if label else 2] += 140
        found.append((label, (x, y, side)))
    return np.clip(pixels, 0, 255).astype(np.uint8), found


def train(folder: Path, *, steps: int = 300, keep: int = 3) -> None:
    """Adam on all of train at once; writes runs/step-N.pt for the last of the steps, 20 apart."""
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    exec(MODELS, namespace)
    model: nn.Module = namespace["build"]()
    images, heat, extents, offsets = training_maps(folder)
    centers = (heat == 1).any(dim=1, keepdim=True).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    (folder / "runs").mkdir(exist_ok=True)
    for step in range(1, steps + 1):
        logits, size, offset = model(images)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, heat, weight=1 + 20 * heat)
        loss = loss + ((size - extents).abs() * centers).sum() / centers.sum()
        loss = loss + ((offset - offsets).abs() * centers).sum() / centers.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step > steps - 20 * keep and step % 20 == 0:
            torch.save({"model": model.state_dict(), "epoch": step}, folder / "runs" / f"step-{step}.pt")


def training_maps(folder: Path, split: str = "train") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised images of a split, and what the heads should say: 1 at a centre, sizes and offsets in cells there."""
    document = json.loads((folder / f"data/{split}.json").read_bytes())
    count, cells = len(document["images"]), SIDE // STRIDE
    pixels = np.stack([np.asarray(Image.open(folder / "data" / one["file_name"])) for one in document["images"]])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).sub(0.3).div(0.35)
    heat, extents, offsets = (torch.zeros(count, 2, cells, cells) for _ in range(3))
    for one in document["annotations"]:
        x, y, width, height = (value / STRIDE for value in one["bbox"])
        column, row = int(x + width / 2), int(y + height / 2)
        place = one["image_id"]
        heat[place, one["category_id"] - 1, row, column] = 1
        extents[place, :, row, column] = torch.tensor([width, height])
        offsets[place, :, row, column] = torch.tensor([x + width / 2 - column, y + height / 2 - row])
    return images, heat, extents, offsets


def edit_json(path: Path, change: Any) -> None:
    """Lets `change` alter the document in place."""
    document: Mapping[str, Any] = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))
