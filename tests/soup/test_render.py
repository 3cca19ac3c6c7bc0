"""Terminal text is a golden file, rendered from hand-made records; `--json` is one document and nothing beside it.

`SOUP_WRITE_GOLDEN=1 pytest tests/soup/test_render.py` writes it anew; read the difference before it is committed.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from exporters.latency import Latency
from exporters.runtimes import RuntimeInfo
from soup import render
from soup.bench import BenchResult
from soup.build_folder import BuildRecord, Hop, Ingredient, Model, Outputs
from soup.doctor import Ability, Facts
from soup.gates import Check, Exit
from soup.inspect import Inspection
from soup.pipeline import BuildResult
from soup.progress import plain_lines, progress
from soup.proof import Findings
from soup.release import VerifyResult
from soup.search_records import Answer, Cost, Difference, Explanation
from soup.ship import ExportResult
from soup.starter import InitResult

GOLDEN = Path(__file__).parent / "golden" / "terminal.txt"
A, B = "a" * 64, "b" * 64
GAINED = Difference(0.0062, -0.001, 0.0134, 0.95, "paired score interval (Tango 1998)", 4000, None, "undecided")
SAME = replace(GAINED, estimate=0.0, low=-0.0024, high=0.0024)
HOPS = [
    Hop("best single → recalibrated", 0.8833, 0.8895, (), None, GAINED, "val", "torch on cpu"),
    Hop("recalibrated → ONNX", 0.8895, 0.8895, (Outputs("output", 3.1e-6, 4e-7, 1.0),), 0, SAME, "val",
        "onnxruntime on cpu (AMD EPYC)"),
]  # fmt: skip
ACCURACY = Check("model.onnx", "best single → ONNX", "accuracy", "pass", "a drop beyond 0.50 points is excluded")
CHECKS = [
    Check("model.onnx", "recalibrated → ONNX", "outputs", "pass", "largest difference of outputs 3.10e-06"),
    ACCURACY,
    Check("model.onnx", "gate", "latency", "pending", "p99 8.20 ms here, but the gate names tensorrt on orin-nano"),
    Check("engine", "ONNX → engine", "build", "fail", "model.onnx: TensorRT cannot take the graph: node 'a' (Det)"),
    replace(ACCURACY, name="gain", verdict="inconclusive", message="about 1,600 samples would decide"),
]
HASHES = [Check(name, "files", "hash", "pass", f"'{name}' is as it was sealed") for name in ("model.onnx", "a.txt")]
LATENCY = Latency(7.5, 8.0, 8.21, 7.6, 8.1, None, 0.99, 7.6, 7.1, 12.0, 400, 20,
                  {"batch": 1, "provider": "CPUExecutionProvider", "loop": "closed"})  # fmt: skip
RECORD = BuildRecord(
    schema_version=1, soup_version="0.1.0", versions={}, val_folder="..", config={}, task="classification",
    metric="accuracy", metric_unit="%", higher_is_better=True, class_names=None,
    ingredients=tuple(Ingredient(s, f"runs/{s[0]}.pt", "flat", "raw", 9, 0.8833, None, ()) for s in (A, B)),
    set_aside=(("runs/c.pt", "tensor 'head.weight' holds NaN"),), notes=("no data.test",), splits={}, overlaps=(),
    best_single=Model("single", {A: 1.0}, "own", 0.8833, None),
    winner=Model("greedy", {A: 1.0, B: 1.0}, "recalibrated", 0.8895, None), policies={}, batchnorm_layers=2,
    convergence=None, judged_on="val", comparison=GAINED, hops=(), checks=(CHECKS[-1],), state_sha256=A, files={},
    answers=(Answer("single", {A: 1.0}, 0.8833, None), Answer("greedy", {A: 1.0, B: 1.0}, 0.8895, None)),
    cost=Cost({"singles": 400, "candidates": 64, "judging": 600}, {"singles": 200}, {"singles": 800, "candidates": 400},
              "torch"),
    optimism=None, explanation=None, seconds=61.4,
)  # fmt: skip
ALONE = replace(
    RECORD, set_aside=(), notes=(), checks=(), winner=RECORD.best_single,
    explanation=Explanation(causes=("Independent initialisation: the cosine is 0.02.", "A barrier: 12.00 %.")),
)  # fmt: skip
ANEW = (
    "epoch-3.pt (own, val): batchnorm.samples was 1000, is 500",
    *(f"epoch-{number}.pt (own, val): never evaluated" for number in range(4, 9)),
)
INFO = RuntimeInfo("onnxruntime", "1.31.1", "CPUExecutionProvider", "AMD EPYC")
FOUND = Findings(HOPS, CHECKS, latency={"model.onnx": LATENCY}, notes=["exported by the dynamo exporter"])
SEALED = replace(HASHES[0], verdict="fail", message="'model.onnx' has SHA-256 aaaaaaaaaaaa…, expected bbbbbbbbbbbb…")
RESULTS: list[tuple[str, object, Exit]] = [
    ("init", InitResult(Path("val.yaml")), Exit.OK),
    ("build", BuildResult(Path("soup-out"), RECORD, (), Exit.UNDECIDED), Exit.UNDECIDED),
    ("build", BuildResult(Path("soup-out"), ALONE, (), Exit.OK, ANEW, True), Exit.OK),
    ("export", ExportResult(Path("soup-out/release"), "c" * 64, {"manifest.json": 9, "model.onnx": 99}, "%", FOUND,
                            Exit.BUILD), Exit.BUILD),
    ("verify", VerifyResult(Path("release"), "c" * 64, "accuracy", "%", {"torch": 0.9375, "model.onnx": None},
                            Findings(checks=[*HASHES, CHECKS[0]], latency={"model.onnx": LATENCY}), Exit.OK), Exit.OK),
    ("verify", VerifyResult(Path("release"), None, None, "", {}, Findings(checks=[HASHES[1], SEALED]), Exit.CHECK),
     Exit.CHECK),
    ("bench", BenchResult(Path("release/model.onnx"), INFO, replace(LATENCY, p99_upper_ms=9.0)), Exit.OK),
    ("inspect", Inspection("model.onnx", "onnx", {"opset": 18, "metadata": {"soup.task": "classification"}}), Exit.OK),
    ("doctor", Facts("3.11.7", "Linux x86_64", "AMD EPYC", 2, 8_000_000_000, 40_000_000_000, None, {}, (
        Ability("soup build", "yes", "torch 2.14.1", None),
        Ability("soup verify", "no", "onnxruntime is not installed", "pip install 'edgesoup[ort]'"),
    )), Exit.OK),
]  # fmt: skip


@dataclass
class Clock:
    """Seconds that pass only when the test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_text_of_every_command_reads_as_its_golden_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # a narrow terminal must not break lines that a reader may grep
    shown = ""
    for command, result, code in RESULTS:
        render.show(command, result, code=code, json=False)
        out, err = capsys.readouterr()
        assert err == ""
        shown += f"$ soup {command}\n{out}\n"
    if os.environ.get("SOUP_WRITE_GOLDEN"):
        GOLDEN.write_text(shown, encoding="utf-8")
    assert shown == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(("command", "result", "code"), RESULTS)
