"""`soup verify --finish`: the device's own engine, the order of precisions, and a kit that is whole or not there."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from exporters import ExportError
from exporters.gpu import Gpu
from exporters.onnx_to_tensorrt import Builder, EngineBuild
from exporters.runtimes import Arrays, OnnxRuntime, RuntimeInfo
from soup import SoupError, kit, kit_build, proof
from soup.files import array_entry, write_safetensors
from soup.gates import Exit
from soup.kit import FinishResult, finish
from soup.kit_facts import KitFacts, device_id, kit_facts_of
from soup.manifest import read_manifest, seal, verify_files

ORIN = Gpu("NVIDIA Orin Nano", "8.7")
KIT = {"model.engine", "model.layers.json", "report.md", "report.html", "report.json", "junit.xml", "manifest.json"}
TYPES = {"fp32": {"Float": 7}, "fp16": {"Half": 6, "Float": 1}, "int8": {"Int8": 7}}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    """What is there, to the byte, the mode and the time."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_mode, sha256(path))
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def resealed(folder: Path, **changes: object) -> Path:
    """The release with other facts in its manifest, sealed anew."""
    facts = json.loads(json.dumps(dict(read_manifest(folder).facts))) | changes
    (folder / "manifest.json").unlink()
    seal(folder, facts)
    return folder


def packing(folder: Path, graphs: Mapping[str, bytes | None], **changes: object) -> Path:
    """The release with these graphs as candidates, by precision in their order; None is model.onnx itself."""
    candidates = []
    for precision, graph in graphs.items():
        name = "model.onnx" if graph is None else f"model.{precision}.onnx"
        if graph is not None:
            (folder / name).write_bytes(graph)
        candidates.append({"precision": precision, "file": name, "sha256": sha256(folder / name), "tolerance": 2e-2})
    return resealed(
        folder, **{"build": {"candidates": candidates, "batch": 1, "profiles": [], "settings": {}}, **changes}
    )


def facts_of(folder: Path) -> KitFacts:
    return kit_facts_of(read_manifest(folder), where=folder)


