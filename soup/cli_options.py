"""The options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Val = Annotated[Path, typer.Option("--val", help="The val.yaml that names model, checkpoints and data.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
Sets = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of val.yaml, as search.methods=[greedy]; may be repeated."
    ),
]
Allow = Annotated[bool, typer.Option("--allow-inconclusive", help="Exit 0 where a gate could not be decided (else 5).")]
Device = Annotated[
    str | None, typer.Option("--device", help="What you call this device, as gates.latency.device names it.")
]
