"""What an opened model is asked, at export and on the device alike."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from exporters import ExportError
from exporters.latency import summarize
from exporters.runtimes import RuntimeInfo, TensorInfo
from soup import proof
from soup.files import sha256_file
from soup.gates import Check, Exit, Place, Subject, exit_code
from soup.proof import (
    Artifact,
    Findings,
    LatencyRule,
    as_fed,
    latency_checks,
    open_artifact,
    outputs_check,
    place_of,
    proof_of,
    prove_latency,
)

SUBJECT = Subject("model.onnx", "torch → ONNX")
CPU = RuntimeInfo("onnxruntime", "1.31.1", "CPUExecutionProvider", "AMD EPYC")
HERE = LatencyRule({50: 60_000.0, 99: 60_000.0}, Place("onnxruntime", "cpu"))


def prove(release: Path, rule: LatencyRule | None, *, device: str | None = None) -> list[Check]:
    """The latency checks of a real session."""
    artifact = Artifact("model.onnx", "onnx", sha256_file(release / "model.onnx"), 1)
    inputs = {"input": load_file(release / "golden.safetensors")["input.input"]}
    findings = Findings()
    with open_artifact(release, artifact) as runtime:
        prove_latency(runtime, artifact, inputs, findings, rule=rule, device=device)
    assert findings.latency.keys() == {"model.onnx"}
    return findings.checks


def test_a_cpu_is_called_one_and_a_gpu_by_its_name_unless_the_user_names_the_device():
    assert str(place_of(CPU)) == "onnxruntime on cpu (AMD EPYC)"
    assert str(place_of(CPU, device="orin-nano")) == "onnxruntime on orin-nano"
    gpu = RuntimeInfo("tensorrt", "10.3", "cuda-bindings", "Orin")
    assert str(place_of(gpu)) == "tensorrt on Orin"


def test_inputs_are_fed_by_position_under_the_graphs_names_and_dtypes():
    fed = as_fed({"input": np.ones((2, 3), np.float32)}, [TensorInfo("image", "float16", ("batch", 3))])
    assert {name: array.dtype.name for name, array in fed.items()} == {"image": "float16"}
    with pytest.raises(ValueError, match="shorter"):
        as_fed({"input": np.ones(2)}, [TensorInfo("a", "float32", (2,)), TensorInfo("b", "float32", (2,))])


@pytest.mark.parametrize(
    ("scale", "moved", "verdict"),
    [
        (1.0, 0.9e-3, "pass"),
        (1.0, 1.1e-3, "fail"),
        (100.0, 0.09, "pass"),
        (100.0, 0.11, "fail"),
        (0.01, 0.9e-3, "pass"),
    ],
)
def test_outputs_may_move_by_a_share_of_their_own_size_and_at_least_of_one(scale: float, moved: float, verdict: str):
    before = {"output": np.full((3, 4), scale, np.float64)}
    after = {"renamed": before["output"].copy()}
    after["renamed"][1, 2] -= moved
    assert outputs_check(before, after, SUBJECT).verdict == verdict


def test_one_nan_in_the_last_output_fails_them_all():
    one, other = np.ones((3, 2)), np.ones((3, 5))
    spoiled = other.copy()
    spoiled[2, 4] = math.nan
    check = outputs_check({"a": one, "b": other}, {"a": one, "b": spoiled}, SUBJECT)
    assert (check.verdict, check.measured) == ("fail", None)


def test_a_file_with_another_hash_is_not_opened(released: Path):
    """Correctness 43."""
    for kind in ("onnx", "engine"):
        with pytest.raises(ExportError, match="SHA-256 is"):
            open_artifact(released, Artifact("model.onnx", kind, "0" * 64, 1))


def test_a_proof_counts_as_run_only_where_outputs_were_compared():
    artifact = Artifact("model.engine", "engine", "0" * 64, 1)
    assert proof_of(artifact, CPU, proved=("outputs", "metric")).ran
    assert not proof_of(artifact, CPU, proved=("built for 8.6", "not run")).ran


def test_the_timed_batch_is_the_static_one_or_opt():
    artifact = Artifact("model.onnx", "onnx", "0" * 64, 4)
    assert (artifact.timed_batch, replace(artifact, batch=(1, 2, 8)).timed_batch) == (4, 2)


def test_a_latency_is_judged_where_the_gate_says_and_pending_elsewhere(released: Path):
    assert [check.verdict for check in prove(released, HERE)] == ["pass", "pass"]
    assert [check.verdict for check in prove(released, HERE, device="orin-nano")] == ["pending", "pending"]
    orin = replace(HERE, wanted=Place("tensorrt", "orin-nano"))
    assert [check.verdict for check in prove(released, orin)] == ["pending", "pending"]
    impossible = replace(HERE, limits_ms={90: 1e-9})
    (failed,) = prove(released, impossible)
    assert exit_code([failed]) == Exit.LATENCY
    assert prove(released, None) == []


def test_a_p99_of_too_few_calls_is_inconclusive(released: Path, monkeypatch: pytest.MonkeyPatch):
    """Correctness 41."""
    monkeypatch.setattr(proof, "TIMING", replace(proof.TIMING, iterations=458))
    checks = prove(released, HERE)
    assert [check.verdict for check in checks] == ["pass", "inconclusive"]
    assert "from 458 samples: too few, p99 needs 459" in checks[1].message
    assert exit_code(checks) == Exit.UNDECIDED


def test_each_limit_is_held_against_its_own_percentile():
    latency = summarize(np.arange(1.0, 1001.0), warmup=0, contract={})
    rule = LatencyRule({50: 600.0, 90: 600.0, 99: 600.0}, Place(None, None))
    checks = latency_checks(latency, SUBJECT, rule=rule, actual=Place("onnxruntime", "cpu"))
    assert [(check.measured, check.verdict) for check in checks] == [(500, "pass"), (900, "fail"), (990, "fail")]
