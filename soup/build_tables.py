"""The tables of a build's report: checkpoints, answers, trials, contributions, and what all of it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from soup.build_folder import BuildRecord, Ingredient, Model
from soup.report import NONE, code, plain, size_text, table, value_text
from soup.search_records import Answer, Cost, Difference, TrialRecord
from soup.statistics import Interval, interval_text

_REASONS = {
    "single": "by itself",
    "kept": "kept",
    "worse": "rejected; worse",
    "within_noise": "rejected; the gain is not sure enough",
    "not_a_number": "rejected; not a number",
}
_SEARCH = {  # in `Cost`, what the search itself forwards, and what the reader calls it
    "singles": "checkpoints by themselves",
    "candidates": "soups",
    "recalibration": "recalibration of BatchNorm",
    "trying backends": "trying backends out",
    "fitting": "learning coefficients",
}
_AFTER = {"judging": "judging the model", "explaining": "explaining the result"}


def difference_text(difference: Difference, *, unit: str) -> str:
    """A recorded difference with its range, as `statistics.interval_text` writes it."""
    if difference.estimate is None:
        return f"not a number ({difference.method})"
    interval = Interval(
        difference.estimate,
        -math.inf if difference.low is None else difference.low,
        math.inf if difference.high is None else difference.high,
        difference.confidence, difference.method, difference.n, difference.groups,
    )  # fmt: skip
    return interval_text(interval, unit=unit)


def paths_of(record: BuildRecord) -> dict[str, str]:
    """SHA-256 → path of every checkpoint that is recorded."""
    return {one.sha256: one.path for one in record.ingredients}


def shown_value(record: BuildRecord, value: float | None, bound: float | None = None) -> str:
    """A value of the metric; one that was not measured to the end by the best that was in reach, as "≤ 84.00 %"."""
    if value is None and bound is not None:
        return f"{'≤' if record.higher_is_better else '≥'} {value_text(bound, unit=record.metric_unit)}"
    return value_text(value, unit=record.metric_unit)


def result_table(record: BuildRecord) -> str:
    """Best single and model on val and test."""

    def row(name: str, model: Model) -> tuple[str, ...]:
        bn = model.bn_policy if record.batchnorm_layers else NONE
        return (name, plain(model.method), bn, shown_value(record, model.val), shown_value(record, model.test))

    metric = f"{plain(record.metric)}, {'higher' if record.higher_is_better else 'lower'} is better"
    rows = [row("best single", record.best_single), row("model", record.winner)]
    return f"{metric}\n\n{table(('', 'method', 'BatchNorm', 'val', 'test'), rows)}"


def answers_table(record: BuildRecord) -> str:
    """What each method came up with; where one fitted on val, all compete on what it has not seen."""
    competing = any(answer.competing is not None for answer in record.answers)
    rows = [
        (
            plain(answer.method), str(len(answer.weights)), shown_value(record, answer.val),
            *([shown_value(record, answer.competing)] * competing),
            "the model" if _is_winner(record, answer) else "",
        )
        for answer in record.answers
    ]  # fmt: skip
    header = ("method", "of", "val", *(["val that no fit has seen"] * competing), "")
    hint = "\n\nA method has fitted on a part of val, so that all of them compete on the rest." * competing
    return table(header, rows) + hint


def checkpoints_table(record: BuildRecord) -> str:
    """The candidates best first, with their weight in the model; the base is none of them."""
    weights = record.winner.weights

    def weight(one: Ingredient) -> str:
        if one.sha256 not in weights:
            return NONE
        amount = weights[one.sha256]
        return "by layer" if isinstance(amount, Mapping) else f"{amount:g}"

    rows = [
        (
            code(one.path), "base" if one.base else shown_value(record, one.val, one.bound), weight(one),
            NONE if one.cosine is None else f"{one.cosine:.4f}", plain(one.weights), size_text(one.size_bytes),
            code(one.sha256[:12]), plain("; ".join(one.notes)),
        )
        for one in record.ingredients
    ]  # fmt: skip
    return table(("checkpoint", "val", "weight in the model", "cosine", "weights", "size", "SHA-256", "notes"), rows)


def trials_table(record: BuildRecord, trials: Sequence[TrialRecord]) -> str:
    """Every candidate but the checkpoints by themselves, which have their own table."""
    paths, unit = paths_of(record), record.metric_unit
    rows = [
        (
            plain(trial.method), _change(trial, paths), str(len(trial.ingredients)), _reached(record, trial),
            plain(reason_text(trial) + ", fragile" * trial.fragile),
            "" if trial.difference is None else plain(difference_text(trial.difference, unit=unit)),
            f"{trial.images:,}", NONE if trial.distance is None else f"{trial.distance:.3g}",
        )
        for trial in trials
        if trial.method != "single"
    ]  # fmt: skip
    header = ("method", "candidate", "of", "val", "outcome", "against what it had to beat", "images", "distance")
    hints = [
        (any(trial.fragile for trial in trials), "Fragile: one image more or less right would have turned it."),
        (
            any(trial.distance is not None for trial in trials),
            "Distance: of the checkpoint from the soup that it was to join, in weight space.",
        ),
    ]
    told = " ".join(hint for applies, hint in hints if applies)
    return table(header, rows) + (f"\n\n{told}" if rows and told else "")


def reason_text(trial: TrialRecord) -> str:
    """Why a candidate was kept or not, in words."""
    undecided = trial.difference is not None and trial.difference.verdict == "undecided"
    if trial.reason == "first":
        return "the best single, to start from" if trial.method.startswith("greedy") else "the first of its method"
    if trial.reason == "kept" and undecided:
        return "kept; gain within noise"
    if trial.reason == "worse" and trial.val is None:
        return "rejected; out of reach"
    if trial.reason == "worse" and undecided:
        return "rejected; worse within noise"
    return _REASONS.get(trial.reason, trial.reason.replace("_", " "))


def contributions_section(record: BuildRecord) -> str:
    """What the model loses without each of its ingredients, the most important first, and the ensemble above it."""
    told = record.explanation
    if told is None:
        return ""
    paths, unit, sign = paths_of(record), record.metric_unit, 1 if record.higher_is_better else -1
    ordered = sorted(
        told.contributions,
        key=lambda one: -math.inf if one.difference.estimate is None else -sign * one.difference.estimate,
    )
    rows = [
        (
            code(paths.get(one.sha256, "base")), shown_value(record, one.without),
            plain(difference_text(one.difference, unit=unit)), one.difference.verdict,
        )
        for one in ordered
    ]  # fmt: skip
    parts = [table(("ingredient", "model without it, on val", "difference that it makes", "verdict"), rows)]
    if told.ensemble is not None:
        count = len(record.winner.weights)
        parts.append(
            f"Upper reference: the averaged logits of the {count} ingredients score "
            f"{shown_value(record, told.ensemble)} on val, where the model scores "
            f"{shown_value(record, record.winner.val)}. Such an ensemble costs {count} times the inference."
        )
    return "\n\n".join(part for part in parts if part)


def line_text(record: BuildRecord) -> str:
    """The values on the line between two checkpoints, in one sentence."""
    line = record.explanation.line if record.explanation else None
    if line is None:
        return ""
    paths = paths_of(record)
    first, second = (code(paths.get(sha, "base")) for sha in (line.first, line.second))
    values = " → ".join(shown_value(record, point.value) for point in line.points)
    return f"From {first} to {second} in equal steps, on {line.points[0].images:,} images of val: {values}."


def cost_section(record: BuildRecord, trials: Sequence[TrialRecord]) -> str:
    """Images forwarded and reused for each purpose, beside those of the textbook's greedy loop."""
    cost, known = record.cost, {**_SEARCH, **_AFTER}
    others = [name for name in {**cost.forwarded, **cost.reused} if name not in known]
    rows = [
        (
            plain(known.get(name, name)), f"{cost.forwarded.get(name, 0):,}", f"{cost.reused.get(name, 0):,}",
            f"{cost.textbook[name]:,}" if name in cost.textbook else NONE,
        )
        for name in (*known, *others)
        if name in cost.forwarded or cost.reused.get(name) or name in cost.textbook
    ]  # fmt: skip
    methods = [name for name in dict.fromkeys(answer.method for answer in record.answers) if name != "single"]
    beyond = [plain(name) for name in methods if name != "greedy"]
    sentences = [
        f"{cost_sentence(cost)}.",
        f"The textbook's is a greedy search alone; this one tried {', '.join(beyond)} too." * bool(beyond),
        _stops(record, trials),
        f"Candidates ran on {plain(cost.backend)}; the build took {record.seconds:.1f} s.",
    ]
    told = " ".join(sentence for sentence in sentences if sentence)
    return f"{told}\n\n{table(('images for', 'forwarded', 'from the ledger', 'textbook loop'), rows)}"


