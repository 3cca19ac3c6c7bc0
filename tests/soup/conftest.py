"""The `soup` command as a process of its own, and one release made by it with everything that can be asked for."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from exporters.gpu import find_gpu

if TYPE_CHECKING:
    from soup.pipeline import BuildResult

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
Soup = Callable[..., subprocess.CompletedProcess[str]]
Build = Callable[..., "BuildResult"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Shipped:
    """A dynamic-batch release with other names, all of val as golden samples, and an engine."""

    folder: Path
    process: subprocess.CompletedProcess[str]

    @property
    def document(self) -> dict[str, Any]:
        """What `soup export --json` printed."""
        return dict(json.loads(self.process.stdout))

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json."""
        return dict(json.loads((self.folder / "manifest.json").read_bytes()))


@pytest.fixture(scope="session")
def soup() -> Soup:
    """Runs `python -m soup` with these arguments; `env` adds to the environment."""

    def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "soup", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | env)

    return run


@pytest.fixture(scope="session")
def shipped(built: Path, soup: Soup, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """Read only: copy the folder to change it."""
    out = tmp_path_factory.mktemp("shipped") / "release"
    trt = ("--trt", "--compute-capability", "8.6,8.9", "--workspace-mb", "512") if HAS_RTX else ()
    process = soup(
        "export", built / "soup-out", "-o", out, "--json", *trt,
        "--precision", "fp32",
        "--set", "export.batch={min: 1, opt: 2, max: 4}",
        "--set", "export.inputs={image: float32}",
        "--set", "export.outputs={logits: float16}",
        "--set", "release.golden.count=all",
        "--set", "gates.latency={p99_ms: 9, runtime: tensorrt, device: orin-nano}",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return Shipped(out, process)


@pytest.fixture
def needs_rtx() -> None:
    """Skips where no engine is built ahead of time: without tensorrt_rtx, and with a GPU, which would run it."""
    if not HAS_RTX or find_gpu():
        pytest.skip("needs tensorrt_rtx and no GPU")


@pytest.fixture(scope="session")
def slim(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained` with 3 checkpoints, 250 train, 150 val and 130 test images: built in half a second. Read only."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("slim") / "project"))
    (folder / "runs/epoch-4.pt").unlink()
    for name, count in {"train": 250, "val": 150, "test": 130}.items():
        with np.load(folder / f"{name}.npz") as arrays:
            fewer = {key: array[:count] for key, array in arrays.items()}
        np.savez(folder / f"{name}.npz", **fewer)
    return folder


@pytest.fixture
def small(slim: Path, tmp_path: Path) -> Path:
    """A copy of `slim` that a test may change."""
    return Path(shutil.copytree(slim, tmp_path / "small"))


@pytest.fixture(scope="session")
def build_at() -> Build:
    """(project folder, output folder, *overrides, progress=…) → BuildResult."""

    def silent(what: str, done: int, total: int) -> None:
        """Shows nothing."""

    def run(folder: Path, out: Path, *overrides: str, progress: Progress = silent) -> BuildResult:
        from soup.config import load_config
        from soup.pipeline import build

        return build(load_config(folder / "val.yaml", overrides=overrides), out, progress=progress)

    return run


@pytest.fixture(scope="session")
def slim_built(slim: Path, build_at: Build, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """A finished build of `slim`, in a folder of its own. Read only."""
    return build_at(slim, tmp_path_factory.mktemp("slim-built") / "out")


@pytest.fixture(scope="session")
def plain_accuracy() -> Callable[..., float]:
    """(project, state, split, *, model=…) → accuracy in plain torch and numpy, one image at a time."""
    import torch

    from soup.models import build_model

    def run(folder: Path, state: dict[str, torch.Tensor], split: str, *, model: str = "./models.py:build") -> float:
        network = build_model(model, {}, folder=folder)
        network.load_state_dict(state)
        right = 0
        with torch.no_grad(), np.load(folder / f"{split}.npz") as arrays:
            for image, label in zip(arrays["images"], arrays["labels"], strict=True):
                pixels = (torch.from_numpy(image).permute(2, 0, 1).float() / 255 - 0.3) / 0.35
                right += int(network(pixels[None]).argmax()) == label
            return int(right) / len(arrays["labels"])

    return run
