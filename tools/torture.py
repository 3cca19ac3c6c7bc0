"""Kill small builds with SIGKILL at random moments, let each end, and compare with one left alone. `make torture`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import runpy
import select
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_threads] = "1"  # a process with threads cannot be forked safely

import torch  # noqa: E402

import soup.pipeline  # noqa: E402  (imported once, and not by each of the builds)
import soup.render  # noqa: E402
import soup.score  # noqa: E402
from soup.build_folder import BUILD, EVALUATIONS, LEDGER, RECIPE, SOUP  # noqa: E402
from soup.cli import main as soup_command  # noqa: E402
from soup.files import STAGING_PREFIX  # noqa: E402

SAME = (SOUP, RECIPE, EVALUATIONS)  # byte for byte; other files tell what this very run did
METHODS = "search.methods=[uniform, greedy, ema]"
PHASES = (
    "before the ledger", "ledger opened", "ledger has entries", "while writing", "moving into place",
    "after the recipe",
)  # fmt: skip
LIMIT_S = 120.0  # a build that takes longer hangs


@dataclass(slots=True)
class Tally:
    """What the kills hit, what the runs that ended by themselves forwarded, and what differed."""

    phases: Counter[str] = field(default_factory=Counter)
    in_transaction: int = 0
    kills_per_folder: list[int] = field(default_factory=list)
    forwarded: list[int] = field(default_factory=list)  # by the last run of each folder that was hit, in images
    differences: list[str] = field(default_factory=list)


def main() -> int:
    """Exit code 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_const", const=10, dest="kills", help="10 kills")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soup-torture-") as temporary:
        project = Path(temporary) / "project"
        project.mkdir()
        in_child(partial(_make, project), Path(temporary) / "training.log")
        reference, again = project / "reference", project / "again"
        _build(project, reference)
        soup.score.SAVE_SECONDS = 0.05  # unfinished evaluations are kept too, and not one each 30 seconds
        seconds = _build(project, again)
        tally = Tally(differences=different(again, reference))
        torment(project, reference, seconds, kills=options.kills, chance=random.Random(options.seed), tally=tally)
        tally.differences += _strangers(project)
        sys.stdout.write(table(tally, fresh=forwarded(reference), seconds=seconds))
    sys.stdout.write(f"{time.monotonic() - started:.0f} s, seed {options.seed}\n")
    return 1 if tally.differences else 0


def torment(project: Path, reference: Path, seconds: float, *, kills: int, chance: random.Random, tally: Tally) -> None:
    """Builds one folder after the other until so many were killed, each at a moment between its start and `seconds`."""
    while (before := tally.phases.total()) < kills:
        out = project / f"out-{before}"
        while True:
            left = kills - tally.phases.total()
            process = start(partial(_soup, project, out), project.parent / "build.log")
            code = ended(process, chance.uniform(0, seconds) if left else LIMIT_S)
            if code is not None:
                break
            if not left:
                raise SystemExit(f"{out}: a build did not end in {LIMIT_S:.0f} s")
            tally.phases[phase(out)] += 1
            tally.in_transaction += (out / f"{LEDGER}-journal").exists()
            tally.differences += _damage(out)
        hit = tally.phases.total() - before
        tally.differences += _failure(project, code) or different(out, reference)
        if hit and not code:
            tally.kills_per_folder.append(hit)
            tally.forwarded.append(forwarded(out))
        shutil.rmtree(out, ignore_errors=True)


def phase(out: Path) -> str:
    """How far a killed build had come, by what it left."""
    if (out / RECIPE).exists():
        return "after the recipe"
    if list(out.glob(f"{STAGING_PREFIX}*")):
        return "moving into place" if (out / BUILD).exists() else "while writing"
    with _copied_ledger(out) as ledger:
        if ledger is None:
            return "before the ledger"
        return "ledger has entries" if _count(ledger) else "ledger opened"


def different(out: Path, reference: Path) -> list[str]:
    """What of `out` is not as in `reference`: a file's bytes, and every name that is only in one of them."""
    names, expected = ({str(path.relative_to(one)) for path in one.rglob("*")} for one in (out, reference))
    told = [f"{out.name}/{name}: only in one of both" for name in sorted(names ^ expected)]
    return told + [
        f"{out.name}/{name}: other bytes"
        for name in SAME
        if name in names and (out / name).read_bytes() != (reference / name).read_bytes()
    ]


def forwarded(out: Path) -> int:
    """Images that the last build there forwarded, for whatever purpose."""
    return sum(json.loads((out / BUILD).read_bytes())["cost"]["forwarded"].values())