def half(path: Path) -> bytes:
    """The graph in FP16 by another library's converter."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return bytes(convert_float_to_float16(onnx.load(path), keep_io_types=True).SerializeToString())


def with_det(path: Path) -> bytes:
    """The same answers, times the determinant of the identity: ONNX Runtime has Det, TensorRT has not."""
    model = onnx.load(path)
    (output,) = model.graph.output
    last = model.graph.node[-1]
    last.output[0] = "before"
    identity = helper.make_tensor("identity", TensorProto.FLOAT, [2, 2], [1.0, 0.0, 0.0, 1.0])
    model.graph.initializer.append(identity)
    model.graph.node.append(helper.make_node("Det", ["identity"], ["det"], name="the_det"))
    model.graph.node.append(helper.make_node("Mul", ["before", "det"], [output.name], name="scaled"))
    return bytes(model.SerializeToString())


class StandIn(OnnxRuntime):
    """A GPU that answers as the ONNX file does, times `factor` plus `off`."""

    def __init__(self, model: bytes, *, factor: float, off: float, device: str) -> None:
        super().__init__(model, where="model.engine", batch=1)
        self.factor, self.off = factor, off
        self.info = RuntimeInfo("tensorrt", "10.3.0.26", "cuda-bindings", device)

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        return {name: array * self.factor + self.off for name, array in super().__call__(inputs).items()}


class Device:
    """A Jetson without a GPU library: builds write `plan` files, engines answer through ONNX Runtime."""

    def __init__(self) -> None:
        self.dtypes: dict[str, Mapping[str, int]] = dict(TYPES)
        self.refuses: dict[str, tuple[str, str]] = {}  # precision → message, kind
        self.off: dict[str, float] = {}
        self.breaks: set[str] = set()
        self.settings: list[Any] = []
        self.profiles: list[Any] = []
        self.model = b""
        self.layers = "{}"
        self.zero = False

    def build(self, onnx_path: Path, engine_path: Path, **options: Any) -> EngineBuild:
        precision = engine_path.parent.name
        self.settings.append(options["settings"])
        self.profiles.append(options["profiles"])
        options["progress"]("Building", 1, 2)
        if precision in self.refuses:
            message, kind = self.refuses[precision]
            raise ExportError(f"{onnx_path}: {message}", kind=kind)  # type: ignore[arg-type]
        engine_path.write_bytes(f"plan {precision}".encode())
        layers = engine_path.with_suffix(".layers.json")
        layers.write_text(self.layers)
        cache = options["settings"].timing_cache
        if cache is not None:
            cache.write_bytes(b"timed" + (cache.read_bytes() if cache.is_file() else b""))
        return EngineBuild(
            path=engine_path, layers_path=layers, flavour="tensorrt", version="10.3.0.26",
            compute_capabilities=("8.7",), seconds=2.5, peak_memory_bytes=7, size_bytes=engine_path.stat().st_size,
            sha256=sha256(engine_path), layers=7, dtypes=self.dtypes[precision], log_warnings=(),
            notes=(f"{engine_path}: built at level 3",),
        )  # fmt: skip

    def open(self, path: Path, *, expected_sha256: str, **_: object) -> StandIn:
        assert sha256(path) == expected_sha256
        precision = path.read_bytes().decode().split()[1]
        if precision in self.breaks:
            raise ExportError(f"{path}: the engine failed on a batch of 1")
        factor = 0.0 if self.zero else 1.0
        return StandIn(self.model, factor=factor, off=self.off.get(precision, 0.0), device=ORIN.name)


@pytest.fixture
def copy(released: Path, tmp_path: Path) -> Path:
    """A release to be changed."""
    return Path(shutil.copytree(released, tmp_path / "release"))


@pytest.fixture
def device(released: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A stand-in for the GPU and its libraries."""
    made = Device()
    made.model = (released / "model.onnx").read_bytes()
    builder = Builder("tensorrt", "10.3.0.26", ORIN)
    for module in (kit, kit_build):
        monkeypatch.setattr(module, "find_builder", lambda: builder)
    monkeypatch.setattr(kit, "find_gpu", lambda: ORIN)
    monkeypatch.setattr(kit_build, "onnx_to_tensorrt", made.build)
    monkeypatch.setattr(proof, "open_engine", made.open)
    return made


def verdicts(result: FinishResult) -> dict[str, str]:
    return {f"{check.name}, {check.hop}": check.verdict for check in result.findings.checks}


def outcomes(result: FinishResult) -> list[tuple[str, str]]:
    return [(one.precision, one.outcome) for one in result.tried]


def test_a_read_only_release_gets_an_engine_ahead_of_time_and_that_nobody_ran_it_is_recorded(
    copy: Path, tmp_path: Path, needs_rtx: None
) -> None:
    """Correctness 43, 46, 47."""
    before = snapshot(copy)
    for path in copy.iterdir():
        path.chmod(0o444)
    copy.chmod(0o555)
    try:
        result = finish(copy, tmp_path / "kits" / "here")
    finally:
        copy.chmod(0o755)
    assert {name: (at, sha) for name, (at, _, sha) in snapshot(copy).items()} == {
        name: (at, sha) for name, (at, _, sha) in before.items()
    }
    folder = tmp_path / "kits" / "here"
    assert result.exit_code == Exit.OK
    assert {path.name for path in folder.iterdir()} == set(result.files) == KIT
    assert all(check.verdict == "pass" for check in verify_files(folder))
    facts = facts_of(folder)
    assert facts.parent == read_manifest(copy).self_sha256
    assert (facts.onnx.file, facts.onnx.sha256) == ("model.onnx", sha256(copy / "model.onnx"))
    assert facts.engine.sha256 == sha256(folder / "model.engine")
    assert facts.machine.flavour == "tensorrt_rtx"
    assert facts.machine.gpu is None
    assert re.fullmatch(r"[a-z0-9.-]+-tensorrt-rtx-\d+\.\d+", facts.device)
    assert not facts.ran
    built, graph = facts.verified[-1], facts.verified[0]
    assert (built.artifact, built.proved[-1]) == ("model.engine", "not run")
    assert (graph.artifact, graph.runtime, graph.ran) == ("model.onnx", "onnxruntime", True)
    assert any("needs an NVIDIA GPU" in note for note in facts.notes)
    texts = [path.read_text(encoding="utf-8") for path in folder.iterdir() if path.suffix != ".engine"]
    assert not any(str(tmp_path) in text for text in texts)


