"""`soup merge`: engines of several devices come home, nothing that was sealed is touched, and what is open is told."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from soup import SoupError
from soup.files import canonical_json
from soup.gates import Check, Exit
from soup.kit_facts import BuildCost, KitFacts, Machine, as_json, device_kits
from soup.manifest import read_manifest, seal, verify_files
from soup.merge import MergeResult, merge
from soup.proof import Artifact, Proof
from soup.release import verify
from soup.release_facts import Candidate

REQUIRE_ALL = {"accuracy": None, "latency": None, "require": ["onnx", "engine", "device"]}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def resealed(folder: Path, **changes: object) -> Path:
    """With other facts in its manifest, sealed anew."""
    facts = json.loads(json.dumps(dict(read_manifest(folder).facts))) | changes
    (folder / "manifest.json").unlink()
    seal(folder, facts)
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Of all files that are not below device/."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, sha256(path.read_bytes()))
        for path in folder.rglob("*") if path.is_file() and "device" not in path.relative_to(folder).parts
    }  # fmt: skip


def kit_of(
    release: Path, folder: Path, *, device: str, plan: bytes = b"plan", ran: bool = True,
    checks: Sequence[Check] = (), **changes: object,
) -> Path:  # fmt: skip
    """A kit as the device would seal it."""
    folder.mkdir()
    (folder / "model.engine").write_bytes(plan)
    (folder / "report.md").write_text(f"# {device}")
    onnx = (release / "model.onnx").read_bytes()
    proved = ("built", "outputs", "latency") if ran else ("built", "not run")
    facts = KitFacts(
        kind="kit", parent=read_manifest(release).self_sha256, created="2026-11-28T00:00:00+00:00", device=device,
        machine=Machine(device, device if ran else None, "8.7" if ran else None, "tensorrt", "10.3.0"),
        onnx=Candidate("fp32", "model.onnx", sha256(onnx), 1e-3),
        engine=Artifact("model.engine", "engine", sha256(plan), 1),
        cost=BuildCost(1.0, 1, None), tried=(), checks=tuple(checks),
        verified=(Proof("model.engine", "tensorrt", "10.3.0", "cuda", device, proved),), notes=(), exit_code=0,
    )  # fmt: skip
    seal(folder, as_json(facts) | changes)
    return folder


@pytest.fixture
def copy(released: Path, tmp_path: Path) -> Path:
    """A release to be changed, which needs an engine that ran on a device."""
    return resealed(Path(shutil.copytree(released, tmp_path / "release")), gates=REQUIRE_ALL)


def verdicts(result: MergeResult) -> dict[str, str]:
    return {check.name: check.verdict for check in result.checks if check.kind == "require"}


def test_kits_come_home_and_not_a_byte_of_what_was_sealed_changes(copy: Path, tmp_path: Path) -> None:
    before, digest = snapshot(copy), read_manifest(copy).self_sha256
    orin = kit_of(copy, tmp_path / "a", device="orin", plan=b"orin's")
    ahead = kit_of(copy, tmp_path / "b", device="rtx", plan=b"rtx's", ran=False)
    result = merge(copy, [orin, ahead])
    assert result.exit_code == Exit.OK
    assert [(one.device, one.state, one.ran) for one in result.arrivals] == [
        ("orin", "merged", True), ("rtx", "merged", False),
    ]  # fmt: skip
    assert (snapshot(copy), result.digest) == (before, digest)
    assert (copy / "device/orin/model.engine").read_bytes() == b"orin's"
    assert sorted(path.name for path in (copy / "device").iterdir()) == ["orin", "rtx"]
    for kit, name in ((orin, "orin"), (ahead, "rtx")):
        there = {path.name: path.read_bytes() for path in (copy / "device" / name).iterdir()}
        assert there == {path.name: path.read_bytes() for path in kit.iterdir()}
    assert all(check.verdict == "pass" for check in verify_files(copy))
    assert verify(copy).exit_code == Exit.OK


def test_what_gates_require_still_misses_is_told_until_an_engine_ran(copy: Path, tmp_path: Path) -> None:
    assert verify(copy).exit_code == Exit.ENVIRONMENT
    ahead = merge(copy, [kit_of(copy, tmp_path / "b", device="rtx", ran=False)])
    assert (ahead.exit_code, verdicts(ahead)) == (
        Exit.ENVIRONMENT, {"onnx": "pass", "engine": "pass", "device": "pending"},
    )  # fmt: skip
    assert verify(copy).exit_code == Exit.ENVIRONMENT
    ran = merge(copy, [kit_of(copy, tmp_path / "a", device="orin")])
    assert (ran.exit_code, set(verdicts(ran).values())) == (Exit.OK, {"pass"})
    assert verify(copy).exit_code == Exit.OK


@pytest.mark.parametrize(
    ("kind", "code"), [("outputs", Exit.CHECK), ("latency", Exit.LATENCY), ("accuracy", Exit.ACCURACY)]
)
def test_a_gate_that_failed_on_a_device_fails_at_home_and_says_where(
    copy: Path, tmp_path: Path, kind: str, code: Exit
) -> None:
    failed = Check("model.engine", "gate", kind, "fail", "beyond the limit")  # type: ignore[arg-type]
    kit = kit_of(copy, tmp_path / "a", device="orin", checks=[failed])
    result = merge(copy, [kit])
    assert result.exit_code == code
    assert [check.hop for check in result.checks if check.verdict == "fail"] == ["on orin: gate"]
    assert verify(copy).exit_code == code


def test_the_device_s_own_word_on_gates_require_and_hashes_is_not_repeated(copy: Path, tmp_path: Path) -> None:
    """What it lacked there may be here by now."""
    open_there = Check("device", "gate", "require", "pending", "was not run here")
    result = merge(copy, [kit_of(copy, tmp_path / "a", device="orin", checks=[open_there])])
    assert result.exit_code == Exit.OK


def test_the_same_kit_again_changes_nothing(copy: Path, tmp_path: Path) -> None:
    kit = kit_of(copy, tmp_path / "a", device="orin")
    merge(copy, [kit, kit])
    engine = copy / "device/orin/model.engine"
    before = engine.stat().st_ino
    again = merge(copy, [kit, Path(shutil.copytree(kit, tmp_path / "again"))])
    assert [one.state for one in again.arrivals] == ["there already", "there already"]
    assert again.exit_code == Exit.OK
    assert engine.stat().st_ino == before


def test_another_kit_of_the_same_device_is_refused_and_nothing_is_copied(copy: Path, tmp_path: Path) -> None:
    first = kit_of(copy, tmp_path / "a", device="orin")
    second = kit_of(copy, tmp_path / "b", device="orin", plan=b"other")
    new = kit_of(copy, tmp_path / "c", device="rtx")
    for order in itertools.permutations([first, second, new]):
        with pytest.raises(SoupError, match="is another kit of 'orin' than"):
            merge(copy, order)
        assert not (copy / "device").exists()
    merge(copy, [first])
    with pytest.raises(SoupError, match=r"b: is another kit of 'orin' than .*device/orin\. Remove one") as raised:
        merge(copy, [new, second])
    assert "soup verify --finish --device NAME" in str(raised.value)
    assert [path.name for path in (copy / "device").iterdir()] == ["orin"]


def test_a_kit_of_another_release_or_another_graph_is_refused_with_a_line_for_each(copy: Path, tmp_path: Path) -> None:
    later = resealed(Path(shutil.copytree(copy, tmp_path / "later")), created="2027-01-01")
    changed = Path(shutil.copytree(copy, tmp_path / "changed"))
    (changed / "model.onnx").write_bytes((copy / "model.onnx").read_bytes() + b"\0")
    resealed(changed)
    good = kit_of(copy, tmp_path / "good", device="good")
    parent = kit_of(later, tmp_path / "parent", device="parent")
    graph = kit_of(changed, tmp_path / "graph", device="graph")
    lying = kit_of(changed, tmp_path / "lying", device="lying", parent=read_manifest(copy).self_sha256)
    for kits in ([parent, good, graph], [good, parent, graph]):
        with pytest.raises(SoupError) as raised:
            merge(copy, kits)
        first, second = str(raised.value).splitlines()
        assert first.startswith(f"{parent}: it was made from the release {read_manifest(later).self_sha256[:12]}…")
        assert second.startswith(f"{graph}: its engine was built from a model.onnx with SHA-256")
    with pytest.raises(SoupError, match="its engine was built from a"):
        merge(copy, [lying])
    assert not (copy / "device").exists()


@pytest.mark.parametrize("name", ["model.engine", "report.md", "manifest.json"])
def test_a_damaged_kit_is_a_failed_check_by_name_and_no_kit_is_copied(copy: Path, tmp_path: Path, name: str) -> None:
    """Correctness 43."""
    good, bad = (kit_of(copy, tmp_path / one, device=one) for one in ("good", "bad"))
    content = bytearray((bad / name).read_bytes())
    content[0] ^= 1
    (bad / name).write_bytes(content)
    result = merge(copy, [good, bad])
    assert result.exit_code == Exit.CHECK
    assert [check.name for check in result.checks if check.verdict == "fail"] == [f"bad/{name}"]
    assert result.arrivals == ()
    assert not (copy / "device").exists()


def test_a_damaged_release_takes_no_kit(copy: Path, tmp_path: Path) -> None:
    kit = kit_of(copy, tmp_path / "a", device="orin")
    (copy / "report.md").write_text("other")
    result = merge(copy, [kit])
    assert (result.exit_code, result.arrivals) == (Exit.CHECK, ())
    assert not (copy / "device").exists()


def test_a_file_beside_the_kit_s_own_is_damage_too(copy: Path, tmp_path: Path) -> None:
    kit = kit_of(copy, tmp_path / "a", device="orin")
    (kit / "extra").write_text("")
    assert merge(copy, [kit]).exit_code == Exit.CHECK


def test_what_is_no_kit_is_one_sentence(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(SoupError, match=r"absent: no kit is here, as manifest\.json is missing"):
        merge(copy, [tmp_path / "absent"])
    with pytest.raises(SoupError, match=r"release/manifest\.json: is not a kit's"):
        merge(copy, [copy])
    with pytest.raises(SoupError, match=r"manifest\.json: not found, expected a release's manifest"):
        merge(tmp_path, [copy])


@pytest.mark.parametrize("device", ["../../etc", "a/b", "..", "", ".hidden", "Orin", "a" * 101])
def test_a_device_id_that_leaves_its_folder_is_refused(copy: Path, tmp_path: Path, device: str) -> None:
    kit = kit_of(copy, tmp_path / "a", device=device)
    with pytest.raises(SoupError, match="is no device id"):
        merge(copy, [kit])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "release"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "release"}, "is not a kit's"),
        ({"machine": None}, "'machine'"),
        ({"engine": {"file": "model.engine", "kind": "engine", "sha256": "0" * 64, "batch": 1}}, "as built"),
        ({"engine": {"file": "other.engine", "kind": "engine", "sha256": "0" * 64, "batch": 1}}, "as built"),
    ],
)
def test_facts_that_are_no_kit_s_are_one_sentence(
    copy: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    kit = kit_of(copy, tmp_path / "a", device="orin", **changes)
    with pytest.raises(SoupError, match=message):
        merge(copy, [kit])


def test_a_part_under_another_name_than_its_own_is_refused(copy: Path, tmp_path: Path) -> None:
    merge(copy, [kit_of(copy, tmp_path / "a", device="orin")])
    (copy / "device/orin").rename(copy / "device/thor")
    with pytest.raises(SoupError, match=r"device/thor: holds the kit of 'orin'"):
        verify(copy)


def test_an_engine_that_was_changed_at_home_fails_by_its_name_and_nothing_is_judged(copy: Path, tmp_path: Path) -> None:
    merge(copy, [kit_of(copy, tmp_path / "a", device="orin")])
    (copy / "device/orin/model.engine").write_bytes(b"plam")
    result = verify(copy)
    assert result.exit_code == Exit.CHECK
    assert [check.name for check in result.findings.checks if check.verdict == "fail"] == ["device/orin/model.engine"]
    assert result.findings.verified == []


def test_a_release_that_cannot_be_written_is_one_sentence(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's refusal is made by hand: a read-only folder does not stop root."""
    kit = kit_of(copy, tmp_path / "a", device="orin")
    real = os.mkdir

    def refused(path: Any, *rest: Any, **options: Any) -> None:
        if Path(path).parent == copy:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        real(path, *rest, **options)

    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(SoupError, match=r"release/device: cannot be written: Permission denied\. Check"):
        merge(copy, [kit])


