"""Correctness 39: what was asked for against what a layer computes in, as a verdict."""

from __future__ import annotations

import json
from pathlib import Path

from exporters.audit import LayerAudit
from soup.gates import Subject
from soup.precision_audit import audit_check, engine_audit

SUBJECT = Subject("model.int8.onnx", "ONNX → INT8")


def layer(name: str, found: str, *, kept: bool = False, macs: int = 100) -> LayerAudit:
    return LayerAudit(name, "Conv", "int8", found, macs, kept)  # type: ignore[arg-type]


def test_as_asked_passes_and_tells_the_share_and_a_layer_kept_on_purpose_is_no_difference() -> None:
    check = audit_check([layer("a", "int8", macs=300), layer("b", "fp32", kept=True)], SUBJECT, asked="int8")
    assert (check.kind, check.verdict) == ("precision", "pass")
    assert "1 fp32, 1 int8" in check.message
    assert "75.0 % of the multiply-adds" in check.message


def test_a_layer_that_is_silently_higher_fails_by_its_name() -> None:
    check = audit_check([layer("a", "int8"), layer("b", "fp32")], SUBJECT, asked="int8")
    assert check.verdict == "fail"
    assert "'b' computes in fp32" in check.message


def test_what_cannot_be_read_is_open_and_neither_passes_nor_fails() -> None:
    assert audit_check([layer("a", "unknown")], SUBJECT, asked="int8").verdict == "pending"
    assert audit_check([layer("a", "unknown"), layer("b", "fp32")], SUBJECT, asked="int8").verdict == "fail"


def test_an_engine_whose_record_was_not_readable_tells_nothing(tmp_path: Path) -> None:
    record = tmp_path / "layers.json"
    record.write_text(json.dumps({"readable": False, "reason": "another form"}))
    assert [one.found for one in engine_audit(record, [layer("a", "int8")])] == ["unknown"]