def test_a_graph_that_tensorrt_cannot_take_is_told_with_its_node_and_the_next_one_ships(
    copy: Path, tmp_path: Path, needs_rtx: None
) -> None:
    packing(copy, {"int8": with_det(copy / "model.onnx"), "fp16": half(copy / "model.onnx"), "fp32": None})
    result = finish(copy, tmp_path / "kit", device="Orin Nano (lab 3)")
    assert outcomes(result) == [("int8", "failed"), ("fp16", "ships")]
    assert "the_det" in result.tried[0].reason
    assert str(tmp_path) not in result.tried[0].reason
    assert result.exit_code == Exit.OK
    assert set(verdicts(result).values()) == {"pass"}
    facts = facts_of(tmp_path / "kit")
    assert (facts.onnx.precision, facts.engine.precision, facts.device) == ("fp16", "fp16", "orin-nano-lab-3")
    assert [one.outcome for one in facts.tried] == ["failed", "ships"]
    layers = (tmp_path / "kit" / "model.layers.json").read_text()
    assert '"Half"' in layers
    assert sorted(path.name for path in (tmp_path / "kit").iterdir()) == sorted(KIT)


def test_an_engine_that_runs_here_is_proved_on_outputs_metric_and_latency(
    copy: Path, tmp_path: Path, device: Device
) -> None:
    gate = {"p99_ms": 60_000, "runtime": "tensorrt", "device": "orin-nano"}
    gates = {"accuracy": None, "gain": None, "latency": gate, "require": ["onnx", "engine", "device"]}
    result = finish(resealed(copy, gates=gates, precision=[]), tmp_path / "kit")
    assert result.exit_code == Exit.OK
    assert verdicts(result) == {
        "model.onnx, torch at export → ONNX here": "pass", "model.onnx, model.onnx at export → ONNX here": "pass",
        "engine, ONNX → engine": "pass", "model.engine, ONNX → engine": "pass",
        "model.engine, torch at export → engine here": "pass",
        "model.engine, model.onnx at export → engine here": "pass",
        "model.engine, gate": "pass", "onnx, gate": "pass", "engine, gate": "pass", "device, gate": "pass",
    }  # fmt: skip
    assert result.device == "nvidia-orin-nano-tensorrt-10.3"
    assert set(result.findings.latency) == {"model.engine"}
    assert result.findings.values["model.engine"] == result.findings.values["model.onnx"]
    facts = facts_of(tmp_path / "kit")
    assert facts.ran
    assert (facts.machine.gpu, facts.machine.compute_capability) == ("NVIDIA Orin Nano", "8.7")
    report = json.loads((tmp_path / "kit" / "report.json").read_bytes())
    assert report["latency"]["model.engine"]["samples"] > 0
    assert "model.engine: built at level 3" in report["notes"]


def test_an_engine_with_other_answers_fails_and_the_next_precision_ships(
    copy: Path, tmp_path: Path, device: Device
) -> None:
    packing(copy, {"fp16": half(copy / "model.onnx"), "fp32": None})
    device.off = {"fp16": 100.0}
    result = finish(copy, tmp_path / "kit")
    assert outcomes(result) == [("fp16", "failed"), ("fp32", "ships")]
    assert "model.engine, torch at export → engine here: largest difference of outputs" in result.tried[0].reason
    assert result.exit_code == Exit.OK
    assert (tmp_path / "kit" / "model.engine").read_bytes() == b"plan fp32"
    assert {path.name for path in (tmp_path / "kit").iterdir()} - {"timing.cache"} == KIT


