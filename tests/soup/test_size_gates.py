"""Gates on what an engine takes up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soup.gates import Exit, Subject, exit_code
from soup.size_gates import dla_gate, memory_gate, size_gate

SUBJECT = Subject("model.engine", "gate", "tensorrt on Orin")


@pytest.mark.parametrize(("size", "verdict"), [(20_000_000, "pass"), (20_000_001, "fail")])
def test_a_file_of_exactly_the_limit_passes(size: int, verdict: str) -> None:
    check = size_gate(size, SUBJECT, max_mb=20)
    assert (check.verdict, check.kind, check.unit, check.where) == (verdict, "size", "MB", "tensorrt on Orin")


def test_sizes_and_shares_read_as_one_sentence() -> None:
    assert size_gate(12_300_000, SUBJECT, max_mb=20).message == "the file: 12.3 MB, within the limit of 20 MB"
    memory = memory_gate(1_500_000_000, SUBJECT, max_mb=1200, what="device memory while it runs")
    assert memory.message == "device memory while it runs: 1,500.0 MB, beyond the limit of 1,200 MB"
    assert exit_code([memory]) == Exit.CHECK
    share = dla_gate(0.75, SUBJECT, minimum=0.9)
    assert share.message == "75.0 % of the layers run on the DLA, the others on the GPU; at least 90 % must"
    assert exit_code([share]) == Exit.CHECK


def test_what_nobody_measured_is_pending_and_blocks_nothing() -> None:
    checks = [memory_gate(None, SUBJECT, max_mb=500, what="device memory"), dla_gate(None, SUBJECT, minimum=0.9)]
    assert [(check.verdict, check.measured) for check in checks] == [("pending", None)] * 2
    assert exit_code(checks) == Exit.OK
    assert checks[0].message == "device memory was not measured here; limit 500 MB"


def test_a_share_that_is_not_a_number_fails() -> None:
    check = dla_gate(math.nan, SUBJECT, minimum=0.0)
    assert (check.verdict, check.measured) == ("fail", None)
    assert dla_gate(0.9, SUBJECT, minimum=0.9).verdict == "pass"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**10), st.floats(0.1, 1e4), st.floats(0, 1e4), st.floats(0, 1), st.floats(0, 1))
def test_a_wider_limit_never_turns_a_pass_into_a_fail(size, limit, more, share, minimum):
    if size_gate(size, SUBJECT, max_mb=limit).verdict == "pass":
        assert size_gate(size, SUBJECT, max_mb=limit + more).verdict == "pass"
    if dla_gate(share, SUBJECT, minimum=minimum).verdict == "pass":
        assert dla_gate(share, SUBJECT, minimum=minimum / 2).verdict == "pass"
