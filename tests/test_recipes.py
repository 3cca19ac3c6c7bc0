"""docs/recipes.md: its val.yaml files are valid, its code is what they name, its table is what tests compared."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml

from soup.adapters import adapt
from soup.checkpoint import load_state, read_checkpoint, with_names
from soup.config import load_config
from soup.models import build_model, load, tensor_table
from soup.sections import Letterbox

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
GOLDEN = [
    (path.stem.removeprefix("letterbox_"), group["what"], group["letterbox"])
    for path in sorted((ROOT / "tests" / "soup" / "golden").glob("letterbox_*.json"))
    for group in json.loads(path.read_text(encoding="utf-8"))["groups"]
]
TRAINERS = ("Ultralytics", "MMDetection", "Hugging Face", "Lightning")


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def block(title: str, language: str, *, at: int = -1) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.DOTALL | re.MULTILINE)[at]


def recipe(title: str) -> dict:
    return yaml.safe_load(block(title, "yaml"))


def table() -> dict[str, dict]:
    """What a trainer calls → the section that does the same, of each row with a letterbox."""
    rows = re.findall(
        r"^\| (.+?) +\| `(letterbox: [^`]+)` +\|$", section("Image geometry, as each trainer has it"), re.MULTILINE
    )
    return {what: yaml.safe_load(value) for what, value in rows}


def test_there_is_one_recipe_for_each_trainer():
    assert len(re.findall(r"^```yaml$", TEXT, re.MULTILINE)) == len(TRAINERS)
    assert all(recipe(title)["task"] == "detection" for title in TRAINERS)


@pytest.mark.parametrize("title", TRAINERS)
def test_a_recipe_is_a_valid_val_yaml(title, tmp_path):
    (tmp_path / "val.yaml").write_text(block(title, "yaml"), encoding="utf-8")
    config = load_config(tmp_path / "val.yaml")
    assert config.task == "detection"
    assert config.detection.classes == ("red", "white", "platelet")


def test_the_tables_letterboxes_are_valid():
    for what, values in table().items():
        assert Letterbox(**values["letterbox"]).size in (640, 1333), what


@pytest.mark.parametrize("title", TRAINERS[:3])
def test_the_code_has_the_functions_that_the_recipe_names(title):
    named = set(re.findall(r"\./models\.py:(\w+)", block(title, "yaml")))
    defined = {one.name for one in ast.parse(block(title, "python")).body if isinstance(one, ast.FunctionDef)}
    assert named == defined
    arguments = {
        one.name: {arg.arg for arg in one.args.args}
        for one in ast.parse(block(title, "python")).body if isinstance(one, ast.FunctionDef)
    }  # fmt: skip
    builder = recipe(title)["model"].partition(":")[2]
    assert set(recipe(title)["model_args"]) == arguments[builder]


def test_all_code_compiles():
    for source in re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE):
        compile(source, "docs/recipes.md", "exec")


@pytest.mark.parametrize(
    ("row", "trainer", "what"),
    [
        ("Ultralytics `predict`, `LetterBox(640)`", "ultralytics", "LetterBox(640)"),
        ("Ultralytics `predict`, images of one size (`auto`)", "ultralytics", "LetterBox(640, auto=True, stride=32)"),
        ("Ultralytics `val(rect=False)`", "ultralytics", "rect=False"),
        ("Ultralytics `val()`, and validation while training", "ultralytics", "rect=True"),
        ("YOLOX", "yolox", "preproc"),
        ("MMDetection `Resize((640, 640), keep_ratio=True)`, `Pad`", "mmdet", "Resize((640, 640)"),
        ("MMDetection `Resize((1333, 800), keep_ratio=True)`, `Pad(size_divisor=32)`", "mmdet", "Resize((1333, 800)"),
    ],
)
def test_a_row_of_the_table_is_what_was_compared_with_the_trainer(row, trainer, what):
    """YOLOX was compared at another size."""
    told = table()[row]["letterbox"]
    compared = [values for name, title, values in GOLDEN if name == trainer and what in title]
    assert told in [{**values, "size": told["size"]} for values in compared]


def test_the_rows_of_hugging_face_and_torchvision_are_those_that_were_compared():
    rows = table()
    detr = rows["Hugging Face DETR, `shortest_edge: 800, longest_edge: 1333`"]["letterbox"]
    fixed, loose = (values for name, _, values in GOLDEN if name == "transformers")
    assert {**fixed, "stride": 1} == detr
    assert loose.keys() == detr.keys()
    torchvisions = rows["torchvision fcos and retinanet"]["letterbox"]  # test_placement.py: against its transform, live
    assert torchvisions == {"size": 1333, "shorter": 800, "stride": 32, "centered": False, "rounding": "floor"}


def test_rtmdets_boxes_are_its_points_with_their_distances():
    """Box by box: the point of cell (x, y) is (x, y) times the stride, without half a cell."""
    tree = ast.parse(block("MMDetection", "python"))
    tree.body = [one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == "rtmdet_boxes"]
    names: dict = {"torch": torch}
    exec(compile(tree, "docs/recipes.md", "exec"), names)
    maps = [
        (torch.randn(2, 3, 4, 5), torch.rand(2, 4, 4, 5) * 9),
        (torch.randn(2, 3, 2, 3), torch.rand(2, 4, 2, 3) * 9),
    ]
    raw = ([logits for logits, _ in maps], [distances for _, distances in maps])
    boxes, scores = names["rtmdet_boxes"](raw, None, strides=[8, 16])
    expected = [
        ([x * s - d[0], y * s - d[1], x * s + d[2], y * s + d[3]], torch.sigmoid(logits[1, :, y, x]))
        for s, (logits, distances) in zip((8, 16), maps, strict=True)
        for y in range(logits.shape[2])
        for x in range(logits.shape[3])
        for d in [distances[1, :, y, x].tolist()]
    ]
    assert torch.allclose(boxes[1], torch.tensor([box for box, _ in expected]))
    assert torch.allclose(scores[1], torch.stack([score for _, score in expected]))


def test_the_lightning_recipe_reads_a_file_laid_out_as_lightnings(tmp_path):
    """The real libraries' files were read in an environment of their own; this one needs torchvision alone."""
    values = recipe("Lightning")
    torch.manual_seed(0)
    network = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    )
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    state["criterion.weight"] = torch.ones(4)
    torch.save(
        {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.6.6", "state_dict": state, "loops": {}},
        tmp_path / "last.ckpt",
    )
    model = build_model(values["model"], values["model_args"], folder=tmp_path)
    found = read_checkpoint(tmp_path / "last.ckpt", drop=values["checkpoints"]["drop"])
    load(model, load_state(with_names(found, list(tensor_table(model)))))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in network.state_dict().items())
    detection = values["detection"]
    adapt(model, detection["adapter"], {}, folder=tmp_path, input_size=tuple(values["preprocess"]["resize"]))
    with torch.inference_mode():
        decoded = model(torch.zeros(1, 3, 320, 320))
    assert decoded["scores"].shape == (1, *decoded["boxes"].shape[1:2], len(detection["classes"]))
    assert np.isfinite(decoded["boxes"].numpy()).all()
