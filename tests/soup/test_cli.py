"""The command line as a pipeline meets it: help, exit codes, one document on stdout, and everything else on stderr."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from soup import __version__
from soup.cli import app

Soup = Callable[..., subprocess.CompletedProcess[str]]
COMMANDS = ["init", "check", "build", "export", "verify", "merge", "bench", "inspect", "doctor"]
NO_TORCH = """
import sys
sys.modules["torch"] = None
from soup.cli import main
main()
"""
BUG = """
import sys
import soup.doctor
soup.doctor.examine = lambda folder: 1 / 0
from soup.cli import main
main()
"""
STOPPED = """
import os, signal
import soup.doctor
soup.doctor.examine = lambda folder: os.kill(os.getpid(), signal.{name}) or signal.pause()
from soup.cli import main
main()
"""


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_the_commands_are_those_of_the_design() -> None:
    assert sorted(get_command(app).commands) == sorted(COMMANDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_has_an_example_that_the_command_itself_can_parse(command: str) -> None:
    code, out, _ = invoke(command, "--help")
    assert code == 0
    example = re.search(rf"Example:\s+soup {command}(.*)", out)
    assert example, out
    options = re.findall(r"--?[a-z][a-z-]*", example[1].split("&&")[0])
    assert all(option in out for option in options)
    assert "--json" in out


def test_the_version_and_the_exit_codes_are_told() -> None:
    assert invoke("--version")[1] == f"edgesoup {__version__}\n"
    text = invoke("--help")[1]
    for code in ("0 nothing failed", "1 a check failed", "2 input", "3 accuracy", "4 latency", "5 undecided",
                 "6 environment", "7 build failed", "70 a bug", "130 interrupted"):  # fmt: skip
        assert code in " ".join(text.split())


def test_json_is_exactly_one_document_on_stdout_and_progress_is_on_stderr(shipped: Any) -> None:
    """A process of its own: native libraries print where they like."""
    document, end = json.JSONDecoder().raw_decode(shipped.process.stdout)
    assert shipped.process.stdout[end:] == "\n"
    assert (document["schema_version"], document["command"], document["exit_code"]) == (1, "export", 0)
    assert document["result"]["digest"] == shipped.manifest["self_sha256"]
    assert "model.onnx on val: 64/400" in shipped.process.stderr
    assert not re.search(r"Traceback|Warning|DEBUG", shipped.process.stderr)


def test_a_failure_is_one_sentence_on_stderr_and_an_error_in_the_document(tmp_path: Path, soup: Soup) -> None:
    done = soup("verify", tmp_path, "--json")
    assert done.returncode == 2
    sentence = (
        f"{tmp_path}/manifest.json: not found, expected a release's manifest. Give the folder that `soup export` wrote."
    )
    assert done.stderr == f"soup verify: {sentence}\n"
    assert json.loads(done.stdout)["error"] == {"code": 2, "message": sentence}


def test_each_verdict_ends_with_its_code(released: Path, built: Path, tmp_path: Path) -> None:
    assert invoke("verify", released)[0] == 0
    damaged = Path(shutil.copytree(released, tmp_path / "damaged"))
    (damaged / "report.md").write_text("other")
    code, out, _ = invoke("verify", damaged)
    assert code == 1
    assert out.splitlines()[0].startswith("fail         report.md, files: 'report.md' has ")
    assert out.endswith("exit 1: a check failed\n")

    release = tmp_path / "release"
    undecided = ("export", built / "soup-out", "-o", release, "--set", "gates.accuracy.max_drop=0")
    assert invoke(*undecided)[0] == 5
    assert invoke("verify", release)[0] == 5
    assert invoke("verify", release, "--allow-inconclusive")[0] == 0
    late = "gates.latency={p50_ms: 0.000001, runtime: onnxruntime, device: cpu}"
    code, out, _ = invoke("export", built / "soup-out", "-o", release, "--set", late, "--json")
    assert (code, json.loads(out)["exit_code"]) == (4, 4)
    assert invoke("verify", release)[0] == 4
    assert invoke("verify", release, "--device", "orin-nano")[0] == 0  # on another device it is pending


def test_a_missing_runtime_is_the_environment(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, _ = invoke("verify", released)
    assert (code, "pip install 'edgesoup[ort]'" in out) == (6, True)
    code, _, err = invoke("bench", released)
    assert (code, "pip install 'edgesoup[ort]'" in err) == (6, True)


def test_options_that_do_not_exist_or_make_no_sense_are_input_errors(released: Path, tmp_path: Path) -> None:
    assert invoke("verify", released, "--colour")[0] == 2
    assert invoke("bench", released, "--batch", "0")[0] == 2
    assert invoke("export", tmp_path / "absent")[0] == 2
    code, _, err = invoke("export", tmp_path / "absent", "--compute-capability", "orin", "--trt")
    assert (code, "no finished build here" in err) == (2, True)


def test_a_full_disk_is_named_and_the_users_to_mend(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from soup import release

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/report.md")

    monkeypatch.setattr(release, "verify", full)
    code, _, err = invoke("verify", released)
    assert (code, err) == (2, "soup verify: /somewhere/report.md: No space left on device. Free some space.\n")


@pytest.mark.parametrize("command", ["verify", "bench", "inspect"])
def test_a_device_needs_no_torch(released: Path, command: str) -> None:
    done = python(NO_TORCH, command, released)
    assert done.returncode == 0, done.stderr


def test_a_bug_keeps_its_traceback_and_has_a_code_of_its_own() -> None:
    done = python(BUG, "doctor", "--json")
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_ends_with_130_and_says_so(name: str) -> None:
    done = python(STOPPED.replace("{name}", name), "doctor")
    assert signal.Signals[name]
    assert (done.returncode, done.stderr) == (130, "soup doctor: interrupted; nothing was left half-written.\n")
