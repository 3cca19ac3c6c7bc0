"""Durable files: canonical bytes, content hashes, and writes that are whole or not there at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporters import ExportError
from soup import SoupError

STAGING_PREFIX = ".soup-tmp-"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAFETENSORS_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint8": "U8", "bool": "BOOL", "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to be written: its safetensors dtype (`F32`, `BF16`, …), shape, and bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    chunks: Iterable[bytes | memoryview]


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes. Raises ValueError on NaN or Inf."""
    return _utf8(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False))


def readable_json(value: object) -> bytes:
    """The same facts as `canonical_json`, indented for a reader; equal values give equal bytes too."""
    return _utf8(json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def unlocated(text: str, *folders: Path) -> str:
    """A message as it may travel: files by their names in these folders, whose place on this machine is left out."""
    for folder in folders:
        text = text.replace(f"{folder.resolve()}/", "").replace(f"{folder}/", "")
    return text


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_file(path: Path, chunks: bytes | Iterable[bytes | memoryview]) -> None:
    """Write under a temporary name beside `path`, flush to disk, rename. Nothing is left behind on failure.

    Raises SoupError when the disk is full or the folder is not writable.
    """
    with _disk_errors(path):
        descriptor, temporary = tempfile.mkstemp(prefix=STAGING_PREFIX, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for chunk in [chunks] if isinstance(chunks, bytes) else chunks:
                    file.write(chunk)
                file.flush()
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_safetensors(path: Path, entries: Mapping[str, Entry], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write the safetensors format with sorted names, so that equal content gives equal bytes.

    (The library's own writer orders metadata at random, leaves mode 0600 and does not fsync.)
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in sorted(entries):
        entry = entries[name]
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.size_bytes],
        }
        offset += entry.size_bytes
    text = canonical_json(header)
    text += b" " * (-len(text) % 8)
    write_file(path, _safetensors_chunks(text, entries))


def array_entry(array: np.ndarray) -> Entry:
    """A numpy array as an `Entry`."""
    contiguous = np.ascontiguousarray(array)
    data = contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b""
    return Entry(_SAFETENSORS_DTYPES[array.dtype.name], array.shape, contiguous.nbytes, [data])


@contextlib.contextmanager
def staged(folder: Path, *, last: str) -> Iterator[Path]:
    """Yield an empty folder; on success move what it holds into `folder`, the file named `last` after all others.

    `folder` is made if need be. A failure or an interrupt removes the staging folder and leaves `folder` as it was.
    """
    with _disk_errors(folder), _made(folder):
        remove_stale(folder)
        stage = Path(tempfile.mkdtemp(prefix=f"{STAGING_PREFIX}{os.getpid()}-", dir=folder))
        try:
            with _told_as(folder, stage):
                yield stage
            names = sorted((path.name for path in stage.iterdir()), key=lambda name: (name == last, name))
            for name in names:
                _sync_file(stage / name)
            (folder / last).unlink(missing_ok=True)
            for name in names:
                if name == last:
                    _sync_folder(folder)
                (stage / name).replace(folder / name)
            _sync_folder(folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `folder` as a whole on success; until then the earlier one stays."""
    with _disk_errors(folder), _made(folder.parent):
        remove_stale(folder.parent)
        stage = Path(tempfile.mkdtemp(prefix=f"{STAGING_PREFIX}{os.getpid()}-", dir=folder.parent))
        stage.chmod(0o777 & ~_umask())
        try:
            with _told_as(folder, stage):
                yield stage
            for path in sorted(stage.rglob("*")):
                _sync_file(path) if path.is_file() else _sync_folder(path)
            _sync_folder(stage)
            _swap(stage, folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def remove_stale(folder: Path) -> None:
    """Remove staging folders left by processes that no longer run (killed, or the machine went down)."""
    for path in folder.glob(f"{STAGING_PREFIX}*-*"):
        owner = path.name.removeprefix(STAGING_PREFIX).split("-")[0]
        if path.is_dir() and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(path, ignore_errors=True)


def shown(name: object) -> str:
    """A file's name as text that can be written anywhere: it need not be UTF-8, and odd bytes become `\\udcff`."""
    return str(name).encode(errors="backslashreplace").decode()


def finite(value: float) -> float | None:
    """JSON has no NaN: a number, or None where there is none."""
    return value if math.isfinite(value) else None


def _utf8(json_text: str) -> bytes:
    """As `shown`; a single backslash would be an escape of JSON's own, for what no UTF-8 reader takes."""
    return re.sub("[\ud800-\udfff]", lambda match: f"\\\\u{ord(match[0]):04x}", json_text).encode()


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder is there, its parents too; on failure those that were made for it are gone again, unless in use."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


@contextlib.contextmanager
def _told_as(folder: Path, stage: Path) -> Iterator[None]:
    """An error names a file where it was to be: its staging folder is gone when it is read."""
    try:
        yield
    except (SoupError, ExportError) as error:
        text = str(error).replace(os.path.realpath(stage), str(folder)).replace(str(stage), str(folder))
        raise type(error)(text, kind=error.kind) from error


def _safetensors_chunks(header: bytes, entries: Mapping[str, Entry]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little")
    yield header
    for name in sorted(entries):
        yield from entries[name].chunks


def _swap(stage: Path, folder: Path) -> None:
    earlier = folder.with_name(f"{stage.name}-earlier")
    if folder.exists():
        folder.rename(earlier)
    try:
        stage.rename(folder)
    except BaseException:
        if earlier.exists():
            earlier.rename(folder)
        raise
    _sync_folder(folder.parent)
    shutil.rmtree(earlier, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Tell a full disk, or a refusal of this very path; what else fails inside is not ours to explain."""
    try:
        yield
    except OSError as error:
        culprit = Path(os.fsdecode(error.filename)) if error.filename else None
        if error.errno in DISK_FULL or (culprit and _is_of(culprit, path)):
            full = error.errno in DISK_FULL
            advice = f"{'Free some space' if full else 'Check its permissions'} or choose another folder."
            raise SoupError(f"{path}: cannot be written: {error.strerror}. {advice}") from error
        raise


def _is_of(culprit: Path, path: Path) -> bool:
    """Whether an error about `culprit` is one about writing `path`: itself, a parent, what it holds, its stand-in."""
    culprit, path = culprit.absolute(), path.absolute()
    temporary = culprit.parent == path.parent and culprit.name.startswith(STAGING_PREFIX)
    return temporary or culprit in (path, *path.parents) or path in culprit.parents


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
