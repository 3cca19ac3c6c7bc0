"""report.md of a build: which checkpoints became the model, what the search saw, and what the test split says of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from soup.build_folder import BuildRecord, Difference, Hop, Model, TrialRecord
from soup.report import (
    NONE,
    HopRow,
    bullets,
    checks_table,
    code,
    document,
    hops_table,
    plain,
    size_text,
    summary,
    table,
    value_text,
)
from soup.statistics import Interval, interval_text


def build_markdown(record: BuildRecord, trials: Sequence[TrialRecord]) -> str:
    """The whole report; equal records give equal text."""
    skipped = [
        f"{name}: '{sample}' – {reason}" for name, split in record.splits.items() for sample, reason in split.skipped
    ]
    return document(
        "Build report",
        {
            "": f"{winner_sentence(record)}\n\n{comparison_sentence(record)}",
            "Result": _result(record),
            "Checks": f"{summary(record.checks)}\n\n{checks_table(record.checks)}" if record.checks else "",
            "What the reader should know": bullets(record.notes),
            "Checkpoints": _checkpoints(record),
            "Set aside": bullets([f"'{name}' – {reason}" for name, reason in record.set_aside]),
            "Trials": _trials(record, trials),
            "BatchNorm": _policies(record),
            "Hop by hop": hops_table(
                [hop_row(hop, unit=record.metric_unit) for hop in record.hops], unit=record.metric_unit
            ),
            "Samples": _samples(record),
            "Shared images": bullets(record.overlaps),
            "Skipped samples": bullets(skipped),
            "Cost": table(("what", "value"), _costs(record)),
            "Versions": table(
                ("package", "version"), [(plain(one), plain(found)) for one, found in record.versions.items()]
            ),
        },
    )


def winner_sentence(record: BuildRecord) -> str:
    """What became the model, and how it compares on val, in one sentence of Markdown."""
    count, single = len(record.ingredients), record.best_single
    path, value = code(_paths(record)[next(iter(single.weights))]), _value(record, single.val)
    if count == 1:
        return f"{path} is the model, with {value} on val: with one checkpoint there was nothing to average."
    if len(record.winner.weights) == 1:
        return (
            f"The best single checkpoint, {path}, is the model, with {value} on val: no soup of the {count} did better."
        )
    found, soup = _value(record, record.winner.val), plain(record.winner.method)
    return (
        f"The model is the {soup} soup of {len(record.winner.weights)} of {count} checkpoints, with {found} on val "
        f"against {value} of the best single, {path}."
    )


def comparison_sentence(record: BuildRecord) -> str:
    """What the split that judges says of the model against the best single."""
    if record.winner.weights == record.best_single.weights:
        return "Model and best single checkpoint are the same, so there is nothing to compare."
    told = {
        "better": "the model is better than the best single",
        "worse": "the model is worse than the best single",
        "undecided": "which of the two is better is not decided by these samples",
    }[record.comparison.verdict]
    caveat = "" if record.judged_on == "test" else " These samples chose the model too, so expect less of new ones."
    return (
        f"On {record.judged_on}: {plain(difference_text(record.comparison, unit=record.metric_unit))} – {told}.{caveat}"
    )


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


def hop_row(hop: Hop, *, unit: str, verdict: str | None = None) -> HopRow:
    """A hop as a row of the waterfall: its output that moved most, and a gate's verdict where one judged it.

    Without a gate a hop that changed no answer is "same", although no number of samples could prove that of all others.
    """
    found = "same" if hop.flips == 0 and hop.difference.estimate == 0 else hop.difference.verdict
    return HopRow(
        hop.name, f"{hop.where}, {hop.split}",
        _worst(max, [one.max_abs for one in hop.outputs]),
        _worst(max, [one.mean_abs for one in hop.outputs]),
        _worst(min, [one.cosine for one in hop.outputs]),
        hop.after, hop.flips, difference_text(hop.difference, unit=unit), verdict or found,
    )  # fmt: skip


def _worst(pick: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    """None where any is missing: what is no number must not hide behind a neighbour."""
    numbers = [value for value in values if value is not None]
    return pick(numbers) if numbers and len(numbers) == len(values) else None


def _result(record: BuildRecord) -> str:
    def row(name: str, model: Model) -> tuple[str, ...]:
        bn = model.bn_policy if record.batchnorm_layers else NONE
        return (name, plain(model.method), bn, _value(record, model.val), _value(record, model.test))

    metric = f"{plain(record.metric)}, {'higher' if record.higher_is_better else 'lower'} is better"
    rows = [row("best single", record.best_single), row("model", record.winner)]
    return f"{metric}\n\n{table(('', 'method', 'BatchNorm', 'val', 'test'), rows)}"


def _checkpoints(record: BuildRecord) -> str:
    weights = record.winner.weights
    rows = [
        (
            code(one.path), _value(record, one.val), f"{weights[one.sha256]:g}" if one.sha256 in weights else NONE,
            NONE if one.cosine is None else f"{one.cosine:.4f}", plain(one.weights), size_text(one.size_bytes),
            code(one.sha256[:12]), plain("; ".join(one.notes)),
        )
        for one in record.ingredients
    ]  # fmt: skip
    return table(("checkpoint", "val", "weight in the model", "cosine", "weights", "size", "SHA-256", "notes"), rows)


def _trials(record: BuildRecord, trials: Sequence[TrialRecord]) -> str:
    """Every candidate but the checkpoints by themselves, which have their own table."""
    paths = _paths(record)
    rows = [
        (
            plain(trial.method), NONE if trial.added is None else code(paths[trial.added]), str(len(trial.ingredients)),
            _value(record, trial.val), plain(trial.reason.replace("_", " ") + ", fragile" * trial.fragile),
            f"{trial.images:,}",
            "" if trial.difference is None else plain(difference_text(trial.difference, unit=record.metric_unit)),
        )
        for trial in trials
        if trial.method != "single"
    ]  # fmt: skip
    hint = "\n\nFragile: one image more or less right would have turned the decision."
    shown = table(("method", "added", "of", "val", "outcome", "images", "against what it had to beat"), rows)
    return shown + hint * any(trial.fragile for trial in trials)


def _policies(record: BuildRecord) -> str:
    """Both policies on val, where the model has BatchNorm and is an average."""
    if not record.batchnorm_layers:
        return ""
    rows = [
        (policy, _value(record, value), "ships" if policy == record.winner.bn_policy else "")
        for policy, value in record.policies.items()
    ]
    return f"{record.batchnorm_layers} layers.\n\n{table(('statistics', 'val', ''), rows)}"


def _samples(record: BuildRecord) -> str:
    rows = [
        (plain(name), f"{one.n:,}", NONE if one.groups is None else f"{one.groups:,}", code(one.list_sha256[:12]))
        for name, one in record.splits.items()
    ]
    return table(("split", "samples", "groups", "SHA-256 of the list"), rows)


def _costs(record: BuildRecord) -> list[tuple[str, str]]:
    images = [(f"images forwarded for {plain(what)}", f"{count:,}") for what, count in record.images.items()]
    return [*images, ("seconds", f"{record.seconds:.1f}")]


def _paths(record: BuildRecord) -> dict[str, str]:
    return {one.sha256: one.path for one in record.ingredients}


def _value(record: BuildRecord, value: float | None) -> str:
    return value_text(value, unit=record.metric_unit)
