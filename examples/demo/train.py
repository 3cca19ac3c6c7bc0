"""Train the demo's network and keep the last epochs' checkpoints, as stochastic weight averaging's recipe asks.

A constant learning rate after a short warm-up (Izmailov et al. 2018, arXiv 1803.05407): late checkpoints then lie
around a better point, which their average finds. `--model torchvision:resnet18` trains another network on these images.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from data import write_splits
from models import build
from torch import nn

from soup.models import build_model


def main() -> None:
    """Write data/*.npz and checkpoints/epoch-NN.pt below --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="small", help="small, or torchvision:NAME (three channels)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--keep", type=int, default=8, help="how many of the last checkpoints are kept")
    parser.add_argument("--steps", type=int, default=None, help="steps per epoch (default: all images once)")
    parser.add_argument("--size", type=int, default=28, help="pixels")
    parser.add_argument(
        "--digits", type=int, nargs=3, default=(2000, 1000, 2000), help="in train, val and test; 5,000 in all"
    )
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    small = options.model == "small"
    channels = 1 if small else 3
    write_splits(options.out / "data", options.digits, size=options.size, channels=channels, seed=options.seed)
    model = build() if small else build_model(options.model, {"num_classes": 10}, folder=Path())
    train(model, options)


def train(model: nn.Module, options: argparse.Namespace) -> None:
    """SGD with momentum 0.9 at a constant rate after 60 steps of warm-up; saves a checkpoint for each late epoch."""
    images, labels = tensors(options.out / "data" / "train.npz")
    val_images, val_labels = tensors(options.out / "data" / "val.npz")
    optimizer = torch.optim.SGD(model.parameters(), lr=options.rate, momentum=0.9, weight_decay=5e-4)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 60, total_iters=60)
    (options.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    for epoch in range(options.epochs):
        started = time.monotonic()
        model.train()
        for rows in torch.randperm(len(images)).split(50)[: options.steps]:
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            warm_up.step()
        value = accuracy(model, val_images, val_labels)
        print(f"epoch {epoch + 1:2}/{options.epochs}: val accuracy {value:.4f} ({time.monotonic() - started:.1f} s)")
        sys.stdout.flush()
        if epoch >= options.epochs - options.keep:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch": epoch + 1,
                "accuracy": value,
            }
            torch.save(state, options.out / "checkpoints" / f"epoch-{epoch + 1:02}.pt")


def tensors(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 (n, channels, size, size), normalised as val.yaml says, and labels int64 (n)."""
    arrays = np.load(path)
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).float().div_(255).sub_(0.2).div_(0.3)
    return images, torch.from_numpy(arrays["labels"])


@torch.inference_mode()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of right answers."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(200), labels.split(200), strict=True))
    return right / len(labels)


if __name__ == "__main__":
    main()
