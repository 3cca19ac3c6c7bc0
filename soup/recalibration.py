"""BatchNorm statistics of a candidate, measured on images that the recipe pins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from calib import CalibError, DivergedError
from calib.batchnorm import Recalibration, recalibrate
from calib.samples import list_sha256
from soup import Progress, SoupError
from soup.checkpoint import Checkpoint
from soup.data import Split
from soup.models import to_device
from soup.sources import several
from soup.weights import Weights


class AstrayError(SoupError):
    """A candidate whose activations are no finite numbers: it has no score, and others may have one."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What BatchNorm sees again: a split, indices drawn from it in order, and the batch size; the recipe pins all."""

    split: Split
    order: np.ndarray
    batch: int

    @property
    def list_sha256(self) -> str:
        """Of the content hashes of the images in their order."""
        return list_sha256([self.split.hashes[index] for index in self.order])


def recalibrated(
    model: nn.Module, calibration: Calibration, *, device: torch.device, paths: Sequence[str], tell: Progress
) -> Recalibration:
    """Give the network the statistics of what its layers receive, in place.

    Raises SoupError that names `paths`, whose average it holds: one of them may have gone astray.
    """

    def batches() -> Iterator[torch.Tensor]:
        order = calibration.order.tolist()
        for index, (rows, inputs, _) in enumerate(calibration.split.batches(calibration.batch, order=order)):
            yield to_device(next(iter(inputs.values())), device)
            tell("recalibrating the model", index * calibration.batch + len(rows), len(order))

    model.to(device).to(memory_format=torch.channels_last)  # as evaluated, whichever comes first
    try:
        return recalibrate(model, batches(), device=device)
    except CalibError as error:
        kind = AstrayError if isinstance(error, DivergedError) else SoupError
        raise kind(f"the average of {several(paths)}: {error}", kind=error.kind) from error


def shown_weights(weights: Weights, ingredients: Mapping[str, Checkpoint]) -> str:
    """A candidate in words: its files, with their weights where they are not all one."""
    plain = all(weight == 1 for weight in weights.values())
    names = [
        ingredients[sha].path.name + ("" if plain else f" × {weight:g}" if isinstance(weight, float) else " by layer")
        for sha, weight in weights.items()
    ]
    return several(names)
