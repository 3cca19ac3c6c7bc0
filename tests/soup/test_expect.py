"""A small network trained through cv2 on images where each setting matters; a wrong val.yaml is then found out."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from soup.check import check
from soup.config import load_config
from soup.expect import Comparison
from soup.gates import Exit

MODELS = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, bias=False),
        nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 6),
    )
"""
VAL = """
model: ./models.py:build
checkpoints: [last.pt]
expect: {{checkpoint: {checkpoint}, value: {value}, tolerance: 0.003}}
data: {{val: val, test: test}}
search: {{bn_policy: averaged}}
preprocess: {{resize: [12, 12], backend: cv2, color: bgr, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}
"""
SIZES = {"train": 360, "val": 150, "test": 90}
CLASSES = 6  # the strongest of three channels, times stripes across or along


@dataclass(frozen=True)
class Project:
    """A folder with val.yaml as the trainer had it, and the accuracies that the trainer saw."""

    folder: Path
    value: float
    on_test: float

    def compare(self, *settings: str, checkpoint: str = "last.pt", value: float | None = None) -> Comparison:
        """What `soup check` says when val.yaml is changed by `settings`."""
        figure = self.value if value is None else value
        (self.folder / "val.yaml").write_text(VAL.format(checkpoint=checkpoint, value=figure))
        config = load_config(self.folder / "val.yaml", overrides=settings)
        result = check(config, self.folder / "out", progress=lambda what, done, total: None)
        assert not result.refused
        assert result.comparison is not None
        assert result.exit_code == (Exit.OK if result.comparison.verdict == "pass" else Exit.CHECK)
        return result.comparison


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("colours")
    (folder / "models.py").write_text(MODELS)
    random = np.random.default_rng(0)
    splits = {name: split(folder / name, count, random) for name, count in SIZES.items()}
    model = trained(*splits["train"])
    torch.save({"state_dict": model.state_dict()}, folder / "last.pt")
    return Project(folder, accuracy(model, *splits["val"]), accuracy(model, *splits["test"]))


@pytest.fixture
def project(shared: Project, tmp_path: Path) -> Project:
    folder = Path(shutil.copytree(shared.folder, tmp_path / "project"))
    return Project(folder, shared.value, shared.on_test)


