"""A sealed release is noticed to have changed, whatever was changed, and the file is named."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup import SoupError, __version__
from soup.files import canonical_json
from soup.manifest import read_manifest, seal, verify_files

FACTS = {"task": "classification", "max_drop": 0.005, "verified": ["torch→onnx on cpu"]}
CONTENT = {"model.onnx": b"\x08\x0aweights", "engines/sm86.engine": b"plan", "report.md": "# Ärger\n".encode()}


def release(folder: Path) -> Path:
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    seal(folder, FACTS)
    return folder


def resealed(folder: Path, **changes: object) -> None:
    """A manifest whose own hash is right, whatever it says."""
    fields = {**json.loads((folder / "manifest.json").read_bytes()), **changes}
    del fields["self_sha256"]
    body = canonical_json(fields)
    digest = hashlib.sha256(body).hexdigest()
    (folder / "manifest.json").write_bytes(body[:-1] + f',"self_sha256":"{digest}"}}'.encode())


def failures(folder: Path) -> dict[str, str]:
    return {check.name: check.message for check in verify_files(folder) if check.verdict == "fail"}


def test_a_sealed_release_verifies_file_by_file(tmp_path):
    checks = verify_files(release(tmp_path))
    assert [check.name for check in checks] == ["manifest.json", *sorted(CONTENT)]
    assert {(check.verdict, check.kind, check.hop) for check in checks} == {("pass", "hash", "files")}


def test_the_manifest_is_canonical_and_ends_with_the_hash_of_the_rest(tmp_path):
    fields = seal(release(tmp_path), FACTS)
    data = (tmp_path / "manifest.json").read_bytes()
    rest = {key: value for key, value in fields.items() if key != "self_sha256"}
    assert json.loads(data) == fields
    assert list(json.loads(data))[-1] == "self_sha256"
    assert hashlib.sha256(canonical_json(rest)).hexdigest() == fields["self_sha256"]
    assert fields["files"]["model.onnx"] == {
        "sha256": hashlib.sha256(CONTENT["model.onnx"]).hexdigest(),
        "size_bytes": len(CONTENT["model.onnx"]),
    }


def test_reading_returns_the_facts_apart_from_the_files(tmp_path):
    manifest = read_manifest(release(tmp_path))
    assert manifest.facts == FACTS
    assert (manifest.schema_version, manifest.soup_version) == (1, __version__)
    assert set(manifest.files) == set(CONTENT)


def test_the_same_release_gives_the_same_bytes(tmp_path):
    first, second = (release(tmp_path / name) for name in ("a", "b"))
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_byte_fails_and_names_its_file(tmp_path_factory, data):
    folder = release(tmp_path_factory.mktemp("release"))
    name = data.draw(st.sampled_from([*CONTENT, "manifest.json"]))
    path = folder / name
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert set(failures(folder)) == {name}


def test_every_byte_of_the_manifest_counts(tmp_path):
    path = release(tmp_path) / "manifest.json"
    content = path.read_bytes()
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 0x20]) + content[index + 1 :])
        assert set(failures(tmp_path)) == {"manifest.json"}


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_truncated_manifest_is_damaged(tmp_path, cut):
    path = release(tmp_path) / "manifest.json"
    path.write_bytes(path.read_bytes()[:cut])
    assert set(failures(tmp_path)) == {"manifest.json"}
    with pytest.raises(SoupError, match=r"manifest\.json: does not end with its own SHA-256"):
        read_manifest(tmp_path)


def test_a_longer_file_a_missing_file_and_an_unlisted_file_are_told_apart(tmp_path):
    release(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"longer than it was")
    (tmp_path / "report.md").unlink()
    (tmp_path / "engines" / ".hidden").write_bytes(b"")
    assert failures(tmp_path) == {
        "model.onnx": "'model.onnx' has 18 bytes, expected 9",
        "report.md": "'report.md' is missing",
        "engines/.hidden": "'engines/.hidden' is not listed in manifest.json",
    }


def test_a_file_that_a_device_adds_is_vouched_for_by_its_own_manifest(tmp_path):
    digest = read_manifest(release(tmp_path)).self_sha256
    part = tmp_path / "device" / "orin-1"
    part.mkdir(parents=True)
    (part / "model.engine").write_bytes(b"plan")
    assert set(failures(tmp_path)) == {"device/orin-1"}
    seal(part, {"parent": digest})
    assert failures(tmp_path) == {}
    assert "device/orin-1/model.engine" in {check.name for check in verify_files(tmp_path)}
    (part / "model.engine").write_bytes(b"flip")
    assert set(failures(tmp_path)) == {"device/orin-1/model.engine"}


def test_a_device_part_of_another_release_fails(tmp_path):
    part = release(tmp_path) / "device" / "orin-1"
    part.mkdir(parents=True)
    seal(part, {"parent": "0" * 64})
    (tmp_path / "device" / "stray.txt").write_text("")
    assert set(failures(tmp_path)) == {"device/orin-1", "device/stray.txt"}


def test_sealing_again_leaves_out_what_devices_added(tmp_path):
    part = release(tmp_path) / "device" / "orin-1"
    part.mkdir(parents=True)
    before = (tmp_path / "manifest.json").read_bytes()
    seal(part, {"parent": "0" * 64})
    seal(tmp_path, FACTS)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_symlink_is_refused_at_sealing_and_fails_at_verifying(tmp_path):
    outside = tmp_path / "outside.bin"
    outside.write_bytes(CONTENT["model.onnx"])
    folder = release(tmp_path / "release")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(outside)
    (folder / "more").symlink_to(tmp_path, target_is_directory=True)
    assert failures(folder) == {
        "model.onnx": "'model.onnx' is a symlink",
        "more": "'more' is not listed in manifest.json",
    }
    with pytest.raises(SoupError, match=r"model\.onnx: is a symlink, expected a regular file"):
        seal(folder, FACTS)


def test_a_pipe_in_the_place_of_a_file_does_not_block(tmp_path):
    release(tmp_path)
    (tmp_path / "report.md").unlink()
    os.mkfifo(tmp_path / "report.md")
    assert failures(tmp_path) == {"report.md": "'report.md' is no regular file"}


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", ".", "a//b"])
def test_a_listed_name_that_leaves_the_folder_is_refused(tmp_path, name):
    release(tmp_path)
    resealed(tmp_path, files={name: {"sha256": "0" * 64, "size_bytes": 1}})
    with pytest.raises(SoupError, match="is no path inside the release"):
        verify_files(tmp_path)


@pytest.mark.parametrize("files", [[], {"a": 1}, {"a": {"sha256": 1, "size_bytes": 1}}, {"a": {"sha256": "0" * 64}}])
def test_json_that_is_no_release_manifest_is_refused(tmp_path, files):
    release(tmp_path)
    resealed(tmp_path, files=files)
    with pytest.raises(SoupError, match="is no release manifest"):
        verify_files(tmp_path)


def test_a_newer_schema_asks_for_an_upgrade(tmp_path):
    release(tmp_path)
    resealed(tmp_path, schema_version=2)
    with pytest.raises(SoupError, match="has schema 2, this version reads up to 1"):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_is_no_release(tmp_path):
    with pytest.raises(SoupError, match=r"manifest\.json: not found") as caught:
        verify_files(tmp_path)
    assert caught.value.kind == "input"


def test_verifying_a_read_only_folder_works_and_leaves_it_as_it_was(tmp_path):
    folder = release(tmp_path / "release")
    folder.chmod(0o555)
    try:
        before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
        assert failures(folder) == {}
        assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
    finally:
        folder.chmod(0o755)


def test_facts_cannot_replace_what_the_manifest_says_itself(tmp_path):
    with pytest.raises(ValueError, match="files"):
        seal(tmp_path, {"files": {}})
