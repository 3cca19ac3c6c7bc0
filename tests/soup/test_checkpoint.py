"""Checkpoints as the trainers themselves write them, found, read and loaded."""

from __future__ import annotations

import os
import sys
import types
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from soup import SoupError
from soup.checkpoint import (
    Checkpoint,
    StateDict,
    check_unchanged,
    load_state,
    read_checkpoint,
    state_sha256,
    with_names,
)


class Small(nn.Sequential):
    """A convolution with BatchNorm, a head, and an optimiser step behind it."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def trained(seed: int = 0) -> tuple[Small, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Small()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 1, 4, 4)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def assert_holds(checkpoint: Checkpoint, expected: StateDict) -> None:
    loaded = load_state(checkpoint)
    assert list(loaded) == list(expected)
    assert state_sha256(loaded) == state_sha256(expected)


def test_timms_saver_with_and_without_ema(tmp_path: Path) -> None:
    """Correctness 10, 11 and 13, on files that timm wrote."""
    timm = pytest.importorskip("timm.utils")
    model, optimizer = trained()
    average = timm.ModelEmaV3(model, decay=0.5)
    model[0].weight.data.add_(1)
    average.update(model)
    saver = timm.CheckpointSaver(
        model, optimizer, args=Namespace(model="small"), model_ema=average, checkpoint_dir=tmp_path
    )
    saver.save_checkpoint(epoch=3, metric=0.75)
    path = tmp_path / "last.pth.tar"
    chosen = read_checkpoint(path)
    assert (chosen.container, chosen.weights) == ("state_dict_ema", "ema")
    assert (chosen.recorded["epoch"], chosen.recorded["metric"]) == (3.0, 0.75)
    assert_holds(chosen, average.module.state_dict())
    assert_holds(read_checkpoint(path, use="raw"), model.state_dict())


def test_torchvisions_reference_script_with_its_averaged_model(tmp_path: Path) -> None:
    """Correctness 11: the dict of its training script, `module.` and `n_averaged` from torch's own AveragedModel."""
    model, optimizer = trained()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    model[0].weight.data.add_(1)
    average.update_parameters(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    tree = {
        "model": nn.DataParallel(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 7,
        "args": Namespace(path=Path("runs")),
        "model_ema": average.state_dict(),
        "scaler": {"scale": 1.0},
    }
    torch.save(tree, tmp_path / "model_7.pth")
    chosen = read_checkpoint(tmp_path / "model_7.pth")
    assert (chosen.container, chosen.weights, chosen.recorded["epoch"]) == ("model_ema", "ema", 7.0)
    assert "names changed as in 'module.0.weight' → '0.weight'" in chosen.notes
    assert_holds(chosen, average.module.state_dict())
    assert_holds(read_checkpoint(tmp_path / "model_7.pth", use="raw"), model.state_dict())


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders, workers and its own deprecations
def test_a_lightning_trainer_with_weight_averaging_and_objects_in_its_hyperparameters(tmp_path: Path) -> None:
    """Correctness 11, on a file that Lightning wrote."""
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, options: object) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = Small()

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            loss = self.model(batch).square().sum()
            self.log("val_score", torch.tensor(0.625))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    best = ModelCheckpoint(tmp_path, monitor="val_score", save_top_k=1)
    averaging = WeightAveraging(avg_fn=lambda old, new, count: (old + new) / 2)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[best, averaging], default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    task = Task(options=[Path("runs"), Namespace(lr=0.1), torch.float16])
    trainer.fit(task, torch.utils.data.DataLoader(torch.randn(8, 1, 4, 4), batch_size=4))
    path = Path(best.best_model_path)
    chosen, raw = read_checkpoint(path), read_checkpoint(path, use="raw")
    stored = torch.load(path, weights_only=False)
    assert (chosen.container, raw.container) == ("state_dict", "current_model_state")
    assert (chosen.weights, raw.weights) == ("ema", "raw")
    assert chosen.recorded["val_score"] == 0.625
    assert_holds(chosen, {name.removeprefix("model."): value for name, value in stored["state_dict"].items()})
    assert_holds(raw, {name.removeprefix("model."): value for name, value in stored["current_model_state"].items()})
    assert state_sha256(load_state(chosen)) != state_sha256(load_state(raw))


@pytest.fixture
def detector() -> Iterator[type[nn.Module]]:
    """A module class of a package that is there when the file is written and gone when it is read."""
    package = types.ModuleType("absent_detector")

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Small()
            self.again = self.model[3]
            self.register_buffer("anchors", torch.ones(3), persistent=False)
            self.register_buffer("stride", torch.tensor([8, 16]))

    Detector.__module__, Detector.__qualname__ = "absent_detector", "Detector"
    package.Detector = Detector  # type: ignore[attr-defined]
    sys.modules["absent_detector"] = package
    yield Detector
    sys.modules.pop("absent_detector", None)


@pytest.mark.parametrize(
    ("tree", "container", "kind"),
    [
        ({"model": None, "ema": "here", "updates": 9}, "ema", "ema"),
        ({"model": "here", "ema": None, "updates": None}, "model", "ema"),
        ({"model": "here"}, "model", "raw"),
    ],
)
def test_a_pickled_half_precision_module_of_a_package_that_is_not_there(
    tree: dict[str, object], container: str, kind: str, detector: type[nn.Module], tmp_path: Path
) -> None:
    """Correctness 11: Ultralytics."""
    model = detector().half()
    here = {name: model if value == "here" else value for name, value in tree.items()}
    torch.save(here | {"epoch": 4, "best_fitness": 0.5, "train_args": {"lr": 0.1}}, tmp_path / "last.pt")
    del sys.modules["absent_detector"]
    checkpoint = read_checkpoint(tmp_path / "last.pt")
    assert (checkpoint.container, checkpoint.weights, checkpoint.recorded["best_fitness"]) == (container, kind, 0.5)
    expected = model.state_dict()
    assert_holds(checkpoint, expected)
    assert expected["stride"].dtype == torch.int64
    assert "tied: model.3.weight = again.weight" in checkpoint.notes
    assert "absent_detector" not in sys.modules


def test_mmengines_dict_where_the_ema_weights_are_the_main_ones(tmp_path: Path) -> None:
    """Correctness 11."""
    raw, ema = trained(0)[0], trained(1)[0]
    swapped = {f"module.{name}": value for name, value in raw.state_dict().items()} | {"steps": torch.tensor(5)}
    tree = {
        "meta": {"epoch": 2, "iter": 40},
        "state_dict": ema.state_dict(),
        "ema_state_dict": swapped,
        "message_hub": {},
    }
    torch.save(tree, tmp_path / "epoch_2.pth")
    chosen = read_checkpoint(tmp_path / "epoch_2.pth")
    assert (chosen.weights, chosen.recorded) == ("ema", {"epoch": 2.0, "iter": 40.0})
    assert any("mmengine" in note for note in chosen.notes)
    assert_holds(chosen, ema.state_dict())
    assert_holds(read_checkpoint(tmp_path / "epoch_2.pth", use="raw"), raw.state_dict())


def test_a_compiled_and_wrapped_model_has_its_plain_names(tmp_path: Path) -> None:
    """Correctness 12."""
    model = Small()
    model[3] = torch.compile(model[3])  # type: ignore[assignment]
    torch.save(nn.DataParallel(torch.compile(model)).state_dict(), tmp_path / "a.pt")  # type: ignore[arg-type]
    assert list(read_checkpoint(tmp_path / "a.pt").tensors) == list(Small().state_dict())


def test_tied_names_share_one_tensor_that_is_nobody_elses(tmp_path: Path) -> None:
    """Correctness 5."""
    weight = torch.randn(2, 2)
    torch.save({"a": weight, "b": weight, "c": weight.clone()}, tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    first, second = load_state(checkpoint), load_state(checkpoint)
    assert first["a"] is first["b"]
    assert len({first[name].data_ptr() for name in "abc"} | {second[name].data_ptr() for name in "abc"}) == 4
    assert checkpoint.notes == ("tied: a = b",)


def test_recorded_metrics_are_read_from_tensors_and_never_nan(tmp_path: Path) -> None:
    tree = {
        "state_dict": Small().state_dict(),
        "best_acc1": torch.tensor(71.5),
        "loss": torch.tensor([0.25]),
        "acc": float("nan"),
    }
    torch.save(tree, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").recorded == {"best_acc1": 71.5, "loss": 0.25}


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    """Correctness 15."""
    path = tmp_path / "a.pt"
    torch.save(Small().state_dict(), path)
    checkpoint = read_checkpoint(path)
    check_unchanged(checkpoint)
    assert read_checkpoint(path, expected_sha256=checkpoint.sha256) == checkpoint
    with pytest.raises(SoupError, match=f"has the SHA-256 {checkpoint.sha256}, expected 0+. Restore"):
        read_checkpoint(path, expected_sha256="0" * 64)
    os.utime(path, ns=(0, 1))
    with pytest.raises(SoupError, match="changed since it was checked"):
        load_state(checkpoint)
    path.unlink()
    with pytest.raises(SoupError, match="is gone since it was checked"):
        load_state(checkpoint)


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (["a.w", "b.w"], ["model.a.w", "model.b.w"], ["model.a.w", "model.b.w"]),
        (["net.a.w", "net.b.w"], ["a.w", "b.w"], ["a.w", "b.w"]),
        (["net.a.w", "net.b.w"], ["model.x.a.w", "model.x.b.w"], ["model.x.a.w", "model.x.b.w"]),
        (["a.w", "b.w"], ["a.w", "b.w"], ["a.w", "b.w"]),
        (["a.w", "c.w"], ["model.a.w", "model.b.w"], ["model.a.w", "model.c.w"]),
        (["c.w", "d.w"], ["model.a.w", "model.b.w"], ["c.w", "d.w"]),
    ],
)
def test_names_take_the_models_prefix_where_that_makes_them_agree(
    names: list[str], wanted: list[str], expected: list[str], tmp_path: Path
) -> None:
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    renamed = with_names(checkpoint, wanted)
    assert list(renamed.tensors) == expected
    assert list(renamed.tensors.values()) == list(checkpoint.tensors.values())
    assert (renamed == checkpoint) == (names == expected)
