"""The list of a release's files and hashes: written last, verified first.

It is integrity, not authenticity: whoever wants that signs the digest (`self_sha256`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from soup import SoupError, __version__
from soup.files import STAGING_PREFIX, canonical_json, sha256_bytes, sha256_file, shown, write_file
from soup.gates import Check
from soup.lock import LOCK_NAME

FILE_NAME = "manifest.json"
DEVICE_FOLDER = "device"  # what devices add after the release was sealed, each part with a manifest of its own
SCHEMA_VERSION = 1
_OWN_KEYS = {"schema_version", "soup_version", "files", "self_sha256"}
_SEAL = re.compile(rb',"self_sha256":"([0-9a-f]{64})"\}\Z')


@dataclass(frozen=True, slots=True)
class ListedFile:
    """What a file was when the release was sealed."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """An intact manifest; `self_sha256` is the digest that names the whole release."""

    schema_version: int
    soup_version: str
    files: Mapping[str, ListedFile]
    facts: Mapping[str, object]
    self_sha256: str


def seal(folder: Path, facts: Mapping[str, object]) -> dict[str, object]:
    """Hash every file below `folder` but those in device/, and write manifest.json with `facts` beside the hashes.

    Canonical JSON with sorted keys, then `self_sha256` over all before it as the last field. Returns what was written.
    Raises SoupError for a symlink or anything else that is no regular file: a release holds its files themselves.
    """
    if clash := _OWN_KEYS & set(facts):
        raise ValueError(f"facts must not hold the manifest's own keys: {sorted(clash)}")
    files: dict[str, object] = {}
    for name in _names(folder):
        if name == FILE_NAME:
            continue
        if reason := _not_regular(folder / name):
            raise SoupError(f"{folder / name}: {reason}, expected a regular file. Put the file itself there.")
        files[name] = {"sha256": sha256_file(folder / name), "size_bytes": (folder / name).stat().st_size}
    rest = {"schema_version": SCHEMA_VERSION, "soup_version": __version__, "files": files, **facts}
    body = canonical_json(rest)
    digest = sha256_bytes(body)
    write_file(folder / FILE_NAME, body[:-1] + f',"self_sha256":"{digest}"}}'.encode())
    return {**rest, "self_sha256": digest}


def read_manifest(folder: Path) -> Manifest:
    """Read manifest.json of `folder`. Raises SoupError where it is missing, damaged, or of a newer schema."""
    path = folder / FILE_NAME
    data = _manifest_bytes(path)
    if damage := _damage(data):
        raise SoupError(f"{path}: {damage}. Fetch the release again.")
    return _parsed(path, data)


def verify_files(folder: Path) -> tuple[Check, ...]:
    """One check per file of the release, and one for each that is there without being listed; reads only.

    Where manifest.json itself is damaged, that is the only check: it can vouch for nothing else. Files below
    device/<id>/ are checked by the manifest there, if its fact `parent` is this release's digest. Raises SoupError as
    `read_manifest` does, but for damage.
    """
    path = folder / FILE_NAME
    data = _manifest_bytes(path)
    if damage := _damage(data):
        return (_check(FILE_NAME, damage),)
    manifest = _parsed(path, data)
    checks = [_check(FILE_NAME, "")]
    checks += [_check(name, _difference(folder / name, listed)) for name, listed in sorted(manifest.files.items())]
    unlisted = sorted(set(_names(folder)) - set(manifest.files) - {FILE_NAME})
    checks += [_check(name, f"is not listed in {FILE_NAME}") for name in unlisted]
    return (*checks, *_device_checks(folder, manifest))


def device_parts(folder: Path) -> tuple[Path, ...]:
    """What devices added to a release, sorted; without what a merge that goes on or was killed keeps there."""
    devices = folder / DEVICE_FOLDER
    if devices.is_symlink() or not devices.is_dir():
        return ()
    return tuple(
        part for part in sorted(devices.iterdir())
        if part.name != LOCK_NAME and not part.name.startswith(STAGING_PREFIX)
    )  # fmt: skip


def strangers(folder: Path) -> tuple[str, ...]:
    """What `folder` holds beside a release's files, device/ included; all of it where the manifest is not whole."""
    found = [*_names(folder), *[DEVICE_FOLDER] * os.path.lexists(folder / DEVICE_FOLDER)]
    try:
        manifest = read_manifest(folder)
    except SoupError:
        return tuple(found)
    return tuple(name for name in found if name != FILE_NAME and name not in manifest.files)


