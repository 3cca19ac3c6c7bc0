"""safetensors and torch.save's zip: structure checked, every byte hashed and every checksum verified, in one pass."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from soup import SoupError
from soup.rebuild import naturals
from soup.tensors import DTYPES, TensorSpec, c_order, is_possible
from soup.unpickle import unpickle

_BLOCK_BYTES = 1 << 20
_AGAIN = "Copy or save the checkpoint again."
_SAVE_STATE = "Save the model's state_dict() with torch.save instead."
_ZIP_ERRORS = (
    zipfile.BadZipFile, struct.error, ValueError, LookupError, OverflowError, EOFError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What a file was when its hash was taken; a later reader compares it and refuses a file that changed."""

    path: Path
    size_bytes: int
    modified_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What one file holds: plain values with a `TensorSpec` for each tensor, and the names of objects left inert."""

    stamp: FileStamp
    value: object
    inert: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Member:
    """One file in a zip; its bytes begin at `offset` of the zip itself."""

    name: str
    offset: int
    size_bytes: int
    crc: int
    plain: bool  # neither compressed nor encrypted


def read_contents(path: Path) -> Contents:
    """Read one checkpoint file without loading a tensor.

    Raises SoupError for any other format, and for any damage that the format lets one see. safetensors has no
    checksums: there, only a SHA-256 known from elsewhere tells that a value changed.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
            raise SoupError(f"{path}: is a pipe or a device, expected a file. Leave it out of checkpoints.files.")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            head = file.read(512)
            if head.startswith(b"PK"):
                return _read_zip(file, path, status)
            if head and (path.suffix == ".safetensors" or _looks_like_safetensors(head, status.st_size)):
                return _read_safetensors(file, path, status)
    except OSError as error:
        raise SoupError(f"{path}: cannot be read: {error.strerror or error}. Check its path and access.") from error
    raise SoupError(f"{path}: {_other_format(head)}")


def _other_format(head: bytes) -> str:
    """One sentence for what is no checkpoint that can be read, and what to do about it."""
    if not head:
        return f"is empty (0 bytes). {_AGAIN}"
    if head.startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."):
        return (
            "is in torch.save's format of before torch 1.6, which has no checksums. Convert it: "
            "torch.save(torch.load(old, weights_only=True), new)."
        )
    if head[257:262] == b"ustar":
        return f"is a tar archive, torch.save's first format. Load it with a torch of its time. {_SAVE_STATE}"
    if head.startswith(b"\x80"):
        return "is a bare pickle, which can run code. Load it where you trust it and write its weights with torch.save."
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself. Run `git lfs pull`."
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return f"is text ({head[:24].decode(errors='replace')!r}), not a checkpoint. Leave it out of checkpoints.files."
    return "is neither a torch.save nor a safetensors file. Leave it out of checkpoints.files, or copy it again."


def _read_zip(file: BinaryIO, path: Path, status: os.stat_result) -> Contents:
    members = _zip_members(file, path, size_bytes=status.st_size)
    root = _zip_root([member.name for member in members], path)
    if not all(member.plain for member in members):
        raise SoupError(f"{path}: is a compressed or encrypted zip, unlike torch.save's own. {_SAVE_STATE}")
    stamp, kept = _scan(file, path, status, members=members, keep=(f"{root}/data.pkl", f"{root}/byteorder"))
    if kept.get(f"{root}/byteorder", b"little") != b"little":
        raise SoupError(f"{path}: was saved on a big-endian machine. Load it with torch and save it again on this one.")
    prefix = f"{root}/data/"
    storages = {
        member.name.removeprefix(prefix): (member.offset, member.size_bytes)
        for member in members
        if member.name.startswith(prefix)
    }
    unpickled = unpickle(kept[f"{root}/data.pkl"], storages, file=path)
    return Contents(stamp, unpickled.value, unpickled.inert)


def _zip_members(file: BinaryIO, path: Path, *, size_bytes: int) -> list[_Member]:
    """All members in the order of their bytes, none overlapping another or leaving the file, no name twice."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        limits = [*(info.header_offset for info in infos[1:]), size_bytes]
        members = [_member(file, info, limit) for info, limit in zip(infos, limits, strict=True)]
        if len({member.name for member in members}) < len(members):
            raise ValueError("two members have one name")
    except _ZIP_ERRORS as error:
        raise SoupError(f"{path}: is a truncated or damaged zip: {error}. {_AGAIN}") from error
    return members


def _member(file: BinaryIO, info: zipfile.ZipInfo, limit: int) -> _Member:
    """One member, whose own header must bear out what the zip's directory says, and whose bytes end before `limit`."""
    file.seek(info.header_offset)
    signature, name_bytes, extra_bytes = struct.unpack("<4s22xHH", file.read(30))
    if signature != b"PK\x03\x04" or file.read(name_bytes) != info.orig_filename.encode():
        raise ValueError(f"member '{info.filename}' is not where the directory says")
    offset = info.header_offset + 30 + name_bytes + extra_bytes
    plain = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
    if offset + info.compress_size > limit or (plain and info.compress_size != info.file_size):
        raise ValueError(f"member '{info.filename}' does not have the size that the directory says")
    return _Member(info.filename, offset, info.compress_size, info.CRC, plain)


