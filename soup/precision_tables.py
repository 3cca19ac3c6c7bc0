"""What a report tells of the precisions that were tried: which ships, why others do not, which layers stay higher."""

from __future__ import annotations

from collections.abc import Sequence

from soup.attempts import Attempt, Raised
from soup.build_folder import Hop
from soup.report import code, plain, table, value_text
from soup.statistics import difference_text

_FEW = 20  # layers of one kind that are listed


def precision_section(attempts: Sequence[Attempt], *, unit: str) -> str:
    """A table of what was tried in its order, the layers that stayed higher, and how those were found."""
    if not attempts:
        return ""
    rows = [
        (
            plain(one.precision), one.outcome, value_text(one.value, unit=unit), _share(one.share), str(len(one.kept)),
            plain(one.reason),
        )
        for one in attempts
    ]  # fmt: skip
    header = ("precision", "outcome", "metric on val", "multiply-adds in it", "layers kept higher", "why")
    parts = [table(header, rows)]
    parts += [text for one in attempts for text in (_kept(one), _looked(one, unit=unit)) if text]
    return "\n\n".join(parts)


def lost_sentence(hops: Sequence[Hop], *, unit: str) -> str:
    """Which hop lost most, by its estimate, among those that lost for certain; without one that none did."""
    lost = [hop for hop in hops if hop.difference.verdict == "worse" and hop.difference.estimate is not None]
    if not lost:
        return "No hop lost accuracy beyond what chance explains." if hops else ""
    worst = max(lost, key=lambda hop: abs(hop.difference.estimate or 0.0))
    text = difference_text(worst.difference.estimate or 0.0, unit=unit)
    return f"The hop that lost is {plain(worst.name)}: {text}."


def _kept(one: Attempt) -> str:
    if not one.kept:
        return ""
    listed = list(one.kept.items())
    rows = [(code(layer), plain(reason)) for layer, reason in listed[:_FEW]]
    more = f"\n\nand {len(listed) - _FEW} more, in manifest.json" if len(listed) > _FEW else ""
    return f"Kept higher than {one.precision}:\n\n{table(('layer', 'why'), rows)}{more}"


def _looked(one: Attempt, *, unit: str) -> str:
    raised = one.raised
    if raised is None:
        return ""
    count = len(raised.layers)
    found = f"{count} layers kept higher let the gates pass" if raised.passed else "no set that was tried passed"
    told = (
        f"The gates failed {one.precision} as it was. {raised.evaluations} evaluations of {raised.budget} allowed were "
        f"spent on finding layers to keep higher: {found}."
    )
    return f"{told}\n\n{_steps(raised, unit=unit)}" if raised.steps else told


def _steps(raised: Raised, *, unit: str) -> str:
    rows = [
        (str(step.kept), _share(step.share), "–" if step.loss is None else difference_text(step.loss, unit=unit),
         step.verdict)
        for step in raised.steps
    ]  # fmt: skip
    return table(("layers kept higher", "multiply-adds lower", "loss on val", "verdict"), rows)


def _share(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
