"""What single methods need beside the score, made from the user's files when a method asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np
from pydantic import TypeAdapter

from calib.samples import list_sha256
from soup import SoupError
from soup.average import cook
from soup.backends import Backend, Plan, open_backend
from soup.checkpoint import load_state, state_sha256
from soup.config import Config
from soup.evaluate import Evaluation, value_on
from soup.geometry import Geometry, measure_geometry
from soup.larder import Larder
from soup.learned import fit_part, learn_coefficients
from soup.ledger import Key
from soup.prior import trajectory
from soup.ranked import Budget
from soup.score import Kitchen, Phase
from soup.search import FITTED, Aids
from soup.stock import stock_weights
from soup.weights import Weights


def aids_of(config: Config, larder: Larder, kitchen: Kitchen, *, pilot: int | None) -> Aids:
    """The aids of this build; the expensive ones are called only by the methods that need them."""
    budget = config.search.budget
    fitted = set(config.search.methods) & set(FITTED)
    rows = fit_rows(kitchen) if fitted else None
    return Aids(
        trajectory=trajectory(larder.ingredients),
        base=larder.base.sha256 if larder.base else None,
        stock=partial(_stock, larder, kitchen),
        learn=None if rows is None else partial(_learn, larder, kitchen, rows),
        logits=partial(_logits, larder, kitchen),
        value_of_logits=partial(value_of_logits, kitchen),
        budget=Budget(budget.evaluations, budget.minutes) if budget else None,
        pilot=pilot,
        competing=None if rows is None else partial(_value_beyond, kitchen, rows),
    )


def fit_rows(kitchen: Kitchen) -> np.ndarray:
    """bool [val]: the part that coefficients are fitted on."""
    val = kitchen.val
    return fit_part(len(val), labels=val.targets.get("label"), groups=val.groups, hashes=val.hashes)


def geometry_of(larder: Larder, kitchen: Kitchen) -> Geometry:
    """Distances and angles of all that a soup may be made of, over the network's parameters."""
    names = {name for name, _ in kitchen.model.named_parameters(remove_duplicate=False)}
    present = set.intersection(*(set(one.tensors) for one in larder.cookable.values()))
    return measure_geometry(larder.cookable, names & present, progress=kitchen.progress)


def logits_of(kitchen: Kitchen, sha: str, *, phase: Phase = "judging") -> np.ndarray:
    """float [val, classes, …] of an ingredient alone, with its own statistics.

    Raises SoupError where they are too large to be kept of every image, as those of masks may be.
    """
    evaluation = kitchen.with_outputs({sha: 1.0}, "own", kitchen.val, phase=phase)
    logits: np.ndarray = next(iter((evaluation.outputs or {}).values()))
    if len(logits) < len(kitchen.val):
        held = f"{len(logits)} of {len(kitchen.val)} images"
        raise SoupError(f"data.val: class scores are too large to be averaged: memory holds those of {held}.")
    return logits


def value_of_logits(kitchen: Kitchen, logits: np.ndarray) -> float:
    """The metric of these logits on val."""
    metric, targets = kitchen.metric, kitchen.val.targets
    return metric.reduce(metric.per_sample(metric.task.answers({"logits": logits}, targets), targets))


def open_for(kitchen: Kitchen, wanted: Literal["auto", "torch", "onnxruntime"], *, plan: Plan) -> Backend:
    """Try the backends on two ingredients and some of val."""
    shas = sorted(kitchen.ingredients)[:2]
    states = [cook({sha: 1.0}, kitchen.ingredients, dtype=kitchen.dtype) for sha in shas]
    rows = np.arange(min(2 * kitchen.batch, len(kitchen.val)))
    kitchen.loaded = None
    backend = open_backend(
        kitchen.model, {"input": kitchen.val.inputs(rows)}, states,
        plan=plan, metric=kitchen.metric, device=kitchen.device, wanted=wanted,
    )  # fmt: skip
    kitchen.images["trying backends"] += len(rows)
    return backend


def _stock(larder: Larder, kitchen: Kitchen) -> Weights:
    assert larder.base is not None  # the configuration sees to it
    if len(larder.ingredients) < 2:
        raise SoupError("search.methods: 'model_stock' takes two checkpoints or more, found 1. Leave it out.")
    return stock_weights(geometry_of(larder, kitchen), larder.base.sha256)


def _learn(larder: Larder, kitchen: Kitchen, rows: np.ndarray, per_layer: bool) -> Weights:
    """Fitted once: the ledger keeps what came out."""
    states = {sha: load_state(one) for sha, one in sorted(larder.ingredients.items())}
    val, fitted = kitchen.val, np.flatnonzero(rows)
    images = list_sha256([val.hashes[row] for row in fitted])
    key = Key({
        **kitchen.facts,
        "what": {"kind": "fit", "ingredients": list(states), "per_layer": per_layer},
        "states": {sha: state_sha256(state) for sha, state in states.items()},
        "data": {"list_sha256": images, "targets_sha256": val.targets_sha256()},
        "batch": kitchen.batch,
    })  # fmt: skip
    if kept := kitchen.ledger.arrays(key):
        return _WEIGHTS.validate_python(kept[1]["weights"])
    kitchen.loaded = None
    learned = learn_coefficients(
        kitchen.model, states, val, fitted, per_layer=per_layer, loss="cross_entropy",
        batch=kitchen.batch, device=kitchen.device,
        progress=lambda done, total: kitchen.progress("learning coefficients", done, total),
    )  # fmt: skip
    kitchen.images["fitting"] += learned.images
    kitchen.ledger.keep_arrays(key, {}, {"weights": learned.weights})
    return learned.weights


def _logits(larder: Larder, kitchen: Kitchen) -> Mapping[str, np.ndarray]:
    return {sha: logits_of(kitchen, sha) for sha in larder.ingredients}


def _value_beyond(kitchen: Kitchen, rows: np.ndarray, evaluation: Evaluation) -> float:
    return value_on(evaluation, ~rows, kitchen.metric)


_WEIGHTS: TypeAdapter[Weights] = TypeAdapter(Weights)
