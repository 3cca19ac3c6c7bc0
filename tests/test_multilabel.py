"""Images of several labels end to end through the real commands, by mAP and by F1."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from sklearn.metrics import average_precision_score, f1_score
from torch import nn

from soup.build_folder import read_build
from tests.soup.commands import document, run

CLASSES = ("bar", "disc", "frame")  # sorted, as data.val numbers them
MODELS = """
from torch import nn


def build(num_classes=3, width=6):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * width, num_classes),
    )
"""
SPLITS = {"train": 120, "val": 80, "test": 60}
VAL: dict[str, Any] = {
    "model": "./models.py:build",
    "checkpoints": {"files": ["runs/*.pt"]},
    "classification": {"multilabel": True, "threshold": 0.4},
    "data": {name: f"{name}.csv" for name in SPLITS},
    "preprocess": {"color": "gray", "mean": [0.3], "std": [0.3]},
    "search": {"methods": ["uniform"]},
    "batchnorm": {"samples": 120, "batch": 40},
    "explain": {"line": 0, "views": ["flip"]},
    "gates": {"accuracy": {"max_drop": 0.3}},
}


def drawn(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [12, 12] and which of CLASSES are in it."""
    there = random.random(3) < (0.5, 0.4, 0.25)
    rows, columns = np.mgrid[:12, :12]
    pixels = random.normal(60, 45, (12, 12))
    left, top = random.integers(0, 9, 2)
    if there[0]:
        pixels[:, left : left + 3] += 90
    if there[1]:
        pixels[np.hypot(rows - top, columns - random.integers(2, 10)) < 3] += 120
    if there[2]:
        pixels[(rows % 11 == 0) | (columns % 11 == 0)] += 60
    return np.clip(pixels, 0, 255).astype(np.uint8), there


def write_project(folder: Path) -> None:
    """models.py, val.yaml, three checkpoints, and a labels.csv with its images for each split."""
    folder.mkdir()
    (folder / "models.py").write_text(MODELS)
    (folder / "val.yaml").write_text(yaml.safe_dump(VAL))
    for seed, (split, count) in enumerate(SPLITS.items()):
        random = np.random.default_rng(seed)
        (folder / split).mkdir()
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "labels"])
            for index in range(count):
                pixels, there = drawn(random)
                Image.fromarray(pixels).save(folder / split / f"{index}.png")
                rows.writerow([f"{split}/{index}.png", ";".join(np.array(CLASSES)[there])])
    train(folder)


