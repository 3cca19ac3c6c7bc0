"""report.md of a build: which checkpoints became the model, what the search saw, and what the test split says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from soup.build_folder import BuildRecord, Hop, WorstClass
from soup.build_tables import (
    answers_table,
    checkpoints_table,
    contributions_section,
    cost_section,
    difference_text,
    line_text,
    paths_of,
    result_table,
    shown_value,
    trials_table,
)
from soup.reference_sections import (
    classes_section,
    other_metrics_section,
    reading_section,
    references_section,
    resolutions_section,
)
from soup.report import NONE, HopRow, bullets, checks_table, code, document, hops_table, plain, summary, table
from soup.search_records import TrialRecord
from soup.statistics import difference_text as change_text


def build_markdown(record: BuildRecord, trials: Sequence[TrialRecord], *, picture: str | None = None) -> str:
    """The whole report, with the picture of this name beside it; equal arguments give equal text."""
    skipped = [
        f"{name}: '{sample}' – {reason}" for name, split in record.splits.items() for sample, reason in split.skipped
    ]
    told = record.explanation
    opening = [winner_sentence(record), comparison_sentence(record), optimism_sentence(record)]
    return document(
        "Build report",
        {
            "": "\n\n".join(sentence for sentence in opening if sentence),
            "Result": result_table(record),
            "Why no soup won": bullets(told.causes if told else ()),
            "Checks": f"{summary(record.checks)}\n\n{checks_table(record.checks)}" if record.checks else "",
            "What the reader should know": bullets(record.notes),
            "What each method found": answers_table(record),
            "Trials": trials_table(record, trials),
            "Checkpoints": checkpoints_table(record),
            "Set aside": bullets([f"'{name}' – {reason}" for name, reason in record.set_aside]),
            "What each ingredient adds": contributions_section(record),
            "Between the checkpoints": _picture(record, picture),
            "How outputs are read": reading_section(record),
            "By other metrics": other_metrics_section(record),
            "By class": classes_section(record),
            "More inference": references_section(record),
            "Test resolution": resolutions_section(record),
            "BatchNorm": _policies(record),
            "Hop by hop": hops_table(
                [hop_row(hop, unit=record.metric_unit) for hop in record.hops], unit=record.metric_unit
            ),
            "Samples": _samples(record),
            "Shared images": bullets(record.overlaps),
            "Skipped samples": bullets(skipped),
            "Cost": cost_section(record, trials),
            "Versions": table(
                ("package", "version"), [(plain(one), plain(found)) for one, found in record.versions.items()]
            ),
        },
    )


def winner_sentence(record: BuildRecord) -> str:
    """What became the model, and how it compares on val, in one sentence of Markdown."""
    weights, tuned = record.winner.weights, [one.sha256 for one in record.ingredients if not one.base]
    path = code(paths_of(record)[next(iter(record.best_single.weights))])
    value = shown_value(record, record.best_single.val)
    if weights == record.best_single.weights:
        if len(tuned) == 1:
            return f"{path} is the model, with {value} on val: with one checkpoint there was nothing to average."
        return (
            f"The best single checkpoint, {path}, is the model, with {value} on val: "
            f"no soup of the {len(tuned)} did better."
        )
    used = sum(sha in weights for sha in tuned)
    base = " and the base" if len(weights) > used else ""
    return (
        f"The model is the {plain(record.winner.method)} soup of {used} of {len(tuned)} checkpoints{base}, with "
        f"{shown_value(record, record.winner.val)} on val against {value} of the best single, {path}."
    )


def optimism_sentence(record: BuildRecord) -> str:
    """By how much val flatters the model that was chosen there, and what test gives instead; empty where neither is."""
    found, unit, sentences = record.optimism, record.metric_unit, []
    if found is not None and found.value is not None:
        most = "" if found.ceiling is None else f", at most {_size(found.ceiling, unit)} if all were equally good"
        sentences.append(
            f"As the best of {found.candidates} candidates on val, its figure there flatters it by about "
            f"{_size(found.value, unit)}{most} ({plain(found.method)})."
        )
    if record.winner.test is not None and record.winner.val is not None:
        change = plain(change_text(record.winner.test - record.winner.val, unit=unit))
        sentences.append(f"On test it scores {shown_value(record, record.winner.test)}, {change} from val.")
    return " ".join(sentences)


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
        "" if hop.worst_class is None else f"{hop.worst_class.name}: {_worst_difference(hop.worst_class, unit)}",
        moved_text(hop),
    )  # fmt: skip


def moved_text(hop: Hop) -> str:
    """How answers changed, of boxes and masks; of classes their number says it all."""
    return "" if "flips" in hop.figures else hop.moved


def _worst_difference(worst: WorstClass, unit: str) -> str:
    """With its interval, which is at the level of all classes together."""
    return f"{difference_text(worst.difference, unit=unit)}, n = {worst.n}"


def _worst(pick: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    """None where any is missing: what is no number must not hide behind a neighbour."""
    numbers = [value for value in values if value is not None]
    return pick(numbers) if numbers and len(numbers) == len(values) else None


def _size(value: float, unit: str) -> str:
    """Of a difference, without its sign."""
    return change_text(abs(value), unit=unit).lstrip("+")


def _picture(record: BuildRecord, name: str | None) -> str:
    image = f"![Where the checkpoints lie, and soups on the line between two of them]({name})" if name else ""
    return "\n\n".join(part for part in (image, line_text(record)) if part)


def _policies(record: BuildRecord) -> str:
    """Both policies on val, where the model has BatchNorm and is an average."""
    if not record.batchnorm_layers:
        return ""
    rows = [
        (policy, shown_value(record, value), "ships" if policy == record.winner.bn_policy else "")
        for policy, value in record.policies.items()
    ]
    off = record.convergence
    settled = f" Half of the images put them off by at most {off * 100:.2g} % of a layer's spread." if off else ""
    return f"{record.batchnorm_layers} layers.{settled}\n\n{table(('statistics', 'val', ''), rows)}"


def _samples(record: BuildRecord) -> str:
    rows = [
        (plain(name), f"{one.n:,}", NONE if one.groups is None else f"{one.groups:,}", code(one.list_sha256[:12]))
        for name, one in record.splits.items()
    ]
    return table(("split", "samples", "groups", "SHA-256 of the list"), rows)
