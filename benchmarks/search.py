"""`soup build` beside the textbook greedy soup: the same accepted set, and the wall time of both.

The textbook loop (Wortsman et al. 2022, arXiv 2203.05482, recipe 1) loads each candidate with torch.load, averages,
recalibrates BatchNorm on the same images in the same order by the same estimator, and evaluates with a DataLoader that
decodes every JPEG again. Each run is a fresh process; the two take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TRAINER = Path(__file__).parents[1] / "examples" / "demo" / "train.py"
NETWORK, SIDE, STORED = "mobilenet_v3_small", 64, 256  # pixels that the network sees, and that the JPEG files have
MEAN, STD = (0.2, 0.2, 0.2), (0.3, 0.3, 0.3)
VAL = f"""
model: torchvision:{NETWORK}
model_args: {{num_classes: 10}}
checkpoints: {{files: ["checkpoints/*.pt"]}}
data: {{train: images/train, val: images/val}}
preprocess: {{resize: {SIDE}, crop: {SIDE}, mean: [0.2], std: [0.3]}}
search: {{methods: [greedy]}}
batchnorm: {{samples: 500, batch: 100}}
"""


def run(*, quick: bool = False) -> dict[str, object]:
    """{"setting": facts, "rows": one per contender with median seconds, "same_accepted_set": bool, "ratio": float}."""
    checkpoints, rounds = (3, 1) if quick else (8, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, checkpoints=checkpoints, images=200 if quick else 1000)
        (folder / "order.json").write_text(json.dumps(_calibration_order(folder)))
        results: dict[str, list[dict[str, object]]] = {contender: [] for contender in CONTENDERS}
        for turn in range(rounds):
            for contender, seen in results.items():
                seen.append(_in_own_process(contender, folder, turn))
    accepted = {tuple(result["accepted"]) for seen in results.values() for result in seen}
    seconds = {name: statistics.median(result["seconds"] for result in seen) for name, seen in results.items()}
    images = {"network": NETWORK, "pixels": SIDE, "JPEG pixels": STORED}
    return {
        "setting": {"checkpoints": checkpoints, **images, "rounds": rounds},
        "rows": [{"contender": name, "seconds": value} for name, value in seconds.items()],
        "same_accepted_set": len(accepted) == 1,
        "accepted": len(next(iter(accepted))),
        "ratio": seconds["textbook loop"] / seconds["soup build"],
    }


def prepare(folder: Path, *, checkpoints: int, images: int) -> None:
    """Train the checkpoints, and write train and val as folders of JPEG files."""
    subprocess.run(
        [sys.executable, str(TRAINER), "--out", str(folder), "--model", f"torchvision:{NETWORK}", "--size", str(SIDE),
         "--epochs", str(checkpoints + 2), "--keep", str(checkpoints), "--steps", "40"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (folder / "val.yaml").write_text(VAL)
    for split, count in {"train": 2 * images, "val": images}.items():
        arrays = np.load(folder / "data" / f"{split}.npz")
        rows = np.random.default_rng(0).permutation(len(arrays["labels"]))[:count]
        for row in rows:
            path = folder / "images" / split / str(arrays["labels"][row]) / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays["images"][row]).resize((STORED, STORED)).save(path, quality=92)


def soup_build(folder: Path, turn: int) -> list[str]:
    """The command as a user runs it, its first decoding included; the accepted checkpoints' file names."""
    from soup.config import load_config
    from soup.pipeline import build

    result = build(load_config(folder / "val.yaml"), folder / f"soup-{turn}", progress=lambda *_: None)
    chosen = next(trial for trial in reversed(result.trials) if trial.method == "greedy" and trial.kept)
    return sorted(Path(one.path).name for one in result.record.ingredients if one.sha256 in chosen.ingredients)


def textbook_loop(folder: Path, turn: int) -> list[str]:
    """2K - 1 full evaluations, each decoding every image anew."""
    import torch
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder

    from calib.batchnorm import recalibrate
    from soup.models import build_model

    transform = _transform()
    val = DataLoader(ImageFolder(str(folder / "images" / "val"), transform), batch_size=64, num_workers=2)
    order = json.loads((folder / "order.json").read_text())
    train = DataLoader(Subset(ImageFolder(str(folder / "images" / "train"), transform), order), 100, num_workers=2)
    model = build_model(f"torchvision:{NETWORK}", {"num_classes": 10}, folder=folder)

    @torch.inference_mode()
    def evaluate() -> float:
        model.eval()
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in val)
        return right / len(val.dataset)

    def score(paths: Sequence[Path]) -> float:
        model.load_state_dict(_average(paths))
        if len(paths) > 1:
            recalibrate(model, train)
        return evaluate()

    paths = sorted((folder / "checkpoints").glob("*.pt"), key=_sha256)
    singles = {path: score([path]) for path in paths}
    ranked = sorted(paths, key=lambda path: -singles[path])
    accepted, best = ranked[:1], singles[ranked[0]]
    for path in ranked[1:]:
        value = score(sorted([*accepted, path], key=_sha256))
        if value >= best:
            accepted, best = [*accepted, path], value
    return sorted(path.name for path in accepted)


CONTENDERS = {"textbook loop": textbook_loop, "soup build": soup_build}


def _transform() -> object:
    from torchvision import transforms

    steps = [
        transforms.Resize(SIDE),
        transforms.CenterCrop(SIDE),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return transforms.Compose(steps)


def _calibration_order(folder: Path) -> list[int]:
    """The images that `soup build` draws, in its order, as indices of the image folder."""
    from soup.config import load_config
    from soup.larder import load_data
    from soup.pipeline import draw_calibration

    config = load_config(folder / "val.yaml")
    with tempfile.TemporaryDirectory() as cache:
        splits = load_data(config, ("train", "val"), cache=Path(cache), progress=lambda *_: None)
        order = draw_calibration(splits, count=config.batchnorm.samples)
        chosen = [splits["train"].ids[row] for row in order]
    listed = sorted(
        str(path.relative_to(folder / "images" / "train")) for path in (folder / "images" / "train").glob("*/*")
    )
    places = {name: place for place, name in enumerate(listed)}
    return [places[name] for name in chosen]


def _average(paths: Sequence[Path]) -> dict[str, object]:
    import torch

    states = [torch.load(path, weights_only=True)["model"] for path in paths]
    return {
        name: sum(state[name].double() for state in states).div(len(states)).to(tensor.dtype)
        if tensor.is_floating_point()
        else max(state[name] for state in states)
        for name, tensor in states[0].items()
    }


def _sha256(path: Path) -> str:
    from soup.files import sha256_file

    return sha256_file(path)


def _in_own_process(contender: str, folder: Path, turn: int) -> dict[str, object]:
    """Wall time from after the imports; the textbook's list of calibration images is made outside of it."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.search",
        "--contender",
        contender,
        "--folder",
        str(folder),
        "--turn",
        str(turn),
    ]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # for both
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the whole comparison, or run one contender (as `run` does)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--contender", choices=list(CONTENDERS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--turn", type=int, default=0)
    options = parser.parse_args()
    if options.contender is None:
        print(json.dumps(run(quick=options.quick), indent=2))
        return
    import torch  # noqa: F401  (imports are not timed)
    import torchvision  # noqa: F401

    started = time.perf_counter()
    accepted = CONTENDERS[options.contender](options.folder, options.turn)
    print(json.dumps({"seconds": time.perf_counter() - started, "accepted": accepted}))


if __name__ == "__main__":
    main()