def cost_sentence(cost: Cost) -> str:
    """The search against the textbook's greedy loop: "forwarded 2,960 images where the textbook loop takes …"."""
    used, textbook = sum(cost.forwarded.get(name, 0) for name in _SEARCH), sum(cost.textbook.values())
    reused = sum(cost.reused.get(name, 0) for name in _SEARCH)
    share = f" ({used / textbook * 100:.0f} %)" if textbook else ""
    return f"The search forwarded {used:,} images where the textbook loop takes {textbook:,}{share}, {reused:,} reused"


_FEW_NAMES = 3  # of a candidate's ingredients that its row names


def _is_winner(record: BuildRecord, answer: Answer) -> bool:
    return answer.method == record.winner.method and answer.weights == record.winner.weights


def _change(trial: TrialRecord, paths: Mapping[str, str]) -> str:
    """What is added or left out; else of what the candidate is mixed, where that is short to say."""
    if trial.added is not None:
        sign = "− " if trial.method == "pruned" else "+ " if len(trial.ingredients) > 1 else ""
        return sign + code(paths.get(trial.added, "base"))
    if trial.label:
        return plain(trial.label)
    if trial.weights is None:
        few = len(trial.ingredients) <= _FEW_NAMES and trial.method != "uniform"
        return " + ".join(code(paths.get(sha, "base")) for sha in trial.ingredients) if few else NONE
    weights = trial.weights
    plain_weights = {sha: weight for sha, weight in weights.items() if not isinstance(weight, Mapping)}
    if len(plain_weights) < len(weights):
        return "weighted by layer"
    total = math.fsum(plain_weights.values())
    if len(weights) != 2 or not total:
        return "weighted" if weights else NONE
    return ", ".join(
        f"{weight / total * 100:.0f} % {code(paths.get(sha, 'base'))}" for sha, weight in plain_weights.items()
    )


def _reached(record: BuildRecord, trial: TrialRecord) -> str:
    value = shown_value(record, trial.val, trial.bound)
    val = record.splits.get("val")
    if trial.val is not None or val is None or trial.images >= val.n:
        return value
    return f"{value}, stopped after {trial.images:,} of {val.n:,} images"


def _stops(record: BuildRecord, trials: Sequence[TrialRecord]) -> str:
    """Whether candidates were spared anything, and if not, why that may be."""
    stopped = sum(trial.val is None and trial.bound is not None for trial in trials)
    if stopped:
        return f"{stopped} of {len(trials)} evaluations stopped early, out of reach of what they had to beat."
    search = record.config.get("search")
    if isinstance(search, Mapping) and search.get("early_stop") is False:
        return "search.early_stop is off: every candidate was evaluated in full."
    return "No candidate stopped early: none was out of reach before its last images, or the metric has no bound."
