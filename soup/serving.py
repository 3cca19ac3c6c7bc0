"""The winner on its way to disk: streamed from its ingredients, read back, compared."""

from __future__ import annotations

from pathlib import Path

from calib.batchnorm import Recalibration, statistics
from soup.average import cook_to_file
from soup.checkpoint import StateDict, load_state, read_checkpoint, state_sha256, with_names
from soup.rounding import cooked_dtype
from soup.score import Kitchen
from soup.weights import Weights, weight_of


def write_soup(
    path: Path, kitchen: Kitchen, weights: Weights, *, state: StateDict, measured: Recalibration | None
) -> None:
    """Stream the average to `path`, but for what `state` measured or rounded; it is read back and compared."""
    replaced = set(statistics(kitchen.model, measured.layers)) if measured else set()
    for name, tensor in state.items():
        parts = [kitchen.ingredients[sha].tensors[name] for sha in weights if weight_of(weights[sha], name) > 0]
        if cooked_dtype((part.dtype for part in parts), kitchen.dtype) != tensor.dtype:
            replaced.add(name)
    cook_to_file(
        weights, kitchen.ingredients, path, dtype=kitchen.dtype, metadata={"format": "pt"},
        replace={name: state[name] for name in replaced},
    )  # fmt: skip
    written = with_names(read_checkpoint(path), state)
    if state_sha256(load_state(written)) != state_sha256(state):
        raise AssertionError(f"{path}: what was written is not what was scored")