@pytest.mark.parametrize("off", [100.0, float("nan")])
def test_where_none_passes_the_last_that_was_built_stays_with_its_verdicts(
    copy: Path, tmp_path: Path, device: Device, off: float
) -> None:
    packing(copy, {"fp16": half(copy / "model.onnx"), "fp32": None})
    device.off = {"fp16": off, "fp32": off}
    result = finish(copy, tmp_path / "kit")
    assert outcomes(result) == [("fp16", "failed"), ("fp32", "failed")]
    assert result.exit_code == Exit.CHECK
    assert facts_of(tmp_path / "kit").exit_code == 1
    assert facts_of(tmp_path / "kit").engine.precision == "fp32"
    assert (tmp_path / "kit" / "model.engine").read_bytes() == b"plan fp32"


def test_of_two_that_fail_the_one_that_was_built_stays_even_if_it_came_first(
    copy: Path, tmp_path: Path, device: Device
) -> None:
    packing(copy, {"fp16": half(copy / "model.onnx"), "fp32": None})
    device.off, device.refuses = {"fp16": 1.0}, {"fp32": ("no kernel", "build")}
    result = finish(copy, tmp_path / "kit")
    assert (tmp_path / "kit" / "model.engine").read_bytes() == b"plan fp16"
    assert facts_of(tmp_path / "kit").onnx.precision == "fp16"
    assert result.exit_code == Exit.CHECK
    assert result.tried[1].reason == "model.onnx: no kernel"


def test_a_graph_that_answers_otherwise_here_is_not_worth_a_build(copy: Path, tmp_path: Path, device: Device) -> None:
    model = onnx.load(copy / "model.onnx")
    weights = next(one for one in model.graph.initializer if one.dims == [10, 32])
    array = onnx.numpy_helper.to_array(weights).copy()
    array[3] += 1
    weights.CopyFrom(onnx.numpy_helper.from_array(array, weights.name))
    packing(copy, {"fp16": model.SerializeToString(), "fp32": None})
    result = finish(copy, tmp_path / "kit")
    assert outcomes(result) == [("fp16", "failed"), ("fp32", "ships")]
    assert len(device.settings) == 1


def test_a_graph_that_only_onnx_runtime_cannot_load_is_built_all_the_same(
    copy: Path, tmp_path: Path, device: Device
) -> None:
    model = onnx.load(copy / "model.onnx")
    model.opset_import[0].version = 999
    packing(copy, {"fp16": model.SerializeToString(), "fp32": None})
    result = finish(copy, tmp_path / "kit")
    assert (result.exit_code, outcomes(result)) == (Exit.OK, [("fp16", "ships")])
    note = next(note for note in result.findings.notes if "was not run here" in note)
    assert note.startswith("model.fp16.onnx was not run here: model.fp16.onnx: ONNX Runtime cannot load it: ")


def test_an_engine_that_breaks_down_fails_and_the_next_precision_ships(
    copy: Path, tmp_path: Path, device: Device
) -> None:
    packing(copy, {"fp16": half(copy / "model.onnx"), "fp32": None})
    device.breaks = {"fp16"}
    result = finish(copy, tmp_path / "kit")
    assert outcomes(result) == [("fp16", "failed"), ("fp32", "ships")]
    assert result.tried[0].reason == (
        "model.engine, model.fp16.onnx → engine here: model.engine: the engine failed on a batch of 1"
    )


def test_an_engine_in_another_precision_than_its_graph_fails(copy: Path, tmp_path: Path, device: Device) -> None:
    """Correctness 39, by the types of its layers where the release does not tell those of the graph."""
    packing(copy, {"fp16": half(copy / "model.onnx")}, precision=[])
    device.dtypes["fp16"] = {"Float": 7}
    result = finish(copy, tmp_path / "kit")
    assert result.exit_code == Exit.CHECK
    assert result.tried[0].reason == ("model.engine, FP16 → engine: fp16 was asked for, the layers compute in: 7 Float")
    device.dtypes = {"fp32": {"Half": 1, "Float": 6}}
    assert finish(packing(copy, {"fp32": None}, precision=[]), tmp_path / "kit-32").exit_code == Exit.CHECK


