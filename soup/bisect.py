"""The first layer at which two graphs depart on the golden samples, or a graph from what it answered at export."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters.onnx_facts import onnx_facts
from exporters.onnx_nodes import Node, read_nodes
from exporters.precision import Precision
from exporters.runtimes import OnnxRuntime
from soup import Progress, SoupError, silent
from soup.files import finite, sha256_bytes
from soup.gates import Exit
from soup.golden import GOLDEN, Golden, read_golden
from soup.manifest import Manifest, read_manifest
from soup.release_facts import ReleaseFacts, facts_of
from soup.tensor_errors import MEASURE, Distance, Graph, compare_tensors

# What rounding alone makes of a sound graph, per precision of the examined one, and a margin (docs/decisions.md).
THRESHOLDS: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.3}


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a layer's tensor is off the reference's; None where it is not finite, or where `note` says why.

    `jump` is by how much that is more than what came in with its inputs.
    """

    name: str
    op: str
    tensor: str
    error: float | None
    jump: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class BisectResult:
    """What `soup verify --bisect` tells: `layers` in graph order, and of them the first beyond `threshold`, if any.

    `skipped` counts floating-point tensors of the reference that the examined graph has not under that name.
    """

    reference: str
    examined: str
    samples: int
    measure: str
    threshold: float
    layers: tuple[LayerError, ...]
    first: LayerError | None
    largest_jump: LayerError | None
    skipped: int
    notes: tuple[str, ...]
    exit_code: Exit


def bisect(
    release: Path, *, onnx: Path | None = None, against: Path | None = None, threshold: float | None = None,
    progress: Progress = silent,
) -> BisectResult:  # fmt: skip
    """Compare the inner tensors of `onnx` with those of `against`, on a release's golden samples; reads only.

    Either is a file of the release or any other; without `onnx` it is the variant that ships, without `against` the
    FP32 graph. A release that has only one graph is compared with its own recorded outputs: nothing inside was
    recorded at export. Raises SoupError and ExportError for files that cannot be read or do not belong together.
    """
    manifest = read_manifest(release)
    facts = facts_of(manifest, where=release)
    golden = _golden(release, manifest)
    reference = _graph(release, against or Path(_reference(facts)), manifest)
    name = onnx or _variant(facts, reference)
    if name is None:
        return _outputs_only(reference, golden, threshold=threshold)
    examined = _graph(release, name, manifest)
    errors, skipped = compare_tensors(reference, examined, golden, progress=progress)
    nodes = read_nodes(reference.model, where=reference.label)
    return _told(reference, examined.label, examined, _layers(nodes, errors), golden, skipped, threshold=threshold)


def layer_lines(result: BisectResult) -> Iterator[str]:
    """The table in graph order, and the two layers that matter, for a reader."""
    yield f"{result.examined} against {result.reference} on {result.samples} golden samples, layer by layer"
    yield f"  {'error':>10}  {'jump':>10}  op: layer"
    for one in result.layers:
        mark = "  <- first to depart" if one is result.first else ""
        note = f" ({one.note})" if one.note else ""
        yield f"  {_number(one.error):>10}  {_number(one.jump):>10}  {one.op}: {one.name or one.tensor}{note}{mark}"
    yield f"error: {result.measure}"
    skipped = f", {result.skipped} tensors not in both" if result.skipped else ""
    if result.first is None:
        yield f"no layer is beyond {result.threshold:g} ({len(result.layers)} compared{skipped})"
        return
    yield f"first to depart, beyond {result.threshold:g}: {_named(result.first)}{skipped}"
    if result.largest_jump is not None:
        yield f"largest jump: {_named(result.largest_jump)}"


def _named(one: LayerError) -> str:
    return f"{one.op} '{one.name}' (tensor '{one.tensor}'), error {_number(one.error)}, jump {_number(one.jump)}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2e}"


def _reference(facts: ReleaseFacts) -> str:
    return next(one.file for one in facts.artifacts if one.kind == "onnx")


def _variant(facts: ReleaseFacts, reference: Graph) -> Path | None:
    """The graph of another precision that ships, or else any; None where there is only the reference."""
    ships = [one.file for one in facts.precision if one.outcome == "ships" and one.file is not None]
    others = [one.file for one in facts.artifacts if one.kind == "onnx" and one.file != reference.label]
    found = [file for file in ships if file in others] + others
    return Path(found[0]) if found else None


def _golden(release: Path, manifest: Manifest) -> Golden:
    _read(release, Path(GOLDEN), manifest)
    return read_golden(release / GOLDEN)


def _graph(release: Path, path: Path, manifest: Manifest) -> Graph:
    label, model = _read(release, path, manifest)
    return Graph(label, model, onnx_facts(model, where=label))


def _read(release: Path, path: Path, manifest: Manifest) -> tuple[str, bytes]:
    """A file of the release by its name there, checked against the manifest, or any other file by its path."""
    listed = manifest.files.get(path.as_posix())
    where = release / path if listed is not None else path
    try:
        content = where.read_bytes()
    except OSError as error:
        raise SoupError(f"{where}: cannot be read: {error.strerror}. Give a file of the release, or a path.") from error
    if listed is not None and sha256_bytes(content) != listed.sha256:
        raise SoupError(f"{where}: is not as it was sealed. Run: soup verify {release}")
    return str(path), content


def _layers(nodes: Sequence[Node], errors: Mapping[str, Distance]) -> tuple[LayerError, ...]:
    """In graph order; what comes into a node is what its inputs carry, or what came into their own nodes."""
    carried: dict[str, float] = {}
    layers = []
    for node in nodes:
        came = max((carried.get(name, 0.0) for name in node.inputs), default=0.0)
        for tensor in node.outputs:
            carried[tensor] = came
            if tensor in errors:
                error = errors[tensor].error
                carried[tensor] = math.inf if math.isnan(error) else error
                jump = error - came if math.isfinite(came) else min(error, 0.0)  # a saturating layer may mend it
                layers.append(LayerError(node.name, node.op, tensor, finite(error), finite(jump), errors[tensor].note))
    return tuple(layers)


def _outputs_only(reference: Graph, golden: Golden, *, threshold: float | None) -> BisectResult:
    """What a graph answers here against what it answered at export."""
    recorded = golden.outputs.get(reference.label)
    if recorded is None:
        raise SoupError(f"{reference.label}: no answers of it were recorded. Give --onnx and --against.")
    with OnnxRuntime(reference.model, where=reference.label) as runtime:
        answers = runtime(golden.inputs)
    errors: dict[str, Distance] = {}
    for (name, ours), here in zip(recorded.items(), answers.values(), strict=True):
        errors.setdefault(name, Distance()).add(ours, here)
    layers = _layers(read_nodes(reference.model, where=reference.label), errors)
    note = "only outputs were recorded at export; to look inside give two files: --onnx A --against B"
    return _told(reference, f"{reference.label} here", reference, layers, golden, 0, threshold=threshold, notes=(note,))


def _told(
    reference: Graph, label: str, examined: Graph, layers: tuple[LayerError, ...], golden: Golden, skipped: int, *,
    threshold: float | None, notes: tuple[str, ...] = (),
) -> BisectResult:  # fmt: skip
    limit = THRESHOLDS[examined.precision] if threshold is None else threshold
    first = next((one for one in layers if one.error is None or not one.error <= limit), None)
    largest = max(layers, key=lambda one: math.inf if one.jump is None else one.jump, default=None)
    code = Exit.OK if first is None else Exit.CHECK
    return BisectResult(
        reference.label, label, len(golden), MEASURE, limit, layers, first, largest, skipped, notes, code
    )
