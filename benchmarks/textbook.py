"""The paper's plain greedy loop: 2K - 1 full evaluations, JPEG decoded by a DataLoader each time, eager float32."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from calib.batchnorm import recalibrate
from soup.config import Config, load_config
from soup.files import sha256_file
from soup.models import build_model


def greedy(folder: Path, names: Sequence[str]) -> dict[str, object]:
    """{"accepted": file names, "images": by phase, "values": …} of arXiv 2203.05482, recipe 1, on val.yaml's task.

    Candidates of two or more are recalibrated with the estimator and the images of `soup build` (order.json), as the
    same answer takes the same statistics.
    """
    config = load_config(folder / "val.yaml")
    val = _loader(config, "val", 64)
    train = _loader(config, "train", config.batchnorm.batch, rows=json.loads((folder / "order.json").read_text()))
    model = build_model(config.model, config.model_args, folder=folder)
    images = {"singles": 0, "candidates": 0, "recalibration": 0}

    @torch.inference_mode()
    def evaluate(phase: str) -> float:
        model.eval()
        right = total = 0
        for batch, labels in val:
            right += int((model(batch).argmax(1) == labels).sum())
            total += len(labels)
        images[phase] += total
        return right / total

    def score(paths: Sequence[Path]) -> float:
        model.load_state_dict(_average(paths))
        if len(paths) > 1:
            recalibrate(model, train)
            images["recalibration"] += len(train.dataset)  # type: ignore[arg-type]
        return evaluate("singles" if len(paths) == 1 else "candidates")

    hashes = {folder / "checkpoints" / name: sha256_file(folder / "checkpoints" / name) for name in names}
    paths = sorted(hashes, key=hashes.__getitem__)
    singles = {path: score([path]) for path in paths}
    ranked = sorted(paths, key=lambda path: -singles[path])
    accepted, best = ranked[:1], singles[ranked[0]]
    for path in ranked[1:]:
        value = score(sorted([*accepted, path], key=hashes.__getitem__))
        if value >= best:
            accepted, best = [*accepted, path], value
    return {"accepted": sorted(path.name for path in accepted), "images": images, "val": best}


def _loader(config: Config, split: str, batch: int, *, rows: Sequence[int] | None = None) -> DataLoader[object]:
    preprocess = config.preprocess
    assert preprocess is not None
    steps = [transforms.Resize(preprocess.resize), transforms.CenterCrop(preprocess.crop), transforms.ToTensor()]
    steps.append(transforms.Normalize(preprocess.mean * 3, preprocess.std * 3))
    source = getattr(config.data, split)
    images: Dataset[object] = ImageFolder(str(config.folder / source), transforms.Compose(steps))
    return DataLoader(images if rows is None else Subset(images, rows), batch_size=batch, num_workers=2)


def _average(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    states = [torch.load(path, weights_only=True)["model"] for path in paths]
    return {
        name: sum(state[name].double() for state in states).div(len(states)).to(tensor.dtype)
        if tensor.is_floating_point()
        else max(state[name] for state in states)
        for name, tensor in states[0].items()
    }
