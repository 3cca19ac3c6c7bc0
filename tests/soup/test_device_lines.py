"""What a device's commands say to a reader, from hand-made records."""

from __future__ import annotations

from pathlib import Path

from soup.attempts import Attempt
from soup.bisect import BisectResult, LayerError
from soup.device_lines import bisect_lines, finish_lines, merge_lines
from soup.gates import Check, Exit
from soup.kit import FinishResult
from soup.merge import Arrival, MergeResult
from soup.proof import Findings

DIGEST = "c" * 64
HASHES = [Check(name, "files", "hash", "pass", f"'{name}' is as it was sealed") for name in ("model.onnx", "a.txt")]
OPEN = Check("device", "gate", "require", "pending", "'device' required by gates.require, was not run here")
BUILT = Check("engine", "FP16 → engine", "build", "pass", "tensorrt 10.3.0 built it")
TRIED = (
    Attempt("int8", "model.int8.onnx", "failed", "engine, INT8 → engine: no kernel"),
    Attempt("fp16", "model.fp16.onnx", "ships", "passes every gate that can be judged here", 0.875),
)
FINISHED = FinishResult(
    Path("release"), Path("kit"), DIGEST, "orin-tensorrt-10.3", TRIED, "accuracy", "%",
    Findings(checks=[BUILT, OPEN], values={"model.engine": 0.875}, notes=["no timing cache was written"]),
    Exit.ENVIRONMENT, {"manifest.json": 9, "model.engine": 99},
)  # fmt: skip


def test_a_kit_is_told_with_what_was_tried_before_it() -> None:
    assert list(finish_lines(FINISHED)) == [
        "tried        INT8: failed: engine, INT8 → engine: no kernel",
        "tried        FP16: ships: passes every gate that can be judged here",
        "pending      device, gate: 'device' required by gates.require, was not run here",
        "pass         engine, FP16 → engine: tensorrt 10.3.0 built it",
        "note         no timing cache was written",
        "accuracy on the golden samples: model.engine 87.50 %",
        "wrote kit (manifest.json, model.engine), the kit of orin-tensorrt-10.3",
        f"digest {DIGEST}",
    ]


def test_a_damaged_release_is_told_and_no_kit() -> None:
    damaged = Check("model.onnx", "files", "hash", "fail", "'model.onnx' has 8 bytes, expected 9")
    result = FinishResult(
        Path("release"), None, None, None, (), None, "", Findings(checks=[HASHES[1], damaged]), Exit.CHECK
    )
    assert list(finish_lines(result)) == [
        "fail         model.onnx, files: 'model.onnx' has 8 bytes, expected 9",
        "pass         1 file is as it was sealed",
    ]


def test_a_merge_is_told_kit_by_kit_with_what_is_open() -> None:
    arrivals = (
        Arrival("orin", Path("kits/a"), DIGEST, "merged", True),
        Arrival("rtx", Path("b"), DIGEST, "there already", False),
    )
    result = MergeResult(Path("release"), DIGEST, arrivals, (*HASHES, OPEN), Exit.ENVIRONMENT)
    assert list(merge_lines(result)) == [
        "device       orin: merged, from kits/a, ran there",
        "device       rtx: there already, from b, only built",
        "pending      device, gate: 'device' required by gates.require, was not run here",
        "pass         2 files are as they were sealed",
        f"digest {DIGEST}, as it was",
    ]
    assert list(merge_lines(MergeResult(Path("release"), None, (), (), Exit.CHECK))) == ["nothing was merged"]


def test_a_bisection_ends_with_its_notes() -> None:
    layer = LayerError("fc", "Gemm", "z", 0.5, 0.4)
    result = BisectResult("a", "b", 2, "the measure", 1.0, (layer,), None, layer, 0, ("only outputs",), Exit.OK)
    assert list(bisect_lines(result))[-2:] == ["no layer is beyond 1 (1 compared)", "note         only outputs"]
