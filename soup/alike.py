"""How alike two checkpoints are: in their weights, layer by layer, and in what they predict."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from soup.aids import logits_of
from soup.checkpoint import load_state
from soup.larder import Larder
from soup.ledger import Key
from soup.score import Kitchen
from soup.tasks.classification import predictions


@dataclass(frozen=True, slots=True)
class Resemblance:
    """Of two checkpoints' kernels and matrices: float64 sums over all of them, the last layer's and the rest's."""

    cosine: float
    head: float | None  # relative distances: |a - b| / √((|a|² + |b|²) / 2)
    body: float
    whole: float


def resemblance(larder: Larder, kitchen: Kitchen, first: str, second: str, *, classes: int) -> Resemblance:
    """Over parameters of two or more axes: gains and offsets start alike in every network (as `preflight` has it).

    The head is the last of them that has as many rows as there are classes.
    """
    a, b = (load_state(larder.cookable[sha]) for sha in (first, second))
    kernels = [name for name, one in kitchen.model.named_parameters() if one.ndim > 1 and name in a and name in b]
    heads = [name for name in kernels if a[name].shape[0] == classes]
    sums = {}
    for name in kernels:
        x, y = (state[name].detach().cpu().double().numpy().ravel() for state in (a, b))
        # Not by BLAS, whose sums, and so whose bits, depend on its threads.
        sums[name] = np.array([np.einsum("n,n->", *two) for two in ((x, x), (y, y), (x, y), (x - y, x - y))])
    whole = sum(sums.values(), np.zeros(4))
    head = sums[heads[-1]] if heads else np.zeros(4)
    cosine = whole[2] / math.sqrt(whole[0] * whole[1]) if whole[0] * whole[1] else math.nan
    return Resemblance(float(cosine), _apart(head) if heads else None, _apart(whole - head), _apart(whole))


def agreement_of(kitchen: Kitchen, first: str, second: str) -> tuple[float, float, int]:
    """As `agreement` on val, and the number of classes; kept, since logits may be too large for the ledger."""
    shas = (first, second)
    parts = [kitchen.evaluation_key({sha: 1.0}, "own", kitchen.val).sha256 for sha in shas]
    key = Key({"what": {"kind": "agreement", "of": list(shas)}, "evaluations": parts})
    kept = kitchen.ledger.arrays(key)
    if kept is None:
        logits = [logits_of(kitchen, sha, phase="explaining") for sha in shas]
        shares = agreement(*(predictions({"logits": one}) for one in logits))
        kept = {"shares": np.array(shares)}, {"classes": int(logits[0].shape[1])}
        kitchen.ledger.keep_arrays(key, *kept)
    before, after = (float(share) for share in kept[0]["shares"])
    return before, after, int(str(kept[1]["classes"]))


def agreement(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The share of samples with equal predictions [n], as they are and once the second's classes are renumbered.

    The renumbering takes the commonest pair of classes first (greedy matching; ties by number). -1 predicts nothing.
    """
    ranked = (first >= 0) & (second >= 0)
    pairs, counts = np.unique(np.stack([first[ranked], second[ranked]]), axis=1, return_counts=True)
    matched, taken = 0, (set[int](), set[int]())
    for index in np.argsort(-counts, kind="stable"):
        one, other = (int(number) for number in pairs[:, index])
        if one not in taken[0] and other not in taken[1]:
            matched += int(counts[index])
            taken[0].add(one)
            taken[1].add(other)
    total = max(1, len(first))
    return float((ranked & (first == second)).sum()) / total, matched / total


def _apart(sums: np.ndarray) -> float:
    """Of Σa², Σb², Σab, Σ(a - b)²; 0 where both are zero."""
    mean = (sums[0] + sums[1]) / 2
    return math.sqrt(max(0.0, sums[3]) / mean) if mean > 0 else 0.0
