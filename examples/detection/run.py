"""`make detection`: train a small detector, then soup check, build, export --trt and verify, and a page with pictures.

`make detection DATA=folder` learns a Pascal VOC folder instead of scenes of digits.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from report import write_detection
from steps import HERE, released, trained
from voc import class_names, image_size, read

LONGEST = 320  # pixels of an image's longest side, at most
PICTURES = 6
FEWEST = 250  # images to measure BatchNorm on: soup says so, too


def main() -> None:
    """Everything lands in detection-out/, or in NAME-out/ for a folder NAME; ends with the first exit code not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="a Pascal VOC folder")
    parser.add_argument("--out", type=Path, default=None)
    options, training = parser.parse_known_args()  # the rest is for train.py
    started = time.monotonic()
    if options.data and (missing := [split for split in ("train", "val") if not _list(options.data, split).exists()]):
        sys.exit(f"{options.data}: has no ImageSets/Main/{missing[0]}.txt, expected lists of train and val (and test).")
    out = options.out or Path("detection-out" if options.data is None else f"{options.data.resolve().name}-out")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "models.py", out / "models.py")
    given = [] if options.data is None else ["--data", str(options.data), "--longest", str(LONGEST)]
    figure = trained(out, HERE / "train.py", *given, *training)
    folder = options.data or out / "data"
    classes, size = class_names(folder), image_size(folder, LONGEST)
    text = (HERE / "val.yaml").read_text()
    (out / "val.yaml").write_text(text if options.data is None else _for_folder(text, folder, len(classes), size))
    _expect(out, figure)
    released(out)
    samples = read(folder, "test" if _list(folder, "test").exists() else "val", classes=classes, size=size)[:PICTURES]
    images = np.stack([sample.image for sample in samples])
    summary = write_detection(out, images, [(sample.boxes, sample.labels) for sample in samples], classes=classes)
    print(f"\n{summary}\ndone in {time.monotonic() - started:.0f} s: open {out}/report.html")


def _for_folder(text: str, folder: Path, classes: int, size: tuple[int, int]) -> str:
    """val.yaml for another folder: its lists, classes and image size, and the network that is trained on it."""
    settings = yaml.safe_load(text)
    settings["model_args"] = {"num_classes": classes, "backbone": "lite0"}
    parts = {"images": str(folder.resolve() / "JPEGImages"), "annotations": str(folder.resolve() / "Annotations")}
    lists = {split: _list(folder.resolve(), split) for split in ("train", "val", "test")}
    settings["data"] = {split: parts | {"list": str(path)} for split, path in lists.items() if path.exists()}
    settings["data"]["on_bad_sample"] = "skip"  # boxes without an area are told and left out, as in training
    settings["preprocess"]["resize"] = list(size)
    settings["batchnorm"] = {"samples": 1000, "batch": 25}
    settings["gates"]["accuracy"]["max_drop"] = 0.02  # half a point is neither shown nor excluded by a hundred images
    latency = settings["gates"]["latency"]
    latency["p90_ms"] = latency.pop("p99_ms")  # a p99 takes 459 calls, more than this network makes in 20 s on 2 cores
    if len(_list(folder, "train").read_text().split("\n")) < FEWEST:
        settings["search"] = {**settings["search"], "bn_policy": "averaged"}  # of few images recalibration does harm
    return yaml.safe_dump(settings, sort_keys=False)


def _expect(out: Path, figure: str) -> None:
    """Have `soup check` compare with what the trainer printed last."""
    last = sorted((out / "checkpoints").glob("*.pt"))[-1].name
    line = f"expect: {{checkpoint: checkpoints/{last}, value: {figure}, tolerance: 0.003}}\n"
    path = out / "val.yaml"
    path.write_text(path.read_text() + line)


def _list(folder: Path, split: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{split}.txt"


if __name__ == "__main__":
    main()
