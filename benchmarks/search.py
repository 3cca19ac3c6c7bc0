"""`soup build` beside the textbook loop, on fine-tunes of an ImageNet-trained network: wall time, images, memory.

Each contender runs in a process of its own, imports not counted. `make bench` makes the checkpoints where they are
missing (`benchmarks.checkpoints`, an hour on two cores, once).
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DATA = Path(__file__).parents[1] / "bench-data"
TRAINER = Path(__file__).parents[1] / "examples" / "demo" / "train.py"
TASKS = {"easy": "best single's error about 10 %", "hard": "about 27 %"}
VAL = """
model: {model}
model_args: {args}
checkpoints: {{files: {files}}}
data: {{train: images/train, val: images/val{test}}}
preprocess: {{resize: {side}, crop: {side}, mean: [{mean}], std: [{std}]}}
search: {{methods: [greedy]}}
batchnorm: {{samples: 500, batch: 100}}
explain: {{contributions: false, ensemble: false, line: 0}}
"""
METHODS = ("uniform", "greedy", "greedy_repeated", "ranked", "learned_layers")


def run(*, quick: bool = False, count: int = 12, rounds: int = 1) -> dict[str, Any]:
    """{"setting": …, "tasks": for each task its contenders, images, accuracies and whether the accepted sets agree}."""
    tasks = []
    for name in ["quick"] if quick else TASKS:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            names = prepare_quick(folder) if quick else prepare(folder, name, count=count)
            tasks.append({"task": name, **compare(folder, names, rounds=rounds)})
    return {"setting": {"checkpoints": len(names), "rounds": rounds, "val": 200 if quick else 1000}, "tasks": tasks}


def compare(folder: Path, names: Sequence[str], *, rounds: int) -> dict[str, Any]:
    """Textbook and build in turns; then the same build again, one with one more checkpoint, and all methods on test."""
    fewer, whole = list(names[:-1]), list(names)
    (folder / "order.json").write_text(json.dumps(calibration_order(folder, whole)))
    textbook, build = [], []
    for turn in range(rounds):
        build.append(in_own_process("build", folder, whole, out=f"out-{turn}"))
        textbook.append(in_own_process("textbook", folder, whole))
    again = in_own_process("build", folder, whole, out="out-0")
    in_full = in_own_process("in full", folder, whole, out="in-full")
    in_own_process("build", folder, fewer, out="one-fewer")
    one_more = in_own_process("build", folder, whole, out="one-fewer")
    every = in_own_process("methods", folder, whole, out="out-methods")
    accepted = {tuple(one["accepted"]) for one in (*textbook, *build)}
    seconds = {name: statistics.median(one["seconds"] for one in runs) for name, runs in _named(textbook, build)}
    rows = [_row(name, runs[0], seconds[name]) for name, runs in _named(textbook, build)]
    rows += [_row("soup build, no early stop", in_full, in_full["seconds"])]
    rows += [_row("soup build, again", again, again["seconds"])]
    rows += [_row("soup build, one more checkpoint", one_more, one_more["seconds"])]
    return {
        "same_accepted_set": len(accepted) == 1, "accepted": len(textbook[0]["accepted"]),
        "ratio": seconds["soup build"] / seconds["textbook loop"], "rows": rows, "accuracy": every["accuracy"],
        "backend": build[0]["backend"], "default_seconds": every["seconds"],
    }  # fmt: skip


def textbook(folder: Path, names: Sequence[str], out: str) -> dict[str, Any]:
    """The plain loop."""
    from benchmarks.textbook import greedy

    return greedy(folder, names)


def build(folder: Path, names: Sequence[str], out: str, *settings: str) -> dict[str, Any]:
    """The command as a user runs it, its first decoding included; without test and without what only explains."""
    from soup.config import load_config
    from soup.pipeline import build as soup_build

    files = json.dumps([f"checkpoints/{name}" for name in names])
    config = load_config(folder / "val.yaml", overrides=[f"checkpoints.files={files}", *settings])
    result = soup_build(config, folder / out, progress=lambda *_: None)
    chosen = next(answer for answer in result.record.answers if answer.method == "greedy")
    accepted = sorted(Path(one.path).name for one in result.record.ingredients if one.sha256 in chosen.weights)
    cost = result.record.cost
    return {"accepted": accepted, "images": dict(cost.forwarded), "backend": cost.backend}


def in_full(folder: Path, names: Sequence[str], out: str) -> dict[str, Any]:
    """The same without early stopping, as for a metric that has no bound: what decoding once and the backend gain."""
    return build(folder, names, out, "search.early_stop=false")


def methods(folder: Path, names: Sequence[str], out: str) -> dict[str, Any]:
    """Every method that needs no base model, judged on test: the accuracy that each would ship with."""
    from soup.config import load_config
    from soup.pipeline import build as soup_build

    files = json.dumps([f"checkpoints/{name}" for name in names])
    overrides = [f"checkpoints.files={files}", "data.test=images/test"]
    rows = []
    for method in METHODS:
        chosen = [f"search.methods=[{method}]", *(["search.budget={evaluations: 11}"] if method == "ranked" else [])]
        config = load_config(folder / "val.yaml", overrides=[*overrides, *chosen])
        record = soup_build(config, folder / out, progress=lambda *_: None).record
        single, winner = record.best_single, record.winner
        if not rows:
            rows.append({"method": "best single", "val": _percent(single.val), "test": _percent(single.test)})
        shipped = winner.method == method
        rows.append({
            "method": method, "of": len(record.answers[-1].weights), "val": _percent(record.answers[-1].val),
            "test": _percent(winner.test) if shipped else "best single ships",
        })  # fmt: skip
    return {"accuracy": rows, "images": {}}


CONTENDERS: dict[str, Callable[[Path, Sequence[str], str], dict[str, Any]]] = {
    "textbook": textbook, "build": build, "in full": in_full, "methods": methods,
}  # fmt: skip


def prepare(folder: Path, task: str, *, count: int) -> list[str]:
    """Links to the checkpoints and images of a task, made where they are missing."""
    from benchmarks.checkpoints import MEAN, SIDE, STD, ingredients

    subprocess.run([sys.executable, "-m", "benchmarks.checkpoints", "--out", str(DATA), "--task", task], check=True)
    for name in ("models.py", "images", "checkpoints"):
        (folder / name).symlink_to(DATA / task / name)
    text = VAL.format(model="./models.py:build", args="{}", files='["checkpoints/*.pt"]', side=SIDE, mean=MEAN, std=STD,
                      test="")  # fmt: skip
    (folder / "val.yaml").write_text(text)
    return [path.name for path in ingredients(DATA / task, count)]


def prepare_quick(folder: Path, *, checkpoints: int = 3, images: int = 200) -> list[str]:
    """The demo's digits and a small network: shows that everything runs."""
    side, stored = 32, 64
    command = [
        sys.executable,
        str(TRAINER),
        "--out",
        str(folder),
        "--model",
        "torchvision:mobilenet_v3_small",
        "--size",
    ]
    command += [str(side), "--epochs", str(checkpoints + 1), "--keep", str(checkpoints), "--steps", "10"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    text = VAL.format(model="torchvision:mobilenet_v3_small", args="{num_classes: 10}", files='["checkpoints/*.pt"]',
                      side=side, mean=0.2, std=0.3, test="")  # fmt: skip
    (folder / "val.yaml").write_text(text.replace("samples: 500", "samples: 200"))
    for split, count in {"train": 2 * images, "val": images, "test": images}.items():
        arrays = np.load(folder / "data" / f"{split}.npz")
        rows = np.random.default_rng(0).permutation(len(arrays["labels"]))[:count]
        for row in rows:
            path = folder / "images" / split / str(arrays["labels"][row]) / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays["images"][row]).resize((stored, stored)).save(path, quality=92)
    return sorted(path.name for path in (folder / "checkpoints").glob("*.pt"))