def _zip_root(names: Sequence[str], path: Path) -> str:
    """The one folder in a zip of torch.save; a zip of any other writer is refused by name."""
    parts = [name.partition("/")[::2] for name in names]
    inner = {rest for _, rest in parts}
    if "constants.pkl" in inner or any(rest.startswith("code/") for rest in inner):
        raise SoupError(f"{path}: is a TorchScript archive, which holds a program. {_SAVE_STATE}")
    if "archive_format" in inner or any(rest.startswith("models/") for rest in inner):
        raise SoupError(f"{path}: is a .pt2 archive of torch.export. {_SAVE_STATE}")
    roots = [root for root, rest in parts if rest == "data.pkl"]
    if len(roots) != 1:
        raise SoupError(f"{path}: is a zip, but not one of torch.save: it has no data.pkl. {_SAVE_STATE}")
    return roots[0]


def _read_safetensors(file: BinaryIO, path: Path, status: os.stat_result) -> Contents:
    """Read and check the header: https://github.com/huggingface/safetensors#format."""
    file.seek(0)
    length = _length(file.read(8))
    data_bytes = status.st_size - 8 - length
    if data_bytes < 0:
        raise SoupError(f"{path}: is truncated: its header should have {length} bytes. {_AGAIN}")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        specs = {name: _safetensors_spec(path, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SoupError(f"{path}: its safetensors header is damaged: {error}. {_AGAIN}") from error
    end = 8 + length
    for spec in sorted(specs.values(), key=lambda spec: (spec.offset, spec.size_bytes)):
        if spec.offset != end:
            raise SoupError(f"{path}: its safetensors header is damaged: tensors overlap or leave gaps. {_AGAIN}")
        end += spec.size_bytes
    if end != status.st_size:
        raise SoupError(
            f"{path}: is truncated or damaged: {status.st_size} bytes, expected {end} by its header. {_AGAIN}"
        )
    stamp, _ = _scan(file, path, status, members=(), keep=())
    return Contents(stamp, specs, ())


def _looks_like_safetensors(head: bytes, size_bytes: int) -> bool:
    return head[8:9] == b"{" and _length(head) < size_bytes


def _length(head: bytes) -> int:
    return int.from_bytes(head[:8], "little", signed=False)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _safetensors_spec(path: Path, entry: Mapping[str, object], start: int) -> TensorSpec:
    shape, offsets = _as_tuple(entry["shape"]), _as_tuple(entry["data_offsets"])
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"it has a dtype {entry['dtype']!r}, which this torch has not")
    dtype = DTYPES[str(entry["dtype"])]
    if (
        not naturals(shape)
        or not is_possible(shape)
        or not naturals(offsets)
        or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize
    ):
        raise ValueError(f"the shape {shape} of {entry['dtype']} does not fill the bytes {offsets}")
    return TensorSpec(path, start + offsets[0], dtype, shape, c_order(shape))


def _as_tuple(value: object) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise ValueError("a shape or an offset is no list")
    return tuple(value)


def _scan(
    file: BinaryIO, path: Path, status: os.stat_result, *, members: Sequence[_Member], keep: Collection[str]
) -> tuple[FileStamp, dict[str, bytes]]:
    """Hash the whole file and verify each member's CRC on the way; returns the bytes of the members named in `keep`."""
    digest = hashlib.sha256()
    kept: dict[str, bytes] = {}
    file.seek(0)
    for member in members:
        _hash_bytes(file, member.offset - file.tell(), digest)
        if member.name in keep:
            kept[member.name] = file.read(member.size_bytes)
            digest.update(kept[member.name])
            crc = zlib.crc32(kept[member.name])
        else:
            crc = _hash_bytes(file, member.size_bytes, digest)
        if crc != member.crc:
            raise SoupError(f"{path}: {_wrong_crc(members, member.name)}")
    _hash_bytes(file, status.st_size - file.tell(), digest)
    after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise SoupError(f"{path}: changed while it was read. Run again when no training writes to it.")
    return FileStamp(path, status.st_size, status.st_mtime_ns, digest.hexdigest()), kept


def _hash_bytes(file: BinaryIO, count: int, digest: hashlib._Hash) -> int:
    """Advance by `count` bytes, hash them, and return their CRC-32."""
    crc = 0
    while count > 0 and (block := file.read(min(count, _BLOCK_BYTES))):
        digest.update(block)
        crc = zlib.crc32(block, crc)
        count -= len(block)
    return crc


def _wrong_crc(members: Sequence[_Member], name: str) -> str:
    if not any(member.crc for member in members):
        return (
            "was saved without checksums (torch.serialization.set_crc32_options(False)). Load it and save it with them."
        )
    return f"is damaged: the checksum of '{name}' does not match. {_AGAIN}"