def table(tally: Tally, *, fresh: int, seconds: float) -> str:
    """The figures, one a line."""
    runs, last = tally.kills_per_folder, sorted(tally.forwarded)
    rows = [("an undisturbed build, seconds", f"{seconds:.1f}"), ("kills", f"{tally.phases.total()}")]
    rows += [(f"  {name}", f"{tally.phases[name]}") for name in PHASES]
    rows += [
        ("  within a transaction of the ledger", f"{tally.in_transaction}"),
        ("folders hit", f"{len(runs)}"),
        ("  more than once", f"{sum(hits > 1 for hits in runs)}, at most {max(runs, default=0)} times"),
        ("images forwarded by a fresh build", f"{fresh:,}"),
        ("  by the last of a killed one, median", f"{last[len(last) // 2] if last else 0:,}"),
        ("  from, to", f"{min(last, default=0):,}, {max(last, default=0):,}"),
        ("differences from the undisturbed build", f"{len(tally.differences)}"),
    ]
    return "".join(f"{line}\n" for line in [f"{name:<40} {value}" for name, value in rows] + tally.differences)


def start(work: Callable[[], object], log: Path) -> int:
    """The id of a child, in a process group of its own, that does `work` and writes what it prints to `log`."""
    sys.stdout.flush()
    process = os.fork()
    if not process:
        _as_child(work, log)
    with contextlib.suppress(PermissionError, ProcessLookupError):  # it has done so itself, or has ended
        os.setpgid(process, process)
    return process


def ended(process: int, within_s: float) -> int | None:
    """The exit code of a child, or None: it was killed when the time was over, with all that it had started."""
    waiting, descriptor = select.poll(), os.pidfd_open(process)
    waiting.register(descriptor, select.POLLIN)
    in_time = bool(waiting.poll(within_s * 1000))
    os.close(descriptor)
    if not in_time:
        os.killpg(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return None if code == -signal.SIGKILL else code


def in_child(work: Callable[[], object], log: Path) -> None:
    """Do `work` where it starts no thread of this process."""
    if (code := ended(start(work, log), LIMIT_S)) != 0:
        raise SystemExit(f"ended with {code}:\n{log.read_text()}")


def _as_child(work: Callable[[], object], log: Path) -> NoReturn:
    """Never returns to the caller's own code, whatever happens."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:  # noqa: BLE001  (whatever it is, a child must not go on as its parent)
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _make(project: Path) -> None:
    """That of the tests, with two checkpoints more."""
    tests = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "conftest.py"))
    tests["write_digits"](project)
    (project / "models.py").write_text(tests["MODELS"])
    (project / "val.yaml").write_text(tests["VAL"])
    tests["train"](project, epochs=9, keep=6)


def _soup(project: Path, out: Path) -> None:
    os.chdir(project)
    sys.argv = ["soup", "build", "-o", out.name, "--set", METHODS]
    soup_command()


def _build(project: Path, out: Path) -> float:
    started = time.monotonic()
    in_child(partial(_soup, project, out), project.parent / "build.log")
    return time.monotonic() - started


def _failure(project: Path, code: int) -> list[str]:
    log = (project.parent / "build.log").read_text()
    return [f"a build ended with {code}: {log}"] if code or "Traceback" in log else []


def _strangers(project: Path) -> list[str]:
    """What builds left beside their folders."""
    ours = {"models.py", "__pycache__", "val.yaml", "runs", "train.npz", "val.npz", "test.npz", "reference", "again"}
    return [f"{path.name}: left behind" for path in project.iterdir() if path.name not in ours]


def _damage(out: Path) -> list[str]:
    with _copied_ledger(out) as ledger:
        found = "ok" if ledger is None else ledger.execute("PRAGMA integrity_check").fetchone()[0]
    return [] if found == "ok" else [f"{out.name}/{LEDGER}: {found}"]


def _count(ledger: sqlite3.Connection) -> int:
    if not ledger.execute("SELECT 1 FROM sqlite_master").fetchone():
        return 0
    return int(ledger.execute("SELECT count(*) FROM records").fetchone()[0])


@contextlib.contextmanager
def _copied_ledger(out: Path) -> Iterator[sqlite3.Connection | None]:
    """A copy, since whoever opens a ledger with a journal mends it, which is for the next build to do."""
    if not (out / LEDGER).exists():
        yield None
        return
    with tempfile.TemporaryDirectory() as temporary:
        for path in out.glob(f"{LEDGER}*"):
            shutil.copy(path, temporary)
        with contextlib.closing(sqlite3.connect(Path(temporary) / LEDGER)) as ledger:
            yield ledger


if __name__ == "__main__":
    sys.exit(main())
