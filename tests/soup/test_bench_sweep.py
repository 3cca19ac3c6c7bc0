"""`soup bench` over batches and threads, at a camera's rate and against another model, on ONNX files made by hand."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from exporters import ExportError
from exporters.interleaved import Turns, measure_pair
from exporters.latency import Latency, summarize
from exporters.pacing import Timing, UntilStable
from soup import SoupError, bench_picture, proof
from soup import bench as bench_module
from soup.bench import bench
from soup.bench_options import BenchOptions, numbers, thread_numbers, trtexec_command
from soup.bench_picture import BenchRow, bench_cells, bench_lines, bench_markdown, bench_svg
from soup.cli import app
from soup.gates import Exit

QUICK = Timing(UntilStable(least=2, most=4, window=1), iterations=20, max_seconds=5.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty calls instead of 500; blocks of one call."""
    monkeypatch.setattr(proof, "TIMING", QUICK)
    monkeypatch.setattr(bench_module, "TIMING", QUICK)
    turns = Turns(blocks=8, calls=1)
    monkeypatch.setattr(bench_module, "measure_pair", lambda a, b, **given: measure_pair(a, b, turns=turns, **given))


def write_model(path: Path, *, batch: int | str = "batch", layers: int = 1) -> Path:
    """input [batch, 64] through `layers` products with a matrix."""
    names = ["input", *(f"hidden{index}" for index in range(1, layers)), "output"]
    weight = numpy_helper.from_array(np.eye(64, dtype=np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", [one, "weight"], [other]) for one, other in itertools.pairwise(names)],
        "products",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 64])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 64])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_a_sweep_times_every_batch_with_every_number_of_threads(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    options = BenchOptions(batches=(1, 4), threads=(1, 2))
    result = bench(write_model(tmp_path / "m.onnx"), options=options, progress=lambda *one: told.append(one))
    assert [(row.batch, row.threads) for row in result.rows] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert [row.latency.contract["batch"] for row in result.rows] == [1, 1, 4, 4]
    assert [row.latency.contract["threads"] for row in result.rows] == [1, 2, 1, 2]
    assert all(row.latency.samples == 20 and row.latency.throughput for row in result.rows)
    assert result.latency == result.rows[0].latency
    assert [(done, total) for _, done, total in told] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert {what.partition(": ")[0] for what, _, _ in told} == {"timing m.onnx"}  # one bar
    assert result.exit_code == Exit.OK


def test_a_static_batch_cannot_be_swept_and_it_is_said_how_to_export_a_dynamic_one(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", batch=2)
    with pytest.raises(SoupError, match=r"takes 2 samples per call and no other number, .* sweep over \[1, 2, 8\]"):
        bench(path, options=BenchOptions(batches=(1, 2, 8)))
    with pytest.raises(SoupError, match=r"soup export --set 'export\.batch=\{min: 1, opt: 1, max: 8\}'"):
        bench(path, options=BenchOptions(batches=(2, 8)))
    assert bench(path, options=BenchOptions(batches=(2,))).rows[0].batch == 2


def test_at_a_cameras_rate_the_frames_are_counted(tmp_path: Path) -> None:
    latency = bench(write_model(tmp_path / "m.onnx"), options=BenchOptions(paced_hz=500)).latency
    assert (latency.contract["loop"], latency.contract["rate_hz"]) == ("paced", 500)
    assert latency.late is not None
    assert latency.dropped is not None


def test_without_transfers_the_inputs_lie_there_already(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    assert bench(path, options=BenchOptions(transfers=False)).latency.contract["transfers_included"] is False
    assert bench(path).latency.contract["transfers_included"] is True


def test_a_model_is_compared_with_another_in_turns(tmp_path: Path) -> None:
    slow, fast = write_model(tmp_path / "slow.onnx", layers=300), write_model(tmp_path / "fast.onnx")
    result = bench(slow, options=BenchOptions(against=fast))
    assert result.against is not None
    assert result.against.model == fast
    assert result.exit_code == {"fail": Exit.LATENCY, "pass": Exit.OK}.get(result.against.pair.verdict, Exit.UNDECIDED)
    (sentence,) = result.verdicts
    assert f"{slow} takes " in sentence
    assert f"of the time of {fast} (" in sentence


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 4), ("inconclusive", 5), ("invalid", 5)])
def test_the_exit_code_follows_from_the_comparison(tmp_path: Path, verdict: Any, code: int) -> None:
    path = write_model(tmp_path / "m.onnx")
    result = bench(path, options=BenchOptions(against=path))
    assert result.against is not None
    changed = replace(result, against=replace(result.against, pair=replace(result.against.pair, verdict=verdict)))
    assert changed.exit_code == code


