"""`soup init`: a commented val.yaml from what lies in a folder of runs; each guess says: found, or to be checked."""

from __future__ import annotations

import glob
import importlib.util
import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from soup import SoupError
from soup.checkpoint import Checkpoint, read_checkpoint
from soup.config import load_config
from soup.files import write_file
from soup.models import build_model

_CHECKPOINTS = (".bin", ".ckpt", ".pt", ".pth", ".pth.tar", ".safetensors")
_NETWORKS = {  # tried after those whose name stands in the checkpoint's path
    "torchvision": (
        "resnet18", "resnet34", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
        "efficientnet_b0", "shufflenet_v2_x1_0", "convnext_tiny", "vit_b_16",
    ),
    "timm": (
        "efficientnet_b0", "mobilenetv3_small_100", "mobilenetv3_large_100", "convnext_tiny", "vit_tiny_patch16_224",
        "vit_small_patch16_224", "vit_base_patch16_224",
    ),
}  # fmt: skip
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_MOST_FOLDERS = 200  # that are searched for data
_ACCURACY_NAMES = ("acc", "top1", "top_1", "top-1", "metric")  # what trainers' names for it contain

_TEMPLATE = """\
# Written by `soup init`. "found" was read from your files; "check" is a guess that only you can confirm.
# Relative paths start from this file's folder. `soup check` tries it all before `soup build` spends time.

model: {model}
model_args: {model_args}

checkpoints:
  files: {files}
  use: auto  # raw, or ema where every checkpoint has it
  on_bad_ingredient: fail  # or skip: set it aside and list it

{expect}

data:  # an image folder (one subfolder per class), labels.csv, an .npz, or ./file.py:function
  train: {train}
  val: {val}
  test: {test}

# As in training, or every figure below is off: `soup check` finds out.
preprocess:
  resize: {resize}
  crop: {crop}
  interpolation: bilinear  # check: nearest, bilinear, bicubic, lanczos or area
  backend: pil  # check: pil or cv2, the library that trained the model
  color: {color}
  mean: {mean}
  std: {std}

metric: accuracy  # or top5, cross_entropy

search:
  methods: [uniform, greedy]
  bn_policy: recalibrated  # or averaged: without data.train

export:
  batch: 1  # static; {{min: 1, opt: 8, max: 32}} is dynamic

gates:
  accuracy: {{max_drop: 0.005}}  # check: the largest loss against the best single that may ship
  # latency: {{p99_ms: 10, runtime: tensorrt, device: orin-nano}}
  require: [onnx]  # add engine, and device where an engine that never ran must block
"""


@dataclass(frozen=True, slots=True)
class InitResult:
    """What `soup init` tells: the file that it wrote."""

    path: Path


def write_starter(runs_dir: Path, out: Path) -> Path:
    """Write `out` for the checkpoints below `runs_dir`: their layout, tensors and recorded metrics decide what it says.

    Raises SoupError when `out` exists, or when no checkpoint there can be read.
    """
    if out.exists():
        raise SoupError(f"{out}: exists already and is left as it is. Choose another name with -o.")
    paths = _checkpoint_files(runs_dir)
    pattern, matched = _pattern(paths, runs_dir)
    checkpoint = _first_readable(matched)
    data = _data(runs_dir, out.parent)
    text = _TEMPLATE.format(
        files=_files(pattern, len(paths) - len(matched), runs_dir=runs_dir, folder=out.parent),
        expect=_expect(checkpoint, out.parent),
        **_model(checkpoint),
        **{split: _data_line(split, data.get(split)) for split in _SPLITS},
        **_pixels(checkpoint, arrays=data.get("val", "").endswith(".npz")),
    )
    write_file(out, text.encode())
    load_config(out, environment={})
    return out


def _checkpoint_files(runs_dir: Path) -> list[Path]:
    if not runs_dir.is_dir():
        raise SoupError(f"{runs_dir}: no such folder. Name the folder that your training runs write to.")
    paths = sorted(path for path in runs_dir.rglob("*") if path.name.endswith(_CHECKPOINTS) and path.is_file())
    shown = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(runs_dir).parts)]
    if not shown:
        raise SoupError(f"{runs_dir}: no checkpoint below it, expected files ending in {' '.join(_CHECKPOINTS)}.")
    return shown


def _pattern(paths: Sequence[Path], runs_dir: Path) -> tuple[str, list[Path]]:
    """The glob that matches most, and its matches: one name in many folders (a sweep) or one folder (a run)."""
    matches: dict[str, list[Path]] = {}
    for path in paths:
        relative = path.relative_to(runs_dir)
        sweep = PurePosixPath(*["*"] * (len(relative.parts) - 1), glob.escape(relative.name))
        ending = max((one for one in _CHECKPOINTS if relative.name.endswith(one)), key=len)
        epochs = PurePosixPath(glob.escape(relative.parent.as_posix()), f"*{ending}")
        for pattern in {str(sweep), str(epochs)}:
            matches.setdefault(pattern, []).append(path)
    return max(matches.items(), key=lambda item: (len(item[1]), item[0].startswith("*/"), item[0]))


def _first_readable(paths: Iterable[Path]) -> Checkpoint:
    refusals = []
    for path in paths:
        try:
            return read_checkpoint(path)
        except SoupError as error:
            refusals.append(str(error))
    raise SoupError("\n".join(refusals))