def test_where_the_release_tells_its_graph_s_layers_each_is_audited_in_the_engine(
    copy: Path, tmp_path: Path, device: Device
) -> None:
    """Correctness 39."""
    names = [node.name for node in onnx.load(copy / "model.onnx").graph.node if node.op_type in ("Conv", "Gemm")]
    layers = [
        {"name": name, "op": "Conv", "asked": "fp16", "found": "fp16", "macs": 100, "may_be_higher": False}
        for name in names
    ]
    attempt = {"precision": "fp16", "file": "model.fp16.onnx", "outcome": "ships", "reason": "passes", "layers": layers}
    packing(copy, {"fp16": half(copy / "model.onnx")}, precision=[attempt])

    def tensor(dtype: str) -> dict[str, object]:
        return {"name": "t", "dtype": dtype, "shape": [1, 8, 8, 8]}

    def record(*dtypes: str) -> str:
        found = [
            {"name": name, "type": "Convolution", "inputs": [tensor(dtype)], "constants": [tensor(dtype)],
             "outputs": [tensor(dtype)], "onnx_nodes": [name]} for name, dtype in zip(names, dtypes, strict=True)
        ]  # fmt: skip
        return json.dumps({"readable": True, "layers": found})

    device.layers = record("Half", "Half", "Half")
    result = finish(copy, tmp_path / "kit")
    assert result.exit_code == Exit.OK
    audit = next(check for check in result.findings.checks if check.kind == "precision")
    assert audit.message == "asked for fp16, found 3 fp16; 100.0 % of the multiply-adds"
    device.layers = record("Half", "Float", "Half")
    result = finish(copy, tmp_path / "kit")
    assert result.exit_code == Exit.CHECK
    assert f"'{names[1]}' computes in fp32" in result.tried[0].reason
    device.layers = "{}"
    result = finish(copy, tmp_path / "kit")
    assert (result.exit_code, verdicts(result)["model.engine, FP16 → engine"]) == (Exit.OK, "pending")


@pytest.mark.parametrize(
    ("gate", "kind", "code"),
    [
        ({"engine_size": {"max_mb": 1e-6}}, "size", Exit.CHECK),
        ({"memory": {"build_max_mb": 1e-6}}, "memory", Exit.CHECK),
    ],
)
def test_gates_on_the_engine_decide_on_the_device(
    copy: Path, tmp_path: Path, device: Device, gate: dict[str, object], kind: str, code: Exit
) -> None:
    result = finish(resealed(copy, gates={"require": ["onnx"], **gate}), tmp_path / "kit")
    failed = [check for check in result.findings.checks if check.verdict == "fail"]
    assert ([check.kind for check in failed], result.exit_code) == ([kind], code)


def test_a_throughput_floor_for_this_device_is_judged(copy: Path, tmp_path: Path, device: Device) -> None:
    """How the times vary on a busy machine decides between a failure and no decision; neither ships."""
    floor = {"min_per_s": 1e12, "runtime": "tensorrt", "device": "orin-nano"}
    result = finish(resealed(copy, gates={"require": ["onnx"], "throughput": floor}), tmp_path / "kit")
    (check,) = (one for one in result.findings.checks if one.kind == "throughput")
    assert check.verdict in ("fail", "inconclusive")
    assert outcomes(result) == [("fp32", "failed")]