def calibration_order(folder: Path, names: Sequence[str]) -> list[int]:
    """The images that `soup build` draws, in its order, as indices of torchvision's ImageFolder."""
    from soup.config import load_config
    from soup.larder import load_data
    from soup.pipeline import draw_calibration

    config = load_config(folder / "val.yaml")
    with tempfile.TemporaryDirectory() as cache:
        splits = load_data(config, ("train", "val"), cache=Path(cache), progress=lambda *_: None)
        order = draw_calibration(splits, count=config.batchnorm.samples)
        chosen = [splits["train"].ids[row] for row in order]
    root = folder / "images" / "train"
    places = {str(path.relative_to(root)): place for place, path in enumerate(sorted(root.glob("*/*")))}
    return [places[name] for name in chosen]


def in_own_process(contender: str, folder: Path, names: Sequence[str], *, out: str = "") -> dict[str, Any]:
    """What the contender found, with its wall time after the imports and its peak memory."""
    command = [sys.executable, "-m", "benchmarks.search", "--contender", contender, "--folder", str(folder)]
    command += ["--out", out, "--names", json.dumps(list(names))]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # for all of them
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _named(textbook: list[dict[str, Any]], build: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [("textbook loop", textbook), ("soup build", build)]


def _row(name: str, found: dict[str, Any], seconds: float) -> dict[str, object]:
    images = found["images"]
    return {
        "contender": name, "seconds": seconds, "singles": images.get("singles", 0),
        "candidates": images.get("candidates", 0), "recalibration": images.get("recalibration", 0),
        "other images": sum(images.values())
        - sum(images.get(phase, 0) for phase in ("singles", "candidates", "recalibration")),
        "peak MB": found["peak_mb"],
    }  # fmt: skip


def main() -> None:
    """Print the whole comparison, or run one contender (as `run` does)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--contender", choices=list(CONTENDERS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--names", type=json.loads, default=[])
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    if options.contender is None:
        print(json.dumps(run(quick=options.quick), indent=2))
        return
    import torch  # noqa: F401  (imports are not timed)
    import torchvision  # noqa: F401

    import soup.pipeline  # noqa: F401

    started = time.perf_counter()
    found = CONTENDERS[options.contender](options.folder, options.names, options.out)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()  # getrusage would tell the parent's peak, if that was higher
    peak_mb = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps({**found, "seconds": seconds, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main()
