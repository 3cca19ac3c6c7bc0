"""The detection example's scenes, with masks: data/SPLIT/images/*.png and data/SPLIT/masks/*.png."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "detection"))
from scenes import SHARES, scenes


def write(folder: Path, counts: Sequence[int], *, size: int, seed: int) -> None:
    """Write train, val and test scenes, `counts` of each; a mask's values are 0 to 10 and 255 (see scenes.Scene)."""
    for split, count in zip(SHARES, counts, strict=True):
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(scenes(split, count, size=size, seed=seed)):
            Image.fromarray(scene.image).save(folder / split / "images" / f"{number:04}.png")
            Image.fromarray(scene.mask).save(folder / split / "masks" / f"{number:04}.png")


def read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, h, w, 3) and masks uint8 (n, h, w), in the order of their names."""
    paths = sorted((folder / split / "images").glob("*.png"))
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    return images, np.stack([np.asarray(Image.open(folder / split / "masks" / path.name)) for path in paths])
