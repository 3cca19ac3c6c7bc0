"""Train the example's segmentation network and keep the last epochs' checkpoints, at a constant learning rate
(Izmailov et al. 2018, arXiv 1803.05407)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from data import read, write
from models import build
from torch import nn

CLASSES, IGNORED = 11, 255  # the ground and ten digits
MEAN, STD = 0.45, 0.225  # of all three channels, as val.yaml says


def main() -> None:
    """Write data/ and checkpoints/epoch-NN.pt below --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--keep", type=int, default=6, help="how many of the last checkpoints are kept")
    parser.add_argument("--scenes", type=int, nargs=3, default=(2000, 400, 400), help="in train, val and test")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    write(options.out / "data", options.scenes, size=128, seed=options.seed)
    model = build(CLASSES)
    print(f"{sum(weights.numel() for weights in model.parameters()):,} weights")
    train(model, options)


def train(model: nn.Module, options: argparse.Namespace) -> None:
    """AdamW at a constant rate after 100 steps of warm-up; saves a checkpoint for each late epoch."""
    (images, masks), val_set = (read(options.out / "data", split) for split in ("train", "val"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=1e-4)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=100)
    (options.out / "checkpoints").mkdir(parents=True, exist_ok=True)
    for epoch in range(1, options.epochs + 1):
        started, losses = time.monotonic(), []
        model.train()
        for rows in torch.randperm(len(images)).split(16):
            value = loss(model(tensor(images[rows])), torch.from_numpy(masks[rows]).long())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            warm_up.step()
            losses.append(value.item())
        late = epoch > options.epochs - options.keep
        figure = mean_iou(model, *val_set) if late or epoch % 4 == 0 else None
        told = "" if figure is None else f"val mIoU {figure:.4f} "
        seconds = time.monotonic() - started
        print(f"epoch {epoch:2}/{options.epochs}: loss {np.mean(losses):.3f} {told}({seconds:.0f} s)", flush=True)
        if late:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "miou": figure}
            torch.save(state, options.out / "checkpoints" / f"epoch-{epoch:02}.pt")


def loss(outputs: dict[str, torch.Tensor], masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the counted pixels, the auxiliary head's × 0.4; the ground, seven pixels in eight, × 0.3."""
    weights = torch.tensor([0.3] + [1.0] * (CLASSES - 1))
    main_loss, aux_loss = (
        nn.functional.cross_entropy(outputs[name], masks, weights, ignore_index=IGNORED) for name in ("out", "aux")
    )
    return main_loss + 0.4 * aux_loss


def tensor(images: np.ndarray) -> torch.Tensor:
    """Images float32 (n, 3, h, w), normalised as val.yaml says, in channels_last."""
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    return tensors.div_(255).sub_(MEAN).div_(STD)


@torch.inference_mode()
def mean_iou(model: nn.Module, images: np.ndarray, masks: np.ndarray) -> float:
    """The mean over the classes of intersection over union, of all counted pixels together."""
    model.eval()
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for start in range(0, len(images), 50):
        rows = slice(start, start + 50)
        answers, truth = model(tensor(images[rows]))["out"].argmax(1).numpy(), masks[rows]
        pairs = CLASSES * truth[truth != IGNORED].astype(np.int64) + answers[truth != IGNORED]
        matrix += np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    shared = matrix.diagonal()
    return float(np.mean(shared / (matrix.sum(0) + matrix.sum(1) - shared)))


if __name__ == "__main__":
    main()
