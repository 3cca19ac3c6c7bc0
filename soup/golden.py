"""Golden samples: inputs as the graph is fed, targets, and what each artifact answered: proof without data or torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from exporters.runtimes import Arrays
from soup import SoupError
from soup.files import array_entry, write_safetensors

GOLDEN = "golden.safetensors"
HARD_SHARE = 0.25  # of the golden samples, those of smallest margin: where a small error shows first


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs and targets by name, first axis the sample; outputs by artifact ("torch", "model.onnx", …), then name."""

    inputs: Arrays
    targets: Arrays
    outputs: Mapping[str, Arrays]
    best_single: Arrays  # the metric's statistics of the best single, empty where they were not kept

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def in_order(self, names: Sequence[str]) -> Golden:
        """The same with each artifact's outputs in this order, which the file does not keep; others after them."""
        place = {name: at for at, name in reversed(list(enumerate(names)))}

        def ordered(outputs: Arrays) -> Arrays:
            return {name: outputs[name] for name in sorted(outputs, key=lambda name: place.get(name, len(place)))}

        return replace(self, outputs={file: ordered(one) for file, one in self.outputs.items()})


def choose_golden(strata: np.ndarray, margins: np.ndarray, *, count: int) -> np.ndarray:
    """Indices (sorted int64) of `count` samples: a quarter of smallest margin, the rest spread evenly over the strata.

    strata: int [n], e.g. the class; margins: float [n], top-1 minus top-2. Ties by index.
    """
    count = min(count, len(strata))
    hard = np.argsort(margins, kind="stable")[: int(np.ceil(count * HARD_SHARE))]
    rest = np.setdiff1d(np.arange(len(strata)), hard)
    rank = np.empty(len(rest), np.int64)
    for stratum in np.unique(strata[rest]):
        members = np.flatnonzero(strata[rest] == stratum)
        rank[members] = np.arange(len(members))
    spread = rest[np.lexsort((rest, strata[rest], rank))]
    return np.sort(np.concatenate([hard, spread[: count - len(hard)]]))


def write_golden(path: Path, golden: Golden) -> None:
    """Write `input.NAME`, `target.NAME`, `output.ARTIFACT.NAME` and `best_single.NAME`; equal content, equal bytes."""
    arrays = {f"input.{name}": array for name, array in golden.inputs.items()}
    arrays |= {f"target.{name}": array for name, array in golden.targets.items()}
    arrays |= {f"best_single.{name}": array for name, array in golden.best_single.items()}
    for artifact, outputs in golden.outputs.items():
        arrays |= {f"output.{artifact}.{name}": array for name, array in outputs.items()}
    write_safetensors(path, {name: array_entry(np.asarray(array)) for name, array in arrays.items()})


def read_golden(path: Path) -> Golden:
    """Read what `write_golden` wrote. Raises SoupError for a file that is none."""
    try:
        arrays = load_arrays(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise SoupError(f"{path}: no golden samples: {error}. Export the release again.") from error
    flat: dict[str, dict[str, np.ndarray]] = {"input": {}, "target": {}, "best_single": {}}
    outputs: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        kind, _, name = key.partition(".")
        if kind == "output":
            artifact, _, name = name.rpartition(".")
            outputs.setdefault(artifact, {})[name] = array
        elif kind in flat:
            flat[kind][name] = array
    counts = {key: array.shape[:1] for key, array in arrays.items()}
    if not flat["input"] or not flat["target"] or "torch" not in outputs or len(set(counts.values())) > 1:
        wanted = "inputs, targets and torch's outputs of as many samples each"
        raise SoupError(f"{path}: no golden samples: expected {wanted}, found {counts}. Export the release again.")
    return Golden(flat["input"], flat["target"], outputs, flat["best_single"])
