"""A builder's timing cache as a file that is pinned by its hash: read before a build, written whole after it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporters import ExportError
from exporters.flavours import Record, plain_reason


def attach_cache(config: Any, path: Path, *, expected_sha256: str | None, records: Sequence[Record]) -> None:
    """Give the builder the cache in `path`, or an empty one where there is none.

    `records` is the logger's list, which grows as TensorRT speaks: a cache that it cannot use (of another version or
    GPU) it replaces by an empty one and says so only there.
    Raises ExportError (input): unreadable, another hash, or not usable by this TensorRT.
    """
    content = _read(path, expected_sha256)
    before = len(records)
    cache = config.create_timing_cache(content)
    accepted = cache is not None and config.set_timing_cache(cache, False)
    loud = [text for severity, text in records[before:] if severity != "VERBOSE" and severity != "INFO"]
    complaints = list(dict.fromkeys(plain_reason(text) for text in loud if "timing cache" in text.lower()))
    if not accepted or complaints:
        why = "; ".join(complaints) or "it was refused without a reason"
        raise ExportError(
            f"{path}: the timing cache is not one of this TensorRT and GPU: {why.rstrip('.')}. Remove it, or build "
            "where it was made.",
            kind="input",
        )


def cache_content(config: Any) -> bytes:
    """What the builder has measured by now, to be written; b"" where it kept nothing."""
    cache = config.get_timing_cache()
    return bytes(cache.serialize()) if cache is not None else b""


def _read(path: Path, expected_sha256: str | None) -> bytes:
    if expected_sha256 is None:
        return b""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected_sha256:
        raise ExportError(
            f"{path}: the timing cache has SHA-256 {found}, expected {expected_sha256}. Remove it, or give the hash of "
            "the build that wrote it.",
            kind="input",
        )
    return content
