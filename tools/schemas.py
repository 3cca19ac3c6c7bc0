"""Write docs/schemas: val.yaml, the files that others read, and what each command's --json prints. `make schemas`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from soup.bench import BenchResult
from soup.build_folder import BuildRecord
from soup.check import CheckResult
from soup.config import schema as val_schema
from soup.doctor import Facts
from soup.files import readable_json
from soup.gates import Exit
from soup.inspect import Inspection
from soup.manifest import Manifest
from soup.pipeline import BuildResult
from soup.recook import Recooked
from soup.release import VerifyResult
from soup.release_facts import ReleaseFacts
from soup.release_report import ReportRecord
from soup.render import SCHEMA_VERSION
from soup.ship import ExportResult
from soup.starter import InitResult

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
RESULTS = {
    "init": InitResult, "check": CheckResult, "build": BuildResult, "build --recipe": Recooked, "export": ExportResult,
    "verify": VerifyResult, "bench": BenchResult, "inspect": Inspection, "doctor": Facts,
}  # fmt: skip
ERROR = {
    "type": "object",
    "description": "Why there is no result: one sentence a line.",
    "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
    "required": ["code", "message"],
    "additionalProperties": False,
}


def schemas() -> dict[str, dict[str, Any]]:
    """Every schema by name, as docs/schemas/<name>.schema.json holds it."""
    return {
        "val": dict(val_schema()),
        **{command.replace(" --", "-"): _document(command, result) for command, result in RESULTS.items()},
        "report": {"$schema": DIALECT, **_record(ReportRecord), "title": "report.json"},
        "build-record": {"$schema": DIALECT, **_record(BuildRecord), "title": "build.json"},
        "manifest": _manifest(),
    }


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (FOLDER / f"{name}.schema.json").write_bytes(readable_json(schema))


def _document(command: str, result: type) -> dict[str, Any]:
    """The one document on stdout: a result, or an error in its place."""
    body = _record(result)
    definitions = body.pop("$defs", {})
    return {
        "$schema": DIALECT,
        "title": f"soup {command} --json",
        "type": "object",
        "properties": {
            "schema_version": {"const": SCHEMA_VERSION},
            "command": {"const": command},
            "exit_code": {"enum": [int(code) for code in Exit]},
            "result": body,
            "error": ERROR,
        },
        "required": ["schema_version", "command", "exit_code"],
        "oneOf": [{"required": ["result"]}, {"required": ["error"]}],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _manifest() -> dict[str, Any]:
    """manifest.json: the hashes and the facts beside them, on one level."""
    sealed, facts = _record(Manifest), _record(ReleaseFacts)
    del sealed["properties"]["facts"]
    required = [name for name in sealed["required"] if name != "facts"]
    return {
        "$schema": DIALECT,
        "title": "manifest.json",
        "type": "object",
        "properties": sealed["properties"] | facts["properties"],
        "required": [*required, *facts["required"]],
        "additionalProperties": False,
        "$defs": sealed["$defs"] | facts["$defs"],
    }


def _record(kind: type) -> dict[str, Any]:
    return TypeAdapter(kind).json_schema(mode="serialization")


if __name__ == "__main__":
    main()