def read(folder: Path, split: str) -> tuple[torch.Tensor, np.ndarray]:
    """float32 [n, 1, 12, 12] as the network is fed, and bool [n, 3]."""
    with (folder / f"{split}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = np.stack([np.array(Image.open(folder / row["path"])) for row in rows])
    labels = np.array([[name in row["labels"].split(";") for name in CLASSES] for row in rows])
    return (torch.from_numpy(pixels)[:, None].float() / 255 - 0.3) / 0.3, labels


def train(folder: Path, *, epochs: int = 12, keep: int = 3) -> None:
    """SGD at a constant rate, a sigmoid for each class; writes runs/epoch-N.pt for the last epochs."""
    torch.manual_seed(0)
    model = network()
    images, labels = read(folder, "train")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    (folder / "runs").mkdir()
    for epoch in range(epochs):
        for rows in torch.randperm(len(images)).split(20):
            loss = nn.functional.binary_cross_entropy_with_logits(
                model(images[rows]), torch.from_numpy(labels)[rows].float()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch >= epochs - keep:
            torch.save({"model": model.state_dict()}, folder / "runs" / f"epoch-{epoch}.pt")


def network() -> nn.Module:
    namespace: dict[str, Any] = {}
    exec(MODELS, namespace)
    model: nn.Module = namespace["build"]()
    return model


def scored(folder: Path, out: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and logits of the built soup in plain torch, and those of mirrored images."""
    model = network()
    model.load_state_dict(load_tensors(out / "soup.safetensors"))
    images, labels = read(folder, split)
    with torch.no_grad():
        return labels, model.eval()(images).numpy(), model(images.flip(-1)).numpy()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with a build by mAP in soup-out and one by F1 in f1-out. Read only."""
    folder = tmp_path_factory.mktemp("multilabel") / "project"
    write_project(folder)
    for metric, out in (("map", "soup-out"), ("f1", "f1-out")):
        run("build", "--val", folder / "val.yaml", "-o", folder / out, "--set", f"metric={metric}")
    return folder


@pytest.mark.parametrize("split", ["val", "test"])
def test_map_is_scikit_learn_s_of_plain_torch(project: Path, split: str) -> None:
    labels, logits, _ = scored(project, project / "soup-out", split)
    record = read_build(project / "soup-out").record
    assert (record.metric, record.class_names) == ("map", CLASSES)
    assert getattr(record.winner, split) == pytest.approx(average_precision_score(labels, logits), abs=1e-9)


def test_f1_is_scikit_learn_s_at_the_threshold_of_val_yaml(project: Path) -> None:
    labels, logits, _ = scored(project, project / "f1-out", "val")
    predicted = 1 / (1 + np.exp(-logits.astype(np.float64))) > 0.4
    value = read_build(project / "f1-out").record.winner.val
    assert value == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert value != pytest.approx(f1_score(labels, logits > 0, average="macro"), abs=1e-12)


@pytest.mark.parametrize("out", ["soup-out", "f1-out"])
def test_views_are_averaged_as_the_probability_of_each_label(project: Path, out: str) -> None:
    labels, logits, mirrored = scored(project, project / out, "val")
    mean = (1 / (1 + np.exp(-logits.astype(np.float64))) + 1 / (1 + np.exp(-mirrored.astype(np.float64)))) / 2
    by_hand = (
        average_precision_score(labels, mean) if out == "soup-out" else f1_score(labels, mean > 0.4, average="macro")
    )
    explanation = read_build(project / out).record.explanation
    assert explanation is not None
    (views,) = (one for one in explanation.references if "views" in one.label)
    assert (views.value, views.cost) == (pytest.approx(by_hand, abs=1e-9), 2.0)


def test_the_release_is_proved_by_map_and_its_worst_label_is_told(project: Path, tmp_path: Path) -> None:
    told = document(
        "export", project / "soup-out", "-o", tmp_path / "release", "--precision", "fp16,fp32",
        "--set", "release.golden.count=all", "--gate", "per_class_drop={max_drop: 0.5, min_images: 5}",
        "--gate", "flips={max_share: 0.2}",
    )  # fmt: skip
    value = read_build(project / "soup-out").record.winner.val
    assert told["findings"]["values"]["model.onnx"] == pytest.approx(value, abs=1e-9)
    manifest = json.loads((tmp_path / "release/manifest.json").read_bytes())
    assert manifest["settings"]["multilabel"] is True
    assert manifest["classes"] == list(CLASSES)
    checks = {one["kind"]: one for one in told["findings"]["checks"] if one["name"] == "model.fp16.onnx"}
    assert checks["per_class"]["verdict"] == checks["flips"]["verdict"] == "pass"
    assert "in each of 3 classes" in checks["per_class"]["message"]
    golden = load_file(tmp_path / "release/golden.safetensors")
    assert (golden["target.labels"] == read(project, "val")[1]).all()
    found = document("verify", tmp_path / "release")
    assert found["metric"] == "map"
    assert found["golden_values"]["model.onnx"] == pytest.approx(value, abs=1e-9)
    again = {one["kind"] for one in found["findings"]["checks"] if one["hop"] == "best single → ONNX"}
    assert again == {"accuracy", "per_class"}


def test_check_takes_it_too(project: Path, tmp_path: Path) -> None:
    found = document("check", "--val", project / "val.yaml", "-o", tmp_path / "out")
    assert (found["refused"], found["exit_code"]) == ([], 0)
    assert found["estimate"]["evaluations"] >= 3


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("train/0.png,bar;sky\n", "'sky' are none of 3 classes"),
        ("train/0.png,bar;disc\ntrain/1.png,bar,disc\n", ""),
    ],
)
def test_a_label_that_val_does_not_know_is_refused(project: Path, tmp_path: Path, rows: str, told: str) -> None:
    folder = Path(shutil.copytree(project, tmp_path / "other", ignore=shutil.ignore_patterns("*-out")))
    (folder / "train.csv").write_text(f"path,labels\n{rows}")
    found = run("build", "--val", folder / "val.yaml", "-o", tmp_path / "out", code=2)
    assert told in found
    assert "train.csv" in found


GIVEN = """
import csv
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
CLASSES = {classes}


def rows():
    with (HERE / "val.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            there = [name in row["labels"].split(";") for name in CLASSES]
            yield Image.open(HERE / row["path"]).convert("L"), np.array(there), row["path"]
"""


def test_labels_that_a_function_gives_count_in_the_order_of_the_classes_of_val_yaml(
    project: Path, tmp_path: Path
) -> None:
    order = ("frame", "bar", "disc")
    (project / "given.py").write_text(GIVEN.format(classes=order))
    records = {}
    for source in ("val.csv", "./given.py:rows"):
        asked = ("--set", f"data.val={source}", "--set", f"classification.classes=[{', '.join(order)}]")
        out = tmp_path / source[-4:]
        run("build", "--val", project / "val.yaml", "-o", out, *asked, "--set", "metric=map")
        records[source] = read_build(out).record
    by_file, given = records.values()
    assert given.class_names == by_file.class_names == order
    assert (given.winner.val, given.winner.test) == (by_file.winner.val, by_file.winner.test)
    (project / "given.py").write_text(GIVEN.format(classes=order[:2]))
    told = run("check", "--val", project / "val.yaml", *asked, "-o", tmp_path / "checked", code=2)
    assert "data.val: sample 0 has 2 labels, expected 3, one for each class." in told
