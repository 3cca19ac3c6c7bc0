"""What a new release is held against: an earlier release, a bare ONNX file, or the figures of another tool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from exporters import ExportError
from exporters.onnx_facts import OnnxFacts, inspect_onnx
from exporters.runtimes import OnnxRuntime, TensorInfo, open_onnx
from soup import Progress, SoupError, silent
from soup.answer_gates import Answers
from soup.contract import Interface, preprocess_changes
from soup.evaluate import Samples, evaluate
from soup.files import sha256_bytes, sha256_file
from soup.manifest import Manifest, read_manifest
from soup.metrics_file import read_metrics
from soup.proof import fed
from soup.release_facts import ReleaseFacts, facts_of
from soup.tasks import Metric

LABEL = "baseline"  # in hops and messages
_REPORT = "report.json"
_ADVICE = "Give a baseline that can be compared, or leave out the gates that name it."


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline as it was read: `digest` names the whole release, else it is the file's SHA-256.

    `file` is what runs, None for figures alone, with `sha256` and samples per call. `metrics` are figures by the names
    of `metrics_file.KEYS`; `task` and `metric` are None where the file does not tell.
    """

    path: Path
    kind: Literal["release", "onnx", "metrics"]
    digest: str
    metrics: Mapping[str, float]
    file: Path | None = None
    sha256: str | None = None
    batch: int | tuple[int, int, int] | None = None
    interface: Interface | None = None
    task: str | None = None
    soup_version: str | None = None


def open_baseline(path: Path) -> Baseline:
    """Read what there is to know of a baseline; nothing is run.

    A folder is taken for a release, a file for JSON where it is named .json or begins with "{", else for ONNX.
    Raises SoupError or ExportError (input) for what is none of these.
    """
    if path.is_dir():
        return _release(path)
    try:
        with path.open("rb") as file:
            begin = file.read(64).lstrip()
    except OSError as error:
        expected = "expected a release folder, an ONNX file or a JSON file of figures"
        raise SoupError(f"{path}: cannot be read: {error.strerror}, {expected}.") from error
    if path.suffix.lower() == ".json" or begin.startswith(b"{"):
        return Baseline(path, "metrics", sha256_file(path), read_metrics(path))
    facts = inspect_onnx(path)
    return Baseline(
        path, "onnx", facts.sha256, {"size_mb": facts.size_bytes / 1e6}, path, facts.sha256, None, _interface(facts),
        facts.metadata.get("soup.task"),
    )  # fmt: skip


def open_runtime(baseline: Baseline) -> OnnxRuntime:
    """Its graph in ONNX Runtime, its hash checked before a byte of it is used.

    Raises SoupError for figures alone, ExportError where ONNX Runtime is not installed or does not take the file.
    """
    if baseline.file is None:
        raise SoupError(f"{baseline.path}: holds figures and no model that could be run. {_ADVICE}")
    return open_onnx(baseline.file, expected_sha256=baseline.sha256, batch=baseline.batch)


def baseline_answers(
    baseline: Baseline, samples: Samples, metric: Metric, *, now: Interface, task: str, batch: int = 64,
    progress: Progress = silent,
) -> Answers:  # fmt: skip
    """What the baseline answers to the same images as the new model, or the figure that it states of its own.

    `samples` are given as the new model takes them, `now` is its interface. Raises SoupError (input) where the baseline
    is of another task or other classes, takes other inputs, or has no such figure.
    """
    if baseline.file is None:
        return _stated(baseline, metric)
    assert baseline.interface is not None
    if baseline.task not in (None, task):
        raise SoupError(f"{baseline.path}: is of the task '{baseline.task}', expected '{task}'. {_ADVICE}")
    try:
        with open_runtime(baseline) as runtime:
            _refuse_other_inputs(baseline, runtime.inputs, samples, now)
            _refuse_other_classes(baseline, baseline.interface, now)
            found = evaluate(
                fed(runtime), samples, metric, batch=batch, keep_outputs=True,
                progress=lambda done, total: progress(f"the {LABEL} on val", done, total),
            )  # fmt: skip
    except ExportError as error:
        if error.kind != "build":
            raise
        raise SoupError(str(error)) from error  # it is the user's file that fails, and no build of ours
    return Answers.of(LABEL, found)


def refuse_missing(needed: tuple[str, ...], baseline: object) -> None:
    """Raise SoupError where gates (`Gates.against_baseline`) compare with a baseline and none was given."""
    if needed and baseline is None:
        raise SoupError(f"{' and '.join(needed)}: against is baseline, and none was given. Add --baseline.")


def _release(path: Path) -> Baseline:
    """An earlier release; only what is used of it is read, each file against its hash."""
    manifest = read_manifest(path)
    facts = facts_of(manifest, where=path)
    names = [one.file for one in facts.precision if one.outcome == "ships" and one.file in manifest.files]
    graphs = {one.file: one for one in facts.artifacts if one.kind == "onnx"}
    file = next((name for name in names if name in graphs), next(iter(graphs), None))
    if file is None:
        raise SoupError(f"{path}: has no ONNX file that could be compared with. {_ADVICE}")
    interface = Interface(facts.onnx.inputs, facts.onnx.outputs, facts.classes, facts.preprocess or {})
    return Baseline(
        path, "release", manifest.self_sha256, _figures(path, manifest, facts, file), path / file,
        graphs[file].sha256, graphs[file].batch, interface, facts.task, manifest.soup_version,
    )  # fmt: skip


