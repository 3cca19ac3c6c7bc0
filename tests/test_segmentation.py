"""Segmentation end to end through the real commands: check, build, export with FP16, verify; nothing is stubbed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from sklearn.metrics import jaccard_score
from torch.nn.functional import grid_sample, interpolate

from soup.build_folder import BuildFolder, read_build
from soup.files import sha256_file
from soup.manifest import read_manifest, seal
from tests.soup.commands import document, run
from tests.soup.segmentation_project import (
    CLASSES,
    IGNORED,
    MODELS,
    sorted_masks,
    tensors,
    write_project,
    write_scenes,
    write_val,
)

EXPORT = (
    "--precision", "fp16,fp32",
    "--set", "release.golden.count=all",
    "--gate", "per_class_drop={max_drop: 0.3, min_images: 5}",
)  # fmt: skip
WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "onnx"):
            raise ImportError(f"{name} is not on the device")

sys.meta_path.insert(0, Refuse())
sys.argv = ["soup", "verify", RELEASE]
from soup.cli import main
main()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with a finished build in soup-out. Read only."""
    folder = tmp_path_factory.mktemp("segmentation") / "project"
    write_project(folder)
    run("build", "--val", folder / "val.yaml", "-o", folder / "soup-out")
    return folder


@pytest.fixture(scope="module")
def exported(project: Path) -> dict[str, Any]:
    """What `soup export --json` printed; the release is in soup-out/release. Read only."""
    return document("export", project / "soup-out", *EXPORT)


