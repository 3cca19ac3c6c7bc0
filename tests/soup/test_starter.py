from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision.models import resnet18, shufflenet_v2_x1_0

from soup import SoupError
from soup.config import Config, load_config
from soup.starter import write_starter


def net(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 7))


def save(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def start(folder: Path, runs: str = "runs") -> tuple[Config, str]:
    out = write_starter(folder / runs, folder / "val.yaml")
    return load_config(out), out.read_text()


def test_a_sweep_becomes_one_pattern_and_its_recorded_accuracy_the_figure_to_expect(tmp_path: Path) -> None:
    for run in "ab":
        save(tmp_path / f"runs/{run}/last.pt", {"state_dict": net().state_dict(), "epoch": 3, "best_acc1": 88.25})
        save(tmp_path / f"runs/{run}/best.pt", net().state_dict())
    config, text = start(tmp_path)

    assert config.checkpoints.files == ("runs/*/last.pt",)
    assert "check: 2 other checkpoint files are left out" in text
    assert config.expect is not None
    assert (config.expect.checkpoint, config.expect.value) == ("runs/a/last.pt", 0.8825)


def test_the_epochs_of_one_run_become_one_pattern(tmp_path: Path) -> None:
    for epoch in range(3):
        save(tmp_path / f"runs/[1]/epoch_{epoch}.pth", net().state_dict())
    config, text = start(tmp_path)

    assert [path.name for path in sorted(tmp_path.glob(config.checkpoints.files[0]))] == [
        f"epoch_{n}.pth" for n in range(3)
    ]
    assert "# expect:" in text


def test_a_torchvision_network_is_known_by_its_names_and_shapes(tmp_path: Path) -> None:
    save(tmp_path / "runs/a.pt", shufflenet_v2_x1_0(num_classes=5).state_dict())
    config, _ = start(tmp_path)

    assert (config.model, config.model_args) == ("torchvision:shufflenet_v2_x1_0", {"num_classes": 5})


def test_a_network_of_known_names_and_other_shapes_is_left_to_the_user(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = resnet18(num_classes=5, width_per_group=64).state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in state.items()} | {
        "conv1.weight": torch.zeros(64, 1, 3, 3)
    }
    save(tmp_path / "runs/a.pt", state)
    config, text = start(tmp_path)

    assert config.model == "./models.py:build"
    assert "models.py beside this file must hold build(**model_args)" in text
    assert config.preprocess is not None
    assert (config.preprocess.color, config.preprocess.mean, config.preprocess.resize) == ("gray", (0.0,), None)


def test_data_above_the_runs_are_found_and_never_mixed_from_two_places(tmp_path: Path) -> None:
    save(tmp_path / "project/runs/a.pt", net().state_dict())
    for folder in ("data/train/cat", "project/train/cat", "other/test/cat"):
        (tmp_path / folder).mkdir(parents=True)
    np.savez(tmp_path / "data" / "valid.npz", images=np.zeros((1, 4, 4, 3), np.uint8), labels=np.zeros(1, np.int64))
    config, text = start(tmp_path / "project")

    assert (config.data.train, config.data.val, config.data.test) == ("../data/train", "../data/valid.npz", "data/test")
    assert '"data/test"  # check: not found' in text
    assert config.preprocess is not None
    assert config.preprocess.resize is None


def test_data_in_a_folder_of_any_name_are_found_and_a_folder_without_classes_is_none(tmp_path: Path) -> None:
    save(tmp_path / "runs/a.pt", net().state_dict())
    for folder in ("src/train", "flowers/train/rose", "flowers/validation/rose"):
        (tmp_path / folder).mkdir(parents=True)
    config, _ = start(tmp_path)

    assert (config.data.train, config.data.val, config.data.test) == (
        "flowers/train",
        "flowers/validation",
        "data/test",
    )


def test_timms_files_metric_and_networks_are_known(tmp_path: Path) -> None:
    state = timm.create_model("mobilenetv3_small_050", num_classes=5).state_dict()  # named by its run alone
    for name in ("checkpoint-1", "last"):
        save(tmp_path / f"out/20240101-mobilenetv3_small_050-224/{name}.pth.tar", {"state_dict": state, "metric": 71.5})
    config, _ = start(tmp_path, "out")

    assert config.checkpoints.files == ("out/20240101-mobilenetv3_small_050-224/*.pth.tar",)
    assert (config.model, config.model_args) == ("timm:mobilenetv3_small_050", {"num_classes": 5})
    assert config.expect is not None
    assert config.expect.value == 0.715


def test_the_runs_themselves_are_no_training_images(tmp_path: Path) -> None:
    save(tmp_path / "train/a.pt", net().state_dict())
    config, text = start(tmp_path, "train")

    assert config.data.train == "data/train"
    assert '"data/train"  # check: not found' in text


def test_a_folder_name_with_a_variable_or_a_quote_stays_what_it_is(tmp_path: Path) -> None:
    save(tmp_path / 'the "${RUNS}" folder/a.pt', net().state_dict())
    config, _ = start(tmp_path, 'the "${RUNS}" folder')

    assert config.checkpoints.files == ('the "${RUNS}" folder/a.pt',)


def test_an_existing_file_is_left_as_it_is(tmp_path: Path) -> None:
    save(tmp_path / "runs/a.pt", net().state_dict())
    (tmp_path / "val.yaml").write_text("mine")

    with pytest.raises(SoupError, match=r"val\.yaml: exists already and is left as it is"):
        start(tmp_path)
    assert (tmp_path / "val.yaml").read_text() == "mine"


def test_a_folder_without_a_readable_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match="runs: no such folder"):
        start(tmp_path)
    save(tmp_path / "runs/.hidden/a.pt", net().state_dict())
    with pytest.raises(SoupError, match=r"runs: no checkpoint below it, expected files ending in \.bin"):
        start(tmp_path)
    (tmp_path / "runs" / "bad.pt").write_text("text")
    with pytest.raises(SoupError, match=r"bad\.pt"):
        start(tmp_path)
    assert not (tmp_path / "val.yaml").exists()
