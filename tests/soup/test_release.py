"""`soup verify` and `soup bench` on real releases: hashes first, then everything again; nothing is written inside."""

from __future__ import annotations

import json
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from soup import SoupError, golden_proof
from soup.gates import Exit
from soup.manifest import read_manifest, seal
from soup.release import VerifyResult, verify

FILES = (
    "model.onnx", "golden.safetensors", "report.md", "report.html", "report.json", "junit.xml", "waterfall.svg",
    "manifest.json",
)  # fmt: skip


def failing(result: VerifyResult) -> list[tuple[str, str]]:
    return [(check.name, check.kind) for check in result.findings.checks if check.verdict == "fail"]


def resealed(folder: Path, **changes: object) -> Path:
    """The release with other facts in its manifest, sealed anew."""
    facts = json.loads(json.dumps(dict(read_manifest(folder).facts))) | changes
    (folder / "manifest.json").unlink()
    seal(folder, facts)
    return folder


@pytest.fixture
def copy(released: Path, tmp_path: Path) -> Path:
    """A release to be changed."""
    return Path(shutil.copytree(released, tmp_path / "copy"))


@pytest.fixture
def unopenable(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release to be damaged; opening any of its models or its golden samples is an error of the test."""

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("opened before the hashes were found right")

    monkeypatch.setattr(golden_proof, "open_artifact", opened)
    monkeypatch.setattr(golden_proof, "read_golden", opened)
    return copy


def test_an_intact_release_passes_and_says_what_ran_here(released: Path) -> None:
    result = verify(released)
    assert result.exit_code == Exit.OK
    assert result.digest == read_manifest(released).self_sha256
    hashes = [check.name for check in result.findings.checks if check.kind == "hash"]
    assert sorted(hashes) == sorted(FILES)
    hops = [check.hop for check in result.findings.checks if check.kind == "outputs"]
    assert hops == ["torch at export → ONNX here", "model.onnx at export → ONNX here"]
    (proof,) = result.findings.verified
    assert (proof.artifact, proof.runtime, proof.proved) == (
        "model.onnx", "onnxruntime", ("outputs", "golden metric", "latency"),
    )  # fmt: skip
    assert result.findings.latency["model.onnx"].samples == 500
    golden = load_file(released / "golden.safetensors")
    accuracy = (golden["output.torch.output"].argmax(1) == golden["target.label"]).mean()
    assert result.golden_values == {"torch": pytest.approx(accuracy), "model.onnx": pytest.approx(accuracy)}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_fails_by_the_files_name_and_nothing_is_opened(
    unopenable: Path, name: str, where: float, bit: int
) -> None:
    """Correctness 43, 47."""
    original = (unopenable / name).read_bytes()
    content = bytearray(original)
    content[int(where * len(content))] ^= 1 << bit
    (unopenable / name).write_bytes(content)
    try:
        result = verify(unopenable)
    finally:
        (unopenable / name).write_bytes(original)
    assert result.exit_code == Exit.CHECK
    assert failing(result) == [(name, "hash")]
    assert result.findings.verified == []
    assert result.golden_values == {}


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_missing_a_longer_and_an_added_file_are_named(unopenable: Path, name: str) -> None:
    file, aside = unopenable / name, unopenable.parent / "aside"
    file.rename(aside)
    assert failing(verify(unopenable)) == [(name, "hash")]
    shutil.copy(aside, file)
    with file.open("ab") as end:
        end.write(b"\0")
    assert failing(verify(unopenable)) == [(name, "hash")]
    aside.replace(file)
    (unopenable / "extra.txt").write_text("")
    assert failing(verify(unopenable)) == [("extra.txt", "hash")]
    (unopenable / "extra.txt").unlink()


def test_a_read_only_release_is_proved_and_not_touched(copy: Path, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_mode) for path in (copy, *copy.rglob("*"))}

    for path in copy.iterdir():
        path.chmod(0o444)
    copy.chmod(0o555)
    before = state()
    try:
        assert verify(copy, out=tmp_path / "reports").exit_code == Exit.OK
        assert state() == before
    finally:
        copy.chmod(0o755)


def test_reports_are_written_outside_and_refused_inside(copy: Path, tmp_path: Path) -> None:
    before = sorted(copy.rglob("*"))
    for inside in (copy, copy / "device" / "here", copy / ".." / "copy" / "x"):
        with pytest.raises(SoupError, match="is inside the release, whose manifest would no longer hold"):
            verify(copy, out=inside)
    assert sorted(copy.rglob("*")) == before

    verify(copy, out=tmp_path / "a" / "reports")
    assert {path.name for path in (tmp_path / "a" / "reports").iterdir()} == {
        "report.md", "report.html", "report.json", "junit.xml",
    }  # fmt: skip
    report = json.loads((tmp_path / "a" / "reports" / "report.json").read_bytes())
    assert (report["exit_code"], report["values"].keys()) == (0, {"model.onnx"})
    assert [proof["artifact"] for proof in report["verified"]] == ["model.onnx"]


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_damaged_release_is_reported_too(copy: Path, tmp_path: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[100] ^= 1
    (copy / name).write_bytes(content)
    assert verify(copy, out=tmp_path / "reports").exit_code == Exit.CHECK
    cases = ET.parse(tmp_path / "reports" / "junit.xml").getroot().iter("testcase")
    assert [case.get("name") for case in cases if case.find("failure") is not None] == [name]
    assert name in (tmp_path / "reports" / "report.md").read_text(encoding="utf-8")


def test_without_onnx_runtime_nothing_ran_and_the_command_that_brings_it_is_named(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = verify(released)
    assert result.exit_code == Exit.ENVIRONMENT
    pending = next(check for check in result.findings.checks if check.verdict == "pending")
    assert "nothing could be run here: model.onnx was not run here" in pending.message
    assert "pip install 'edgesoup[ort]'" in pending.message
    assert result.golden_values.keys() == {"torch"}


def test_the_accuracy_gate_is_repeated_where_the_golden_samples_are_all_of_val(shipped: Any, released: Path) -> None:
    """Correctness 45: a few samples, the hardest among them, would judge too harshly."""

    def gates(result: VerifyResult) -> list[str]:
        return [check.hop for check in result.findings.checks if check.kind == "accuracy"]

    assert gates(verify(released)) == ["at export: best single → ONNX"]
    result = verify(shipped.folder)
    assert gates(result) == ["at export: best single → ONNX", "best single → ONNX"]
    here = next(check for check in result.findings.checks if check.hop == "best single → ONNX")
    at_export = next(check for check in shipped.document["result"]["findings"]["checks"] if check["kind"] == "accuracy")
    assert (here.verdict, here.measured, here.message) == ("pass", at_export["measured"], at_export["message"])


@pytest.mark.parametrize(
    "golden",
    [
        {"split": "test", "count": 400, "of": 400, "groups": None},
        {"split": "val", "count": 399, "of": 400, "groups": None},
        {"split": "val", "count": 400, "of": 400, "groups": 12},
    ],
)
def test_golden_samples_that_are_not_all_of_val_one_by_one_do_not_judge(
    shipped: Any, tmp_path: Path, golden: dict[str, object]
) -> None:
    folder = resealed(Path(shutil.copytree(shipped.folder, tmp_path / "release")), golden=golden)
    checks = [check.hop for check in verify(folder).findings.checks if check.kind == "accuracy"]
    assert checks == ["at export: best single → ONNX"]


def test_an_engine_that_cannot_run_here_is_a_note_and_no_failure(shipped: Any, needs_rtx: None) -> None:
    result = verify(shipped.folder)
    assert result.exit_code == Exit.OK
    (note,) = result.findings.notes
    assert note.startswith("model.engine was not run here: ")
    assert "needs an NVIDIA GPU" in note
    latency = next(check for check in result.findings.checks if check.kind == "latency")
    assert latency.verdict == "pending"  # the gate names tensorrt on orin-nano


@pytest.mark.parametrize(
    ("require", "code"),
    [
        (["onnx"], Exit.OK),
        (["onnx", "engine"], Exit.OK),
        (["device"], Exit.ENVIRONMENT),
    ],
)
def test_what_was_only_built_has_not_run_on_a_device(
    shipped: Any, needs_rtx: None, tmp_path: Path, require: list[str], code: Exit
) -> None:
    folder = Path(shutil.copytree(shipped.folder, tmp_path / "release"))
    gates = shipped.manifest["gates"] | {"require": require}
    assert verify(resealed(folder, gates=gates)).exit_code == code


def test_other_answers_than_at_export_fail_by_artifact(copy: Path) -> None:
    """Correctness 34: the hashes hold, and still the model does not say what was recorded."""
    from soup.files import array_entry, write_safetensors

    golden = load_file(copy / "golden.safetensors")
    golden["output.torch.output"][5, 5] += 1
    write_safetensors(copy / "golden.safetensors", {name: array_entry(array) for name, array in golden.items()})
    result = verify(resealed(copy))
    assert result.exit_code == Exit.CHECK
    assert failing(result) == [("model.onnx", "outputs")]
    moved = next(check for check in result.findings.checks if check.verdict == "fail")
    assert moved.hop == "torch at export → ONNX here"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gates": {"require": ["moon"]}}, "'gates.require.0'"),
        ({"artifacts": "model.onnx"}, "'artifacts'"),
        ({"task": "juggling"}, "task: 'juggling' is not known"),
    ],
)
def test_a_sealed_manifest_that_is_no_release_s_is_one_sentence(
    copy: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SoupError, match=message):
        verify(resealed(copy, **changes))


def test_a_folder_without_a_manifest_is_no_release(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SoupError, match=r"manifest\.json: not found, expected a release's manifest"):
            verify(folder)
