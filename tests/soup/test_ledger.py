"""The ledger gives back what it was given or nothing, survives its writer, and says why it has nothing."""

from __future__ import annotations

import errno
import fcntl
import logging
import random
import signal
import sqlite3
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soup import SoupError
from soup.evaluate import Evaluation
from soup.ledger import LARGEST_OUTPUTS_BYTES, Key, Ledger

KEY = Key({"what": {"split": "val", "kind": "evaluation", "ingredients": ["a" * 64]}, "batch": 64})
SEEN = np.array([True, False, True])
EVALUATION = Evaluation(
    3,
    SEEN,
    {"z": np.array([1, 0, 0], np.int64), "correct": SEEN},
    0.5,
    0.75,
    {"second": np.arange(6, dtype=np.float32).reshape(2, 3).T, "first": np.zeros((3, 0), np.float16)},
    1,
    np.array([1.5, 0, np.inf], np.float32),
    0.25,
)
WRITER = """
import sys
from pathlib import Path
import numpy as np
from soup.evaluate import Evaluation
from soup.ledger import Key, Ledger
with Ledger(Path(sys.argv[1])) as ledger:
    for index in range(int(sys.argv[2]), 10**6):
        outputs = {"logits": np.full((50, 1000), index, np.float32)}
        ledger.keep(Key({"index": index % 7}), Evaluation(50, np.ones(50, bool), {}, float(index), None, outputs))
        print(index, flush=True)
"""
HALFWAY = """
import os, signal, sqlite3
from functools import partial
class Killed(sqlite3.Connection):
    def execute(self, statement, *values):
        if statement == "BEGIN IMMEDIATE":
            super().execute("PRAGMA cache_size = 2")  # so that pages reach the file before the end
        if statement == "COMMIT":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(statement, *values)
sqlite3.connect = partial(sqlite3.connect, factory=Killed)
"""


def same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    return repr(one) == repr(other)


def explained(facts: dict[str, object], *earlier: dict[str, object]) -> str | None:
    with Ledger(None) as ledger:
        for one in earlier:
            ledger.keep_arrays(Key(one), {}, {})
        return ledger.why_not(Key(facts))


def damage(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old)
    path.write_bytes(data.replace(old, new))


def test_an_evaluation_comes_back_bit_by_bit_and_its_outputs_apart(tmp_path: Path) -> None:
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        ledger.keep(KEY, EVALUATION)
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        found, outputs = ledger.evaluation(KEY), ledger.outputs(KEY)
    expected = replace(EVALUATION, outputs=None)
    assert found is not None
    assert [
        field.name
        for field in fields(Evaluation)
        if not same(getattr(found, field.name), getattr(expected, field.name))
    ] == []
    assert same(outputs, EVALUATION.outputs)  # in their order, too
    assert found.seen.flags.writeable  # torch warns of arrays that are not


@given(st.none() | st.floats(), st.none() | st.floats())
def test_every_float_and_none_come_back(value: float | None, bound: float | None) -> None:
    with Ledger(None) as ledger:
        ledger.keep(KEY, replace(EVALUATION, value=value, bound=bound, difficulty=None, outputs=None))
        found = ledger.evaluation(KEY)
        assert found is not None
        assert same((found.value, found.bound, found.difficulty), (value, bound, None))
        assert ledger.outputs(KEY) is None


def test_arrays_come_back_with_their_record_and_apart_from_an_evaluation_of_the_same_key() -> None:
    with Ledger(None) as ledger:
        assert ledger.arrays(KEY) is None
        ledger.keep_arrays(KEY, {"b": np.float64(2.5) * np.ones(()), "a": SEEN}, {"convergence": [0.5]})
        assert ledger.evaluation(KEY) is None
        ledger.keep(KEY, EVALUATION)
        assert same(ledger.arrays(KEY), ({"b": np.array(2.5), "a": SEEN}, {"convergence": [0.5]}))


def test_what_is_kept_again_replaces_the_earlier_and_its_outputs() -> None:
    with Ledger(None) as ledger:
        ledger.keep(KEY, EVALUATION)
        ledger.keep(Key(dict(reversed(KEY.facts.items()))), replace(EVALUATION, value=0.75, outputs=None))
        found = ledger.evaluation(KEY)
        assert found is not None
        assert found.value == 0.75
        assert ledger.outputs(KEY) is None


def test_large_outputs_are_dropped_and_the_rest_is_kept() -> None:
    for excess in (0, 1):
        outputs = {"small": np.zeros(10, np.uint8), "large": np.zeros(LARGEST_OUTPUTS_BYTES - 10 + excess, np.uint8)}
        with Ledger(None) as ledger:
            ledger.keep(KEY, replace(EVALUATION, outputs=outputs))
            assert ledger.evaluation(KEY) is not None
            assert (ledger.outputs(KEY) is None) == bool(excess)


