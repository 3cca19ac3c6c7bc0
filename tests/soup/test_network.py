"""The network of val.yaml with its outputs decoded: what is called, what it keeps, and what it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from soup import SoupError
from soup.config import Config, load_config
from soup.network import adapted, network_of
from tests.soup.detection_project import MODELS, VAL

MASKS = """
from torch import nn


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        scores = self.convolution(images)
        return {"out": scores, "aux": scores * 0}


def build():
    return Two()
"""


def config(folder: Path, *overrides: str, models: str = MODELS) -> Config:
    (folder / "models.py").write_text(models)
    (folder / "val.yaml").write_text(VAL)
    return load_config(folder / "val.yaml", overrides=overrides)


def test_a_detector_gives_boxes_and_scores_under_the_names_of_its_checkpoints(tmp_path: Path) -> None:
    model = network_of(config(tmp_path))
    assert not model.training
    namespace: dict[str, object] = {}
    exec(MODELS, namespace)
    assert list(model.state_dict()) == list(namespace["build"]().state_dict())
    with torch.no_grad():
        found = model(torch.zeros(2, 3, 32, 32))
    assert {name: tuple(one.shape) for name, one in found.items()} == {"boxes": (2, 64, 4), "scores": (2, 64, 2)}


def test_a_detector_without_an_adapter_has_to_be_torchvisions(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match="adapter 'torchvision': the model is Detector, expected one of torchvision's"):
        network_of(config(tmp_path, "detection.adapter=null"))


def test_an_adapter_of_ones_own_is_found_beside_val_yaml(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def decode(raw, images, scale=1):\n"
        "    heat, size, offset = raw\n"
        "    boxes = images.new_ones(len(images), 3, 4) * scale\n"
        "    return boxes, images.new_zeros(len(images), 3, 2)\n"
    )
    own = config(tmp_path, "detection.adapter=./own.py:decode", "detection.adapter_args={scale: 5}")
    found = network_of(own)(torch.zeros(1, 3, 32, 32))
    assert float(found["boxes"].max()) == 5


def test_a_network_is_adapted_again_after_it_was_prepared(tmp_path: Path) -> None:
    one = config(tmp_path)
    model = network_of(one)
    assert adapted(one, model) is model
    assert set(model(torch.zeros(1, 3, 32, 32))) == {"boxes", "scores"}


def test_a_segmenter_gives_one_output_and_a_classifier_its_own(tmp_path: Path) -> None:
    overrides = ("task=segmentation", "detection={}", "model=./models.py:build")
    found = network_of(config(tmp_path, *overrides, models=MASKS))(torch.zeros(1, 3, 8, 8))
    assert [tuple(one.shape) for one in (found.values() if isinstance(found, dict) else [found])] == [(1, 4, 8, 8)]
    both = network_of(config(tmp_path, "task=classification", "detection={}", models=MASKS))(torch.zeros(1, 3, 8, 8))
    assert list(both) == ["out", "aux"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("detection.adapter=./none.py:decode", "none.py': No such file or directory"),
        ("detection.adapter_args={strides: 4}", "adapter 'centernet': argument 'strides' is not known, expected some"),
        ("detection.adapter=yolo", "adapter 'yolo': argument"),
        ("model_args={colour: 3}", "model"),
    ],
)
def test_what_cannot_be_built_or_decoded_is_told(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(SoupError) as raised:
        network_of(config(tmp_path, override))
    assert message in str(raised.value)
