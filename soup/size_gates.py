"""Gates on what an engine takes up: its file, its memory, and the share of it that a DLA runs. Pure, as `gates`."""

from __future__ import annotations

from soup.files import finite
from soup.gates import Check, Kind, Subject, verdict_of

MEGABYTE = 1e6


def size_gate(size_bytes: int, subject: Subject, *, max_mb: float) -> Check:
    """Pass where the engine's file has at most `max_mb` (10^6 bytes)."""
    return _at_most(size_bytes / MEGABYTE, subject, "size", what="the file", limit=max_mb)


def memory_gate(memory_bytes: int | None, subject: Subject, *, max_mb: float, what: str) -> Check:
    """Pass where `what` ("device memory while it runs", …) is at most `max_mb` (10^6 bytes); None is pending."""
    if memory_bytes is None:
        message = f"{what} was not measured here; limit {max_mb:,g} MB"
        return Check(subject.name, subject.hop, "memory", "pending", message, None, max_mb, "MB", subject.where)
    return _at_most(memory_bytes / MEGABYTE, subject, "memory", what=what, limit=max_mb)


def dla_gate(share: float | None, subject: Subject, *, minimum: float) -> Check:
    """Pass where at least `minimum` of the layers run on the DLA; pending where nobody knows. NaN fails."""
    if share is None:
        message = f"which layers run on a DLA is not known here; at least {minimum * 100:g} % of them must"
        return Check(subject.name, subject.hop, "dla", "pending", message, None, minimum, "%", subject.where)
    verdict = verdict_of(share >= minimum, False)
    found = "an unknown share" if finite(share) is None else f"{share * 100:.1f} %"
    message = f"{found} of the layers run on the DLA, the others on the GPU; at least {minimum * 100:g} % must"
    return Check(subject.name, subject.hop, "dla", verdict, message, finite(share), minimum, "%", subject.where)


def _at_most(found: float, subject: Subject, kind: Kind, *, what: str, limit: float) -> Check:
    verdict = verdict_of(found <= limit, False)
    message = f"{what}: {found:,.1f} MB, {'within' if verdict == 'pass' else 'beyond'} the limit of {limit:,g} MB"
    return Check(subject.name, subject.hop, kind, verdict, message, finite(found), limit, "MB", subject.where)
