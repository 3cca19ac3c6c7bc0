"""Averaging 24 checkpoints of about 100 MB: time, peak memory and error of this project and of the usual ways.

Every measurement is one fresh process, the contenders take turns, and files are read once beforehand (page cache warm).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from soup.average import cook, cook_to_file
from soup.checkpoint import Checkpoint, read_checkpoint

State = dict[str, torch.Tensor]
READ = "sequential read, safetensors"
RAM = Path("/dev/shm")  # where writing costs a copy, and fsync nothing


def run(*, quick: bool = False) -> dict[str, object]:
    """{"setting": facts, "rows": one per contender}: medians, and ratios to the sequential read of the same run."""
    count, rounds = (4, 1) if quick else (24, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size_bytes = make_checkpoints(folder, count=count, architecture="mobilenet_v3_small" if quick else "resnet50")
        results: dict[str, list[dict[str, float]]] = {contender: [] for contender in CONTENDERS}
        for turn in range(rounds):
            for contender, seen in results.items():
                seen.append(_in_own_process(contender, folder, with_error=turn == 0))
    read_s = statistics.median(result["seconds"] for result in results[READ])
    rows = [_row(name, seen, size_bytes=size_bytes, read_s=read_s) for name, seen in results.items()]
    return {"setting": {"checkpoints": count, "size_bytes": size_bytes, "rounds": rounds}, "rows": rows}


def make_checkpoints(folder: Path, *, count: int, architecture: str) -> int:
    """`count` files of each format, the network plus noise; returns the bytes of all safetensors files."""
    import torchvision

    base = torchvision.models.get_model(architecture, weights=None).state_dict()
    for index in range(count):
        generator = torch.manual_seed(index)
        state = {
            name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in base.items()
        }
        save_file(state, folder / f"{index:02}.safetensors")
        torch.save(state, folder / f"{index:02}.pt")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def sequential_read(paths: Sequence[Path]) -> None:
    """What the machine gives at most: every byte once, into one reused megabyte."""
    buffer = bytearray(1 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def load_all(paths: Sequence[Path]) -> State:
    """All state dicts in memory, then one mean for each tensor."""
    states = [torch.load(path, map_location="cpu", weights_only=True) for path in paths]
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }


def running_float32(paths: Sequence[Path]) -> State:
    """One sum in the weights' own dtype, one checkpoint at a time."""
    total = torch.load(paths[0], map_location="cpu", weights_only=True)
    for path in paths[1:]:
        for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
            if tensor.is_floating_point():
                total[name] += tensor
    return {name: tensor / len(paths) if tensor.is_floating_point() else tensor for name, tensor in total.items()}


def timm_recipe(paths: Sequence[Path]) -> State:
    """As timm documents its averaging: each checkpoint added in float64, divided, clamped and cast to float32."""
    total: State = {}
    for path in paths:
        for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    limits = torch.finfo(torch.float32)
    return {name: (tensor / len(paths)).clamp(limits.min, limits.max).float() for name, tensor in total.items()}


def _cook(checkpoints: Sequence[Checkpoint], folder: Path) -> State:
    return cook({item.sha256: 1.0 for item in checkpoints}, {item.sha256: item for item in checkpoints})


def _cook_to_file(checkpoints: Sequence[Checkpoint], folder: Path) -> Path:
    path = folder / f"soup-of-{len(checkpoints)}.out"
    cook_to_file({item.sha256: 1.0 for item in checkpoints}, {item.sha256: item for item in checkpoints}, path)
    return path


@dataclass(frozen=True, slots=True)
class Contender:
    """`average` is timed, over the files that `pattern` finds, or over what `prepare` (not timed) makes of them."""

    pattern: str
    average: Callable[[Any, Path], State | Path | None]
    prepare: Callable[[list[Path]], Any] = list
    in_ram: bool = False  # the output folder


def _headers(paths: Sequence[Path]) -> list[Checkpoint]:
    return [read_checkpoint(path) for path in paths]


CONTENDERS = {
    READ: Contender("*.safetensors", lambda paths, _: sequential_read(paths)),
    "sequential read, torch.save": Contender("*.pt", lambda paths, _: sequential_read(paths)),
    "soup: safetensors to memory": Contender("*.safetensors", _cook, _headers),
    "soup: safetensors to a file in RAM": Contender("*.safetensors", _cook_to_file, _headers, in_ram=True),
    "soup: safetensors to a file, fsync": Contender("*.safetensors", _cook_to_file, _headers),
    "soup: torch.save to a file in RAM": Contender("*.pt", _cook_to_file, _headers, in_ram=True),
    "soup: the check before (headers, SHA-256)": Contender("*.safetensors", lambda paths, _: _headers(paths) and None),
    "load all, then average": Contender("*.pt", lambda paths, _: load_all(paths)),
    "running float32 sum": Contender("*.pt", lambda paths, _: running_float32(paths)),
    "timm's recipe": Contender("*.pt", lambda paths, _: timm_recipe(paths)),
}


def measure(name: str, folder: Path, *, with_error: bool) -> dict[str, float]:
    """Seconds, the growth of this process's peak memory in bytes, and the error in units in the last place."""
    contender = CONTENDERS[name]
    paths = sorted(folder.glob(contender.pattern))
    sequential_read(paths)
    given = contender.prepare(paths)
    with tempfile.TemporaryDirectory(dir=RAM if contender.in_ram else folder) as out:
        before = _peak_bytes()
        start = time.perf_counter()
        average = contender.average(given, Path(out))
        seconds = time.perf_counter() - start
        result = {"seconds": seconds, "own_bytes": _peak_bytes() - before}
        if with_error and average is not None:
            state = load_file(average) if isinstance(average, Path) else average
            result["error_ulp"] = _error_ulp(state, sorted(folder.glob("*.safetensors")))
    return result


def _peak_bytes() -> int:
    kilobytes = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert kilobytes is not None
    return int(kilobytes[1]) * 1024


def _error_ulp(state: State, paths: Sequence[Path]) -> float:
    """The largest distance to the float64 mean, in units in the last place of float32 at that mean."""
    worst = 0.0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
        for name, tensor in state.items():
            values = [file.get_tensor(name) for file in files]
            if values[0].is_floating_point():
                mean = sum(value.double() for value in values).numpy() / len(values)
                ulp = np.spacing(np.abs(mean).astype(np.float32)).astype(np.float64)
                worst = max(worst, float(np.max(np.abs(tensor.double().numpy() - mean) / ulp)))
    return worst


def _in_own_process(name: str, folder: Path, *, with_error: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.averaging", "--measure", name, str(folder)]
    command += ["--with-error"] if with_error else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _row(name: str, seen: Sequence[dict[str, float]], *, size_bytes: int, read_s: float) -> dict[str, object]:
    seconds = statistics.median(result["seconds"] for result in seen)
    return {
        "contender": name,
        "seconds": seconds,
        "gigabytes_per_s": size_bytes / seconds / 1e9,
        "of_sequential_read": read_s / seconds,
        "own_megabytes": max(result["own_bytes"] for result in seen) / 1e6,
        "error_ulp": seen[0].get("error_ulp"),
    }


def main() -> None:
    """Print the rows, one a line; or, for `--measure`, one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("CONTENDER", "FOLDER"))
    parser.add_argument("--with-error", action="store_true")
    given = parser.parse_args()
    if given.measure:
        name, folder = given.measure
        print(json.dumps(measure(name, Path(folder), with_error=given.with_error)))
    else:
        print(json.dumps(run(quick=given.quick), indent=1))


if __name__ == "__main__":
    main()