def test_limits_that_are_kept_and_what_only_a_run_could_tell(copy: Path, tmp_path: Path, device: Device) -> None:
    gates = {"require": ["onnx"], "engine_size": {"max_mb": 1}, "memory": {"max_mb": 1, "build_max_mb": 1},
             "dla_share": {"min": 0.5}}  # fmt: skip
    result = finish(resealed(copy, gates=gates), tmp_path / "kit")
    found = {check.kind: check.verdict for check in result.findings.checks if check.kind in ("size", "memory", "dla")}
    assert (result.exit_code, found) == (Exit.OK, {"size": "pass", "memory": "pending", "dla": "pending"})


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ({"max_drop": 0.5, "against": "best_single"}, "pass"),
        ({"max_drop_relative": 0.5, "against": "best_single"}, "pass"),
        ({"max_drop": 0.5, "max_drop_relative": 0.0, "against": "soup"}, "fail"),
        ({"max_drop": 0.0, "max_drop_relative": 0.5, "against": "soup"}, "fail"),
        ({"max_drop": 0.5, "max_drop_relative": 0.5, "against": "soup"}, "fail"),
        ({"max_drop": 1.0, "against": "soup"}, "pass"),
        ({"max_drop": 0.0, "against": "baseline"}, None),
    ],
)
def test_accuracy_is_judged_by_the_stricter_limit_against_what_the_rule_names(
    copy: Path, tmp_path: Path, device: Device, rule: dict[str, object], verdict: str | None
) -> None:
    """As recorded, torch is always right on the golden samples, the best single never; the engine is in between."""
    golden = load_file(copy / "golden.safetensors")
    golden["output.torch.output"] = np.eye(10, dtype=np.float32)[golden["target.label"]] * 1e-3
    golden["output.model.onnx.output"] *= 0
    golden["best_single.correct"] = np.zeros_like(golden["best_single.correct"])
    write_safetensors(copy / "golden.safetensors", {name: array_entry(array) for name, array in golden.items()})
    device.zero = True
    facts = {"split": "val", "count": 64, "of": 64, "groups": None}
    candidate = {"precision": "fp32", "file": "model.onnx", "sha256": sha256(copy / "model.onnx"), "tolerance": 1e9}
    recipe = {"candidates": [candidate], "batch": 1, "profiles": [], "settings": {}}
    artifact = {"file": "model.onnx", "kind": "onnx", "sha256": candidate["sha256"], "batch": 1, "tolerance": 1e9}
    resealed(copy, golden=facts, build=recipe, artifacts=[artifact], gates={"accuracy": rule, "require": ["onnx"]})
    result = finish(copy, tmp_path / "kit")
    found = {check.verdict for check in result.findings.checks if check.kind == "accuracy"}
    assert ("fail" if "fail" in found else next(iter(found), None)) == verdict


def test_a_latency_gate_for_this_device_decides(copy: Path, tmp_path: Path, device: Device) -> None:
    gate = {"p50_ms": 1e-9, "runtime": "tensorrt", "device": "orin-nano"}
    gates = {"accuracy": None, "gain": None, "latency": gate, "require": ["onnx"]}
    result = finish(resealed(copy, gates=gates), tmp_path / "kit")
    assert (result.exit_code, outcomes(result)) == (Exit.LATENCY, [("fp32", "failed")])
    other = finish(copy, tmp_path / "other", device="thor")
    assert (other.exit_code, other.device) == (Exit.OK, "thor")  # the gate is another device's: pending


def test_an_accuracy_gate_that_stays_undecided_does_not_ship_unless_that_is_allowed(
    copy: Path, tmp_path: Path, device: Device
) -> None:
    gates = {"accuracy": {"max_drop": 0.0, "against": "best_single"}, "latency": None, "require": ["onnx"]}
    golden = {"split": "val", "count": 64, "of": 64, "groups": None}
    resealed(copy, gates=gates, golden=golden)
    result = finish(copy, tmp_path / "kit")
    assert (result.exit_code, outcomes(result)) == (Exit.UNDECIDED, [("fp32", "failed")])
    allowed = finish(copy, tmp_path / "kit", allow_inconclusive=True)
    assert (allowed.exit_code, outcomes(allowed)) == (Exit.OK, [("fp32", "ships")])


def test_where_none_builds_every_reason_is_told_and_nothing_is_written(
    copy: Path, tmp_path: Path, device: Device
) -> None:
    packing(copy, {"fp16": half(copy / "model.onnx"), "fp32": None})
    device.refuses = {"fp16": ("no room.", "build"), "fp32": ("no kernel", "environment")}
    with pytest.raises(ExportError) as raised:
        finish(copy, tmp_path / "out" / "kit")
    assert str(raised.value) == (
        f"{copy}: no engine could be built here: model.fp16.onnx: no room; model.onnx: no kernel."
    )
    assert raised.value.kind == "build"
    assert not (tmp_path / "out").exists()


def test_without_a_builder_it_is_the_environment(copy: Path, tmp_path: Path, device: Device) -> None:
    packing(copy, {"fp16": half(copy / "model.onnx"), "fp32": None})
    device.refuses = dict.fromkeys(("fp16", "fp32"), ("nothing here builds", "environment"))
    with pytest.raises(ExportError, match="no engine could be built here") as raised:
        finish(copy, tmp_path / "kit")
    assert raised.value.kind == "environment"


