"""How the search's cost grows with the number of checkpoints, counted in images on per-sample results that are kept.

Each candidate is evaluated once in full, into a ledger; every search below then asks that ledger, and what counts is
which images it asked for. So the same counts come out on any machine.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search import DATA, TASKS, VAL
from soup.config import load_config
from soup.evaluate import Evaluation
from soup.greedy import greedy
from soup.larder import gather, load_data
from soup.ledger import Ledger
from soup.pipeline import PILOT, open_kitchen
from soup.prior import expected_order
from soup.score import Kitchen
from soup.singles import Singles
from soup.trials import Bar, Rule
from soup.weights import Weights, weights_key

COUNTS, RERUN = (6, 12, 24, 48), 12


@dataclass
class Counted:
    """A kitchen's score that counts what a search without a ledger would forward, by phase."""

    kitchen: Kitchen
    images: dict[str, int] = field(default_factory=lambda: {"singles": 0, "candidates": 0, "recalibration": 0})

    def __call__(self, weights: Weights, bar: Bar | None) -> Evaluation:
        key, phase = weights_key(weights), "singles" if len(weights) == 1 else "candidates"
        earlier = self.kitchen.known.get(key)
        found = self.kitchen.score(weights, bar)
        self.images[phase] += int(found.seen.sum()) - (0 if earlier is None else int(earlier.seen.sum()))
        if earlier is None and phase == "candidates" and self.kitchen.calibration is not None:
            self.images["recalibration"] += len(self.kitchen.calibration.order)
        return found


def run(*, quick: bool = False) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows for each task, number of checkpoints and prior order, and rows of reruns with one more checkpoint."""
    rows: list[dict[str, object]] = []
    reruns: list[dict[str, object]] = []
    for task in list(TASKS)[: 1 if quick else None]:
        with Ledger(DATA / task / "growth.sqlite") as ledger:
            kitchen, order = opened(DATA / task, ledger)
            for count in COUNTS[: 1 if quick else None]:
                rows += [{"task": task, **row} for row in searched(kitchen, order[:count])]
            reruns.append({"task": task, **one_more(kitchen, order[: COUNTS[0] if quick else RERUN])})
    return rows, reruns


def opened(folder: Path, ledger: Ledger) -> tuple[Kitchen, list[str]]:
    """A kitchen on all checkpoints of a task, and their SHA-256 in the order in which a search takes them on."""
    from benchmarks.checkpoints import MEAN, SIDE, STD, ingredients

    paths = ingredients(folder, COUNTS[-1])
    files = json.dumps([f"checkpoints/{path.name}" for path in paths])
    text = VAL.format(model="./models.py:build", args="{}", files=files, side=SIDE, mean=MEAN, std=STD, test="")
    (folder / "val.yaml").write_text(text)
    config = load_config(folder / "val.yaml")
    larder = gather(config, exclude=None, progress=_silent)
    splits = load_data(config, ("train", "val"), cache=folder / "cache", progress=_silent)
    kitchen = open_kitchen(config, larder, splits, ledger=ledger, progress=_silent)
    by_name = {one.path.name: sha for sha, one in larder.ingredients.items()}
    return kitchen, [by_name[path.name] for path in paths]


def searched(kitchen: Kitchen, names: Sequence[str]) -> list[dict[str, object]]:
    """The plain loop on these ingredients, then the search under each prior order, which must end in the same soup."""
    count, n, rule = len(names), len(kitchen.val), Rule(True)
    accepted, true_order = plain(kitchen, names)
    recorded = expected_order({sha: kitchen.ingredients[sha] for sha in names}, metric="accuracy")
    assert recorded is not None
    orders: Mapping[str, tuple[Sequence[str], int | None]] = {
        "recorded": (recorded, None), "pilot": (sorted(names), PILOT), "reversed": (true_order[::-1], None),
        "singles known": (true_order, None),
    }  # fmt: skip
    rows = []
    for prior, (order, pilot) in orders.items():
        kitchen.known = {}
        if prior == "singles known":
            for sha in names:
                kitchen.score({sha: 1.0}, None)
        score = Counted(kitchen)
        _, answer = greedy(Singles(order, score, rule, pilot=pilot), score, rule)
        images = score.images
        rows.append({
            "checkpoints": count, "order": prior, "same soup": set(answer.weights) == accepted,
            "accepted": len(accepted), "best single's error": 1 - _value(kitchen, true_order[0]),
            "singles": images["singles"] / (count * n), "greedy phase": images["candidates"] / ((count - 1) * n),
            "whole search": (images["singles"] + images["candidates"]) / ((2 * count - 1) * n),
            "recalibrations": images["recalibration"] / ((count - 1) * len(kitchen.calibration.order)),
            "images": images["singles"] + images["candidates"],
        })  # fmt: skip
    return rows


def one_more(kitchen: Kitchen, names: Sequence[str]) -> dict[str, object]:
    """What a rerun asks for where each checkpoint in turn is the new one, as shares of the first search's images."""
    shares = []
    for new in names:
        first = _asked(kitchen, [name for name in names if name != new])
        again = _asked(kitchen, names)
        nothing = np.zeros(len(kitchen.val), bool)
        forwarded = sum(int((seen & ~first.get(key, nothing)).sum()) for key, seen in again.items())
        shares.append(forwarded / sum(int(seen.sum()) for seen in first.values()))
    target = 3 / len(names)
    return {
        "checkpoints": len(names), "target": target, "median": float(np.median(shares)), "least": min(shares),
        "most": max(shares), "within target": f"{sum(share <= target for share in shares)} of {len(names)}",
    }  # fmt: skip


def _asked(kitchen: Kitchen, names: Sequence[str]) -> dict[tuple[object, ...], np.ndarray]:
    """Which images a search without a ledger asks of each candidate."""
    kitchen.known = {}
    greedy(Singles(sorted(names), kitchen.score, Rule(True), pilot=PILOT), kitchen.score, Rule(True))
    return {key: evaluation.seen for key, evaluation in kitchen.known.items()}


def plain(kitchen: Kitchen, names: Sequence[str]) -> tuple[set[str], list[str]]:
    """The textbook's accepted set, and its order of the singles."""
    order = sorted(sorted(names), key=lambda sha: -_value(kitchen, sha))
    accepted, best = [order[0]], _value(kitchen, order[0])
    for sha in order[1:]:
        value = kitchen.score(dict.fromkeys([*accepted, sha], 1.0), None).value or 0.0
        if value >= best:
            accepted, best = [*accepted, sha], value
    return set(accepted), order


def exponents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """The power of K that images grow with, by least squares on logarithms, for each task and order."""
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["order"]), []).append(
            (math.log(row["checkpoints"]), math.log(max(1, row["images"])))
        )
    return [
        {"task": task, "order": order, "exponent": float(np.polyfit(*np.array(points).T, 1)[0])}
        for (task, order), points in groups.items()
        if len(points) > 1
    ]


def _value(kitchen: Kitchen, sha: str) -> float:
    return kitchen.score({sha: 1.0}, None).value or 0.0


def _silent(what: str, done: int, total: int) -> None:
    """Shows nothing."""


def main() -> None:
    """Print the rows and the exponents as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    rows, reruns = run(quick=parser.parse_args().quick)
    print(json.dumps({"rows": rows, "exponents": exponents(rows), "reruns": reruns}, indent=2))


if __name__ == "__main__":
    main()
