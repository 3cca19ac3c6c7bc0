"""`make bench`: every benchmark in turn, as Markdown with machine, versions and date; the README carries it."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import averaging, batchnorm, detection, growth, latency, precision, search
from exporters.runtimes import device_name
from soup.doctor import versions
from soup.report import table

README = Path(__file__).parents[1] / "README.md"
_SHOWN = ("python", "torch", "torchvision", "numpy", "safetensors")


def main() -> None:
    """Print the tables; with --write, put them between the README's markers too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: shows that everything runs")
    parser.add_argument("--write", action="store_true", help="replace the tables in README.md")
    options = parser.parse_args()
    text = "\n\n".join(sections(quick=options.quick))
    print(text)
    if options.write:
        block = f"<!-- bench -->\n{text}\n<!-- /bench -->"
        readme = README.read_text(encoding="utf-8")
        README.write_text(
            re.sub(r"<!-- bench -->.*<!-- /bench -->", lambda _: block, readme, flags=re.S), encoding="utf-8"
        )


def sections(*, quick: bool) -> Iterator[str]:
    """Machine and date, then a table per benchmark, each measured in one run."""
    installed = versions()
    libraries = ", ".join(f"{name} {installed[name]}" for name in _SHOWN if name in installed)
    cores = len(os.sched_getaffinity(0))
    yield f"Measured {date.today().isoformat()} on {cores} cores of {device_name()}, no GPU; {libraries}."
    yield from averaging_section(averaging.run(quick=quick))
    yield from search_section(search.run(quick=quick))
    if not quick:
        yield from growth_section(*growth.run())
    yield from batchnorm_section(batchnorm.run(quick=quick))
    yield from precision.brief(precision.run(quick=quick))
    yield from latency_section(latency.run(quick=quick))
    yield from detection_section(detection.run(quick=quick))


def averaging_section(result: Mapping[str, Any]) -> Iterator[str]:
    """Averaging: time against the machine's own read, memory, error."""
    yield f"**Averaging** ({facts(result['setting'])})"
    yield rows_table(result["rows"])


def search_section(result: Mapping[str, Any]) -> Iterator[str]:
    """soup build beside the textbook loop, and what each method ships with."""
    for task in result["tasks"]:
        same = "the same accepted set" if task["same_accepted_set"] else "DIFFERENT accepted sets"
        yield (
            f"**Search, task {task['task']}** ({facts(result['setting'])}): {same} ({task['accepted']} checkpoints), "
            f"in {task['ratio']:.2f} of the textbook's time; candidates on {task['backend']}"
        )
        yield rows_table(task["rows"])
        yield rows_table(task["accuracy"])


def growth_section(rows: Sequence[Mapping[str, Any]], reruns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Images as shares of the textbook's, and the power of K that they grow with."""
    yield "**Growth of the search** (images as shares of the textbook's, on per-sample results that are kept)"
    yield rows_table(rows)
    yield rows_table(growth.exponents(rows))
    yield "A rerun with one more checkpoint, each in turn the new one (images, as shares of the search without it):"
    yield rows_table(reruns)


def batchnorm_section(result: Mapping[str, Any]) -> Iterator[str]:
    """BatchNorm statistics against the float64 population, and the time that they take."""
    yield "**BatchNorm recalibration**: largest error over layers and channels (0.5 ulp is the best a float32 can do)"
    yield rows_table(result["errors"])
    yield "Time of one pass:"
    yield rows_table(result["times"])


def latency_section(result: Mapping[str, Any]) -> Iterator[str]:
    """soup's times beside a plain loop and ONNX Runtime's profile, and the noise of a network against itself."""
    yield f"**Latency** ({facts(result['setting'])}): medians in ms; ratios with their 95 % intervals over the rounds"
    yield rows_table(result["rows"])
    yield "A network against itself in turns (blocks of A B B A): what noise alone does to the ratio:"
    yield rows_table(result["pairs"])


def detection_section(result: Mapping[str, Any]) -> Iterator[str]:
    """Images per second from dense outputs to the mean average precision, beside torchmetrics."""
    yield f"**Detection: evaluation speed** ({facts(result['setting'])})"
    yield rows_table(result["rows"])


def facts(setting: Mapping[str, object]) -> str:
    """A benchmark's setting in a line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in setting.items())


def rows_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of equal keys as Markdown."""
    names = list(rows[0])
    header = [name.replace("_", " ") for name in names]
    return table(header, [[cell(row.get(name)) for name in names] for row in rows])


def cell(value: object) -> str:
    """Three significant digits, which is more than these measurements can bear."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
