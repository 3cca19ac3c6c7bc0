"""No command opens a network socket, nor does any process that it starts."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

# Python imports sitecustomize when it starts, so child processes are watched too.
WATCH = """
import os, socket, sys

NETWORK = (socket.AF_INET, socket.AF_INET6)
NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.bind", "socket.sendto")


def watch(event, arguments):
    opened = event == "socket.__new__" and arguments[1] in NETWORK
    used = event in NAMES and getattr(arguments[0], "family", socket.AF_INET) in NETWORK
    if opened or used:
        with open(os.environ["SOCKET_LOG"], "a") as log:
            log.write(f"{event} {arguments[1:]} in {sys.argv}\\n")


sys.addaudithook(watch)
"""
COMMANDS = """
import json, sys
from soup.cli import app

for command in json.load(sys.stdin):
    print(" ".join(command), app(command, standalone_mode=False), sep=": ")
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where every Python process started in this test writes its network events."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "watch"))
    monkeypatch.setenv("SOCKET_LOG", str(tmp_path / "sockets.log"))
    (tmp_path / "sockets.log").touch()
    return tmp_path / "sockets.log"


def test_no_command_opens_a_network_socket(log: Path, project: Path) -> None:
    engine = ["--trt"] if importlib.util.find_spec("tensorrt_rtx") else []
    commands = [
        ["init", "runs", "-o", "new.yaml"],
        ["check"],
        ["build"],
        ["export", *engine],
        ["verify", "soup-out/release", "-o", "again"],
        ["bench", "soup-out/release"],
        ["inspect", "soup-out/release/model.onnx"],
        ["doctor"],
    ]
    done = run(commands, folder=project)
    assert done.returncode == 0, done.stderr
    assert [
        line for line in done.stdout.splitlines() if line in {f"{' '.join(command)}: 0" for command in commands}
    ] == [f"{' '.join(command)}: 0" for command in commands]
    assert log.read_text() == ""


def test_a_socket_would_be_noticed_in_a_child_process_too(log: Path) -> None:
    program = "import socket, subprocess, sys; subprocess.run([sys.executable, '-c', 'import socket; socket.socket()'])"
    subprocess.run([sys.executable, "-c", program], env=os.environ, check=True)
    assert log.read_text().startswith("socket.__new__")


def run(commands: Sequence[Sequence[str]], *, folder: Path) -> subprocess.CompletedProcess[str]:
    """All commands in one process, each followed on stdout by its exit code."""
    return subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=folder,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
    )
