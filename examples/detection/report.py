"""The example's own page, of a build and its release: the figures, and best single, soup and ONNX beside the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pictures import with_boxes, with_masks

from exporters.runtimes import Predict, open_onnx
from soup.checkpoint import load_state, read_checkpoint
from soup.config import Config, load_config
from soup.models import load, torch_predict
from soup.network import network_of
from soup.report import to_html
from soup.tasks.suppression import Suppression, suppress

SHOWN = 0.3  # boxes of a lower score are not drawn


def write_detection(
    out: Path, images: np.ndarray, truth: list[tuple[np.ndarray, np.ndarray]], *, classes: list[str]
) -> str:
    """Write `out`/report.html with the boxes of images uint8 (n, h, w, 3), and give back its summary."""
    config, build = _opened(out)
    rules = Suppression(**config.detection.suppression.model_dump())
    columns: dict[str, list] = {"truth": [(boxes, labels, None) for boxes, labels in truth]}
    for name, outputs in _outputs(config, build, images).items():
        boxes, scores = list(outputs.values())[:2]
        found = [suppress(b, s, rules) for b, s in zip(boxes, scores, strict=True)]
        shown = [one.scores > SHOWN for one in found]
        columns[name] = [
            (one.boxes[kept], one.labels[kept], one.scores[kept]) for one, kept in zip(found, shown, strict=True)
        ]
    return _page(out, build, with_boxes(images, columns, classes=classes))


def write_segmentation(out: Path, images: np.ndarray, truth: np.ndarray) -> str:
    """Write `out`/report.html with the masks of images uint8 (n, h, w, 3), and give back its summary."""
    config, build = _opened(out)
    columns = {"truth": list(truth)}
    for name, outputs in _outputs(config, build, images).items():
        logits = next(iter(outputs.values()))
        columns[name] = list((logits.argmax(1) if logits.ndim == 4 else logits).astype(np.uint8))
    return _page(out, build, with_masks(images, columns, ignored=config.segmentation.ignore_index))


def _opened(out: Path) -> tuple[Config, dict]:
    return load_config(out / "val.yaml"), json.loads((out / "soup" / "build.json").read_text())


def _outputs(config: Config, build: dict, images: np.ndarray) -> dict[str, Mapping[str, np.ndarray]]:
    """What best single, soup and ONNX answer to the images."""
    assert config.preprocess is not None
    mean, std = (np.array(values, np.float32) for values in (config.preprocess.mean, config.preprocess.std))
    inputs = np.ascontiguousarray(((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))
    (best,) = build["best_single"]["weights"]
    path = next(item["path"] for item in build["ingredients"] if item["sha256"] == best)
    answers = {
        "best single": _network(config, config.folder / path)({"input": inputs}),
        "soup": _network(config, config.folder / "soup" / "soup.safetensors")({"input": inputs}),
    }
    with open_onnx(config.folder / "soup" / "release" / "model.onnx") as runtime:
        name = runtime.inputs[0].name
        parts = [runtime({name: inputs[row : row + 1]}) for row in range(len(inputs))]
    return answers | {"ONNX": {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}}


def _network(config: Config, path: Path) -> Predict:
    model = network_of(config)
    load(model, load_state(read_checkpoint(path)))
    return torch_predict(model, device=torch.device("cpu"))


def _page(out: Path, build: dict, picture: bytes) -> str:
    split, percent = build["judged_on"], 100 if build["metric_unit"] == "%" else 1
    name = {"map": "mAP", "miou": "mIoU"}.get(build["metric"], build["metric"])
    rows = [f"| {title} | {build[key][split] * percent:.2f} |" for title, key in
            (("best single", "best_single"), ("soup", "winner"))]  # fmt: skip
    told = build["comparison"]
    low, estimate, high = (told[key] * percent for key in ("low", "estimate", "high"))
    verdict = (
        f"Soup less best single on the {told['n']:,} images of {split}: {estimate:+.2f} points "
        f"({told['confidence']:.0%} interval {low:+.2f} to {high:+.2f}, {told['method']}): **{told['verdict']}**."
    )
    if told["verdict"] != "better":
        verdict += " The soup is not shown to help here."
    lines = [f"# {out.name}", f"| model | {name} on {split} |\n| --- | ---: |\n" + "\n".join(rows), verdict]
    lines += ["Details: [build](soup/report.html), [release](soup/release/report.html).", "![pictures](pictures.svg)"]
    (out / "pictures.svg").write_bytes(picture)
    text = "\n\n".join(lines)
    (out / "report.html").write_text(to_html(text, title=out.name, images={"pictures.svg": picture}))
    return f"{rows[0]}\n{rows[1]}\n{verdict}"