def test_the_folder_holds_table_picture_and_json(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    result = bench(write_model(tmp_path / "m.onnx"), options=BenchOptions(batches=(1, 2), out=out))
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md", "bench.svg"]
    assert set(result.files) == set(out.iterdir())
    written = json.loads((out / "bench.json").read_bytes())
    assert [row["batch"] for row in written["rows"]] == [1, 2]
    assert written["rows"][1]["latency"]["p50_ms"] == result.rows[1].latency.p50_ms
    assert "![Latency and throughput](bench.svg)" in (out / "bench.md").read_text()
    bench(write_model(tmp_path / "m.onnx"), options=BenchOptions(out=out))  # its own files may be written anew
    (out / "notes.txt").write_text("mine")
    with pytest.raises(SoupError, match=r"holds 'notes\.txt', which soup bench did not write"):
        bench(tmp_path / "m.onnx", options=BenchOptions(out=out))


def test_without_matplotlib_there_is_no_picture_and_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "out"
    bench(write_model(tmp_path / "m.onnx"), options=BenchOptions(out=out))
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md"]
    assert "Picture" not in (out / "bench.md").read_text()


def test_what_does_not_go_together_is_one_sentence(tmp_path: Path) -> None:
    path, engine = write_model(tmp_path / "m.onnx"), tmp_path / "m.engine"
    engine.write_bytes(b"vtrt" + bytes(100))
    for model, options, message in (
        (path, BenchOptions(cuda_graph=True), "is no engine, and only an engine runs in a CUDA graph"),
        (engine, BenchOptions(threads=(1,)), "is an engine, which has no threads to choose"),
        (engine, BenchOptions(provider="cuda"), "is an engine, which runs on TensorRT alone"),
        (path, BenchOptions(against=tmp_path / "absent.onnx"), r"absent\.onnx: not found"),
    ):
        with pytest.raises(SoupError, match=message):
            bench(model, options=options)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ExportError, match="this ONNX Runtime has no CUDAExecutionProvider") as caught:
            bench(path, options=BenchOptions(provider="cuda"))
        assert caught.value.kind == "environment"


@pytest.mark.parametrize("text", ["0", "1,,2", "one", "1.5", "-1", "1;2"])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(SoupError, match="is no list of numbers, expected some of at least 1, as 1,2,4"):
        numbers(text, option="--batches")


def test_a_list_of_numbers_is_read_each_once() -> None:
    assert (numbers("8, 1,2,8", option="--batches"), numbers("", option="--threads")) == ((8, 1, 2), ())


