"""An engine's inputs, outputs and optimisation profiles, and which profile a number of samples goes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from exporters import ExportError
from exporters.runtimes import TensorInfo


@dataclass(frozen=True, slots=True)
class Profile:
    """The samples per call that an optimisation profile takes, and those that it is built for."""

    index: int
    least: int
    opt: int
    most: int


def engine_tensors(engine: Any, trt: ModuleType, mode: Any) -> tuple[TensorInfo, ...]:
    """Inputs or outputs, as `mode` says, in the engine's order; an axis without a fixed size has a name."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return tuple(
        TensorInfo(
            name=name,
            dtype=np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name,
            shape=tuple(
                size if size >= 0 else ("batch" if axis == 0 else f"axis_{axis}")
                for axis, size in enumerate(engine.get_tensor_shape(name))
            ),
        )
        for name in names
        if engine.get_tensor_mode(name) == mode
    )


def engine_profiles(engine: Any, inputs: Sequence[TensorInfo], *, where: str) -> tuple[Profile, ...]:
    """Every profile that some number of samples fits; with a static batch one that takes just that.

    Raises ExportError (input) for an input of which more than the batch is dynamic, and where no profile fits.
    """
    for info in inputs:
        if not info.shape or any(isinstance(axis, str) for axis in info.shape[1:]):
            message = f"{where}: input '{info.name}' has shape {info.shape}, expected only the batch to be dynamic."
            raise ExportError(message, kind="input")
    limits = [_limits(engine, inputs, index) for index in range(max(engine.num_optimization_profiles, 1))]
    fitting = tuple(profile for profile in limits if 1 <= profile.least <= profile.most)
    if not fitting:
        raise ExportError(f"{where}: its inputs have no batch in common: {limits}.", kind="input")
    return fitting


def profile_for(profiles: Sequence[Profile], count: int) -> Profile:
    """Of the profiles that take `count` samples the one built for the nearest number, the first among equals.

    Where none does, the one with the smallest batch above, to which the samples are filled up. `count` is at most the
    greatest batch of all.
    """
    taking = [profile for profile in profiles if profile.least <= count <= profile.most]
    if taking:
        return min(taking, key=lambda profile: abs(profile.opt - count))
    return min((profile for profile in profiles if profile.least > count), key=lambda profile: profile.least)


def _limits(engine: Any, inputs: Sequence[TensorInfo], index: int) -> Profile:
    """What every input takes at once under one profile; `opt` is the first input's, within the limits."""
    shapes = [
        (info.shape[0],) * 3
        if isinstance(info.shape[0], int)
        else tuple(shape[0] for shape in engine.get_tensor_profile_shape(info.name, index))
        for info in inputs
    ]
    least, most = max(shape[0] for shape in shapes), min(shape[2] for shape in shapes)
    return Profile(index, least, min(max(shapes[0][1], least), most), most)
