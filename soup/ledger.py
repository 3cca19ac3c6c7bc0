"""The ledger: every evaluation ever made, in one SQLite file, found again by all that its result depends on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load, save

from exporters.runtimes import Arrays
from soup import SoupError
from soup.evaluate import Evaluation, kept_arrays
from soup.files import canonical_json, sha256_bytes
from soup.provenance import differences
from soup.sources import several

DAMAGED_SUFFIX = ".damaged"
LARGEST_OUTPUTS_BYTES = 64_000_000
_FORMAT = 1
_APPLICATION = 0x534F5550  # "SOUP", in the header of the file
_PATIENCE_S = 60.0
_SEALED = ("key", "kind", "format", "created", "what", "facts", "record", "arrays_sha256", "outputs_sha256")
_COLUMNS = (*_SEALED, "seal", "arrays", "outputs")  # the large ones last: reading the others passes their pages by
_VALUES = ("value", "bound", "worst")  # of an Evaluation; in hexadecimal, which is exact and has a NaN
_LOG = logging.getLogger(__name__)

_Kind = Literal["evaluation", "arrays"]


@dataclass(frozen=True, slots=True)
class Key:
    """All that a result depends on, as JSON can hold it; `facts["what"]` says in a few words what it is a result of."""

    facts: Mapping[str, object]

    @property
    def sha256(self) -> str:
        """Of the canonical JSON. Raises ValueError on NaN or Inf."""
        return sha256_bytes(canonical_json(self.facts))


class Ledger:
    """Evaluations and recalibrated statistics by key; each `keep` is durable when it returns, and whole or not there.

    One file in a rollback journal, which needs no shared memory and so works on network file systems too; None is in
    memory. A row is believed only if it has its own SHA-256. A damaged file is moved aside and a new one is begun; in a
    file that may not be written what is there is found, and what is new is not kept.
    Raises SoupError for a file that is not a ledger or of a newer format, for a full disk, and for a locked file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._warned = path, False
        self._new = None if path is None or path.exists() else path  # goes if nothing is kept
        self._database = self._opened()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error: object) -> None:
        unused = self._new if self._new and self._ask("SELECT count(*) FROM records") == [(0,)] else None
        self.close()
        if unused:
            unused.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is pending: all was written when it was kept."""
        self._database.close()

    def evaluation(self, key: Key) -> Evaluation | None:
        """As it was kept, but without its outputs: they are large, and `outputs` reads them."""
        found = self._read(key, "evaluation", "arrays")
        if found is None:
            return None
        record, arrays = found
        per_sample = {name[1:]: array for name, array in arrays.items() if name.startswith("/")}
        values = {name: None if record[name] is None else float.fromhex(record[name]) for name in _VALUES}
        return Evaluation(
            record["n_total"], arrays["seen"], per_sample, values["value"], values["bound"],
            not_finite=record["not_finite"], difficulty=arrays.get("difficulty"), worst=values["worst"],
        )  # fmt: skip

    def keep(self, key: Key, evaluation: Evaluation) -> None:
        """Replaces what the key had. Outputs of more than `LARGEST_OUTPUTS_BYTES` are not kept."""
        record: dict[str, object] = {"n_total": evaluation.n_total, "not_finite": evaluation.not_finite}
        for name in _VALUES:
            value = getattr(evaluation, name)
            record[name] = None if value is None else float(value).hex()
        arrays = {"seen": evaluation.seen, **{f"/{name}": array for name, array in evaluation.per_sample.items()}}
        if evaluation.difficulty is not None:
            arrays["difficulty"] = evaluation.difficulty
        outputs = kept_arrays(evaluation)
        if outputs is not None and sum(array.nbytes for array in outputs.values()) > LARGEST_OUTPUTS_BYTES:
            outputs = None
        self._keep(key, "evaluation", record=record, arrays=arrays, outputs=outputs)

    def outputs(self, key: Key) -> Arrays | None:
        """Outputs and answers of an evaluation as `kept_arrays` has them, in order; None where they were not kept."""
        found = self._read(key, "evaluation", "outputs")
        return None if found is None else found[1]

    def arrays(self, key: Key) -> tuple[Arrays, dict[str, object]] | None:
        """What `keep_arrays` was given, in its order."""
        found = self._read(key, "arrays", "arrays")
        return None if found is None else (found[1], found[0])

    def keep_arrays(self, key: Key, arrays: Arrays, facts: Mapping[str, object]) -> None:
        """Arrays with a JSON record. Replaces what the key had. Raises ValueError on NaN or Inf in `facts`."""
        self._keep(key, "arrays", record=facts, arrays=arrays, outputs=None)

    def why_not(self, key: Key) -> str | None:
        """Why nothing is found for `key`: how it differs from the most similar one of the same "what", the newest of
        equals. None where it is there."""
        kinds = self._ask("SELECT kind FROM records WHERE key = ?", key.sha256)
        if kinds:
            intact = all(self._read(key, kind, "arrays") for (kind,) in kinds)
            return None if intact else "what was kept is damaged"
        what = _text(key.facts.get("what"))
        rows = self._ask("SELECT key, facts FROM records WHERE what = ? ORDER BY rowid DESC", what)
        now = json.loads(_text(key.facts))
        known = [differences(json.loads(facts), now) for sha, facts in rows if sha256_bytes(facts.encode()) == sha]
        return several(min(known, key=len)) if known else "never evaluated"

    def _opened(self) -> sqlite3.Connection:
        if self._path is None:
            return _connected(":memory:", shown="in memory")
        with self._told():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            address = self._path.absolute().as_uri() + ("" if _locks_work(self._path.parent) else "?nolock=1")
            try:
                return _connected(address, shown=str(self._path))
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                return _connected(address, shown=str(self._path))

    def _ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._told():
            try:
                return self._database.execute(query, values).fetchall()
            except sqlite3.DatabaseError as error:
                self._begin_anew(error)
                return []

    def _read(self, key: Key, kind: str, column: Literal["arrays", "outputs"]) -> tuple[dict[str, Any], Arrays] | None:
        """Its record and these arrays, where both have the SHA-256 that was kept with them."""
        query = f"SELECT {', '.join(_SEALED)}, seal, {column} FROM records WHERE key = ? AND kind = ?"
        for *sealed, seal, data in self._ask(query, key.sha256, kind):
            expected = sealed[_SEALED.index(f"{column}_sha256")]
            if data is None and expected is None:
                return None
            if seal == _seal(sealed) and isinstance(data, bytes) and sha256_bytes(data) == expected:
                return json.loads(sealed[_SEALED.index("record")]), _unpacked(data)
            _LOG.warning("%s: the %s of %s are damaged and are not used", self._path, column, key.sha256[:12])
        return None

    def _keep(
        self, key: Key, kind: _Kind, *, record: Mapping[str, object], arrays: Arrays, outputs: Arrays | None
    ) -> None:
        data = [_packed(arrays), None if outputs is None else _packed(outputs)]
        sealed = (
            key.sha256, kind, str(_FORMAT), datetime.now(timezone.utc).isoformat(timespec="seconds"),
            _text(key.facts.get("what")), _text(key.facts), _text(record),
            *(None if part is None else sha256_bytes(part) for part in data),
        )  # fmt: skip
        row = (*sealed, _seal(sealed), *data)
        with self._told():
            try:
                self._write(row)
            except sqlite3.DatabaseError as error:
                if re.search("readonly|unable to open", str(error)):  # the file, or the folder for its journal
                    return self._warn(error)
                self._begin_anew(error)
                self._write(row)

    def _write(self, row: Sequence[object]) -> None:
        with _transaction(self._database):
            marks = ", ".join("?" * len(row))
            self._database.execute(f"INSERT OR REPLACE INTO records ({', '.join(_COLUMNS)}) VALUES ({marks})", row)

    def _warn(self, error: sqlite3.Error) -> None:
        if not self._warned:
            _LOG.warning("%s: %s; what is evaluated now is not kept", self._path, error)
        self._warned = True

    def _begin_anew(self, error: sqlite3.DatabaseError) -> None:
        """In place of a file found damaged while in use; any other error is raised again."""
        self._set_aside(error)
        self._database.close()
        self._database = self._opened()

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Raises again what is no damage."""
        if type(error) is not sqlite3.DatabaseError or self._path is None:
            raise error  # subclasses tell of a full disk, a lock, and the like
        aside = self._path.with_name(self._path.name + DAMAGED_SUFFIX)
        self._path.replace(aside)  # SQLite drops a journal of its own accord when it finds no file, or an empty one
        _LOG.warning("%s: %s; it is now %s, and a new one is begun", self._path, error, aside)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What the file system refuses, as an error with advice."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            if "locked" in str(error):
                raise SoupError(f"{self._path}: another process has locked it. Wait for it, and try again.") from error
            full = re.search("full|space|I/O", str(error))
            advice = f"{'Free some space' if full else 'Check its permissions'} or choose another folder."
            raise SoupError(f"{self._path}: cannot be {'written' if full else 'opened'}: {error}. {advice}") from error


