"""Damage and foreign formats: each is one sentence, and nothing that was changed is ever read as something else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from soup import SoupError
from soup.checkpoint import load_state, read_checkpoint, save_state, state_sha256
from soup.formats import read_contents

STATE = {
    "conv.weight": torch.arange(12.0).reshape(3, 4),
    "bn.mask": torch.tensor([True, False]),
    "count": torch.tensor(7),
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "saved.pt")
    return tmp_path / "saved.pt"


def repacked(source: Path, target: Path, changes: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    """The zip with some members replaced and all checksums right: what an attacker writes, not what a disk does."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        members = {info.filename: old.read(info) for info in old.infolist()}
        root = next(iter(members)).partition("/")[0]
        for name, data in (members | {f"{root}/{name}": data for name, data in changes.items()}).items():
            new.writestr(name, data)
    return target


def refusal(path: Path) -> str:
    with pytest.raises(SoupError) as caught:
        read_contents(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith((".", ")."))
    assert caught.value.kind == "input"
    return message


def test_the_stamp_is_the_files_size_time_and_hash(saved: Path) -> None:
    stamp = read_contents(saved).stamp
    assert stamp.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert (stamp.size_bytes, stamp.modified_ns) == (saved.stat().st_size, saved.stat().st_mtime_ns)


def test_a_storage_larger_than_a_block_is_hashed_and_checked_whole(tmp_path: Path) -> None:
    torch.save({"a": torch.randn(700_000), "b": torch.randn(10)}, tmp_path / "a.pt")
    assert read_contents(tmp_path / "a.pt").stamp.sha256 == hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty (0 bytes)"),
        (b"epoch,loss\n1,0.5\n", "is text ('epoch,loss\\n1,0.5\\n')"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
        (pickle.dumps({"model": np.zeros(3)}), "is a bare pickle"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.1", "is neither a torch.save nor a safetensors file"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_sentence(content: bytes, expected: str, tmp_path: Path) -> None:
    """Correctness 11."""
    (tmp_path / "a.pt").write_bytes(content)
    assert expected in refusal(tmp_path / "a.pt")


def test_the_format_of_before_torch_1_6_is_refused_with_its_conversion(tmp_path: Path) -> None:
    """Correctness 11; the conversion is run as it is told."""
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    torch.save(STATE, old, _use_new_zipfile_serialization=False)
    message = refusal(old)
    assert "torch.save(torch.load(old, weights_only=True), new)" in message
    torch.save(torch.load(old, weights_only=True), new)
    assert state_sha256(load_state(read_checkpoint(new))) == state_sha256(STATE)


def test_a_legacy_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    assert "tar archive" in refusal(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, and still in users' folders
def test_torchscript_and_exported_programs_are_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 2)), tmp_path / "script.pt")
    torch.export.save(torch.export.export(model, (torch.zeros(1, 2),)), tmp_path / "program.pt2")
    assert "TorchScript" in refusal(tmp_path / "script.pt")
    assert ".pt2 archive" in refusal(tmp_path / "program.pt2")


def test_other_zips_are_refused(saved: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    assert "no data.pkl" in refusal(tmp_path / "arrays.npz")
    assert "compressed" in refusal(repacked(saved, tmp_path / "a.pt", {}, compression=zipfile.ZIP_DEFLATED))
    assert "big-endian" in refusal(repacked(saved, tmp_path / "b.pt", {"byteorder": b"big"}))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # of the zip writer, which makes the hostile file
def test_a_zip_with_two_members_of_one_name_is_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("saved/data.pkl", b"N.")
    assert "two members have one name" in refusal(saved)


def test_members_that_share_bytes_or_leave_the_file_are_refused(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    entry = content.index(b"PK\x01\x02")
    for size in (1 << 20, 0xFFFFFFF0):
        sizes = struct.pack("<II", size, size)
        (tmp_path / "a.pt").write_bytes(content[: entry + 20] + sizes + content[entry + 28 :])
        assert "does not have the size" in refusal(tmp_path / "a.pt")


def test_a_member_whose_own_header_bears_another_name_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes().replace(b"saved/data/0", b"saved/data/9", 1))
    assert "'saved/data/0' is not where the directory says" in refusal(saved)


def test_a_file_that_is_written_to_while_it_is_read_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crc32(data: bytes, start: int = 0) -> int:
        os.utime(saved, ns=(0, 1))
        return zlib_crc32(data, start)

    zlib_crc32 = zlib.crc32
    monkeypatch.setattr("soup.formats.zlib.crc32", crc32)
    assert "changed while it was read" in refusal(saved)


def test_a_file_without_checksums_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert "set_crc32_options" in refusal(tmp_path / "a.pt")


def test_one_flipped_bit_in_a_tensor_is_named(saved: Path) -> None:
    """Correctness 15: torch.load ignores the zip's checksums."""
    content = bytearray(saved.read_bytes())
    position = content.index(STATE["conv.weight"].numpy().tobytes())
    content[position + 5] ^= 1
    saved.write_bytes(content)
    assert not torch.equal(torch.load(saved, weights_only=True)["conv.weight"], STATE["conv.weight"])
    assert "the checksum of 'saved/data/0' does not match" in refusal(saved)


def mutated(content: bytes, source: random.Random) -> bytes:
    data = bytearray(content)
    kind = source.randrange(4)
    if kind == 0:
        return bytes(data[: source.randrange(len(data))])
    if kind == 1:
        at = source.randrange(len(data))
        data[at : at + source.randint(1, 40)] = source.randbytes(source.randint(0, 40))
    for _ in range(source.randint(1, 3)):
        data[source.randrange(len(data))] = source.randrange(256)
    return bytes(data)


def test_no_mutant_of_a_torch_file_is_read_as_something_else(saved: Path) -> None:
    """Correctness 15: of 1,000 mutants 329 loaded silently wrong elsewhere."""
    source, content, known, unharmed = random.Random(1), saved.read_bytes(), state_sha256(STATE), 0
    directory = content[content.index(b"PK\x01\x02") :]
    for turn in range(800):
        # Every other mutant is hit where it hurts, in the zip's directory.
        fixed = content[: -len(directory)] if turn % 2 else b""
        saved.write_bytes(fixed + mutated(directory if turn % 2 else content, source))
        try:
            state = load_state(read_checkpoint(saved))
        except SoupError:
            continue
        assert state_sha256(state) == known
        unharmed += 1
    assert 0 < unharmed < 500


def test_no_mutant_of_the_pickle_with_its_checksum_made_right_raises_another_error(saved: Path) -> None:
    source = random.Random(2)
    with zipfile.ZipFile(saved) as archive:
        pickled = archive.read("saved/data.pkl")
    for _ in range(300):
        path = repacked(saved, saved.with_name("forged.pt"), {"data.pkl": mutated(pickled, source)})
        try:
            load_state(read_checkpoint(path))
        except SoupError:
            continue


def test_no_mutant_of_a_safetensors_file_passes_its_known_hash_or_raises_another_error(tmp_path: Path) -> None:
    """Correctness 15: the format has no checksum, so a hash that is known from a recipe or the ledger decides."""
    path, source, silent = tmp_path / "a.safetensors", random.Random(3), 0
    save_state(path, STATE)
    content, known = path.read_bytes(), read_checkpoint(path).sha256
    for _ in range(500):
        mutant = mutated(content, source)
        path.write_bytes(mutant)
        try:
            state = load_state(read_checkpoint(path))
        except SoupError:
            continue
        silent += state_sha256(state) != state_sha256(STATE)
        if mutant != content:
            with pytest.raises(SoupError, match="expected"):
                read_checkpoint(path, expected_sha256=known)
    assert silent, "the hash had nothing to catch"


EMPTY = b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
TWICE = b"{" + EMPTY + b"," + EMPTY + b"}"
HEADERS = {
    "overlap": {"a": ["F32", [1], [0, 4]], "b": ["F32", [1], [0, 4]]},
    "overlap and gap": {"a": ["F32", [1], [0, 4]], "b": ["F32", [1], [0, 4]], "c": ["F32", [1], [8, 12]]},
    "gap": {"a": ["F32", [1], [0, 4]], "b": ["F32", [1], [8, 12]]},
    "size": {"a": ["F32", [3], [0, 8]]},
    "negative": {"a": ["F32", [-2], [0, 8]]},
    "float": {"a": ["F32", [2.0], [0, 8]]},
    "backwards": {"a": ["F32", [2], [8, 0]]},
    "beyond": {"a": ["F32", [1000], [0, 4000]]},
    "dtype": {"a": ["F31", [2], [0, 8]]},
    "list": {"a": ["F32", 2, [0, 8]]},
    "axes": {"a": ["F32", [2, *[1] * 64], [0, 8]]},
    "empty": {"a": ["F32", [2], []]},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_safetensors_header_that_its_bytes_do_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    entries = {
        key: dict(zip(("dtype", "shape", "data_offsets"), entry, strict=True)) for key, entry in HEADERS[name].items()
    }
    header = json.dumps(entries).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    assert "header" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "header", [b"{}" + b"[" * 100_000, b"[" * 100_000, b"[1]", b"null", b'{"a": 1}', b"\xff", TWICE]
)
def test_a_safetensors_header_that_is_none_is_refused(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refusal(tmp_path / "a.safetensors")


def test_a_safetensors_file_is_known_without_its_suffix_and_truncated_ones_are_told(tmp_path: Path) -> None:
    save_state(tmp_path / "a.safetensors", STATE)
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "blob").write_bytes(content)
    assert state_sha256(load_state(read_checkpoint(tmp_path / "blob"))) == state_sha256(STATE)
    for length in (4, 20, len(content) - 1):
        (tmp_path / "a.safetensors").write_bytes(content[:length])
        assert "truncated" in refusal(tmp_path / "a.safetensors")


def test_a_missing_or_forbidden_file_and_one_that_is_no_file_are_soup_errors(tmp_path: Path) -> None:
    assert "cannot be read: No such file or directory" in refusal(tmp_path / "none.pt")
    assert "cannot be read" in refusal(tmp_path)
    if os.geteuid():
        (tmp_path / "a.pt").touch(mode=0)
        assert "Permission denied" in refusal(tmp_path / "a.pt")