def test_json_is_one_document_on_stdout(
    capsys: pytest.CaptureFixture[str], command: str, result: object, code: Exit
) -> None:
    render.show(command, result, code=code, json=True)
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["schema_version"], document["command"], document["exit_code"]) == (1, command, int(code))
    assert document["result"]
    assert err == ""


def test_a_loss_is_shown_in_its_own_unit(capsys: pytest.CaptureFixture[str]) -> None:
    result = ExportResult(Path("release"), "c" * 64, {}, "", Findings(hops=HOPS), Exit.OK)
    render.show("export", result, code=Exit.OK, json=False)
    out = capsys.readouterr().out
    assert "best single → recalibrated: +0.0062, 95 % interval" in out
    assert "points" not in out


def test_a_failure_is_on_stderr_line_by_line_and_in_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    render.failure("build", "a.pt: is empty.\nb.pt: is text.", code=Exit.INPUT, json=True)
    out, err = capsys.readouterr()
    assert err == "soup build: a.pt: is empty.\nsoup build: b.pt: is text.\n"
    assert json.loads(out)["error"] == {"code": 2, "message": "a.pt: is empty.\nb.pt: is text."}
    render.failure("build", "a.pt: is empty.", code=Exit.INPUT, json=False)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_lines_break_between_words_below_their_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    result = VerifyResult(Path("release"), "c" * 64, "accuracy", "%", {}, Findings(checks=CHECKS[-1:]), Exit.OK)
    render.show("verify", result, code=Exit.OK, json=False)
    first, second, _, digest = capsys.readouterr().out.splitlines()
    assert first.startswith("inconclusive gain, best single → ONNX: about 1,600")
    assert second == "             would decide"
    assert digest == "c" * 64  # what a reader copies stays whole


def test_a_long_refusal_is_cut_on_a_terminal_and_nowhere_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Correctness 14: the document has the whole difference."""
    message = "a.pt: lacks " + "x" * 2000
    render.failure("build", message, code=Exit.INPUT, json=True)
    out, err = capsys.readouterr()
    assert message in err
    assert json.loads(out)["error"]["message"] == message
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    render.failure("build", message, code=Exit.INPUT, json=False)
    assert capsys.readouterr().err.endswith("xxx … (1,412 more characters; --json prints all)\n")


def test_what_inspect_found_is_shown_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {
        "opsets": {"": 18},
        "inputs": [{"name": "input", "shape": ["batch", 3]}],
        "external_data": False,
        "gain": None,
    }
    render.show("inspect", Inspection("model.onnx", "onnx", facts), code=0, json=False)
    assert capsys.readouterr().out.splitlines() == [
        "model.onnx: onnx", "  opsets:", "    ai.onnx: 18", "  inputs:", "    name input, shape [batch, 3]",
        "  external_data: no", "  gain: none",
    ]  # fmt: skip


def test_names_are_shown_as_they_are_whatever_they_hold(capsys: pytest.CaptureFixture[str]) -> None:
    render.show("inspect", Inspection("[bold]a[/bold].onnx", "onnx", {"[red]": ":smile:"}), code=0, json=False)
    assert capsys.readouterr().out == "[bold]a[/bold].onnx: onnx\n  [red]: :smile:\n"


def test_a_log_gets_a_line_when_a_stage_begins_and_then_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    report = plain_lines(stream, clock)
    for second in range(25):
        clock.now = float(second)
        report("scoring candidates", second, 25)
    report("judging on test", 1, 2)
    report("engine: Building", 0, 0)
    assert stream.getvalue().splitlines() == [
        "scoring candidates: 0/25", "scoring candidates: 10/25, about 15 s left",
        "scoring candidates: 20/25, about 5.0 s left", "judging on test: 1/2", "engine: Building",
    ]  # fmt: skip


def test_a_terminal_gets_a_bar_on_stderr_that_leaves_nothing_behind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress() as report:
        report("decoding val", 3, 10)
        report("engine: Building", 0, 0)
        report("engine: Building", 1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "decoding val" in err
    assert "3/10" in err
    assert err.rstrip("\x1b[?25h").endswith("\x1b[2K")
