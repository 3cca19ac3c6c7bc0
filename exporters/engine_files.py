"""What a build leaves on disk: the layer record, the timing cache and the engine, each whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from exporters import ExportError
from exporters.build_request import Request, partial


def write_all(request: Request, plan: Any, record: dict[str, Any], cache: bytes) -> dict[str, object]:
    """All files under their partial names first, then each under its own, the engine last; hashes of engine, cache.

    Raises ExportError (input): no room, a folder that is not there, a name that is no plain file, bytes that change.
    """
    text = json.dumps(record, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    files = [(Path(request.engine_path), plan), (Path(request.layers_path), text.encode())]
    if cache and request.settings.timing_cache is not None:
        files.append((request.settings.timing_cache, cache))
    hashes = {}
    for path, content in files:
        if path.exists() and not path.is_file():
            raise ExportError(f"{path}: is there and no plain file. Choose another name.", kind="input")
        try:
            hashes[path] = store(partial(path), content)
        except OSError as error:  # a full disk names no file
            raise ExportError(unwritable(path, error), kind="input") from error
    for path, _ in reversed(files):
        partial(path).replace(path)
    cache_sha256 = hashes[request.settings.timing_cache] if cache and request.settings.timing_cache else None
    return {"sha256": hashes[Path(request.engine_path)], "timing_cache_sha256": cache_sha256}


def store(path: Path, content: Any) -> str:
    """Write and flush, read back; gives the SHA-256. Raises ExportError (input) where the disk gives other bytes."""
    meant = hashlib.sha256(content).hexdigest()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    written = hashlib.sha256(path.read_bytes()).hexdigest()
    if written != meant:
        raise ExportError(f"{path}: reads back as {written}, expected {meant} as built. Check the disk.", kind="input")
    return written


def unwritable(where: Path | str, error: OSError) -> str:
    """The sentence for a file that the system does not let be read or written."""
    return f"{where}: cannot be read or written: {error.strerror}. Check the disk and its free space."
