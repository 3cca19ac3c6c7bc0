"""`soup` as the command line runs it, in this process: torch is loaded once for all tests of a file."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from soup.cli import app


def run(*arguments: object, code: int = 0) -> str:
    """Its stdout and stderr together; fails where it ends with another exit code than `code`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return str(result.output)


def document(*arguments: object, code: int = 0) -> dict[str, Any]:
    """The result that `--json` prints on stdout."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == code, (result.output, result.exception)
    return dict(json.loads(result.stdout)["result"])
