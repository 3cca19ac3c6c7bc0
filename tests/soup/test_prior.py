"""What trainers wrote beside the weights tells which file to try first, and which came after which."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from soup.checkpoint import Checkpoint, read_checkpoint
from soup.prior import by_pilot, expected_order, trajectory


def recorded(*numbers: dict[str, float]) -> dict[str, Checkpoint]:
    """Ingredients "a", "b", … that differ only in what was recorded beside them."""
    return {
        name: Checkpoint(Path(f"{name}.pt"), name, (), "flat", "raw", {}, given, ())
        for name, given in zip("abcdefgh", numbers, strict=False)
    }


@pytest.mark.parametrize(
    ("metric", "name", "first"),
    [
        ("accuracy", "val_acc", "highest"),  # Keras style, and what most scripts write
        ("accuracy", "val/acc1", "highest"),
        ("accuracy", "best_acc1", "highest"),  # torchvision's references and PyTorch's imagenet example
        ("accuracy", "top1", "highest"),
        ("accuracy", "metric", "highest"),  # timm
        ("accuracy", "metrics/accuracy_top1", "highest"),  # Ultralytics
        ("accuracy", "top1_error", "lowest"),
        ("accuracy", "val_loss", "lowest"),
        ("top5", "metrics/accuracy_top5", "highest"),
        ("top5", "eval_top5", "highest"),
        ("top5", "acc@5", "highest"),
        ("top5", "val_acc", "highest"),
        ("cross_entropy", "val_nll", "lowest"),
        ("cross_entropy", "val/CrossEntropy", "lowest"),
        ("cross_entropy", "val_loss", "lowest"),
        ("cross_entropy", "val_acc", "highest"),  # stands in for the loss, and is none
    ],
)
def test_the_best_by_the_recorded_metric_comes_first(metric: str, name: str, first: str) -> None:
    ingredients = recorded({name: 0.5, "epoch": 1}, {name: 0.9, "epoch": 2}, {name: 0.7, "epoch": 3})
    rising = ("a", "c", "b")
    assert expected_order(ingredients, metric=metric) == (rising if first == "lowest" else rising[::-1])


def test_what_is_named_most_like_the_metric_counts() -> None:
    both = [{"val_acc": 0.1 * index, "val_loss": 0.1 * index, "val_top5": -index, "acc": -index} for index in range(3)]
    ingredients = recorded(*both)
    assert expected_order(ingredients, metric="accuracy") == ("c", "b", "a")  # of val before of train
    assert expected_order(ingredients, metric="cross_entropy") == ("a", "b", "c")
    assert expected_order(ingredients, metric="top5") == ("a", "b", "c")


def test_equal_figures_come_by_sha256_and_in_whatever_order_they_are_given() -> None:
    ingredients = recorded({"acc": 0.5}, {"acc": 0.5}, {"acc": 0.9})
    assert expected_order(ingredients, metric="accuracy") == ("c", "a", "b")
    assert expected_order(dict(reversed(ingredients.items())), metric="accuracy") == ("c", "a", "b")


def test_where_one_file_says_nothing_there_is_no_order() -> None:
    assert expected_order(recorded({"acc": 0.5}, {}, {"acc": 0.9}), metric="accuracy") is None
    assert expected_order(recorded({"epoch": 1}, {"epoch": 2}), metric="accuracy") is None
    # Another figure that all of them have is better than none.
    assert expected_order(recorded({"acc": 1, "loss": 2}, {"loss": 1}), metric="accuracy") == ("b", "a")


@pytest.mark.parametrize("name", ["epoch", "epochs", "global_step", "step", "iteration", "iter", "meta.epoch"])
def test_the_trajectory_goes_by_what_counts_the_training(name: str) -> None:
    assert trajectory(recorded({name: 30}, {name: 9}, {name: 100})) == ("b", "a", "c")


@pytest.mark.parametrize("name", ["val_acc", "steps_per_second", "epoch_time", "best_epoch_loss"])
def test_other_numbers_are_no_trajectory(name: str) -> None:
    assert trajectory(recorded({name: 1}, {name: 2})) is None


def test_steps_tell_apart_what_was_saved_within_one_epoch() -> None:
    within = recorded(
        {"epoch": 1, "global_step": 200}, {"epoch": 1, "global_step": 100}, {"epoch": 0, "global_step": 5}
    )
    assert trajectory(within) == ("c", "b", "a")
    assert trajectory(recorded({"epoch": 1}, {"epoch": 1}, {"epoch": 2})) is None
    assert trajectory(recorded({"epoch": 1}, {"global_step": 2})) is None


def test_a_step_that_all_have_in_common_does_not_hide_the_epoch() -> None:
    assert trajectory(recorded({"epoch": 2, "step": 0}, {"epoch": 1, "step": 0})) == ("b", "a")


def test_a_pilot_sorts_by_rank_and_then_by_sha256() -> None:
    assert by_pilot([("b", -0.5), ("c", -0.9), ("a", -0.5), ("d", float("inf"))]) == ("c", "a", "b", "d")


def test_real_files_of_four_trainers_are_ordered(tmp_path: Path) -> None:
    """The layouts of Lightning, timm, a torchvision script and Ultralytics."""
    weights = {"weight": torch.ones(2, 2)}
    monitor = {"monitor": "val_acc", "current_score": torch.tensor(0.8)}
    layouts = {
        "lightning": {"state_dict": weights, "epoch": 3, "global_step": 30, "callbacks": {"ModelCheckpoint": monitor}},
        "timm": {"state_dict": weights, "epoch": 3, "arch": "x", "metric": 71.5},
        "torchvision": {"model": weights, "epoch": 3, "best_acc1": 71.5},
        "ultralytics": {"model": weights, "epoch": 3, "train_metrics": {"metrics/accuracy_top1": 0.7, "val/loss": 1.2}},
    }
    told = {}
    for name, layout in layouts.items():
        torch.save(layout, tmp_path / f"{name}.pt")
        one = read_checkpoint(tmp_path / f"{name}.pt")
        other = Checkpoint(one.path, "0", (), "flat", "raw", {}, dict.fromkeys(one.recorded, 0.0), ())
        ingredients = {"0": other, one.sha256: one}
        assert trajectory(ingredients) == ("0", one.sha256)
        told[name] = expected_order(ingredients, metric="accuracy") == (one.sha256, "0")
    assert told == {"lightning": True, "timm": True, "torchvision": True, "ultralytics": True}