def _figures(path: Path, manifest: Manifest, facts: ReleaseFacts, file: str) -> dict[str, float]:
    """Of the graph that shipped: the metric on its val, its size, and its times where report.json is as it was."""
    found = {"n": float(facts.val.n), "size_mb": manifest.files[file].size_bytes / 1e6}
    if (value := facts.val.values.get(file)) is not None:
        found[facts.metric] = value
    listed, report = manifest.files.get(_REPORT), path / _REPORT
    if listed is not None and report.is_file() and sha256_bytes(data := report.read_bytes()) == listed.sha256:
        times = json.loads(data).get("latency", {}).get(file, {})
        names = ("p50_ms", "p90_ms", "p99_ms", "throughput")
        found |= {name: float(times[name]) for name in names if isinstance(times.get(name), int | float)}
    return found


def _interface(facts: OnnxFacts) -> Interface:
    """Of a bare file: classes and preprocessing are told by our own metadata alone."""
    classes, preprocess = (_metadata(facts, key) for key in ("soup.labels", "soup.preprocess"))
    return Interface(
        facts.inputs, facts.outputs, tuple(map(str, classes)) if isinstance(classes, list) else None,
        preprocess if isinstance(preprocess, dict) else {} if "soup.preprocess" in facts.metadata else None,
    )  # fmt: skip


def _metadata(facts: OnnxFacts, key: str) -> JsonValue:
    try:
        found: JsonValue = json.loads(facts.metadata.get(key, "null"))
    except (ValueError, RecursionError):
        return None
    return found


def _stated(baseline: Baseline, metric: Metric) -> Answers:
    value, n = baseline.metrics.get(metric.name), baseline.metrics.get("n")
    if value is None:
        told = ", ".join(baseline.metrics)
        raise SoupError(f"{baseline.path}: does not tell '{metric.name}', only {told}. {_ADVICE}")
    return Answers(LABEL, value=value, n=None if n is None else int(n))


def _refuse_other_inputs(baseline: Baseline, taken: tuple[TensorInfo, ...], samples: Samples, now: Interface) -> None:
    """What val gives is what the new model takes; of the other one, shapes and preprocessing must be the same."""
    _, inputs, _ = next(iter(samples.batches(1)))
    given = [(array.dtype.name, array.shape[1:]) for array in inputs.values()]
    if len(given) != len(taken) or not all(map(_fits, taken, given)):
        takes = ", ".join(f"'{info.name}' {info.dtype} {_axes(info.shape[1:])}" for info in taken)
        gives = ", ".join(f"{dtype} {_axes(shape)}" for dtype, shape in given)
        raise SoupError(f"{baseline.path}: takes {takes} of each image, but val gives {gives}. {_ADVICE}")
    if baseline.interface and (differ := preprocess_changes(baseline.interface, now)):
        raise SoupError(f"{baseline.path}: was made for other inputs than val gives: {differ[0]}. {_ADVICE}")


def _fits(info: TensorInfo, given: tuple[str, tuple[int, ...]]) -> bool:
    """Whether an array goes in: the same shape behind the batch, and the same dtype or another float."""
    dtype, shape = given
    same = info.dtype == dtype or (info.dtype.startswith("float") and dtype.startswith("float"))
    axes = info.shape[1:]
    return same and len(axes) == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(axes, shape, strict=True)
    )  # fmt: skip


def _refuse_other_classes(baseline: Baseline, was: Interface, now: Interface) -> None:
    """Labels would stand for other classes, or there would be no logit for some of them."""
    (gives, theirs), (wanted, own) = _classes_of(was), _classes_of(now)
    differ = isinstance(own, int) and isinstance(theirs, int) and own != theirs
    if theirs is None or differ or len(was.outputs[0].shape) != len(now.outputs[0].shape):
        wanted = f"logits (n, {own})" if now.outputs and len(now.outputs[0].shape) == 2 else wanted
        raise SoupError(f"{baseline.path}: gives {gives}, expected {wanted} first. {_ADVICE}")
    if was.classes is not None and now.classes is not None and was.classes != now.classes:
        raise SoupError(f"{baseline.path}: has other classes than val, so its answers mean others. {_ADVICE}")


def _classes_of(interface: Interface) -> tuple[str, int | str | None]:
    """The output that scores classes, as messages name it, and how many there are; None where there is none.

    Logits (n, classes[, h, w]) are the first; behind boxes (n, a, 4) come scores (n, a, classes).
    """
    if not interface.outputs:
        return "no outputs", None
    first = interface.outputs[0]
    scores = interface.outputs[1] if len(first.shape) == 3 and len(interface.outputs) > 1 else first
    told = f"'{scores.name}' {_axes(scores.shape)}"
    if len(scores.shape) not in (2, 3, 4):
        return told, None
    return told, scores.shape[2 if len(scores.shape) == 3 else 1]


def _axes(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
