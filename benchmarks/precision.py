"""FP32, FP16 and INT8 of three real networks: accuracy and flips, the accuracy-aware pass, time, and engines.

`python -m benchmarks.precision` prints a table per question and, with --write, puts them into docs/precision.md. It
trains the networks where they are missing (`benchmarks.precision_networks`, a quarter of an hour on one core, once).
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import precision_measures as measures
from benchmarks.precision_networks import PLANS, Subject, make, quick_subject, subject
from benchmarks.precision_variants import ALLOWED_POINTS, DEFAULTS, METHODS, STRICT_POINTS
from exporters.runtimes import device_name
from soup.report import table

DATA = Path(__file__).parents[1] / "bench-data" / "precision"
DOCUMENT = Path(__file__).parents[1] / "docs" / "precision.md"
LEAST_SHARE, MOST_RATIO = 0.90, 1.5  # of the multiply-adds in INT8; of quantize_static's time
LIBRARIES = ("torch", "onnx", "onnxruntime", "nvidia-modelopt", "tensorrt-rtx-cu13", "numpy")
TIMED_IMAGES, REPEATS = 256, 5
Row = dict[str, Any]
Result = dict[str, list[Row]]


def run(*, quick: bool, folder: Path = DATA) -> Result:
    """{"networks", "accuracy", "raised", "strict", "times", "engines"}: rows of each, of every network in turn."""
    if quick:
        with tempfile.TemporaryDirectory() as work:
            return measured(quick_subject(), Path(work), images=64, repeats=1, built=("INT8",))
    make(folder)
    results = [
        measured(subject(folder, name), folder / "measured", images=TIMED_IMAGES, repeats=REPEATS) for name in PLANS
    ]
    return {question: [row for result in results for row in result[question]] for question in results[0]}


def measured(
    subject: Subject, folder: Path, *, images: int, repeats: int, built: Sequence[str] = ("FP32", "FP16", "INT8")
) -> Result:
    """All questions about one network; `folder` keeps what was measured, `built` are the engines to build."""
    bench = measures.Bench.of(subject, folder / "logits")
    raised = {method: measures.raised(bench, method, allowed=ALLOWED_POINTS) for method in METHODS}
    shipped = chosen([row for _, row in raised.values()])
    graphs = {
        "FP32": subject.graph,
        "FP16": bench.forges["minmax"].make("fp16").graph,
        "INT8": raised[shipped][0],
    }
    found: Result = {
        "networks": [measures.network_row(bench)],
        "accuracy": list(measures.accuracy_rows(bench)),
        "raised": [{**row, "ships": method == shipped} for method, (_, row) in raised.items()],
        "strict": [measures.raised(bench, DEFAULTS.method, allowed=STRICT_POINTS)[1] | {"ships": False}],
        "times": measures.times(bench, folder, images=images, repeats=repeats),
        "engines": measures.engines(bench, {name: graphs[name] for name in built}, folder, repeats=repeats),
    }
    return {question: [{"network": subject.name, **row} for row in rows] for question, rows in found.items()}


def chosen(rows: Sequence[Row]) -> Any:
    """The method that would ship, by what is known without test: the least lost on val, the most in INT8, the first."""
    passed = [row for row in rows if row["passed"]] or list(rows)
    return max(passed, key=lambda row: (row["val_points_after"], row["share"]))["method"]


def targets(result: Result) -> Iterator[Row]:
    """Each target of each network, what was measured, and by how much it is missed where it is."""
    for row in result["raised"]:
        if row["ships"]:
            points, share = row["test_points"], row["share"]
            yield target(row, "test accuracy from FP32, points", points, -ALLOWED_POINTS, points >= -ALLOWED_POINTS)
            yield target(row, "multiply-adds in INT8", share, LEAST_SHARE, share >= LEAST_SHARE)
    for row in result["times"]:
        if row["ratio"] is not None:
            name = f"time to quantise, {row['method']}, of quantize_static's"
            yield target(row, name, row["ratio"], MOST_RATIO, row["ratio"] <= MOST_RATIO)


def target(row: Row, name: str, value: float, limit: float, met: bool) -> Row:
    """A line of the table of targets."""
    missed = "met" if met else f"MISSED by {abs(value - limit):.2f}"
    return {"network": row["network"], "target": name, "limit": f"{limit:.2f}", "measured": f"{value:.2f}", "": missed}


def sections(result: Result) -> Iterator[str]:
    """Machine, versions and date, then a table for each question."""
    yield setting()
    yield "## Targets"
    yield markdown(list(targets(result)))
    yield "## The networks"
    yield markdown([network_cells(row) for row in result["networks"]])
    yield "## Accuracy and flips on test"
    yield (
        "Answers that differ from FP32's are flips. The interval is of the difference in points, paired, 95 % (Tango "
        "1998). `quantize_static` is onnxruntime's."
    )
    for name in dict.fromkeys(row["network"] for row in result["accuracy"]):
        yield f"**{name}**"
        yield markdown([accuracy_cells(row) for row in result["accuracy"] if row["network"] == name])
    yield "## After the accuracy-aware pass"
    yield (
        f"The gate is a loss of at most {ALLOWED_POINTS} points on val; a graph that meets it ships as it is, with one "
        "evaluation. In bold what would ship, chosen on val."
    )
    yield markdown([raised_cells(row) for row in result["raised"]])
    yield (
        f"A gate of {STRICT_POINTS} points, for the default method, makes the pass work (single layers on 256 images "
        f"of val, then sets of them on all; at most {DEFAULTS.budget} evaluations):"
    )
    yield markdown([raised_cells(row) for row in result["strict"]])
    yield "\n".join(
        f"- {row['network']}, {row['seconds']:.0f} s: {', '.join(row['layers']) or 'no layer'}"
        for row in result["strict"]
    )
    yield "## Time to quantise"
    yield (
        "From the FP32 graph to the INT8 one, by `calib.ranges` and `exporters.onnx_to_int8` and by `quantize_static` "
        "with its defaults and the same method, in turns; medians."
    )
    yield markdown([time_cells(row) for row in result["times"]])
    yield "## Engines, built ahead of time"
    yield markdown([engine_cells(row) for row in result["engines"]]) or "No TensorRT is installed here."


def setting() -> str:
    """Where and with what it was measured."""
    versions = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    cores = len(os.sched_getaffinity(0))
    machine = f"{cores} cores of {device_name()}, no GPU"
    return f"Measured {date.today().isoformat()} on {machine}; {', '.join(versions)}."


def brief(result: Result) -> Iterator[str]:
    """The targets alone, for the README."""
    yield "**Precision** (docs/precision.md has the rest)"
    yield markdown(list(targets(result)))


def network_cells(row: Row) -> dict[str, str]:
    """What is quantised."""
    return {
        "network": row["network"], "layers": str(row["layers"]), "multiply-adds": f"{row['macs'] / 1e6:.1f} M",
        "FP32 on val": f"{row['val']:.2f} %", "on test": f"{row['test']:.2f} %", "val": str(row["val_images"]),
        "test": str(row["test_images"]), "calibration": str(row["calibration_images"]),
    }  # fmt: skip


def accuracy_cells(row: Row) -> dict[str, str]:
    """A graph beside FP32."""
    first = row["graph"] == "FP32"
    return {
        "by": row["by"], "graph": row["graph"], "accuracy": f"{row['accuracy']:.2f} %",
        "points": "–" if first else f"{row['points']:+.2f}",
        "95 %": "–" if first else f"{row['low']:+.2f} to {row['high']:+.2f}",
        "flips": "–" if first else str(row["flips"]),
        "to right": "–" if first else str(row["to_right"]), "to wrong": "–" if first else str(row["to_wrong"]),
        "in INT8": "–" if row["share"] is None else f"{row['share']:.1%}", "MB": f"{row['size_bytes'] / 1e6:.2f}",
    }  # fmt: skip


def raised_cells(row: Row) -> dict[str, str]:
    """A method before and after the pass."""
    name = f"**{row['method']}**" if row["ships"] else row["method"]
    return {
        "network": row["network"], "INT8": name, "gate": f"{row['allowed']:.1f}",
        "val before": f"{row['val_points']:+.2f}",
        "val after": f"{row['val_points_after']:+.2f}" + ("" if row["passed"] else " (fails)"),
        "kept in FP32": str(len(row["layers"])), "evaluations": str(row["evaluations"]),
        "in INT8": f"{row['share']:.1%}", "test before": f"{row['before_points']:+.2f}",
        "test after": f"{row['test_points']:+.2f}", "flips": str(row["test_flips"]),
    }  # fmt: skip


def time_cells(row: Row) -> dict[str, str]:
    """Both quantisers."""
    seconds = {
        name: "–" if row[name] is None else f"{row[name]:.2f}" for name in ("soup", "other", "ratio", "cpu_ratio")
    }
    return {
        "network": row["network"], "method": row["method"], "images": str(row["images"]), "soup s": seconds["soup"],
        "quantize_static s": seconds["other"], "ratio": seconds["ratio"], "of CPU time": seconds["cpu_ratio"],
    }  # fmt: skip


def engine_cells(row: Row) -> dict[str, str]:
    """An engine."""
    dtypes = ", ".join(f"{count} {name}" for name, count in row["dtypes"].items())
    return {
        "network": row["network"], "precision": row["precision"], "seconds": f"{row['seconds']:.1f}",
        "engine MB": f"{row['size_bytes'] / 1e6:.2f}", "ONNX MB": f"{row['onnx_bytes'] / 1e6:.2f}",
        "peak MB": f"{row['peak_memory_bytes'] / 1e6:.0f}", "layers": str(row["layers"] or "not readable"),
        "layers compute in": dtypes or "not readable", "multiply-adds as asked": f"{row['share']:.1%}",
    }  # fmt: skip


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys as a table."""
    return table(list(rows[0]), [list(row.values()) for row in rows]) if rows else ""


def main() -> None:
    """Print the tables; with --write, put them between the document's markers too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny network, one round: shows that everything runs")
    parser.add_argument("--write", action="store_true", help="replace the tables in docs/precision.md")
    parser.add_argument("--folder", type=Path, default=DATA, help="of the networks and of what was measured")
    options = parser.parse_args()
    text = "\n\n".join(sections(run(quick=options.quick, folder=options.folder)))
    print(text)
    if options.write:
        block = f"<!-- precision -->\n{text}\n<!-- /precision -->"
        old = DOCUMENT.read_text(encoding="utf-8")
        pattern = re.compile(r"<!-- precision -->.*<!-- /precision -->", re.S)
        DOCUMENT.write_text(pattern.sub(lambda _: block, old), encoding="utf-8")


if __name__ == "__main__":
    main()
