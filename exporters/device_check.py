"""For a device where edgesoup does not run (JetPack 5): a shell script that builds and compares golden samples."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import numpy as np

from exporters import ExportError
from exporters.companions import Model, precision_flags, shape_flags
from exporters.device_check_script import SCRIPT
from exporters.runtimes import Arrays
from exporters.targets import Target

NAME = "check_device.sh"
SUMS = "check_device.sha256"
FOLDER = "golden"
# What passes through trtexec's lists, awk and the shell as it is.
_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")


def device_check_files(
    golden_inputs: Arrays,
    golden_outputs: Arrays,
    *,
    model: Model,
    onnx_sha256: str,
    tolerance: float,
    target: Target,
) -> Mapping[str, bytes]:
    """check_device.sh and what it needs, by name relative to the folder that also holds `model.onnx`.

    Arrays are [samples, ...], in the model's order; the outputs are the reference. Samples go to the device in batches
    as the graph takes them (a dynamic one: its first profile's best); the last is filled up by its last sample, which
    is then not compared twice. An output passes within tolerance · max(1, its largest magnitude), as parity does.
    Inputs are raw bytes as trtexec loads them; expected outputs are text, a value a line, for awk to read.

    Raises:
        ExportError: "input" for no samples, arrays that do not fit the model, values that are not finite, or names
            that cannot be given to trtexec.
    """
    _check(golden_inputs, golden_outputs, model)
    count, batch = len(next(iter(golden_inputs.values()))), _batch(model)
    starts = range(0, count, batch)
    files: dict[str, bytes] = {}
    for run, start in enumerate(starts):
        picked = np.minimum(np.arange(start, start + batch), count - 1)
        for index, tensor in enumerate(model.inputs):
            array = np.ascontiguousarray(golden_inputs[tensor.name][picked].astype(_bound_dtype(tensor.dtype, target)))
            files[f"{FOLDER}/{run:04d}.in{index}.bin"] = array.tobytes()
        for index, tensor in enumerate(model.outputs):
            expected = golden_outputs[tensor.name][start : start + batch]
            files[f"{FOLDER}/{run:04d}.out{index}.txt"] = _text(expected)
    hashes = {model.onnx: onnx_sha256, **{name: hashlib.sha256(content).hexdigest() for name, content in files.items()}}
    sums = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    script = _script(
        model, golden_outputs, onnx_sha256=onnx_sha256, tolerance=tolerance, target=target, runs=len(starts)
    )
    return {NAME: script.encode(), SUMS: sums.encode(), **files}


def _script(model: Model, outputs: Arrays, *, onnx_sha256: str, tolerance: float, target: Target, runs: int) -> str:
    """The script with this release's facts in its first lines."""
    loads = ",".join(f"{tensor.name}:{FOLDER}/$run.in{index}.bin" for index, tensor in enumerate(model.inputs))
    compare = "\n".join(
        f'    compare "$run" {index} {tensor.name} {_limit(outputs[tensor.name], tolerance):.9g} {total} || failed=1'
        for index, tensor in enumerate(model.outputs)
        for total in (_values(outputs[tensor.name], _batch(model)),)
    )
    build_only = "--skipInference" if target.version >= (8, 6) else "--buildOnly"
    facts = {
        "@ONNX@": model.onnx,
        "@ONNX_SHA256@": onnx_sha256,
        "@TARGET@": target.name,
        "@TENSORRT@": target.tensorrt,
        "@SUMS@": SUMS,
        "@RUNS@": " ".join(f"{run:04d}" for run in range(runs)),
        "@BUILD_FLAGS@": " ".join((*precision_flags(model, target), *shape_flags(model, target)[:-1], build_only)),
        "@RUN_FLAGS@": " ".join(shape_flags(model, target)[-1:]),
        "@LOADS@": loads,
        "@COMPARE@": compare,
    }
    script = SCRIPT
    for place, fact in facts.items():
        script = script.replace(place, fact)
    return script


def _check(inputs: Arrays, outputs: Arrays, model: Model) -> None:
    arrays = {one.name: inputs.get(one.name) for one in model.inputs} | {
        one.name: outputs.get(one.name) for one in model.outputs
    }
    missing = [name for name, array in arrays.items() if array is None]
    if missing:
        raise ExportError(f"check_device: no golden samples of {missing}. Export the release again.", kind="input")
    lengths = {name: len(array) for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ExportError(
            f"check_device: golden samples differ in number, {lengths}, expected at least one each.", kind="input"
        )
    for name in (*arrays, model.onnx):
        if not _PLAIN.fullmatch(name):
            raise ExportError(
                f"check_device: '{name}' cannot be given to trtexec in a shell, expected letters, digits and _ . / - "
                "only. Rename it (export.inputs, export.outputs).",
                kind="input",
            )
    for one in model.outputs:
        if not np.isfinite(outputs[one.name].astype(np.float64)).all():
            raise ExportError(f"check_device: golden output '{one.name}' holds NaN or Inf.", kind="input")


def _batch(model: Model) -> int:
    first = model.inputs[0].shape[0] if model.inputs[0].shape else 1
    return first if isinstance(first, int) else model.profiles[0][1]


def _values(output: np.ndarray, batch: int) -> int:
    """How many values a whole batch of that output has."""
    return output.size // len(output) * batch


def _bound_dtype(dtype: str, target: Target) -> str:
    """The dtype that the engine's input takes: before TensorRT 9 an int64 of the graph is bound as int32."""
    return "int32" if dtype == "int64" and target.version < (9,) else dtype


def _limit(output: np.ndarray, tolerance: float) -> float:
    return tolerance * max(1.0, float(np.abs(output.astype(np.float64)).max(initial=0.0)))


def _text(array: np.ndarray) -> bytes:
    """Every value in C order, a line each, exact for float32."""
    return "".join(f"{value:.9g}\n" for value in array.ravel().astype(np.float64).tolist()).encode()