@pytest.fixture
def release(project: Path, exported: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of the release that a test may change."""
    return Path(shutil.copytree(project / "soup-out/release", tmp_path / "release"))


@pytest.fixture(scope="module")
def lame(project: Path) -> Path:
    """A build of one checkpoint, the best one with a disc that it hardly sees any more."""
    worse = project / "lame"
    worse.mkdir()
    checkpoint = torch.load(project / "runs/epoch-13.pt")
    checkpoint["model"]["classes.bias"][CLASSES.index("disc")] -= 4
    torch.save(checkpoint, worse / "one.pt")
    return built(project, worse / "out", "checkpoints.files=[lame/one.pt]").path


def built(folder: Path, out: Path, *sets: str) -> BuildFolder:
    """`soup build` with some values of val.yaml replaced."""
    run("build", "--val", folder / "val.yaml", "-o", out, *(part for one in sets for part in ("--set", one)))
    return read_build(out)


def plain(state: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network's main head in plain torch."""
    namespace: dict[str, Any] = {}
    exec(MODELS, namespace)
    model = namespace["build"]()
    model.load_state_dict(state)
    model.eval()
    return lambda images: model(images)["out"].detach()


def miou(truth: np.ndarray, predicted: np.ndarray) -> float:
    """scikit-learn's, of the pixels that count."""
    counted = truth != IGNORED
    return float(jaccard_score(truth[counted], predicted[counted], average="macro", labels=range(len(CLASSES))))


def test_check_takes_the_project_as_it_is(project: Path, tmp_path: Path) -> None:
    found = document("check", "--val", project / "val.yaml", "-o", tmp_path / "out")
    assert (found["refused"], found["exit_code"]) == ([], 0)
    assert found["estimate"]["evaluations"] >= 3


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_build_scores_what_scikit_learn_does_of_plain_torch_without_ignored_pixels(
    project: Path, split: str
) -> None:
    network = plain(load_tensors(project / "soup-out/soup.safetensors"))
    images, masks = zip(*map(tensors, sorted_masks(project / split)), strict=True)
    truth = torch.stack(masks).numpy()
    predicted = network(torch.stack(images)).argmax(1).numpy()
    winner = read_build(project / "soup-out").record.winner
    assert (winner.method, winner.bn_policy) == ("uniform", "recalibrated")
    assert getattr(winner, split) == pytest.approx(miou(truth, predicted), abs=1e-12)
    ring = truth == IGNORED
    assert ring.mean() > 0.02
    filled = np.where(ring, 0, truth)
    assert miou(filled, predicted) != pytest.approx(miou(truth, predicted), abs=0.005)


def test_auxiliary_head_stays_in_the_soup_and_is_not_in_the_graph(project: Path, exported: dict[str, Any]) -> None:
    assert "aux.weight" in load_tensors(project / "soup-out/soup.safetensors")
    graph = onnx.load(project / "soup-out/release/model.onnx").graph
    assert [[dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in graph.output] == [[1, 3, 24, 32]]
    assert not [one.name for one in graph.initializer if "aux" in one.name]
    assert sum(node.op_type == "Conv" for node in graph.node) == 3


def test_every_hop_is_on_the_task_s_own_metric_and_tells_changed_pixels(
    project: Path, exported: dict[str, Any]
) -> None:
    hops = {one["name"]: one for one in exported["findings"]["hops"]}
    assert list(hops) == [
        "best single → soup", "soup → recalibrated", "recalibrated → ONNX", "ONNX → simplified", "simplified → FP16",
    ]  # fmt: skip
    pixels = sum(int((tensors(mask)[1] != IGNORED).sum()) for mask in sorted_masks(project / "val"))
    value = read_build(project / "soup-out").record.winner.val
    assert [hops[name]["after"] for name in hops][1:3] == [value, value]
    for name, one in hops.items():
        assert f" of {pixels:,} pixels have another class" in one["moved"], name
        assert set(one["figures"]) == {"changed", "worst", "worst_image"}
    moved = hops["soup → recalibrated"]["figures"]
    assert 0 < moved["changed"] <= moved["worst"] < 1
    assert hops["best single → soup"]["worst_class"]["name"] in CLASSES


def test_fp16_ships_and_every_class_is_held_to_its_floor(exported: dict[str, Any]) -> None:
    outcomes = {one["precision"]: one["outcome"] for one in exported["findings"]["attempts"]}
    assert outcomes == {"fp16": "ships", "fp32": "fallback"}
    (floor,) = (one for one in exported["findings"]["checks"] if one["kind"] == "per_class")
    assert floor["verdict"] == "pass"
    assert "in each of 3 classes; the worst is class '" in floor["message"]


def test_golden_samples_carry_masks_with_what_is_ignored(project: Path, exported: dict[str, Any]) -> None:
    golden = load_file(project / "soup-out/release/golden.safetensors")
    masks = np.stack([tensors(mask)[1].numpy() for mask in sorted_masks(project / "val")])
    assert golden["target.mask"].dtype == np.uint8
    assert (golden["target.mask"] == masks).all()
    assert golden["output.torch.output"].shape == (16, 3, 24, 32)


def test_verify_needs_no_torch_and_finds_the_metric_of_val_again(project: Path, release: Path) -> None:
    code = WITHOUT_TORCH.replace("RELEASE", repr(str(release)))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    value = f"{(read_build(project / 'soup-out').record.winner.val or 0) * 100:.2f} %"
    assert f"miou on the golden samples: torch {value}, model.onnx {value}, model.fp16.onnx " in done.stdout
    assert "model.onnx, torch at export → ONNX here: largest difference" in done.stdout


def test_verify_judges_masks_again_where_the_golden_samples_are_all_of_val(release: Path) -> None:
    checks = document("verify", release)["findings"]["checks"]
    again = {(one["name"], one["kind"]): one for one in checks if one["hop"].startswith("best single → ")}
    assert {kind for _, kind in again} == {"accuracy", "per_class"}
    assert all(one["verdict"] == "pass" for one in again.values())


def test_verify_of_another_graph_fails_on_outputs_and_on_metric(release: Path) -> None:
    graph = onnx.load(release / "model.onnx")
    bias = next(one for one in graph.graph.initializer if one.name.endswith("classes.bias"))
    values = onnx.numpy_helper.to_array(bias) + np.array([0, 0, -30], np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(graph, release / "model.onnx")
    assert "model.onnx, files: 'model.onnx' has SHA-256 " in run("verify", release, code=1)  # and is not opened
    facts = json.loads(json.dumps(dict(read_manifest(release).facts)))
    for one in (*facts["artifacts"], *facts["build"]["candidates"]):
        one["sha256"] = sha256_file(release / one["file"])
    (release / "manifest.json").unlink()
    seal(release, facts)
    found = document("verify", release, code=1)
    failed = {(one["name"], one["kind"]) for one in found["findings"]["checks"] if one["verdict"] == "fail"}
    assert failed == {("model.onnx", kind) for kind in ("outputs", "accuracy", "per_class")}
    values = found["golden_values"]
    assert values["model.onnx"] < values["torch"] - 0.2


def test_a_class_that_pays_for_the_mean_fails_its_floor(project: Path, exported: dict[str, Any], lame: Path) -> None:
    told = document(
        "export", lame, "--baseline", project / "soup-out/release", "--precision", "fp32",
        "--gate", "per_class_drop={max_drop: 0.05, against: baseline, min_images: 5}",
        "--gate", "accuracy=null", code=3,
    )  # fmt: skip
    (floor,) = (one for one in told["findings"]["checks"] if one["kind"] == "per_class")
    assert floor["verdict"] == "fail"
    assert floor["message"].startswith("class 'disc' (16 images) −")
    assert "the drop is beyond the limit of 5.00 points (Bonferroni over 3 classes)" in floor["message"]


def test_views_are_averaged_pixel_by_pixel_once_they_are_taken_back(project: Path, tmp_path: Path) -> None:
    views = ("explain.views=[flip, 1.5]", "search.methods=[uniform, ranked]", "search.budget={evaluations: 6}")
    explanation = built(project, tmp_path / "out", *views).record.explanation
    assert explanation is not None
    (found,) = (one for one in explanation.references if "views" in one.label)
    network = plain(load_tensors(tmp_path / "out/soup.safetensors"))
    images, masks = (torch.stack(parts) for parts in zip(*map(tensors, sorted_masks(project / "val")), strict=True))
    larger = interpolate(network(interpolate(images, (36, 48), mode="bilinear")), (24, 32), mode="bilinear")
    answers = [network(images), network(images.flip(-1)).flip(-1), larger]
    mean = torch.stack([one.double().softmax(1) for one in answers]).mean(0)
    assert found.value == pytest.approx(miou(masks.numpy(), mean.argmax(1).numpy()), abs=1e-4)
    assert found.cost == 1 + 1 + 1.5**2


@pytest.mark.parametrize("score_at", ["image", "input"])
def test_masks_of_letterboxed_images_are_compared_at_the_image_or_at_the_input(
    project: Path, tmp_path: Path, score_at: str
) -> None:
    folder = Path(shutil.copytree(project, tmp_path / "mixed", ignore=shutil.ignore_patterns("soup-out", "lame")))
    write_scenes(folder / "val", 5, seed=9, size=(20, 27), first=16)
    write_val(
        folder,
        checkpoints={"files": ["runs/epoch-13.pt"]},
        data={"val": "val"},
        preprocess={"letterbox": {"size": [30, 44], "pad": 114}, "mean": [0.45], "std": [0.25]},
        search={"methods": ["uniform"], "bn_policy": "averaged"},
    )
    found = built(folder, tmp_path / "out", f"segmentation.score_at={score_at}").record.winner.val
    network = plain(torch.load(folder / "runs/epoch-13.pt")["model"])
    by_hand = [at_image if score_at == "image" else at_input][0]
    pairs = [by_hand(network, mask) for mask in sorted_masks(folder / "val")]
    truth, predicted = (np.concatenate([one.reshape(-1) for one in parts]) for parts in zip(*pairs, strict=True))
    assert found == pytest.approx(miou(truth, predicted), abs=2e-4)  # a near tie or two of 12,000 pixels


def boxed(mask: Path) -> tuple[Image.Image, Image.Image, tuple[int, int, int, int]]:
    """The image on its canvas of 30×44, its mask on one of ignored pixels, and (left, top, width, height)."""
    with Image.open(mask.parents[1] / "images" / mask.name) as image, Image.open(mask) as truth:
        scale = min(30 / image.height, 44 / image.width)
        width, height = round(image.width * scale), round(image.height * scale)
        left, top = (44 - width) // 2, (30 - height) // 2
        canvas, around = Image.new("RGB", (44, 30), (114, 114, 114)), Image.new("L", (44, 30), IGNORED)
        canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (left, top))
        around.paste(truth.resize((width, height), Image.Resampling.NEAREST), (left, top))
        return canvas, around, (left, top, width, height)


def logits_of(network: Callable[[torch.Tensor], torch.Tensor], canvas: Image.Image) -> torch.Tensor:
    """float32 [1, 3, 30, 44]."""
    return network(torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float().div(255).sub(0.45).div(0.25)[None])


def at_input(network: Callable[[torch.Tensor], torch.Tensor], mask: Path) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction at the size that the network takes."""
    canvas, around, _ = boxed(mask)
    return np.array(around), logits_of(network, canvas)[0].argmax(0).numpy()


def at_image(network: Callable[[torch.Tensor], torch.Tensor], mask: Path) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction on the image's own pixels: logits sampled where their centres lie on the canvas."""
    canvas, _, (left, top, width, height) = boxed(mask)
    with Image.open(mask) as image:
        truth = np.array(image)
    rows = (np.arange(truth.shape[0]) + 0.5) * height / truth.shape[0] + top
    columns = (np.arange(truth.shape[1]) + 0.5) * width / truth.shape[1] + left
    grid = np.stack(np.meshgrid(columns / 44 * 2 - 1, rows / 30 * 2 - 1), axis=-1)
    sampled = grid_sample(
        logits_of(network, canvas), torch.from_numpy(grid).float()[None], "bilinear", "border", align_corners=False
    )
    return truth, sampled[0].argmax(0).numpy()