def test_the_command_prints_a_table_and_one_document(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    done = invoke(path, "--batches", "1,2", "--threads", "1", "--against", path, "-o", tmp_path / "out")
    lines = done.stdout.splitlines()
    assert done.exit_code in (Exit.OK, Exit.UNDECIDED), done.output
    assert lines[1].split()[:4] == ["batch", "threads", "p50", "ms"]
    assert [line.split()[:2] for line in lines[2:4]] == [["1", "1"], ["2", "1"]]
    assert any("takes " in line and f"of the time of {path}" in line for line in lines)
    document = json.loads(invoke(path, "--batches", "1,2", "--json").stdout)
    assert [row["batch"] for row in document["result"]["rows"]] == [1, 2]
    assert document["result"]["latency"] == document["result"]["rows"][0]["latency"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "a"], "--batches: 'a' is no list of numbers"),
        (["--provider", "gpu"], "--provider: 'gpu' is not known, expected one of cpu, cuda, tensorrt."),
    ],
)
def test_a_wrong_option_is_the_users_to_mend(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = invoke(write_model(tmp_path / "m.onnx"), *arguments)
    assert (done.exit_code, message in done.stderr) == (2, True)


def latency(p50_ms: float, *, batch: int = 1, **changes: Any) -> Latency:
    times = np.linspace(0.9, 1.1, 500) * p50_ms
    made = summarize(times, warmup=20, contract={"batch": batch, "loop": "closed"})
    return replace(made, throughput=1000 * batch / p50_ms, stable=True, **changes)


ROWS = (
    BenchRow(1, 1, latency(2.0)), BenchRow(4, 1, latency(6.0, batch=4)), BenchRow(1, 2, latency(1.5)),
    BenchRow(4, 2, latency(3.5, batch=4, throttled=("GPU hardware slowdown",), verdict="invalid")),
)  # fmt: skip


def test_a_column_that_says_nothing_is_left_out() -> None:
    header, cells = bench_cells(ROWS)
    assert "late" not in header
    assert "GPU p50 ms" not in header
    assert {len(line) for line in cells} == {len(header)}
    paced = (BenchRow(1, None, latency(2.0, late=3, dropped=0, gpu_p50_ms=1.25)),)
    header, ((*cells,),) = bench_cells(paced)
    found = dict(zip(header, cells, strict=True))
    assert "threads" not in found
    assert (found["late"], found["dropped"], found["GPU p50 ms"]) == ("3", "0", "1.25")
    assert found["warm-up"] == "20, stable"


def test_a_bound_stands_beside_its_percentile_only_where_there_is_one() -> None:
    few = summarize(np.linspace(1, 2, 100), warmup=0, contract={"batch": 1})
    header, (cells,) = bench_cells((BenchRow(1, None, few),))
    found = dict(zip(header, cells, strict=True))
    assert found["p99 ms"] == f"{few.p99_ms:.2f}"
    assert found["p50 ms"] == f"{few.p50_ms:.2f} (≤ {few.p50_upper_ms:.2f})"


def test_the_terminals_table_is_aligned_and_markdown_tells_what_was_slowed_down() -> None:
    lines = bench_lines(ROWS)
    assert len({len(line) for line in lines}) == 1
    text = bench_markdown("m.onnx on a board", ROWS, picture=None)
    assert text.startswith("# m.onnx on a board\n")
    assert "- batch 4: the device was slowed down: GPU hardware slowdown" in text
    assert "loop: closed" in text


def test_the_picture_has_both_panels_and_equal_bytes_for_equal_rows() -> None:
    pytest.importorskip("matplotlib")
    picture = bench_svg(ROWS)
    assert picture is not None
    assert picture == bench_svg(ROWS)
    assert picture != bench_svg(ROWS[:3])
    assert ElementTree.fromstring(picture).tag.endswith("svg")


def test_the_lines_of_a_picture_are_by_threads_and_in_order_of_the_batch() -> None:
    lines = bench_picture._lines((ROWS[1], ROWS[0], ROWS[3], ROWS[2]))
    assert {threads: [row.batch for row in line] for threads, line in lines.items()} == {1: [1, 4], 2: [1, 4]}


def test_a_result_without_a_sweep_is_as_it_always_was(tmp_path: Path) -> None:
    result = bench(write_model(tmp_path / "m.onnx"), batch=3)
    assert (len(result.rows), result.latency.contract["batch"], result.against, result.files) == (1, 3, None, ())


def test_trtexecs_own_figure_stands_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = (
        "&&&& RUNNING TensorRT.trtexec [TensorRT v100300]\n[I] === Performance summary ===\n"
        "[I] Throughput: 234.19 qps\n"
        "[I] GPU Compute Time: min = 4 ms, max = 5 ms, mean = 4.2 ms, median = 4.1 ms, percentile(99%) = 4.9 ms\n"
    )
    tool = tmp_path / "trtexec"
    tool.write_text(
        f"#!{sys.executable}\nimport sys\nprint({summary!r})\nsys.exit(sys.argv[1:] != ['--onnx=a b.onnx'])\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = invoke(write_model(tmp_path / "m.onnx"), "--trtexec", "# for an Orin\ntrtexec --onnx='a b.onnx'")
    assert done.exit_code == 0, done.output
    expected = "trtexec      10.3.0: GPU 4.10 ms (p99 4.90), 234.2 calls per second"
    assert expected in done.stdout.splitlines()


def test_a_trtexec_that_is_not_here_is_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("soup.bench_options.find_trtexec", lambda: None)
    with pytest.raises(SoupError, match="--trtexec: not found on PATH") as caught:
        trtexec_command("trtexec --onnx=m.onnx", model=Path("m.onnx"))
    assert caught.value.kind == "environment"
    with pytest.raises(SoupError, match="is no command line: No closing quotation"):
        trtexec_command("trtexec '--onnx", model=Path("m.onnx"))
    assert trtexec_command("/opt/trtexec --fp16 # here", model=Path("m.onnx")) == ("/opt/trtexec", "--fp16")


def test_auto_is_the_line_that_the_release_has_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "a release"
    (folder / "companions").mkdir(parents=True)
    with pytest.raises(SoupError, match=r"trtexec\.sh: cannot be read"):
        trtexec_command("auto", model=folder)
    (folder / "companions/trtexec.sh").write_text("#!/bin/sh\ncd x\n/opt/trtexec --onnx=../model.fp16.onnx --fp16\n")
    for model in (folder, folder / "model.onnx"):
        found = trtexec_command("auto", model=model)
        assert found == ("/opt/trtexec", f"--onnx={folder.resolve()}/model.fp16.onnx", "--fp16")


def test_more_threads_than_a_machine_could_use_are_refused_before_one_is_started() -> None:
    assert thread_numbers("1,2") == (1, 2)
    with pytest.raises(SoupError, match=r"--threads: 99999 threads, expected at most \d+"):
        thread_numbers("1,99999")
