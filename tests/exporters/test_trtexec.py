"""trtexec's figures, from outputs written by hand in the form of each version, and from a script in its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from exporters import ExportError
from exporters.trtexec import find_trtexec, parse_trtexec, run_trtexec, trtexec_version

OLD = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v8400] # trtexec --onnx=m.onnx
[03/11/2022-14:57:00] [I] TensorRT version: 8.4.0
[03/11/2022-14:57:03] [I] === Trace details ===
[03/11/2022-14:57:03] [I] Average on 10 runs - GPU latency: 0.9 ms - Host latency: 0.95 ms (enqueue 0.1 ms)
[03/11/2022-14:57:03] [I] === Performance summary ===
[03/11/2022-14:57:03] [I] Throughput: 1087.7 qps
[03/11/2022-14:57:03] [I] Latency: min = 0.88 ms, max = 1.02 ms, mean = 0.95 ms, median = 0.94 ms, percentile(99%) = 1.01 ms
[03/11/2022-14:57:03] [I] End-to-End Host Latency: min = 9 ms, max = 9 ms, mean = 9 ms, median = 9 ms, percentile(99%) = 9 ms
[03/11/2022-14:57:03] [I] Enqueue Time: min = 0.08 ms, max = 0.22 ms, mean = 0.09 ms, median = 0.087 ms, percentile(99%) = 0.12 ms
[03/11/2022-14:57:03] [I] H2D Latency: min = 0.006 ms, max = 0.05 ms, mean = 0.01 ms, median = 0.009 ms, percentile(99%) = 0.02 ms
[03/11/2022-14:57:03] [I] GPU Compute Time: min = 0.85 ms, max = 0.99 ms, mean = 0.9 ms, median = 0.89 ms, percentile(99%) = 0.98 ms
[03/11/2022-14:57:03] [I] Total GPU Compute Time: 2.99 s
&&&& PASSED TensorRT.trtexec [TensorRT v8400] # trtexec --onnx=m.onnx
"""  # noqa: E501
NEW = """\
&&&& RUNNING TensorRT.trtexec [TensorRT {banner}] # trtexec --onnx=m.onnx
[10/03/2024-10:47:59] [I] === Performance summary ===
[10/03/2024-10:47:59] [I] Throughput: 234.19 qps
[10/03/2024-10:47:59] [I] Latency: min = 4.27 ms, max = 5.82 ms, mean = 4.3 ms, median = 4.29 ms, percentile(90%) = 4.31 ms, percentile(95%) = 4.32 ms, percentile(99%) = 4.33 ms
[10/03/2024-10:47:59] [I] Enqueue Time: min = 1.29 ms, max = 9.09 ms, mean = 1.81 ms, median = 1.8 ms, percentile(90%) = 1.9 ms, percentile(95%) = 1.95 ms, percentile(99%) = 2 ms
[10/03/2024-10:47:59] [I] GPU Compute Time: min = 4.22 ms, max = 5.76 ms, mean = 4.24 ms, median = 4.23 ms, percentile(90%) = 4.25 ms, percentile(95%) = 4.26 ms, percentile(99%) = 4.27 ms
[10/03/2024-10:47:59] [W] * GPU compute time is unstable, with coefficient of variance = 1.6%.
&&&& PASSED TensorRT.trtexec [TensorRT {banner}] # trtexec --onnx=m.onnx
"""  # noqa: E501
WITHOUT_TRANSFERS = NEW.replace("] Latency:", "] H2D Latency:")  # a line of another kind, which is no latency


def test_an_old_version_prints_one_percentile() -> None:
    found = parse_trtexec(OLD, command=("trtexec", "--onnx=m.onnx"))
    assert (found.version, found.throughput_qps, found.command) == ("8.4.0", 1087.7, ("trtexec", "--onnx=m.onnx"))
    assert (found.gpu.min_ms, found.gpu.mean_ms, found.gpu.median_ms, found.gpu.max_ms) == (0.85, 0.9, 0.89, 0.99)
    assert found.gpu.percentiles_ms == {99.0: 0.98}
    assert found.latency is not None
    assert found.latency.median_ms == 0.94  # neither the end-to-end nor the copy's
    assert found.enqueue is not None
    assert found.enqueue.max_ms == 0.22