def test_each_row_says_what_it_is_of_and_when_it_was_kept(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.keep(KEY, EVALUATION)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        ((sha, facts, version, created),) = database.execute("SELECT key, facts, format, created FROM records")
    database.close()
    assert (sha, version) == (KEY.sha256, "1")
    assert facts.startswith('{"batch":64,"what":{')
    assert created[:2] == "20"
    assert created.endswith("+00:00")


@pytest.mark.parametrize(
    ("old", "new", "left"),
    [
        (EVALUATION.per_sample["z"].tobytes(), b"\x02" * 24, "outputs"),
        (np.arange(6, dtype=np.float32).reshape(2, 3).T.tobytes(), b"\x02" * 24, "evaluation"),
        ((0.5).hex().encode(), (0.25).hex().encode(), ""),
        (b'"batch":64', b'"batch":32', ""),
    ],
)
def test_a_damaged_row_is_not_believed_and_can_be_kept_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, old: bytes, new: bytes, left: str
) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.keep(KEY, EVALUATION)
    damage(path, old, new)
    with Ledger(path) as ledger:
        assert (ledger.evaluation(KEY) is not None) == (left == "evaluation")
        assert (ledger.outputs(KEY) is not None) == (left == "outputs")
        assert "are damaged and are not used" in caplog.text
        assert ledger.why_not(KEY) == (None if left == "evaluation" else "what was kept is damaged")
        ledger.keep(KEY, EVALUATION)
        assert ledger.evaluation(KEY) is not None
        assert ledger.outputs(KEY) is not None


def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"no database" * 500)
    with Ledger(path) as ledger:
        ledger.keep(KEY, EVALUATION)
        assert ledger.evaluation(KEY) is not None
    assert (tmp_path / "ledger.sqlite.damaged").read_bytes() == b"no database" * 500
    assert f"it is now {path}.damaged, and a new one is begun" in caplog.text