def _connected(address: str, *, shown: str) -> sqlite3.Connection:
    """Raises sqlite3.DatabaseError where the file is damaged, SoupError where it is no ledger or a newer one."""
    database = sqlite3.connect(address, uri=True, timeout=_PATIENCE_S, isolation_level=None)
    database.text_factory = lambda data: data.decode(errors="replace")  # damaged text is for the seal to find
    try:
        for setting in ("journal_mode = DELETE", "synchronous = EXTRA", "temp_store = MEMORY"):
            database.execute(f"PRAGMA {setting}")
        _check_tables(database, shown)
    except BaseException:
        database.close()
        raise
    return database


def _check_tables(database: sqlite3.Connection, shown: str) -> None:
    ((application,),) = database.execute("PRAGMA application_id")
    if application == 0 and not database.execute("SELECT 1 FROM sqlite_master").fetchone():
        with _transaction(database):
            database.execute(f"CREATE TABLE IF NOT EXISTS records ({', '.join(_COLUMNS)}, PRIMARY KEY (key, kind))")
            database.execute("CREATE INDEX IF NOT EXISTS records_of_what ON records (what)")
            database.execute(f"PRAGMA application_id = {_APPLICATION}")
            database.execute(f"PRAGMA user_version = {_FORMAT}")
        return
    if application != _APPLICATION:
        raise SoupError(f"{shown}: is an SQLite file, but not a ledger of soup. Choose another folder.")
    ((version,),) = database.execute("PRAGMA user_version")
    if version > _FORMAT:
        raise SoupError(
            f"{shown}: is a ledger of format {version}, but this soup knows {_FORMAT}. Update soup, or move it away."
        )
    columns = {name for _, name, *_ in database.execute("PRAGMA table_info(records)")}
    if version != _FORMAT or not columns.issuperset(_COLUMNS):
        raise sqlite3.DatabaseError("its tables are not those of a ledger")


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # a full disk has rolled it back already
            database.execute("ROLLBACK")
        raise


def _locks_work(folder: Path) -> bool:
    """Some network file systems have none; SQLite would wait for a lock that never comes."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
    return True


def _packed(arrays: Arrays) -> bytes:
    """Names are numbered, since the order of a network's outputs matters and the format has its own."""
    # numpy's order="C": the format's writer takes memory as it lies, also that of a transposed array.
    numbered = {
        f"{index:06d} {name}": np.asarray(array, order="C") for index, (name, array) in enumerate(arrays.items())
    }
    data: bytes = save(numbered)
    return data


def _unpacked(data: bytes) -> dict[str, np.ndarray]:
    arrays = load(data)
    return {name.partition(" ")[2]: arrays[name] for name in sorted(arrays)}


def _seal(sealed: Sequence[object]) -> str:
    return sha256_bytes(canonical_json([str(value) for value in sealed]))


def _text(value: object) -> str:
    return canonical_json(value).decode()
