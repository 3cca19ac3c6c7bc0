"""What `soup bench` is asked, and how the command line says it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from exporters.ort_session import Provider
from exporters.trtexec import find_trtexec
from soup import SoupError

_PER_CORE = 8  # threads, beyond which a sweep tells nothing


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What is swept and how: empty sequences are the model's own batch and ONNX Runtime's own number of threads.

    `paced_hz` is a camera's rate, None a closed loop. `against` is another model, timed in turns with this one.
    `trtexec` is a whole command line, whose figure stands beside ours; empty where none is asked for.
    """

    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    paced_hz: float | None = None
    against: Path | None = None
    provider: Provider = "cpu"
    cuda_graph: bool = False
    transfers: bool = True
    trtexec: tuple[str, ...] = ()
    out: Path | None = None


def numbers(text: str, *, option: str) -> tuple[int, ...]:
    """ "1,2,4" as numbers of at least 1, each once, in that order. Raises SoupError where it is something else."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise SoupError(f"{option}: '{text}' is no list of numbers, expected some of at least 1, as 1,2,4.")
    return tuple(dict.fromkeys(map(int, parts)))


def thread_numbers(text: str) -> tuple[int, ...]:
    """As `numbers`, for threads. Raises SoupError for more than a machine could use: each would be started."""
    found, most = numbers(text, option="--threads"), _PER_CORE * (os.cpu_count() or 1)
    if found and max(found) > most:
        raise SoupError(f"--threads: {max(found)} threads, expected at most {most} on this machine. Give fewer.")
    return found


def provider_named(name: str) -> Provider:
    """The provider of that name. Raises SoupError where there is none."""
    for provider in get_args(Provider):
        if name == provider:
            return provider  # type: ignore[no-any-return]
    raise SoupError(f"--provider: '{name}' is not known, expected one of {', '.join(get_args(Provider))}.")


def trtexec_command(line: str, *, model: Path) -> tuple[str, ...]:
    """A shell line as `run_trtexec` takes it, comments left out; a bare `trtexec` is looked for where NVIDIA puts it.

    "auto" is the line that the release of `model` has for it. Raises SoupError for a line that no shell would take, and
    (environment) where the tool is not found.
    """
    if line == "auto":
        line = _packed_line(model if model.is_dir() else model.parent)
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise SoupError(f"--trtexec: '{line}' is no command line: {error}.") from error
    if words[:1] != ["trtexec"]:
        return tuple(words)
    tool = find_trtexec()
    if tool is None:
        raise SoupError(
            "--trtexec: not found on PATH nor in /usr/src/tensorrt/bin, expected NVIDIA's tool. Install TensorRT.",
            kind="environment",
        )
    return (str(tool), *words[1:])


def _packed_line(release: Path) -> str:
    """The last line of companions/trtexec.sh, its files named from anywhere."""
    path = release / "companions" / "trtexec.sh"
    try:
        line = path.read_text(encoding="utf-8").strip().splitlines()[-1]
    except (OSError, IndexError) as error:
        message = f"{path}: cannot be read, expected the line of a release with an engine or a target."
        raise SoupError(f"{message} Give --trtexec the whole line.") from error
    return line.replace("=../", f"={shlex.quote(str(release.resolve()))}/")
