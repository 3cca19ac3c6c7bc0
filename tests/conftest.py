"""One small real project for all tests: a 1,000-weight convnet with BatchNorm, trained on scikit-learn's digits."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads, as the command line does
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a background job, whose children would not be interrupted
    signal.signal(signal.SIGINT, signal.default_int_handler)

MODELS = """
from torch import nn


def build(num_classes=10, width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes),
    )
"""
VAL = """
model: ./models.py:build
checkpoints: {files: ["runs/*.pt"]}
data: {train: train.npz, val: val.npz, test: test.npz}
preprocess: {color: gray, mean: [0.3], std: [0.35]}
batchnorm: {samples: 400, batch: 100}
gates: {accuracy: {max_drop: 0.02}}
"""
_BUILT: dict[Path, set[str]] = {}  # what the `built` of this process holds, by its soup-out


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and tests that run beside others lose much."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`import models` finds what lies beside a test's own val.yaml, not what an earlier test left on the path."""
    path, modules, root = list(sys.path), set(sys.modules), str(tmp_path_factory.getbasetemp())
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(root):
            del sys.modules[name]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder (models.py, val.yaml, runs/*.pt, *.npz) with four late checkpoints. Read only: see `project`."""
    folder = tmp_path_factory.mktemp("trained")
    write_digits(folder)
    (folder / "models.py").write_text(MODELS)
    (folder / "val.yaml").write_text(VAL)
    train(folder)
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` that a test may change; the current folder is elsewhere."""
    return Path(shutil.copytree(trained, tmp_path / "project"))


@pytest.fixture(scope="session")
def built(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with a finished build in soup-out/. Read only: copy the whole folder to change it."""
    from soup.config import load_config
    from soup.pipeline import build

    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("built") / "project"))
    out = folder / "soup-out"
    build(load_config(folder / "val.yaml"), out, progress=silent)
    _BUILT[out] = {path.name for path in out.iterdir()}
    return folder


@pytest.fixture(autouse=True)
def _built_stays_as_it_is() -> Iterator[None]:
    """The test that leaves a file in `built` fails (an INT8 export keeps ranges.json there), not one after it."""
    yield
    for out, names in _BUILT.items():
        assert names == {path.name for path in out.iterdir()}, "built/soup-out is read only: copy the project"


@pytest.fixture(scope="session")
def released(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release folder (ONNX only) of `built`. Read only: copy it to change it."""
    from soup.ship import Options, export

    release = tmp_path_factory.mktemp("released") / "release"
    export(built / "soup-out", release, overrides=(), options=Options(), progress=silent)
    return release


@pytest.fixture
def other_folder(tmp_path: Path) -> Iterator[Path]:
    """Runs the test from an empty current folder, as a pipeline would."""
    earlier, folder = Path.cwd(), tmp_path / "elsewhere"
    folder.mkdir()
    os.chdir(folder)
    yield folder
    os.chdir(earlier)


def silent(what: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


def write_digits(folder: Path) -> None:
    """train.npz (700), val.npz (400) and test.npz (600): images uint8 (n, 8, 8, 1), noisy enough that models err."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    random = np.random.default_rng(0)
    order = random.permutation(len(digits.images))
    noisy = np.clip(digits.images * 16 + random.normal(0, 50, digits.images.shape), 0, 255).astype(np.uint8)[..., None]
    for name, rows in {"train": order[:700], "val": order[700:1100], "test": order[1100:1700]}.items():
        np.savez(folder / f"{name}.npz", images=noisy[rows], labels=digits.target[rows])


def train(folder: Path, *, epochs: int = 7, keep: int = 4, seed: int = 0) -> None:
    """SGD at a constant rate; writes runs/epoch-N.pt as {"model", "epoch"} for the last epochs."""
    import numpy as np
    import torch
    from torch import nn

    namespace: dict[str, object] = {}
    exec(MODELS, namespace)
    torch.manual_seed(seed)
    model = namespace["build"]()
    arrays = np.load(folder / "train.npz")
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).float().div(255).sub(0.3).div(0.35)
    labels = torch.from_numpy(arrays["labels"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    (folder / "runs").mkdir(exist_ok=True)
    for epoch in range(epochs):
        model.train()
        for rows in torch.randperm(len(images)).split(25):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch >= epochs - keep:
            torch.save({"model": model.state_dict(), "epoch": epoch}, folder / "runs" / f"epoch-{epoch}.pt")