def test_what_gates_require_and_nobody_ran_is_open(copy: Path, tmp_path: Path, device: Device,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def absent(path: Path, **_: object) -> None:
        raise ExportError(f"{path}: an engine needs an NVIDIA GPU", kind="environment")

    monkeypatch.setattr(proof, "open_engine", absent)
    gates = {"accuracy": None, "latency": None, "require": ["onnx", "engine", "device"]}
    result = finish(resealed(copy, gates=gates), tmp_path / "kit")
    assert outcomes(result) == [("fp32", "ships")]
    assert result.exit_code == Exit.ENVIRONMENT
    assert verdicts(result)["device, gate"] == "pending"
    assert verdicts(result)["engine, gate"] == "pass"


def test_the_recipe_s_profiles_and_settings_reach_the_builder(copy: Path, tmp_path: Path, device: Device) -> None:
    recipe = {
        "candidates": [{"precision": "fp32", "file": "model.onnx", "sha256": sha256(copy / "model.onnx"),
                        "tolerance": 1e-3}],
        "batch": [1, 2, 8], "profiles": [[1, 1, 2], [2, 4, 8]],
        "settings": {"optimization_level": 5, "workspace_bytes": 1 << 20},
    }  # fmt: skip
    finish(resealed(copy, build=recipe), tmp_path / "kit")
    (settings,), (profiles,) = device.settings, device.profiles
    assert (settings.optimization_level, settings.workspace_bytes) == (5, 1 << 20)
    assert profiles == ((1, 1, 2), (2, 4, 8))
    finish(resealed(copy, build={**recipe, "profiles": []}), tmp_path / "kit-2")
    assert device.profiles[-1] == ((1, 2, 8),)
    finish(resealed(copy, build={**recipe, "profiles": [], "batch": 1}), tmp_path / "kit-3")
    assert device.profiles[-1] == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warp_speed": True}, r"asks for the engine setting 'warp_speed', not known here\. Upgrade edgesoup"),
        ({"optimization_level": "fast"}, r"manifest\.json: 'optimization_level'"),
    ],
)
def test_settings_that_are_not_known_are_one_sentence(
    copy: Path, tmp_path: Path, device: Device, settings: dict[str, object], message: str
) -> None:
    candidate = {"precision": "fp32", "file": "model.onnx", "sha256": sha256(copy / "model.onnx"), "tolerance": 1e-3}
    resealed(copy, build={"candidates": [candidate], "batch": 1, "profiles": [], "settings": settings})
    with pytest.raises(SoupError, match=message):
        finish(copy, tmp_path / "kit")
    assert not (tmp_path / "kit").exists()


