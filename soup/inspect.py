"""What a file is, without running it: ONNX, engine, release, build or checkpoint. torch only for checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from exporters.onnx_facts import inspect_onnx
from exporters.onnx_to_tensorrt import find_builder
from exporters.plan import inspect_engine, preflight
from soup import SoupError
from soup.build_folder import BUILD, read_build
from soup.golden import GOLDEN, read_golden
from soup.manifest import FILE_NAME, read_manifest


@dataclass(frozen=True, slots=True)
class Inspection:
    """What kind of file it is, and its facts by name."""

    path: str
    kind: str
    facts: Mapping[str, JsonValue]


def inspect(path: Path) -> Inspection:
    """Look into a file or folder. Raises SoupError or ExportError for what cannot be read as any known kind."""
    kind, facts = _facts(path)
    return Inspection(str(path), kind, TypeAdapter(dict[str, object]).dump_python(dict(facts), mode="json"))


def _facts(path: Path) -> tuple[str, Mapping[str, object]]:
    if not path.exists():
        raise SoupError(f"{path}: no such file or folder.")
    if (path / FILE_NAME).is_file():
        manifest = read_manifest(path)
        files = {name: listed.size_bytes for name, listed in manifest.files.items()}
        keys = ("created", "metric", "recipe_sha256", "artifacts", "verified", "gates", "exit_code")
        return "release", {"digest": manifest.self_sha256, "files": files} | {k: manifest.facts.get(k) for k in keys}
    if (path / BUILD).is_file():
        record = read_build(path).record
        return "build", {"winner": asdict(record.winner), "best_single": asdict(record.best_single),
                         "comparison": asdict(record.comparison), "ingredients": len(record.ingredients)}  # fmt: skip
    if path.suffix == ".onnx":
        return "onnx", asdict(inspect_onnx(path))
    if path.suffix in (".engine", ".plan"):
        return "engine", _engine_facts(path)
    if path.name == GOLDEN:
        return "golden samples", _golden_facts(path)
    if path.suffix == ".json":
        return "record", _json_facts(path)
    return "checkpoint", _checkpoint_facts(path)


def _engine_facts(path: Path) -> dict[str, object]:
    """Its header, read without TensorRT, and why it could not run with what is here; nothing here is no reason."""
    facts, builder = inspect_engine(path), find_builder()
    reasons = preflight(
        facts,
        flavour=builder.flavour if builder else None,
        version=builder.version if builder else None,
        compute_capability=builder.gpu.compute_capability if builder and builder.gpu else None,
    )
    return {**asdict(facts), "cannot_run_here": list(reasons)}


def _json_facts(path: Path) -> dict[str, object]:
    """The top level of recipe.json, report.json and their like: values as they are, of lists and objects how many."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SoupError(f"{path}: cannot be read as JSON: {error}. Fetch it again.") from error
    fields = document if isinstance(document, dict) else {"top level": document}
    return {name: f"{len(one)} entries" if isinstance(one, dict | list) else one for name, one in fields.items()}


def _golden_facts(path: Path) -> dict[str, object]:
    golden = read_golden(path)
    return {
        "samples": len(golden),
        "inputs": {name: f"{array.dtype.name} {list(array.shape)}" for name, array in golden.inputs.items()},
        "targets": sorted(golden.targets),
        "answers": sorted(golden.outputs),
    }


def _checkpoint_facts(path: Path) -> dict[str, object]:
    try:
        from soup.checkpoint import read_checkpoint
    except ImportError as error:
        raise SoupError(
            f"{path}: reading a checkpoint needs torch. pip install 'edgesoup[build]'", kind="environment"
        ) from error
    checkpoint = read_checkpoint(path)
    sizes = {str(spec.dtype).removeprefix("torch."): 0 for spec in checkpoint.tensors.values()}
    for spec in checkpoint.tensors.values():
        sizes[str(spec.dtype).removeprefix("torch.")] += spec.size_bytes
    return {
        "sha256": checkpoint.sha256,
        "container": checkpoint.container,
        "weights": checkpoint.weights,
        "tensors": len(checkpoint.tensors),
        "bytes_by_dtype": sizes,
        "recorded": dict(checkpoint.recorded),
        "notes": list(checkpoint.notes),
        "shapes": {name: list(spec.shape) for name, spec in checkpoint.tensors.items()},
    }
