"""docs/schemas holds what the records say today, and what the commands and files really hold is valid by it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from soup.cli import app

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "schemas"


def problems(name: str, document: object) -> list[str]:
    validator = Draft202012Validator(json.loads((FOLDER / f"{name}.schema.json").read_bytes()))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def soup(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--json"])


def test_the_published_schemas_are_the_records_of_today() -> None:
    """`make schemas` writes them."""
    spec = importlib.util.spec_from_file_location("tools_schemas", ROOT / "tools" / "schemas.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    today: Mapping[str, Any] = tool.schemas()
    published = {path.name.removesuffix(".schema.json") for path in FOLDER.glob("*.json")}
    assert published == today.keys()
    for name, schema in today.items():
        Draft202012Validator.check_schema(schema)
        assert json.loads((FOLDER / f"{name}.schema.json").read_bytes()) == schema, f"{name}: run `make schemas`"


def test_the_files_of_a_build_and_a_release_are_valid(built: Path, released: Path) -> None:
    for name, path in {
        "build-record": built / "soup-out" / "build.json",
        "manifest": released / "manifest.json",
        "report": released / "report.json",
    }.items():
        assert problems(name, json.loads(path.read_bytes())) == []
    assert problems("val", yaml.safe_load((built / "val.yaml").read_text())) == []
    assert problems("manifest", json.loads((released / "manifest.json").read_bytes()) | {"colour": "red"}) != []


def test_what_each_command_prints_is_valid(built: Path, released: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(built, tmp_path / "project"))
    for command, arguments in {
        "init": (project / "runs", "-o", tmp_path / "val.yaml"),
        "check": ("--val", project / "val.yaml", "-o", project / "soup-out"),
        "build": ("--val", project / "val.yaml", "-o", project / "soup-out"),
        "export": (project / "soup-out", "-o", tmp_path / "release"),
        "verify": (released,),
        "bench": (released,),
        "inspect": (released,),
        "doctor": (),
    }.items():
        done = soup(command, *arguments)
        document = json.loads(done.stdout)
        assert problems(command, document) == []
        assert (document["command"], document["exit_code"], done.exit_code) == (command, 0, 0), done.stderr


@pytest.mark.parametrize("command", ["verify", "inspect", "bench", "export"])
def test_what_a_command_prints_when_it_fails_is_valid_too(tmp_path: Path, command: str) -> None:
    done = soup(command, tmp_path / "absent")
    document = json.loads(done.stdout)
    assert problems(command, document) == []
    assert document["error"]["code"] == document["exit_code"] == done.exit_code == 2
    assert document["error"]["message"] in done.stderr