def test_one_build_s_timing_cache_serves_the_next_and_the_next_kit_by_its_hash(
    copy: Path, tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing(copy, {"fp16": half(copy / "model.onnx"), "fp32": None})
    device.off = {"fp16": 1.0}
    folder = tmp_path / "kit"
    finish(copy, folder)
    assert [settings.timing_cache_sha256 for settings in device.settings] == [
        None,
        hashlib.sha256(b"timed").hexdigest(),
    ]
    assert (folder / "timing.cache").read_bytes() == b"timedtimed"
    assert facts_of(folder).cost.timing_cache_sha256 == sha256(folder / "timing.cache")

    finish(copy, folder)
    assert device.settings[2].timing_cache_sha256 == hashlib.sha256(b"timedtimed").hexdigest()
    newer = Builder("tensorrt", "10.4.0", ORIN)
    for module in (kit, kit_build):
        monkeypatch.setattr(module, "find_builder", lambda: newer)
    finish(copy, folder)
    assert device.settings[4].timing_cache_sha256 is None  # another version would refuse it


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(
    copy: Path, tmp_path: Path, device: Device
) -> None:
    mine, file, added, other = (tmp_path / name for name in ("mine", "file", "added", "other"))
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    file.write_text("")
    finish(copy, added)
    (added / "notes.txt").write_text("mine")
    finish(copy, other)
    older = resealed(Path(shutil.copytree(copy, tmp_path / "older")), created="2026-01-01")
    torn = Path(shutil.copytree(other, tmp_path / "torn"))
    (torn / "manifest.json").unlink()
    for folder, release, message in (
        (mine, copy, "holds 'notes.txt', which no intact kit there lists"),
        (added, copy, "holds 'notes.txt', which no intact kit there lists"),
        (torn, copy, "holds 'manifest.json', which|which no intact kit"),
        (older, copy, r"is not a kit's"),
        (other, older, "holds the kit of another release"),
    ):
        before = snapshot(folder)
        with pytest.raises(SoupError, match=message):
            finish(release, folder)
        assert snapshot(folder) == before
    with pytest.raises(SoupError, match="is a file, expected a folder"):
        finish(copy, file)
    with pytest.raises(SoupError, match="is inside the release"):
        finish(copy, copy / "device" / "here")
    with pytest.raises(SoupError, match="no letter or digit"):
        finish(copy, tmp_path / "new", device="?!")


def test_a_kit_of_the_same_release_is_replaced(copy: Path, tmp_path: Path, device: Device) -> None:
    finish(copy, tmp_path / "kit", device="first")
    assert finish(copy, tmp_path / "kit", device="second").device == "second"
    assert facts_of(tmp_path / "kit").device == "second"


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "golden.safetensors"])
def test_nothing_is_built_from_a_damaged_release(copy: Path, tmp_path: Path, device: Device, name: str) -> None:
    """Correctness 43."""
    content = bytearray((copy / name).read_bytes())
    content[200] ^= 1
    (copy / name).write_bytes(content)
    result = finish(copy, tmp_path / "kit")
    assert (result.exit_code, result.kit) == (Exit.CHECK, None)
    assert [check.name for check in result.findings.checks if check.verdict == "fail"] == [name]
    assert device.settings == []
    assert not (tmp_path / "kit").exists()


def test_a_graph_that_changes_during_the_build_is_noticed(copy: Path, tmp_path: Path, device: Device,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    build: Callable[..., EngineBuild] = device.build

    def changing(onnx_path: Path, engine_path: Path, **options: Any) -> EngineBuild:
        onnx_path.write_bytes(onnx_path.read_bytes() + b"\0")
        return build(onnx_path, engine_path, **options)

    monkeypatch.setattr(kit_build, "onnx_to_tensorrt", changing)
    with pytest.raises(SoupError, match=r"model\.onnx: was changed while the engine was built from it"):
        finish(copy, tmp_path / "kit")


@pytest.mark.parametrize("stage", ["building the FP32 engine: Building", "timing model.engine: 500 calls or 20 s"])
def test_an_interrupt_leaves_the_kit_as_it_was(copy: Path, tmp_path: Path, device: Device, stage: str) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == stage:
            raise KeyboardInterrupt

    folder = tmp_path / "kits" / "kit"
    with pytest.raises(KeyboardInterrupt):
        finish(copy, folder, progress=interrupt)
    assert not folder.parent.exists()
    finish(copy, folder)
    before = snapshot(folder)
    with pytest.raises(KeyboardInterrupt):
        finish(copy, folder, progress=interrupt)
    assert snapshot(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["kit"]


@given(st.text())
def test_a_device_id_is_a_folder_s_name_whatever_the_device_is_called(name: str) -> None:
    try:
        found = device_id(name)
    except SoupError:
        assert not re.search(r"[a-z0-9]", name.lower())
        return
    assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,98}[a-z0-9])?", found)
    assert device_id(found) == found


def test_a_release_for_another_device_is_not_finished_here(built: Path, tmp_path: Path) -> None:
    """An engine that the device named at export could not load would pass for one that it can."""
    from soup.export_proof import Options
    from soup.ship import export

    asked = ("export.target=jetson-orin-jp6.2", "export.precision=[fp32]")
    export(
        built / "soup-out", tmp_path / "release", overrides=asked, options=Options(trt=True),
        progress=lambda what, done, total: None,
    )  # fmt: skip
    with pytest.raises(ExportError, match=r"is for jetson-orin-jp6\.2 .* Finish it on that device") as caught:
        finish(tmp_path / "release", tmp_path / "kit")
    assert caught.value.kind == "environment"
    assert not (tmp_path / "kit").exists()