def split(folder: Path, count: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Write PNGs of 36×36 into class folders, and read them as the trainer does: BGR, every third pixel."""
    inputs, labels = [], []
    for index in range(count):
        label = index % CLASSES
        image = random.normal(110, 40, (36, 36, 3))
        image[..., label % 3] += 12
        stripes = 14 * (-1) ** np.arange(36)
        image += (stripes[:, None] if label < 3 else stripes[None, :])[..., None]
        path = folder / f"class-{label}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.clip(image, 0, 255).astype(np.uint8))
        pixels = cv2.resize(cv2.imread(str(path)), (12, 12), interpolation=cv2.INTER_LINEAR)
        inputs.append((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
        labels.append(label)
    return torch.tensor(np.stack(inputs).transpose(0, 3, 1, 2), dtype=torch.float32), torch.tensor(labels)


def trained(inputs: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    namespace: dict[str, object] = {}
    exec(MODELS, namespace)
    torch.manual_seed(0)
    model: nn.Module = namespace["build"]()  # type: ignore[operator]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(25):
        for rows in torch.randperm(len(inputs)).split(30):
            loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    return float((model(inputs).argmax(1) == labels).double().mean())


def test_a_figure_that_is_met_needs_no_attempts(project: Project) -> None:
    compared = project.compare()
    assert (compared.measured, compared.difference, compared.verdict) == (project.value, 0.0, "pass")
    assert compared.attempts == compared.advice == ()


@pytest.mark.parametrize(
    ("setting", "change", "conclusion"),
    [
        (["preprocess.color=rgb"], "color: bgr", "val.yaml's colour order is probably not the trainer's"),
        (
            ["preprocess.mean=[0.5]", "preprocess.std=[0.5]"],
            "mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] (ImageNet's in RGB order)",
            "val.yaml's mean and std are probably not the trainer's",
        ),
        (["preprocess.backend=pil"], "backend: cv2", "val.yaml's resize backend is probably not the trainer's"),
        (["preprocess.interpolation=area"], "interpolation: bilinear", "val.yaml's interpolation is probably"),
        (
            ["preprocess.resize=14", "preprocess.crop=12"],
            "resize: 12, crop: 12",
            "val.yaml's resize and crop are probably",
        ),
    ],
)
def test_the_setting_that_is_not_the_trainers_is_found_out(
    project: Project, setting: list[str], change: str, conclusion: str
) -> None:
    compared = project.compare(*setting)
    assert compared.verdict == "fail"
    assert compared.measured is not None
    assert abs(compared.measured - project.value) > 0.2
    assert (compared.attempts[0].change, compared.attempts[0].verdict) == (change, "explains")
    assert compared.attempts[0].value == project.value  # to the last image, so it is the trainer's own evaluation
    assert compared.advice[0].startswith(f"last.pt scores {project.value:.4f} with {change}: {conclusion}")
    assert [path.name for path in (project.folder / "out" / "cache").iterdir() if path.is_dir()] == []


def test_raw_weights_are_tried_where_ema_was_taken_and_the_other_way_round(project: Project) -> None:
    state = torch.load(project.folder / "last.pt")["state_dict"]
    worse = {name: tensor * 0 if name.endswith("8.bias") else tensor for name, tensor in state.items()}
    worse["8.weight"] = state["8.weight"].roll(1, 0) * 0.5 + state["8.weight"] * 0.4
    both = {"state_dict": state, "state_dict_ema": {f"module.{name}": tensor for name, tensor in worse.items()}}
    torch.save(both, project.folder / "both.pt")

    ema = project.compare('checkpoints.files=["both.pt"]', checkpoint="both.pt")
    assert ema.weights == "ema"
    assert (ema.attempts[0].change, ema.attempts[0].value) == ("checkpoints.use: raw", project.value)
    assert ema.advice[0].endswith("the figure was probably reported for the raw weights.")
    raw = project.compare(
        'checkpoints.files=["both.pt"]', "checkpoints.use=raw", checkpoint="both.pt", value=ema.measured
    )
    assert raw.weights == "raw"
    assert (raw.attempts[0].change, raw.attempts[0].value) == ("checkpoints.use: ema", ema.measured)
    swapped = project.compare(
        'checkpoints.files=["both.pt"]', "preprocess.color=rgb", checkpoint="both.pt", value=ema.measured
    )
    assert {one.change: one.value for one in swapped.attempts}["color: bgr"] == ema.measured  # EMA again, not raw


def test_a_figure_of_the_test_split_is_recognised(project: Project) -> None:
    compared = project.compare(value=project.on_test)
    assert (compared.attempts[0].change, compared.attempts[0].verdict) == ("data.test instead of data.val", "explains")


def test_classes_in_another_order_are_recognised(project: Project) -> None:
    state = torch.load(project.folder / "last.pt")["state_dict"]
    for name in ("8.weight", "8.bias"):
        state[name] = state[name].flip(0)
    torch.save(state, project.folder / "flipped.pt")
    compared = project.compare(checkpoint="flipped.pt")
    assert compared.attempts[0].change == "other class numbers (data.val's class 'class-0' is output 5 of the model)"
    assert compared.attempts[0].value == project.value


def test_what_nothing_explains_is_said_to_be_unexplained(project: Project) -> None:
    (advice,) = project.compare(value=1.0).advice
    assert advice.startswith("none of these changes explains the figure.")


def test_a_score_above_the_figure_is_told_with_a_caution(project: Project) -> None:
    assert project.compare(value=0.62).advice[-1].startswith("it scores better than reported")


def test_a_change_that_needs_a_missing_library_is_told_as_untried(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    compared = project.compare("preprocess.backend=pil")
    assert compared.attempts[-1].change == "backend: cv2"
    assert compared.attempts[-1].verdict == "untried"
    assert "pip install 'edgesoup[cv2]'" in str(compared.attempts[-1].note)


def test_tensors_fed_as_they_are_have_no_pixels_to_vary(project: Project) -> None:
    (project.folder / "samples.py").write_text(
        "import torch\ndef val():\n    return [(torch.rand(3, 12, 12), k % 6) for k in range(30)]\n"
    )
    settings = ("preprocess=null", "data.val=./samples.py:val", "data.test=null")
    assert project.compare(*settings).attempts == ()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("expect.value=94", r"val\.yaml: expect\.value is 94, expected a share of one: 0\.883 and not 88\.3\."),
        ("expect.checkpoint=none.pt", "none.pt: "),
    ],
)
def test_a_figure_in_percent_and_a_missing_checkpoint_are_refused(project: Project, setting: str, message: str) -> None:
    (project.folder / "val.yaml").write_text(VAL.format(checkpoint="last.pt", value=0.9))
    config = load_config(project.folder / "val.yaml", overrides=[setting])
    result = check(config, project.folder / "out", progress=lambda what, done, total: None)
    assert result.exit_code == Exit.INPUT
    assert any(re.search(message, line) for line in result.refused)
