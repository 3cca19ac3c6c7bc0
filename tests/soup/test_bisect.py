"""`soup verify --bisect` names the layer that departs, by an error that plain numpy computes alike."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import load_file

from soup import SoupError, tensor_errors
from soup.bisect import BisectResult, LayerError, bisect, layer_lines
from soup.files import array_entry, write_safetensors
from soup.gates import Exit
from soup.manifest import read_manifest, seal


def resealed(folder: Path, **changes: object) -> Path:
    facts = json.loads(json.dumps(dict(read_manifest(folder).facts))) | changes
    (folder / "manifest.json").unlink()
    seal(folder, facts)
    return folder


def changed(path: Path, out: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    out.write_bytes(model.SerializeToString())
    return out


def edit_weight(model: onnx.ModelProto, node: onnx.NodeProto, edit: Callable[[np.ndarray], None]) -> None:
    """Change the node's weight, its second input, in place."""
    tensor = next(one for one in model.graph.initializer if one.name == node.input[1])
    array = numpy_helper.to_array(tensor).copy()
    edit(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def nodes(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == op]


def half(path: Path, out: Path) -> Path:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    out.write_bytes(convert_float_to_float16(onnx.load(path), keep_io_types=True).SerializeToString())
    return out


@pytest.fixture
def copy(released: Path, tmp_path: Path) -> Path:
    """A release to be changed."""
    return Path(shutil.copytree(released, tmp_path / "release"))


def inner(path: Path, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Every inner tensor by the onnx package's own outputs, one sample at a time: the oracle."""
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output]
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = [dict(zip(names, session.run(names, {"input": one[None]}), strict=True)) for one in inputs]
    return {name: np.concatenate([row[name] for row in rows]) for name in names}


@pytest.mark.parametrize("which", [0, 1])
def test_the_layer_with_one_changed_weight_is_named(released: Path, tmp_path: Path, which: int) -> None:
    def change(model: onnx.ModelProto) -> None:
        edit_weight(
            model, nodes(model, "Conv")[which], lambda array: array.__setitem__((3, 0, 1, 1), array[3, 0, 1, 1] + 0.5)
        )

    other = changed(released / "model.onnx", tmp_path / "other.onnx", change)
    expected = nodes(onnx.load(other), "Conv")[which]
    result = bisect(released, onnx=other)
    assert result.exit_code == Exit.CHECK
    assert result.first is not None
    assert (result.first.name, result.first.op) == (expected.name, "Conv")
    assert result.largest_jump == result.first
    assert [one.error for one in result.layers[: result.layers.index(result.first)]] == [0.0] * (
        result.layers.index(result.first)
    )
    assert f"first to depart, beyond 0.001: Conv '{expected.name}'" in "\n".join(layer_lines(result))


def test_errors_and_jumps_are_those_of_plain_numpy(released: Path, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        edit_weight(model, nodes(model, "Conv")[0], lambda array: np.multiply(array, 1.01, out=array))

    other = changed(released / "model.onnx", tmp_path / "other.onnx", change)
    inputs = load_file(released / "golden.safetensors")["input.input"]
    ours, theirs = inner(released / "model.onnx", inputs), inner(other, inputs)
    result = bisect(released, onnx=other, threshold=0.5)
    assert result.exit_code == Exit.OK
    assert (result.first, result.threshold, result.samples) == (None, 0.5, 64)
    assert [one.tensor for one in result.layers] == [name for name in ours if ours[name].dtype == np.float32]
    before = 0.0
    for one in result.layers:  # the graph is a chain
        a, b = ours[one.tensor].astype(np.float64), theirs[one.tensor].astype(np.float64)
        error = np.sqrt(((a - b) ** 2).sum() / (a**2).sum())
        assert one.error == pytest.approx(error, rel=1e-4)
        assert one.jump == pytest.approx(error - before, abs=1e-5)
        before = error


def test_an_fp16_variant_that_overflows_in_one_layer_is_named_there(copy: Path) -> None:
    """The FP32 graph goes beyond 65,504 in one tensor and comes back: in FP16 that is infinite."""

    def change(model: onnx.ModelProto) -> None:
        first, second = nodes(model, "Conv")
        edit_weight(model, first, lambda array: np.multiply(array, 2e5, out=array))
        edit_weight(model, second, lambda array: np.multiply(array, 5e-6, out=array))

    changed(copy / "model.onnx", copy / "model.onnx", change)
    overflows = nodes(onnx.load(copy / "model.onnx"), "Conv")[0].name
    half(copy / "model.onnx", copy / "model.fp16.onnx")
    artifacts = [
        {"file": "model.onnx", "kind": "onnx", "sha256": "0" * 64, "batch": 1},
        {"file": "model.fp16.onnx", "kind": "onnx", "sha256": "0" * 64, "batch": 1, "precision": "fp16"},
    ]
    result = bisect(resealed(copy, artifacts=artifacts))
    assert (result.reference, result.examined, result.threshold) == ("model.onnx", "model.fp16.onnx", 2e-2)
    assert result.first is not None
    assert (result.first.name, result.first.error, result.largest_jump) == (overflows, None, result.first)
    text = "\n".join(layer_lines(result))
    assert f"Conv '{overflows}' (tensor '{result.first.tensor}'), error not finite" in text


def test_a_sound_fp16_variant_departs_nowhere(released: Path, tmp_path: Path) -> None:
    result = bisect(released, onnx=half(released / "model.onnx", tmp_path / "half.onnx"))
    assert (result.exit_code, result.first, result.threshold) == (Exit.OK, None, 2e-2)
    assert result.largest_jump is not None
    assert result.largest_jump.error is not None
    assert 0 < result.largest_jump.error < 2e-2


def test_the_variant_that_ships_is_looked_into_before_one_that_only_waits(copy: Path) -> None:
    for name in ("fp16", "int8"):
        shutil.copy(copy / "model.onnx", copy / f"model.{name}.onnx")
    artifacts: list[dict[str, Any]] = [
        {"file": f"model{part}.onnx", "kind": "onnx", "sha256": "0" * 64, "batch": 1} for part in ("", ".fp16", ".int8")
    ]
    attempt = {"precision": "int8", "file": "model.int8.onnx", "outcome": "ships", "reason": "passes"}
    waiting = {**attempt, "precision": "fp16", "file": "model.fp16.onnx", "outcome": "fallback"}
    resealed(copy, artifacts=artifacts, precision=[waiting, attempt])
    assert bisect(copy).examined == "model.int8.onnx"
    assert bisect(copy, onnx=Path("model.fp16.onnx")).examined == "model.fp16.onnx"
    assert bisect(copy, against=Path("model.int8.onnx")).reference == "model.int8.onnx"
    resealed(copy, precision=[])
    assert bisect(copy).examined == "model.fp16.onnx"


def test_a_release_of_one_graph_is_compared_with_its_own_recorded_outputs(copy: Path) -> None:
    result = bisect(copy)
    assert (result.exit_code, len(result.layers)) == (Exit.OK, 1)
    assert "only outputs were recorded at export" in result.notes[0]
    golden = load_file(copy / "golden.safetensors")
    golden["output.model.onnx.output"] = golden["output.model.onnx.output"] * 1.01
    write_safetensors(copy / "golden.safetensors", {name: array_entry(array) for name, array in golden.items()})
    moved = bisect(resealed(copy))
    assert moved.exit_code == Exit.CHECK
    assert moved.first is not None
    assert (moved.first.op, moved.first.error) == ("Gemm", pytest.approx(0.01 / 1.01, rel=1e-3))


def test_taps_in_small_chunks_give_what_all_at_once_give(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = half(released / "model.onnx", tmp_path / "half.onnx")
    whole = bisect(released, onnx=other)
    seen: list[int] = []
    real = tensor_errors.tapped

    def counting(model: bytes, names: list[str], *rest: Any, **options: Any) -> Any:
        seen.append(len(names))
        return real(model, names, *rest, **options)

    monkeypatch.setattr(tensor_errors, "tapped", counting)
    monkeypatch.setattr(tensor_errors, "_BUDGET_BYTES", 1)
    few = bisect(released, onnx=other)
    assert [one.tensor for one in few.layers] == [one.tensor for one in whole.layers]
    for one, before in zip(few.layers, whole.layers, strict=True):  # ONNX Runtime fuses what is not tapped
        assert one.error == pytest.approx(before.error, rel=0.3)
    assert seen == [1, 1] * len(whole.layers)


def test_the_budget_holds_the_tensors_of_both_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_errors, "_BUDGET_BYTES", 100)
    chunks = list(tensor_errors._chunks({"a": 20, "b": 30, "c": 1, "d": 90, "e": 10, "f": 40}))
    assert chunks == [["a", "b"], ["c"], ["d"], ["e", "f"]]


@pytest.mark.parametrize("batch", ["batch", 1])
def test_a_dynamic_batch_and_a_number_of_samples_that_it_does_not_divide_are_all_counted(
    copy: Path, tmp_path: Path, batch: str | int
) -> None:
    def free(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            axis = value.type.tensor_type.shape.dim[0]
            if isinstance(batch, str):
                axis.dim_param = batch
        for node in nodes(model, "Reshape"):
            edit_weight(model, node, lambda array: array.__setitem__(0, -1 if isinstance(batch, str) else 1))
        del model.graph.value_info[:]

    def shifted(model: onnx.ModelProto) -> None:
        (gemm,) = nodes(model, "Gemm")
        bias = next(one for one in model.graph.initializer if one.name == gemm.input[2])
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))

    ours = changed(copy / "model.onnx", tmp_path / "a.onnx", free)
    theirs = changed(ours, tmp_path / "b.onnx", shifted)
    golden = load_file(copy / "golden.safetensors")
    golden["input.input"][12] *= 50  # the last of them alone decides the scale
    fewer = {name: array_entry(np.ascontiguousarray(array[:13])) for name, array in golden.items()}
    write_safetensors(copy / "golden.safetensors", fewer)
    result = bisect(resealed(copy), onnx=theirs, against=ours)
    answers = inner(copy / "model.onnx", golden["input.input"][:13])["output"].astype(np.float64)
    assert result.samples == 13
    assert result.first is not None
    assert (result.first.op, result.first.error) == (
        "Gemm", pytest.approx(math.sqrt(answers.size) / np.linalg.norm(answers), rel=1e-4),
    )  # fmt: skip


def test_it_works_without_torch_and_onnx_on_a_folder_that_is_only_read(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = half(copy / "model.onnx", tmp_path / "half.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    before = {path: path.stat().st_mtime_ns for path in (copy, *copy.iterdir())}
    copy.chmod(0o555)
    try:
        assert bisect(copy, onnx=other).exit_code == Exit.OK
    finally:
        copy.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in (copy, *copy.iterdir())} == before


def test_files_that_do_not_belong_together_are_one_sentence(released: Path, copy: Path, tmp_path: Path) -> None:
    def renamed(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                for at, name in enumerate(names):
                    if name and name != "input" and name not in {one.name for one in model.graph.initializer}:
                        names[at] = f"x_{name}"
        model.graph.output[0].name = f"x_{model.graph.output[0].name}"

    def wider(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    def two_inputs(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info("more", 1, [1]))

    stranger = changed(released / "model.onnx", tmp_path / "stranger.onnx", renamed)
    with pytest.raises(SoupError, match=r"stranger\.onnx: has no tensor of model\.onnx's by name"):
        bisect(released, onnx=stranger)
    with pytest.raises(SoupError, match=r"takes 2 samples a call, model\.onnx takes 1"):
        bisect(released, onnx=changed(released / "model.onnx", tmp_path / "two.onnx", wider))
    with pytest.raises(SoupError, match="takes 2 inputs, the golden samples have 1"):
        bisect(released, onnx=changed(released / "model.onnx", tmp_path / "inputs.onnx", two_inputs))
    with pytest.raises(SoupError, match=r"absent\.onnx: cannot be read: No such file"):
        bisect(released, onnx=tmp_path / "absent.onnx")
    (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes() + b"\0")
    with pytest.raises(SoupError, match=r"model\.onnx: is not as it was sealed\. Run: soup verify"):
        bisect(copy)


LAYERS = (
    LayerError("conv", "Conv", "x", 1e-4, 1e-4),
    LayerError("", "Softmax", "y", None, None, "has shape (1, 2), expected (1, 3)"),
    LayerError("fc", "Gemm", "z", 0.5, 0.4),
)


def test_the_table_reads_as_meant() -> None:
    result = BisectResult(
        "model.onnx", "b.onnx", 64, "the measure", 1e-3, LAYERS, LAYERS[1], LAYERS[1], 2, (), Exit.CHECK
    )
    assert list(layer_lines(result)) == [
        "b.onnx against model.onnx on 64 golden samples, layer by layer",
        "       error        jump  op: layer",
        "    1.00e-04    1.00e-04  Conv: conv",
        "  not finite  not finite  Softmax: y (has shape (1, 2), expected (1, 3))  <- first to depart",
        "    5.00e-01    4.00e-01  Gemm: fc",
        "error: the measure",
        "first to depart, beyond 0.001: Softmax '' (tensor 'y'), error not finite, jump not finite"
        ", 2 tensors not in both",
        "largest jump: Softmax '' (tensor 'y'), error not finite, jump not finite",
    ]
    assert list(layer_lines(replace(result, first=None)))[-1] == (
        "no layer is beyond 0.001 (3 compared, 2 tensors not in both)"
    )


def test_a_dead_tensor_and_a_broken_one_have_an_error_that_no_threshold_mistakes() -> None:
    one = tensor_errors.Distance()
    one.add(np.zeros(4, np.float32), np.zeros(4, np.float32))
    assert one.error == 0.0
    one.add(np.zeros(4, np.float32), np.full(4, 1e-9, np.float32))
    assert one.error == pytest.approx(math.sqrt(4 * 1e-18) / (1e-6 * math.sqrt(8)))
    for bad in (np.nan, np.inf):
        broken = tensor_errors.Distance()
        broken.add(np.ones(4, np.float16), np.array([1, 1, bad, 1], np.float16))
        assert math.isnan(broken.error)
    shaped = tensor_errors.Distance()
    shaped.add(np.ones((1, 4), np.float32), np.ones((4, 1), np.float32))
    assert (shaped.note, math.isnan(shaped.error)) == ("has shape (4, 1), expected (1, 4)", True)
