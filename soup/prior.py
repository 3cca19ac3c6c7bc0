"""What the files say before anything is measured: which ingredient is likely the best, and which came after which."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from soup.checkpoint import Checkpoint

_STEP = re.compile(r"(^|[._/])(global_)?(epoch|step|iter|iteration)s?$", re.I)
_LOSS = re.compile(r"loss|err|nll|entropy|perplexity", re.I)
_PATTERNS = {  # metric of val.yaml → names that trainers record it under, the likeliest first
    "accuracy": (r"acc", r"top.?1", r"^metric$", r"loss"),  # timm's `metric` is top-1 unless asked otherwise
    "top5": (r"top.?5|acc.*5", r"acc", r"^metric$", r"loss"),
    "cross_entropy": (r"cross.?entropy|nll", r"loss", r"acc", r"^metric$"),
}


def expected_order(ingredients: Mapping[str, Checkpoint], *, metric: str) -> tuple[str, ...] | None:
    """SHA-256, the one with the best recorded metric first; None where not all recorded the same one.

    Of several that all of them recorded, the one named most like `metric` counts; ties by SHA-256.
    """
    common = set.intersection(*(set(one.recorded) for one in ingredients.values()))
    for pattern in _PATTERNS.get(metric, (re.escape(metric),)):
        named = sorted(name for name in common if re.search(pattern, name, re.I))
        if named:
            name = min(named, key=lambda one: ("val" not in one.lower(), len(one), one))
            sign = 1 if _LOSS.search(name) else -1
            return tuple(sorted(ingredients, key=lambda sha: (sign * ingredients[sha].recorded[name], sha)))
    return None


def trajectory(ingredients: Mapping[str, Checkpoint]) -> tuple[str, ...] | None:
    """SHA-256, oldest first, by recorded epoch or step; None where that does not tell all of them apart."""
    common = set.intersection(*(set(one.recorded) for one in ingredients.values()))
    steps = sorted((name for name in common if _STEP.search(name)), key=lambda name: ("epoch" in name.lower(), name))
    for name in steps:
        values = [one.recorded[name] for one in ingredients.values()]
        if len(set(values)) == len(values):
            return tuple(sorted(ingredients, key=lambda sha: ingredients[sha].recorded[name]))
    return None


def by_pilot(values: Sequence[tuple[str, float]]) -> tuple[str, ...]:
    """SHA-256 by (sha, rank on the pilot's samples), lowest rank first; ties by SHA-256."""
    return tuple(sha for sha, _ in sorted(values, key=lambda item: (item[1], item[0])))