def _names(folder: Path) -> Iterator[str]:
    """Relative names of all that is no plain folder, sorted, without device/; a linked folder counts as an entry."""
    found = []
    for root, folders, files in os.walk(folder, onerror=_unreadable):
        if Path(root) == folder and DEVICE_FOLDER in folders and not (folder / DEVICE_FOLDER).is_symlink():
            folders.remove(DEVICE_FOLDER)
        linked = [name for name in folders if (Path(root) / name).is_symlink()]
        found += [(Path(root) / name).relative_to(folder).as_posix() for name in files + linked]
    return iter(sorted(found))


def _device_checks(folder: Path, manifest: Manifest) -> Iterator[Check]:
    for part in device_parts(folder):
        name = f"{DEVICE_FOLDER}/{part.name}"
        if part.is_symlink() or not (part / FILE_NAME).is_file():
            yield _check(name, f"is not listed, and has no {FILE_NAME} of its own")
            continue
        checks = verify_files(part)
        if checks[0].verdict == "pass" and read_manifest(part).facts.get("parent") != manifest.self_sha256:
            yield _check(name, f"its {FILE_NAME} does not name this release's digest as its parent")
        yield from (replace(check, name=f"{name}/{check.name}") for check in checks)


def _difference(path: Path, listed: ListedFile) -> str:
    """What is wrong with a listed file; empty if nothing is."""
    try:
        if not os.path.lexists(path):
            return "is missing"
        if reason := _not_regular(path):
            return reason
        size = path.stat().st_size
        if size != listed.size_bytes:
            return f"has {size} bytes, expected {listed.size_bytes}"
        found = sha256_file(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if found == listed.sha256 else f"has SHA-256 {found[:12]}…, expected {listed.sha256[:12]}…"


def _not_regular(path: Path) -> str:
    if path.is_symlink():
        return "is a symlink"
    return "" if path.is_file() else "is no regular file"


def _check(name: str, problem: str) -> Check:
    message = f"'{shown(name)}' {problem or 'is as it was sealed'}"
    return Check(shown(name), "files", "hash", "fail" if problem else "pass", message)


def _unreadable(error: OSError) -> None:
    raise SoupError(f"{error.filename}: cannot be read: {error.strerror}. Check its permissions.") from error


def _manifest_bytes(path: Path) -> bytes:
    if _not_regular(path):
        raise SoupError(f"{path}: not found, expected a release's manifest. Give the folder that `soup export` wrote.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise SoupError(f"{path}: cannot be read: {error.strerror}. Check its permissions.") from error


def _damage(data: bytes) -> str:
    """What is wrong with the bytes themselves; empty if `self_sha256` is there and holds."""
    seal_found = _SEAL.search(data)
    if not seal_found:
        return "does not end with its own SHA-256, as a sealed manifest does"
    digest = sha256_bytes(data[: seal_found.start()] + b"}")
    expected = seal_found.group(1).decode()
    return "" if digest == expected else f"has SHA-256 {digest[:12]}…, but says {expected[:12]}… of itself"


def _parsed(path: Path, data: bytes) -> Manifest:
    try:
        fields = json.loads(data)
        version = fields.pop("schema_version")
        if version > SCHEMA_VERSION:
            raise SoupError(
                f"{path}: has schema {version}, this version reads up to {SCHEMA_VERSION}. Upgrade edgesoup."
            )
        files = {_safe(name): _listed(**entry) for name, entry in fields.pop("files").items()}
        return Manifest(version, fields.pop("soup_version"), files, fields, fields.pop("self_sha256"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SoupError(
            f"{path}: is no release manifest ({error}). Give the folder that `soup export` wrote."
        ) from error


def _listed(*, sha256: object, size_bytes: object) -> ListedFile:
    if not isinstance(sha256, str) or not isinstance(size_bytes, int):
        raise TypeError("a listed file needs a text 'sha256' and a whole 'size_bytes'")
    return ListedFile(sha256, size_bytes)


def _safe(name: str) -> str:
    """A name that stays inside the folder. Raises ValueError for one that does not."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != name or name == ".":
        raise ValueError(f"'{name}' is no path inside the release")
    return name