@pytest.mark.parametrize("page", ["first", "all but the first", "cut short"])
def test_damage_that_shows_only_when_a_page_is_read_is_no_more_than_a_fresh_start(tmp_path: Path, page: str) -> None:
    path = tmp_path / "ledger.sqlite"
    large = replace(EVALUATION, outputs={"logits": np.ones(10_000, np.float32)})
    with Ledger(path) as ledger:
        for index in range(12):
            ledger.keep(Key({"index": index}), large)
    data = path.read_bytes()
    head = data[:100] + b"\xff" * 3996 if page == "first" else data[:4096]
    path.write_bytes(head + (b"\xff" * (len(data) - 4096) if page != "cut short" else data[4096 : len(data) // 2]))
    with Ledger(path) as ledger:
        assert ledger.evaluation(Key({"index": 11})) is None
        ledger.keep(Key({"index": 11}), large)
        assert ledger.evaluation(Key({"index": 11})) is not None
    assert (tmp_path / "ledger.sqlite.damaged").exists()


def test_damage_that_shows_only_when_something_is_kept_is_a_fresh_start_too(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 4096 * 3)
    with Ledger(path) as ledger:
        ledger.keep(KEY, EVALUATION)
        assert ledger.evaluation(KEY) is not None
    assert (tmp_path / "ledger.sqlite.damaged").exists()


def test_an_empty_file_is_a_new_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").touch()
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.why_not(KEY) == "never evaluated"
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.sqlite"]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("PRAGMA user_version = 9", "is a ledger of format 9, but this soup knows 1. Update soup, or move it away."),
        ("PRAGMA application_id = 7", "is an SQLite file, but not a ledger of soup. Choose another folder."),
    ],
)
def test_a_file_of_a_newer_format_or_of_another_program_is_refused_as_it_is(
    tmp_path: Path, statement: str, message: str
) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()
    before = path.read_bytes()
    with pytest.raises(SoupError) as caught:
        Ledger(path)
    assert str(caught.value) == f"{path}: {message}"
    assert path.read_bytes() == before


def test_a_full_disk_is_one_sentence_and_what_was_kept_stays(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.keep(KEY, EVALUATION)
        ledger._database.execute("PRAGMA max_page_count = 20")
        large = replace(EVALUATION, value=0.9, outputs={"logits": np.ones(100_000, np.float32)})
        for key in (Key({"other": 1}), KEY):  # a new one, and one that would replace what is there
            with pytest.raises(SoupError) as caught:
                ledger.keep(key, large)
            assert caught.value.kind == "input"
            assert str(caught.value) == (
                f"{path}: cannot be written: database or disk is full. Free some space or choose another folder."
            )
            assert same(ledger.outputs(KEY), EVALUATION.outputs)
        ledger.keep(Key({"small": 1}), replace(EVALUATION, outputs=None))  # it goes on
    with Ledger(path) as ledger:
        assert ledger.evaluation(Key({"small": 1})) is not None
        assert ledger.evaluation(Key({"other": 1})) is None


def test_a_ledger_that_may_not_be_written_is_read_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.keep(KEY, EVALUATION)
        ledger._database.execute("PRAGMA query_only = ON")
        for index in range(2):
            ledger.keep(Key({"index": index}), EVALUATION)
        assert ledger.evaluation(KEY) is not None
        assert ledger.evaluation(Key({"index": 0})) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "readonly database; what is evaluated now is not kept" in caplog.text


def test_a_path_that_cannot_be_a_file_is_told_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "ledger.sqlite"):
        with pytest.raises(
            SoupError, match=r"cannot be opened: .*\. Check its permissions or choose another folder\.$"
        ):
            Ledger(path)


def test_another_process_that_holds_the_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soup.ledger._PATIENCE_S", 0.0)
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(
            SoupError, match=r"ledger\.sqlite: another process has locked it\. Wait for it, and try again"
        ):
            ledger.keep(KEY, EVALUATION)
        other.close()
        ledger.keep(KEY, EVALUATION)


def test_a_file_system_without_locks_is_used_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soup.ledger._PATIENCE_S", 0.0)
    path = tmp_path / "a ?#%.sqlite"
    Ledger(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")  # as if the file system refused every lock

    def refused(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refused)
    with Ledger(path) as ledger:
        ledger.keep(KEY, EVALUATION)
        assert ledger.evaluation(KEY) is not None
    other.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a ?#%.sqlite"]


def test_a_killed_writer_leaves_all_that_it_had_kept(tmp_path: Path) -> None:
    path, last, chance = tmp_path / "ledger.sqlite", -1, random.Random(0)
    for _ in range(4):
        done = _killed(path, first=last + 1, after=chance.randint(1, 12), spin=chance.randint(0, 200_000))
        kept = {}
        with Ledger(path) as ledger:
            for index in range(7):
                found, outputs = ledger.evaluation(Key({"index": index})), ledger.outputs(Key({"index": index}))
                if found is not None:
                    assert outputs is not None
                    assert same(outputs["logits"], np.full((50, 1000), found.value, np.float32))
                    kept[index] = found.value
        last = int(max(kept.values()))
        assert done <= last <= done + 1  # the one after may have been finished, but not yet told
        assert kept == {index % 7: float(index) for index in range(max(0, last - 6), last + 1)}
    assert not (tmp_path / "ledger.sqlite.damaged").exists()


def test_a_writer_killed_halfway_through_a_row_leaves_what_it_would_have_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    kept = replace(EVALUATION, n_total=50, outputs={"logits": np.full((50, 1000), 3, np.float32)})
    with Ledger(path) as ledger:
        ledger.keep(Key({"index": 0}), kept)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", HALFWAY + WRITER, path, "0"], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() != before  # it had begun to write
    with Ledger(path) as ledger:
        assert same(ledger.outputs(Key({"index": 0})), kept.outputs)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.sqlite"]


def _killed(path: Path, *, first: int, after: int, spin: int) -> int:
    """Kill a writer some moments after it has told of `after` rows; the last one that it told of."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path, str(first)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for _ in range(after):
            line = writer.stdout.readline()
        for _ in range(spin):
            pass
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        return int(rest[-1] if rest else line)


def test_a_key_does_not_depend_on_the_order_of_its_facts_but_on_every_value() -> None:
    assert Key({"a": 1, "b": {"c": 2}}).sha256 == Key({"b": {"c": 2}, "a": 1}).sha256
    assert Key({"a": 1}).sha256 != Key({"a": 1.0}).sha256


def test_what_is_there_has_no_reason_not_to_be_and_what_is_like_nothing_was_never_evaluated() -> None:
    assert explained({"what": "val", "a": 1}, {"what": "val", "a": 1}) is None
    assert explained({"what": "val", "a": 1}, {"what": "test", "a": 1}) == "never evaluated"


def test_the_reason_names_each_fact_that_differs_from_the_most_similar_and_newest() -> None:
    now = {"what": "val", "batchnorm": {"samples": 500, "batch": 25}, "batch": 64}
    assert explained(now, now | {"batchnorm": {"samples": 1000, "batch": 25}}) == "batchnorm.samples was 1000, is 500"
    near, far = now | {"batch": 32}, now | {"batch": 16, "batchnorm": {}}
    assert explained(now, near, far) == explained(now, far, near) == "batch was 32, is 64"
    assert explained(now, near, now | {"batch": 8}) == "batch was 8, is 64"
