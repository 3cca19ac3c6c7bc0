"""Upper references beside the soup: what its ingredients give together, at the cost of asking each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from exporters.runtimes import Arrays
from soup import SoupError
from soup.aids import logits_of, value_of_logits
from soup.bookkeeping import Settled
from soup.config import Config
from soup.files import finite
from soup.ledger import Key
from soup.score import Kitchen
from soup.search_records import Reference
from soup.tasks.alternatives import answers_by
from soup.tasks.fusion import Fusion, fuse_answers
from soup.views import fusion_of, views_of
from soup.weights import Weights


def ensemble(kitchen: Kitchen, weights: Weights) -> float | None:
    """The metric of the averaged class scores; None where the weights differ by layer. One ingredient at a time."""
    plain = _plain(weights)
    if not plain:
        return None
    parts = {sha: kitchen.evaluation_key({sha: 1.0}, "own", kitchen.val).sha256 for sha in plain}
    what = {"kind": "ensemble", "weights": plain}
    key = Key({"what": what, "evaluations": parts})
    if kept := kitchen.ledger.arrays(key):  # logits too large for the ledger are made once
        return finite(float(kept[0]["value"]))
    total, mean = math.fsum(plain.values()), np.zeros(())
    try:
        for sha, weight in plain.items():
            mean = mean + logits_of(kitchen, sha, phase="explaining").astype(np.float64) * (weight / total)
    except SoupError:  # they do not fit into memory
        return None
    value = value_of_logits(kitchen, mean)
    kitchen.ledger.keep_arrays(key, {"value": np.array(value)}, {})
    return finite(value)


def references(config: Config, kitchen: Kitchen, settled: Settled) -> Iterator[Reference]:
    """Views of each image; of detection also the ingredients' boxes fused, and other ways to thin out the model's."""
    try:
        yield from views_of(config, kitchen, settled.trial.weights, settled.policy)
    except SoupError as error:  # a size that the network does not take
        yield Reference(f"views: {error}", None, 1.0)
    if config.task != "detection" or not config.explain.ensemble:
        return
    plain = _plain(settled.trial.weights)
    if len(plain) > 1:
        yield from _fusions(config, kitchen, plain)
    yield from _other_suppressions(kitchen, settled)


def _plain(weights: Weights) -> dict[str, float]:
    """Positive weights of whole ingredients; none where they differ by layer."""
    if any(isinstance(weight, Mapping) for weight in weights.values()):
        return {}
    return {sha: weight for sha, weight in sorted(weights.items()) if not isinstance(weight, Mapping) and weight > 0}


def _fusions(config: Config, kitchen: Kitchen, plain: Mapping[str, float]) -> Iterator[Reference]:
    rules = _fusion_rules(config, plain)
    key = Key({
        "what": {"kind": "fusion", "weights": dict(plain), "fusion": config.detection.fusion.model_dump()},
        "evaluations": {sha: kitchen.evaluation_key({sha: 1.0}, "own", kitchen.val).sha256 for sha in plain},
    })  # fmt: skip
    kept = kitchen.ledger.arrays(key)
    if kept is None:
        found = [kitchen.with_outputs({sha: 1.0}, "own", kitchen.val, phase="explaining").answers for sha in plain]
        answers = [one for one in found if one is not None]
        values = {label: np.array(_value(kitchen, fuse_answers(answers, one))) for label, one in rules.items()}
        kept = values if len(answers) == len(plain) else {}, {}
        kitchen.ledger.keep_arrays(key, *kept)
    for label, value in kept[0].items():
        yield Reference(label, finite(float(value)), float(len(plain)))
    votes = config.detection.fusion.votes
    if votes is not None and votes > len(plain):
        yield Reference(f"boxes that {votes} ingredients find: the soup has {len(plain)}", None, float(len(plain)))


def _fusion_rules(config: Config, plain: Mapping[str, float]) -> dict[str, Fusion]:
    """By their label in the report."""
    votes = config.detection.fusion.votes
    union = replace(fusion_of(config.detection), mode="union", weights=tuple(plain.values()))
    found = {
        "union of the ingredients' boxes": union,
        "intersection of the ingredients' boxes": replace(union, mode="intersection"),
        "weighted fusion of the ingredients' boxes": replace(union, mode="weighted"),
    }
    if votes is not None and votes <= len(plain):
        found[f"boxes that {votes} of {len(plain)} ingredients find"] = replace(union, min_votes=votes)
    return found


def _value(kitchen: Kitchen, answers: Arrays) -> float:
    return kitchen.metric.reduce(kitchen.metric.per_sample(answers, kitchen.val.targets))


def _other_suppressions(kitchen: Kitchen, settled: Settled) -> Iterator[Reference]:
    """One pass over val, its boxes thinned out in each of the ways."""
    key = Key({
        "what": {"kind": "suppressions", "weights": dict(settled.trial.weights)},
        "evaluation": kitchen.evaluation_key(settled.trial.weights, settled.policy, kitchen.val).sha256,
    })  # fmt: skip
    kept = kitchen.ledger.arrays(key)
    if kept is None:
        gathered: dict[str, list[Arrays]] = {}
        predict = kitchen.predict(settled.trial.weights, settled.policy)
        for _, inputs, targets in kitchen.val.batches(kitchen.batch):
            for label, answers in answers_by(kitchen.metric, predict(inputs), targets).items():
                gathered.setdefault(label, []).append(kitchen.metric.per_sample(answers, targets))
            kitchen.images["explaining"] += len(next(iter(inputs.values())))
        values = {
            label: kitchen.metric.reduce({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
            for label, parts in gathered.items()
        }
        kept = {label: np.array(value) for label, value in values.items()}, {}
        kitchen.ledger.keep_arrays(key, *kept)
    for label, value in kept[0].items():
        yield Reference(label, finite(float(value)), 1.0)