def test_a_failure_in_the_middle_leaves_no_folder_of_it(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = kit_of(copy, tmp_path / "a", device="a"), kit_of(copy, tmp_path / "b", device="b")
    real = shutil.copyfile

    def full(source: Path, target: Path) -> object:
        if source.parent == second and source.name == "report.md":
            raise OSError(28, "No space left on device", str(target))
        return real(source, target)

    monkeypatch.setattr("soup.merge.shutil.copyfile", full)
    with pytest.raises(SoupError, match="cannot be written: No space left on device"):
        merge(copy, [first, second])
    assert not (copy / "device").exists()


def test_a_merge_that_goes_on_or_was_killed_is_no_stranger_to_verify_and_is_cleared_away(
    copy: Path, tmp_path: Path
) -> None:
    left = copy / "device" / ".soup-tmp-999999999-abc"
    left.mkdir(parents=True)
    (left / "model.engine").write_bytes(b"half")
    (copy / "device" / ".soup-lock").write_text("")
    assert all(check.verdict == "pass" for check in verify_files(copy))
    assert device_kits(copy) == ()
    merge(copy, [kit_of(copy, tmp_path / "a", device="orin")])
    assert [path.name for path in (copy / "device").iterdir()] == ["orin"]


def test_a_kit_that_changes_while_it_is_copied_is_noticed(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = kit_of(copy, tmp_path / "a", device="orin")
    real = shutil.copyfile

    def changing(source: Path, target: Path) -> object:
        if source.name == "model.engine":
            source.write_bytes(b"plam")
        return real(source, target)

    monkeypatch.setattr("soup.merge.shutil.copyfile", changing)
    with pytest.raises(SoupError, match=r"was changed while it was copied: 'model\.engine' has SHA-256"):
        merge(copy, [kit])
    assert not (copy / "device").exists()


def test_a_part_that_says_it_was_built_from_another_graph_fails_at_home(copy: Path, tmp_path: Path) -> None:
    kit = kit_of(copy, tmp_path / "a", device="orin")
    merge(copy, [kit])
    candidate = {"precision": "fp32", "file": "model.onnx", "sha256": "0" * 64, "tolerance": 1e-3}
    resealed(copy / "device/orin", onnx=candidate)
    result = verify(copy)
    assert result.exit_code == Exit.CHECK
    assert [check.name for check in result.findings.checks if check.verdict == "fail"] == ["device/orin"]


def test_the_manifest_of_a_kit_is_canonical(copy: Path, tmp_path: Path) -> None:
    data = (kit_of(copy, tmp_path / "a", device="orin") / "manifest.json").read_bytes()
    fields = json.loads(data)
    digest = fields.pop("self_sha256")
    assert digest == sha256(canonical_json(fields))