def _files(pattern: str, left_out: int, *, runs_dir: Path, folder: Path) -> str:
    value = PurePosixPath(glob.escape(Path(os.path.relpath(runs_dir, folder)).as_posix()), pattern)
    others = f"; check: {left_out} other checkpoint files are left out" if left_out else ""
    return _line([str(value)], f"found{others}")


def _expect(checkpoint: Checkpoint, folder: Path) -> str:
    path = os.path.relpath(checkpoint.path, folder)
    for name, value in checkpoint.recorded.items():
        if any(part in name.lower() for part in _ACCURACY_NAMES) and 0 < value <= 100:
            figure = {"checkpoint": path, "value": value if value <= 1 else value / 100, "tolerance": 0.003}
            return f"expect: {_line(figure, f'found as {name!r}; check that it is the accuracy on val')}"
    return f"# expect: {_line({'checkpoint': path, 'value': 0.9}, 'the accuracy that your trainer reported for it')}"


def _model(checkpoint: Checkpoint) -> dict[str, str]:
    classes = _classes(checkpoint)
    args = {} if classes is None else {"num_classes": classes}
    known = None if classes is None else _library_model(checkpoint, classes)
    if known is not None:
        spec, remark, args_remark = known, "found: every name and shape agrees", "found"
    else:
        spec = "./models.py:build"
        remark = "check: models.py beside this file must hold build(**model_args), which returns the torch.nn.Module"
        args_remark = "check: the arguments of build; the last matrix of weights tells the number of classes"
    return {"model": _line(spec, remark), "model_args": _line(args, args_remark)}


def _classes(checkpoint: Checkpoint) -> int | None:
    """Rows of the last matrix of weights, which is the classifier in nearly all networks."""
    rows = [
        spec.shape[0] for name, spec in checkpoint.tensors.items() if name.endswith("weight") and len(spec.shape) == 2
    ]
    return rows[-1] if rows else None


def _library_model(checkpoint: Checkpoint, classes: int) -> str | None:
    """The first network of an installed library whose tensors have these names and shapes."""
    shapes = {name: spec.shape for name, spec in checkpoint.tensors.items()}
    words = re.findall(r"\w+", str(checkpoint.path))
    for library, names in _NETWORKS.items():
        for name in dict.fromkeys((*words, *names)) if importlib.util.find_spec(library) else ():
            try:
                with torch.device("meta"):
                    network = build_model(f"{library}:{name}", {"num_classes": classes}, folder=Path())
            except SoupError:  # no network of this name, or of another task
                continue
            if shapes == {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}:
                return f"{library}:{name}"
    return None


def _data(runs_dir: Path, folder: Path) -> dict[str, str]:
    """The splits of the one place that holds most: beside val.yaml or the runs, in a folder there, or one level up."""
    runs, base = runs_dir.resolve(), folder.resolve()
    near = dict.fromkeys([base, runs.parent])
    inner = (
        path
        for one in near
        for path in sorted(one.glob("[!.]*"))
        if path.is_dir() and os.access(path, os.X_OK) and path != runs
    )
    above = runs.parent.parent
    places = [
        *near,
        *itertools.islice(inner, _MOST_FOLDERS),
        *(above / name for name in ("data", "dataset", "datasets")),
    ]
    found = [_splits_in(place, runs) for place in places]
    return {split: os.path.relpath(path, base) for split, path in max(found, key=len).items()}


def _splits_in(place: Path, runs: Path) -> dict[str, Path]:
    """For each split, the first of its names that is there."""
    found = {}
    for split, names in _SPLITS.items():
        candidates = (place / f"{name}{kind}" for name in names for kind in ("", ".npz", ".csv"))
        path = next((path for path in candidates if path != runs and _may_hold_images(path)), None)
        if path is not None:
            found[split] = path
    return found


def _may_hold_images(path: Path) -> bool:
    """A file, or a folder with class folders in it, as far as its names tell."""
    return path.is_file() or (path.is_dir() and any(one.is_dir() for one in path.glob("*")))


def _data_line(split: str, path: str | None) -> str:
    purpose = {"train": "recalibrates BatchNorm", "val": "chooses", "test": "judges; never used to choose"}[split]
    return _line(path or f"data/{split}", f"{'found' if path else 'check: not found'}; {purpose}")


def _pixels(checkpoint: Checkpoint, *, arrays: bool) -> dict[str, str]:
    """ImageNet's customs; one input channel means gray, and images in an .npz have their size already."""
    first = next((spec.shape for spec in checkpoint.tensors.values() if len(spec.shape) == 4), (0, 3))
    gray = first[1] == 1
    color = ("gray", "found: the first convolution has one channel") if gray else ("rgb", "check: rgb or bgr")
    mean, std = ([0.0], [1.0]) if gray else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    resize, crop = (None, None) if gray or arrays else (256, 224)
    return {
        "resize": _line(resize, "check: pixels of the shorter side, [height, width], or null"),
        "crop": _line(crop, "check: pixels cut from the centre, or null"),
        "color": _line(*color),
        "mean": _line(mean, "check: of pixels scaled to 0..1"),
        "std": _line(std, "check"),
    }


def _line(value: object, remark: str) -> str:
    """JSON, which is YAML too, and a remark."""
    return f"{json.dumps(value, ensure_ascii=False).replace('${', '$${')}  # {remark}"
