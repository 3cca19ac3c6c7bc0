"""The README says what is so: its commands run, its val.yaml loads, its tables and its tree are those of the code."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import typer
import yaml
from pydantic import BaseModel

from soup.cli import app
from soup.config import Config, load_config
from soup.gates import Exit

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = re.compile(r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```console\n(?P<text>.*?)```", re.DOTALL)
TREE_LINE = re.compile(r"(?P<indent> *)(?P<name>\S+)  +\S")


def test_the_commands_print_what_the_readme_shows(project: Path) -> None:
    for command, expected in (
        step for block in CONSOLE.finditer(README) if not block["reason"] for step in steps(block["text"])
    ):
        printed = shell(command, folder=project)
        for line in expected:
            assert any(shows(line, actual) for actual in printed), f"$ {command}\nno line like: {line}\n" + "\n".join(
                printed
            )


def test_every_command_in_the_readme_exists_with_its_options() -> None:
    known = typer.main.get_command(app)
    shown = [command for block in CONSOLE.finditer(README) for command, _ in steps(block["text"])]
    ours = [
        shlex.split(re.split(r"\|\||&&|>", command)[0], comments=True)[1:]
        for command in shown
        if command.startswith("soup ")
    ]
    assert {command[0] for command in ours} >= {"init", "check", "build", "export", "verify"}
    for command in ours:
        known.commands[command[0]].make_context(command[0], command[1:])


def test_its_val_yaml_loads_and_has_every_key(tmp_path: Path) -> None:
    text = next(re.finditer(r"```yaml\n(.*?)```", README, re.DOTALL))[1]
    (tmp_path / "val.yaml").write_text(text)
    load_config(tmp_path / "val.yaml")
    either = {"search.budget.evaluations", "search.budget.minutes"}  # one excludes the other; a comment shows both
    listed = {f"export.profiles.{name}" for name in ("min", "opt", "max")}  # of a list, which is empty there
    assert all(f"{{{name.rpartition('.')[2]}: " in text for name in either)
    assert keys(yaml.safe_load(text)) | either | listed >= set(model_keys(Config))


def test_its_exit_codes_are_those_of_the_code() -> None:
    section = README.partition("## Exit codes")[2].partition("## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)] == [int(code) for code in Exit]


def test_its_extras_are_those_of_the_project() -> None:
    section = README.partition("## Install")[2].partition("## ")[0]
    named = {
        name for row in re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert named == set(re.findall(r"^(\w+) = \[", project_section("optional-dependencies"), re.MULTILINE))


def test_its_tree_lists_every_file_once() -> None:
    text = next(re.finditer(r"```text\n(.*?)```", README, re.DOTALL))[1]
    entries = list(tree(text))
    assert len(set(entries)) == len(entries)
    whole = tuple(one for one in entries if one.endswith("/") and sum(other.startswith(one) for other in entries) == 1)
    apart = {name for name in real_files() if not name.startswith(whole)}
    assert {one for one in entries if not one.endswith("/")} == apart
    assert [folder for folder in whole if not (ROOT / folder).is_dir()] == []


def test_its_links_lead_to_files() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if not target.startswith("http")]
    assert targets
    assert [target for target in targets if not (ROOT / target).is_file()] == []


def steps(block: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block with the lines shown below it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *lines = part.rstrip().splitlines()
        yield command, lines


def shows(line: str, actual: str) -> bool:
    """Whether `actual` is `line`, with anything in place of … and any run of spaces in place of one."""
    pattern = r".*".join(re.escape(part) for part in " ".join(line.split()).split("…"))
    return re.fullmatch(pattern, " ".join(actual.split())) is not None


def shell(command: str, *, folder: Path) -> list[str]:
    """The lines that a command prints; it must end with 0."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def keys(values: object, prefix: str = "") -> set[str]:
    """Dotted names of all keys in nested mappings."""
    if not isinstance(values, dict):
        return set()
    return {name for key, value in values.items() for name in (f"{prefix}{key}", *keys(value, f"{prefix}{key}."))}


def model_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys that a section takes, but for alternatives to a plain value and to null."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        if name not in ("batch", "letterbox"):
            for kind in inner:
                if issubclass(kind, BaseModel):
                    yield from model_keys(kind, f"{key}.")


def project_section(name: str) -> str:
    text = (ROOT / "pyproject.toml").read_text()
    return text.partition(f"[project.{name}]")[2].partition("\n[")[0]


def tree(text: str) -> Iterator[str]:
    """Paths of an indented tree, each described; a folder ends in /, and without lines below it means all it holds."""
    folders: list[str] = []
    for line in text.splitlines():
        found = TREE_LINE.match(line)
        assert found, f"no description: {line!r}"
        folders = [*folders[: len(found["indent"]) // 2], found["name"]]
        yield "".join(folders)


def real_files() -> set[str]:
    """Every file that the repository would hold, by .gitignore."""
    ignored = [".git", *(line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines())]
    found: set[str] = set()
    for folder, inner, names in os.walk(ROOT):
        inner[:] = [name for name in inner if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)]
        found |= {(Path(folder) / name).relative_to(ROOT).as_posix() for name in names}
    return found
