"""The pipelines in examples/ block on the exit code, and name only what the command line has."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
import yaml

from soup.cli import app

PIPELINES = Path(__file__).parents[1] / "examples" / "pipelines"
ONE_CHECKPOINT = "checkpoints.files=[runs/epoch-6.pt]"  # the winner is then known: nothing is gained, nothing is lost


def test_a_release_that_may_ship_ends_with_0_and_leaves_its_reports(project: Path) -> None:
    done = release(project, "gates.accuracy.max_drop=0.2")
    assert done.returncode == 0, done.stderr
    assert "released: soup-out/release" in done.stderr
    kept = {path.name for path in (project / "artifacts").iterdir()}
    assert {"check.json", "build.json", "export.json", "verify.json", "release-junit.xml", "verify"} <= kept
    assert document(project, "verify")["exit_code"] == 0


def test_a_missed_gain_blocks_with_3_and_keeps_no_report_of_an_earlier_run(project: Path) -> None:
    (project / "soup-out" / "release").mkdir(parents=True)
    (project / "soup-out" / "release" / "junit.xml").write_text("of last week")
    done = release(project, ONE_CHECKPOINT, "gates.gain.min=0")
    assert done.returncode == 3, done.stderr
    assert "blocked by soup build, exit 3: an accuracy or gain gate failed" in done.stderr
    kept = {path.name for path in (project / "artifacts").iterdir()}
    assert kept == {"check.json", "build.json", "soup-out-recipe.json", "soup-out-report.html"}


def test_an_undecided_gate_blocks_with_5_and_its_reports_are_kept(project: Path) -> None:
    done = release(project, ONE_CHECKPOINT, "gates.accuracy.max_drop=0")
    assert done.returncode == 5, done.stderr
    assert "blocked by soup export, exit 5: a gate could not be decided" in done.stderr
    junit = ElementTree.parse(project / "artifacts" / "release-junit.xml")
    assert any("inconclusive" in ElementTree.tostring(case, "unicode") for case in junit.iter("testcase"))
    assert document(project, "export")["exit_code"] == 5
    assert not (project / "artifacts" / "verify.json").exists()


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_a_pipeline_names_only_commands_and_options_that_there_are(name: str) -> None:
    steps = [step for text in texts(yaml.safe_load((PIPELINES / name).read_text())) for step in text.splitlines()]
    commands = [shlex.split(step)[1:] for step in steps if step.startswith("soup ")]
    assert [command[0] for command in commands] == ["check", "build", "export", "verify"]
    known = typer.main.get_command(app)
    for command in commands:
        known.commands[command[0]].make_context(command[0], command[1:])


def release(folder: Path, *sets: str) -> subprocess.CompletedProcess[str]:
    """release.sh in `folder`, as a pipeline would run it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", PIPELINES / "release.sh", "val.yaml", *sets]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )


def document(folder: Path, command: str) -> dict[str, object]:
    """The JSON document that a command left in the artifacts."""
    return dict(json.loads((folder / "artifacts" / f"{command}.json").read_bytes()))


def texts(value: object) -> Iterator[str]:
    """Every text in a YAML document, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