@pytest.mark.parametrize(
    ("banner", "version"),
    [("v8602", "8.6.2"), ("v8601", "8.6.1"), ("v100300", "10.3.0"), ("v101303", "10.13.3"), ("v110401", "11.4.1"),
     ("v11.1.0.106", "11.1.0.106")],
)  # fmt: skip
def test_later_versions_print_three_percentiles_and_their_version_in_the_banner(banner: str, version: str) -> None:
    found = parse_trtexec(NEW.replace("{banner}", banner))
    assert found.version == version
    assert found.gpu.percentiles_ms == {90.0: 4.25, 95.0: 4.26, 99.0: 4.27}
    assert found.latency is not None
    assert found.latency.max_ms == 5.82


def test_a_summary_without_host_latency_still_has_the_gpus_time() -> None:
    found = parse_trtexec(WITHOUT_TRANSFERS.replace("{banner}", "v110401"))
    assert (found.latency, found.gpu.median_ms) == (None, 4.23)


def test_a_banner_with_a_build_number_behind_it_is_read() -> None:
    assert trtexec_version("&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b106] # trtexec --help") == "11.1.0"
    assert trtexec_version("hello") is None


@pytest.mark.parametrize(
    ("cut", "missing"), [("Throughput", "throughput"), ("GPU Compute", "GPU Compute Time"), ("&&&&", "version")]
)
def test_an_output_without_a_part_of_it_is_no_figure(cut: str, missing: str) -> None:
    text = "\n".join(line for line in NEW.replace("{banner}", "v100300").splitlines() if cut not in line)
    with pytest.raises(ExportError, match=f"its output has no {missing}") as caught:
        parse_trtexec(text)
    assert caught.value.kind == "build"


def script(folder: Path, body: str) -> Path:
    """A program in trtexec's place."""
    path = folder / "trtexec"
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n")
    path.chmod(0o755)
    return path


def test_the_program_is_run_with_its_arguments_and_its_output_read(tmp_path: Path) -> None:
    output = NEW.replace("{banner}", "v101303")
    program = script(tmp_path, f"print({output!r} if sys.argv[1:] == ['--onnx=a b.onnx', '--fp16'] else 'wrong')")
    found = run_trtexec([str(program), "--onnx=a b.onnx", "--fp16"])
    assert (found.version, found.gpu.median_ms) == ("10.13.3", 4.23)
    assert found.command == (str(program), "--onnx=a b.onnx", "--fp16")


@pytest.mark.parametrize("code", [0, 1])
def test_a_run_that_failed_says_what_trtexec_said(tmp_path: Path, code: int) -> None:
    """Some versions print FAILED and exit 0."""
    lines = "[09/25/2026-10:00:02] [E] Failed to parse onnx file\\n&&&& FAILED TensorRT.trtexec [TensorRT v110201]"
    program = script(tmp_path, f"print('{lines}')\nsys.exit({code})")
    with pytest.raises(ExportError, match=f"failed with exit code {code}: Failed to parse onnx file") as caught:
        run_trtexec([str(program)])
    assert caught.value.kind == "build"


def test_a_program_that_is_not_there_is_the_environment(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be started: No such file") as caught:
        run_trtexec([str(tmp_path / "trtexec")])
    assert caught.value.kind == "environment"


def test_a_program_that_does_not_end_is_ended(tmp_path: Path) -> None:
    program = script(tmp_path, "time.sleep(600)")
    with pytest.raises(ExportError, match="not done after 0 s, and ended"):
        run_trtexec([str(program)], max_seconds=0.3)


def test_it_is_found_on_path_or_where_jetpack_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_trtexec(tmp_path) is None
    (tmp_path / "usr/src/tensorrt/bin").mkdir(parents=True)
    jetpack = script(tmp_path / "usr/src/tensorrt/bin", "")
    assert find_trtexec(tmp_path) == jetpack
    (tmp_path / "bin").mkdir()
    on_path = script(tmp_path / "bin", "")
    assert find_trtexec(tmp_path) == on_path
