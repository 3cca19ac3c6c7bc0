"""Whether a graph, or an engine made of it, computes in the precision that was asked for: a verdict, layer by layer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from exporters.audit import LayerAudit, audit_engine, differences, share
from exporters.precision import Precision
from soup.gates import Check, Subject, Verdict

_FEW = 3  # layers that a message names


def audit_check(audits: Sequence[LayerAudit], subject: Subject, *, asked: Precision) -> Check:
    """Fails where a layer computes in another precision than asked and was not kept higher on purpose.

    What an engine's record does not tell leaves the check pending: it is neither as asked nor another.
    """
    wrong = differences(audits)
    unknown = [audit for audit in wrong if audit.found == "unknown"]
    told = ", ".join(f"{count} {found}" for found, count in sorted(Counter(audit.found for audit in audits).items()))
    part = share(audits, asked)
    message = f"asked for {asked}, found {told or 'no layer that multiplies'}; {100 * part:.1f} % of the multiply-adds"
    if not wrong:
        return Check(subject.name, subject.hop, "precision", "pass", message, where=subject.where)
    named = ", ".join(f"'{audit.name}' computes in {audit.found}" for audit in wrong[:_FEW])
    more = f" and {len(wrong) - _FEW} more" if len(wrong) > _FEW else ""
    verdict: Verdict = "pending" if len(unknown) == len(wrong) else "fail"
    return Check(subject.name, subject.hop, "precision", verdict, f"{message}: {named}{more}", where=subject.where)


def engine_audit(layers: Path, graph: Sequence[LayerAudit]) -> tuple[LayerAudit, ...]:
    """The graph's layers as the engine computes them, by the builder's record beside it; unknown where unreadable."""
    facts = json.loads(layers.read_bytes())
    return audit_engine(facts.get("layers", ()) if facts.get("readable") else (), onnx=graph)
