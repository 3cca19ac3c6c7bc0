"""Commands that meet in one folder: two builds, a recipe cooked where one runs, an export of what is being built."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from soup import SoupError
from soup.config import load_config
from soup.files import STAGING_PREFIX
from soup.pipeline import build
from soup.ship import Options, export

from .conftest import contents

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
IN_THE_SEARCH = 20  # forward passes; by then some candidates are in the ledger
GATE = f"""

_build, _passes = build, []


def build(**arguments):
    model = _build(**arguments)
    model.register_forward_pre_hook(_wait)
    return model


def _wait(module, inputs):
    import sys
    from pathlib import Path

    _passes.append(1)
    gate = Path(__file__).with_name("gate")
    if len(_passes) == {IN_THE_SEARCH} and gate.exists():
        closed = gate.rename(gate.with_name("closed"))  # for this build alone
        print("held", file=sys.stderr, flush=True)
        closed.read_bytes()
"""


def with_gate(project: Path) -> Path:
    """The next build there stops in its search and says "held", until `open_gate`."""
    (project / "models.py").write_text((project / "models.py").read_text().partition("\n\n_build")[0] + GATE)
    os.mkfifo(project / "gate")
    return project


def open_gate(project: Path) -> None:
    (project / "closed").write_bytes(b"")


@contextmanager
def held_build(project: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`soup build` in a process group of its own, in the midst of its search."""
    command = [sys.executable, "-m", "soup", "build", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        command, cwd=project, env=ENVIRONMENT, text=True, start_new_session=True, **pipes,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's is ignored
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            assert "held\n" in iter(process.stderr.readline, "")
            yield process
        finally:
            process.kill()


def soup(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "soup", *arguments]
    return subprocess.run(command, cwd=project, env=ENVIRONMENT, capture_output=True, text=True)


def assert_same_build(out: Path, reference: Path) -> None:
    for name in ("soup.safetensors", "recipe.json"):
        assert (out / name).read_bytes() == (reference / name).read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in reference.iterdir()}


def test_a_second_build_is_told_who_is_at_work_and_does_not_disturb_the_first(project: Path, built: Path) -> None:
    shutil.copy(built / "soup-out" / "recipe.json", project)
    with held_build(with_gate(project)) as first:
        before = contents(project / "soup-out")
        for command in (["build"], ["build", "--recipe", "recipe.json"]):
            second = soup(project, *command)
            assert (second.returncode, second.stdout) == (2, "")
            assert re.fullmatch(
                rf"soup {' '.join(command[:2])}: soup-out: soup build \(pid {first.pid}\) is working here since "
                r"\d\d:\d\d\. Wait for it, or choose another -o\.\n",
                second.stderr,
            )
        assert contents(project / "soup-out") == before
        open_gate(project)
        first.communicate()
    assert first.returncode == 0
    assert_same_build(project / "soup-out", built / "soup-out")


def test_after_a_kill_the_next_build_goes_on_and_ends_the_same(project: Path, built: Path) -> None:
    with held_build(with_gate(project)) as first:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert (project / "soup-out" / ".soup-lock").exists()
    second = soup(project, "build")
    assert second.returncode == 0, second.stderr
    assert_same_build(project / "soup-out", built / "soup-out")


def test_an_export_during_the_first_build_of_a_folder_finds_none(project: Path) -> None:
    with held_build(with_gate(project)):
        told = soup(project, "export")
    assert (told.returncode, told.stderr) == (
        2,
        "soup export: soup-out: no finished build here (recipe.json and build.json). Run: soup build --val val.yaml\n",
    )


def test_an_export_during_a_build_is_of_the_build_before(copied: Path, released: Path) -> None:
    with held_build(with_gate(copied), "--set", "batchnorm.samples=300") as process:
        exported = soup(copied, "export")
        assert exported.returncode == 0, exported.stderr
        open_gate(copied)
        process.communicate()
    assert process.returncode == 0
    release = copied / "soup-out" / "release"
    assert (release / "model.onnx").read_bytes() == (released / "model.onnx").read_bytes()
    assert not list(copied.rglob(f"{STAGING_PREFIX}*"))


def test_an_export_into_which_a_new_build_comes_releases_neither(copied: Path) -> None:
    out = copied / "soup-out"

    def rebuild(what: str, done: int, total: int) -> None:
        if what == "exporting to ONNX":
            config = load_config(copied / "val.yaml", overrides=["batchnorm.samples=300"])
            build(config, out, progress=lambda what, done, total: None)

    with pytest.raises(SoupError, match=r"soup-out: was built anew meanwhile\. Export again\."):
        export(out, out / "release", overrides=(), options=Options(), progress=rebuild)
    assert not (out / "release").exists()
    assert not list(out.glob(f"{STAGING_PREFIX}*"))
