"""A network of an export as ONNX, with what a reader of the file alone must know."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exporters.runtimes import Arrays
from exporters.torch_to_onnx import OnnxExport, torch_to_onnx
from soup.build_folder import RECIPE
from soup.export_source import Source
from soup.files import canonical_json, sha256_file

_EXAMPLES = 8  # samples that the exporter traces with, and compares a simplified graph on


def export_graph(source: Source, path: Path, *, opset: int) -> OnnxExport:
    """The source's model, after `export.prepare`, with the names and the batch that val.yaml asks for."""
    export, found = source.config.export, source.answers["val"].outputs or {}
    example = {name: array[np.arange(_EXAMPLES) % len(array)] for name, array in source.golden_inputs.items()}
    return torch_to_onnx(
        source.prepared(), example, path, inputs=export.inputs, outputs=export.outputs or _named(found),
        batch=source.batch, opset=opset, metadata=_metadata(source),
    )  # fmt: skip


def _named(outputs: Arrays) -> dict[str, str]:
    """A detector's boxes, scores and labels keep their names; whatever else has the exporter's own."""
    if list(outputs)[:2] != ["boxes", "scores"]:
        return {}
    return {name: "int64" if name == "labels" else "float32" for name in outputs}


def _metadata(source: Source) -> dict[str, str]:
    """What a reader of model.onnx alone must know: classes, preprocessing, and the recipe that it comes from."""
    preprocess = source.config.preprocess
    return {
        "soup.task": source.config.task,
        "soup.labels": canonical_json(source.val.class_names).decode(),
        "soup.preprocess": canonical_json(preprocess.facts if preprocess else None).decode(),
        "soup.recipe_sha256": sha256_file(source.built.path / RECIPE),
    }
