"""Golden samples are spread over the classes, hold the hardest, and survive the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from soup import SoupError
from soup.golden import Golden, choose_golden, read_golden, write_golden


def test_every_class_is_there_and_the_smallest_margins_too() -> None:
    random = np.random.default_rng(0)
    labels, margins = random.integers(0, 5, 200), random.random(200)
    chosen = choose_golden(labels, margins, count=20)
    assert len(chosen) == len(set(chosen.tolist())) == 20
    assert set(np.argsort(margins)[:5]) <= set(chosen.tolist())
    assert set(labels[chosen]) == set(range(5))
    assert chosen.tolist() == sorted(chosen.tolist())


def test_asking_for_more_than_there_is_takes_all() -> None:
    assert choose_golden(np.zeros(3, int), np.ones(3), count=64).tolist() == [0, 1, 2]


def test_what_was_written_is_read_back_equal_and_twice_the_same_bytes(tmp_path: Path) -> None:
    golden = Golden(
        {"input": np.arange(12, dtype=np.float32).reshape(3, 4)},
        {"label": np.array([0, 2, 1])},
        {"torch": {"output": np.ones((3, 2), np.float32)}, "model.onnx": {"output": np.zeros((3, 2), np.float32)}},
        {"correct": np.array([True, False, True])},
    )
    for name in ("a", "b"):
        write_golden(tmp_path / name, golden)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    back = read_golden(tmp_path / "a")
    np.testing.assert_array_equal(back.inputs["input"], golden.inputs["input"])
    np.testing.assert_array_equal(back.targets["label"], golden.targets["label"])
    assert {artifact: set(outputs) for artifact, outputs in back.outputs.items()} == {
        "torch": {"output"},
        "model.onnx": {"output"},
    }
    np.testing.assert_array_equal(back.best_single["correct"], golden.best_single["correct"])
    assert len(back) == 3


def test_a_file_that_holds_no_golden_samples_is_named(tmp_path: Path) -> None:
    (tmp_path / "golden.safetensors").write_bytes(b"nothing")
    with pytest.raises(SoupError, match=r"golden\.safetensors: no golden samples"):
        read_golden(tmp_path / "golden.safetensors")
