"""The local store of traces: one SQLite file, bounded by bytes and age, which several processes may share.

SQLite and not JSON lines: a listing of many traces reads an index instead of every trace, the oldest are deleted
without rewriting the file, and its write-ahead log lets processes write while others read. Each trace is a row of what
lists and statistics need, and a compressed body. Knows nothing about how runs are recorded.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from platformdirs import user_state_path

from ...ttt_core.errors import TraceError, shortened
from ...ttt_core.standard_json import dumps
from .structure import check_structure
from .trace import TRACE_VERSION, NoResultError, Trace

STORE_VERSION = 1
"""Version of the tables, in SQLite's `user_version`."""
MAX_BYTES = 512 << 20
"""Default bound of the file."""
MAX_DAYS = 30.0
"""Default age at which traces are deleted."""
BUSY_SECONDS = 1.0
"""How long a write waits for other processes."""
EVICTED_SHARE = 0.1
"""Share of the bound that is made free when the file reaches it."""
_TABLES = """
CREATE TABLE IF NOT EXISTS traces (
    key INTEGER PRIMARY KEY, id TEXT UNIQUE, time REAL, task TEXT, kind TEXT, dataset TEXT, family TEXT, strategy TEXT,
    status TEXT, is_right INTEGER, seconds REAL, fallbacks INTEGER, adaptation TEXT, model TEXT, policy TEXT,
    content INTEGER, stages TEXT, bytes INTEGER
);
CREATE INDEX IF NOT EXISTS traces_time ON traces (time);
CREATE TABLE IF NOT EXISTS bodies (key INTEGER PRIMARY KEY, body BLOB);
"""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What lists and statistics show of a trace."""

    id: str
    time: float
    """Seconds since 1970 when the run began."""
    task: str
    """Id of the task."""
    kind: str
    dataset: str
    family: str
    strategy: str
    status: str
    is_right: bool | None
    """Whether the answer is the task's; None where that is not known."""
    seconds: float
    """Of the work, without waiting for other runs; see `Trace.seconds`."""
    fallbacks: int
    """Attempts that were not accepted."""
    adaptation: str
    """`accepted`, `rejected`, or empty where no adapter answered."""
    model: str
    """Content hash of the base model."""
    policy: str
    """Name and digest of the policy."""
    content: bool
    stages: Mapping[str, float]
    """Seconds by stage; see `Trace.stages`."""
    bytes: int = 0
    """Of the compressed trace."""

    @property
    def duration(self) -> float:
        """Seconds from the beginning of the run to its end, waiting included: the sum of its stages."""
        return sum(self.stages.values())

    def to_plain(self) -> dict[str, Any]:
        """The fields and the duration, as JSON can hold them."""
        return {**asdict(self), "duration": round(self.duration, 6)}

    @classmethod
    def of(cls, trace: Trace) -> Summary:
        """The summary of a trace."""
        task, facts = trace.task_facts, trace.attributes
        policy = facts.get("policy", {})
        return cls(
            id=trace.id, time=datetime.fromisoformat(trace.time).timestamp(), task=str(task.get("id", "")),
            kind=str(task.get("kind", "")), dataset=str(task.get("dataset", "")), family=str(task.get("family", "")),
            strategy=trace.strategy, status=trace.status, is_right=trace.is_right, seconds=trace.seconds,
            fallbacks=sum(verdict["action"] != "accept" for verdict in trace.verdicts), adaptation=trace.adaptation,
            model=str(facts.get("model", {}).get("hash", "")),
            policy=f"{policy.get('name', '')} {policy.get('digest', '')}".strip(), content=trace.has_content,
            stages={name: round(seconds, 6) for name, seconds in trace.stages().items()},
        )  # fmt: skip


class BusyError(TraceError):
    """Another process used a store for longer than `BUSY_SECONDS`; nothing was changed."""


_COLUMNS = tuple(field.name for field in fields(Summary))
_TEXTS = ("id", "task", "kind", "dataset", "family", "strategy", "status", "adaptation", "model", "policy", "stages")
_NUMBERS = ("seconds", "fallbacks", "content", "bytes")
_LAST_TIME = 253_000_000_000
"""Seconds from 1970 to the year 9987; a calendar has no later ones."""
_SOUND = " AND ".join([
    *(f"typeof({name}) = 'text'" for name in _TEXTS),
    *(f"typeof({name}) IN ('integer', 'real') AND {name} BETWEEN 0 AND 1e18" for name in _NUMBERS),
    f"typeof(time) IN ('integer', 'real') AND time BETWEEN 0 AND {_LAST_TIME}",
    "(is_right IS NULL OR is_right IN (0, 1))",
])  # fmt: skip
"""The condition, in SQL, that the columns of a row are of the kinds that a summary has."""
_SOUND_STAGES = "CASE WHEN json_valid(stages) THEN json_type(stages) = 'object' END"
_DURATION = f"(SELECT total(value) FROM json_each(CASE WHEN {_SOUND_STAGES} THEN stages ELSE '{{}}' END))"
"""`Summary.duration` in SQL. A column of its own would be missing in stores of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which traces are meant; what is None or empty does not restrict."""

    strategy: str | None = None
    wrong: bool = False
    """Only answers that are known to be wrong, and runs without an answer."""
    slower_than: float | None = None
    """Seconds from the beginning of a run to its end."""
    fallbacks: bool = False
    """Only runs with an attempt that was not accepted."""
    since: float | None = None
    """Seconds since 1970."""
    until: float | None = None

    def condition(self) -> tuple[str, list[Any]]:
        """The condition in SQL, and its parameters."""
        parts: list[tuple[str, list[Any]]] = [("TRUE", [])]
        if self.strategy is not None:
            parts.append(("strategy = ?", [self.strategy]))
        if self.wrong:
            parts.append(("(is_right = 0 OR status != 'answered')", []))
        if self.slower_than is not None:
            parts.append((f"{_DURATION} > ?", [self.slower_than]))
        if self.fallbacks:
            parts.append(("fallbacks > 0", []))
        if self.since is not None:
            parts.append(("time >= ?", [self.since]))
        if self.until is not None:
            parts.append(("time < ?", [self.until]))
        return " AND ".join(part for part, _ in parts), [value for _, values in parts for value in values]


class _Opened(NamedTuple):
    """A connection to a store."""

    process: int
    """That opened it."""
    connection: sqlite3.Connection
    writes: bool
    """Whether it can write."""
    file: tuple[int, int] | None
    """Device and inode of the file."""


class TraceStore:
    """Traces in a SQLite file that only its owner may read. Safe for several threads and processes."""

    def __init__(self, file: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES, max_days: float = MAX_DAYS) -> None:
        """Beyond `max_bytes` (of the file) the oldest traces are deleted, as are those older than `max_days`."""
        self.file = Path(file)
        self.max_bytes = max_bytes
        self.max_days = max_days
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._warned_of_another_file = False

    def write(self, trace: Trace) -> None:
        """Stores a trace, and deletes what exceeds the bounds. Raises `TraceError` where it cannot be stored."""
        body = zlib.compress(dumps(trace.plain, default=str).encode(), 1)
        if len(body) > self.max_bytes * EVICTED_SHARE:
            raise TraceError(
                f"{self.file}: trace {trace.id} has {len(body)} bytes, more than a tenth of the {self.max_bytes} bytes "
                "of the store; it is not stored"
            )
        summary = Summary.of(trace)
        values = [json.dumps(v) if isinstance(v, dict) else v for v in (getattr(summary, n) for n in _COLUMNS)]
        values[_COLUMNS.index("bytes")] = len(body)
        with self._lock, self._writing() as connection:
            marks = ", ".join("?" * len(_COLUMNS))
            row = connection.execute(f"INSERT INTO traces ({', '.join(_COLUMNS)}) VALUES ({marks})", values)
            connection.execute("INSERT INTO bodies VALUES (?, ?)", (row.lastrowid, body))
            self._delete_old(connection)

    def summaries(self, which: Filter | None = None, limit: int | None = None) -> list[Summary]:
        """The summaries of traces, the newest first. Damaged ones are left out, and a warning names each."""
        names = ", ".join(_COLUMNS)
        with self._lock, self._reading() as connection:
            self._warn_of_damaged(connection)
            rows = _newest(connection, names, which, limit, _SOUND)
            return [self._summary(row) for row in rows]

    def columns(self, names: Sequence[str], which: Filter | None = None) -> list[tuple[Any, ...]]:
        """Columns of the summaries of traces as they are stored, in no order: much faster than `summaries`. Damaged
        traces are left out, and a warning names each."""
        if unknown := set(names) - set(_COLUMNS):
            raise ValueError(f"expected fields of a Summary; received {', '.join(sorted(unknown))}")
        condition, values = (which or Filter()).condition()
        query = f"SELECT {', '.join(names)} FROM traces WHERE {_SOUND} AND {condition}"
        with self._lock, self._reading() as connection:
            self._warn_of_damaged(connection)
            return connection.execute(query, values).fetchall()

    def stage_seconds(self, which: Filter | None = None) -> dict[str, float]:
        """Seconds of all runs by stage, the largest first."""
        condition, values = (which or Filter()).condition()
        sound = f"(SELECT stages FROM traces WHERE {_SOUND} AND {condition} AND {_SOUND_STAGES})"
        query = (
            f"SELECT stage.key, total(stage.value) FROM {sound} AS sound, json_each(sound.stages) AS stage "
            "GROUP BY stage.key ORDER BY total(stage.value) DESC"
        )
        with self._lock, self._reading() as connection:
            return dict(connection.execute(query, values).fetchall())

    def get(self, id: str) -> Trace:
        """The trace of an id, of the beginning of one, or of `last`. Raises `TraceError` where there is none, or
        several."""
        with self._lock, self._reading() as connection:
            if id == "last":
                rows = _newest(connection, "key, id", None, 1, _SOUND)
            else:
                query = "SELECT key, id FROM traces WHERE substr(id, 1, ?) = ? LIMIT 3"
                rows = connection.execute(query, (len(id), id)).fetchall()
            if len(rows) != 1:
                known = ", ".join(row[1] for row in rows)
                problem = f"several traces begin with {id}: {known}" if rows else f"there is no trace {id}"
                raise TraceError(f"{self.file}: {problem}; `autottt trace list` shows them")
            body = connection.execute("SELECT body FROM bodies WHERE key = ?", (rows[0][0],)).fetchone()
        return read_trace(None if body is None else body[0], f"{self.file}: trace {rows[0][1]}")

    def find(self, id: str) -> Trace | None:
        """The trace of a whole id; None where there is none. Raises `TraceError` for a store or a trace that cannot be
        read."""
        return self._find("id = ?", (id,), id)

    def _find(self, condition: str, values: Sequence[Any], id: str) -> Trace | None:
        query = f"SELECT body FROM traces LEFT JOIN bodies USING (key) WHERE {condition}"
        with self._lock, self._reading() as connection:
            row = connection.execute(query, values).fetchone()
        return None if row is None else read_trace(row[0], f"{self.file}: trace {id}")

    def label(self, id: str, label: Mapping[str, Any]) -> bool:
        """Adds to the trace of an id, or replaces, what is known of its answer afterwards (see `Trace.label`), without
        `answer` where the trace has no content. False where there is no such trace; raises `TraceError`, and
        `NoResultError` for a run that ended without a result.
        """
        with self._lock, self._writing() as connection:
            query = "SELECT key, body FROM traces LEFT JOIN bodies USING (key) WHERE id = ?"
            row = connection.execute(query, (id,)).fetchone()
            if row is None:
                return False
            trace = read_trace(row[1], f"{self.file}: trace {id}")
            if not trace.result:
                raise NoResultError(f"the run {id} ended without an answer ({trace.status}): there is nothing to label")
            kept = {name: value for name, value in label.items() if name != "answer" or trace.has_content}
            body = zlib.compress(dumps({**trace.plain, "label": kept}, default=str).encode(), 1)
            connection.execute("UPDATE bodies SET body = ? WHERE key = ?", (body, row[0]))
            change = "UPDATE traces SET is_right = ?, bytes = ? WHERE key = ?"
            connection.execute(change, (bool(label["right"]), len(body), row[0]))
        return True

    def traces(
        self,
        which: Filter | None = None,
        limit: int | None = None,
        on_damaged: Callable[[TraceError], None] | None = None,
    ) -> Iterator[Trace]:
        """The traces, the newest first, read one by one. `on_damaged` receives why a trace cannot be read; without it
        that is logged as a warning."""
        with self._lock, self._reading() as connection:
            rows = _newest(connection, "key, time, id", which, limit)
        for key, began, id in rows:
            try:
                trace = self._find("key = ? AND time IS ?", (key, began), id)  # a key is given again after `clear`
            except TraceError as error:
                if on_damaged is None:
                    logging.getLogger("autottt").warning("%s; skipped", error)
                else:
                    on_damaged(error)
                continue
            if trace is not None:  # else it was deleted in the meantime
                yield trace

    def clear(self) -> int:
        """Deletes every trace, and what remains of them in the file; returns how many there were. Where another process
        uses the file, what remains may stay for as long; a warning says so."""
        with self._lock, self._writing() as connection:
            count = int(connection.execute("SELECT count(*) FROM traces").fetchone()[0])
            connection.execute("DELETE FROM traces")
            connection.execute("DELETE FROM bodies")
        problem = ""
        try:
            with self._lock:
                connection.execute("VACUUM")
                if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    problem = "database is locked"
        except sqlite3.Error as error:
            problem = str(error)
        if problem:
            logging.getLogger("autottt").warning(
                "%s: the traces are deleted, but what they held remains in the file, which another process may be "
                "using (%s); delete the traces again when it has ended, to remove that too", self.file, problem,
            )  # fmt: skip
        return count

    def size(self) -> tuple[int, int]:
        """The number of traces, and the bytes of the store's files."""
        with self._lock, self._reading() as connection:
            count = int(connection.execute("SELECT count(*) FROM traces").fetchone()[0])
        files = [self.file, *(self.file.with_name(self.file.name + end) for end in ("-wal", "-shm"))]
        return count, sum(file.stat().st_size for file in files if file.exists())

    def exists(self) -> bool:
        """Whether there is a file."""
        return self.file.exists()

    def close(self) -> None:
        """Closes the file; a later call opens it again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._opened is not None and self._opened.process == os.getpid():
            self._opened.connection.close()
        self._opened = None

    def _delete_old(self, connection: sqlite3.Connection) -> None:
        """Deletes traces that are too old, and the oldest where the file is too large."""
        limit = time.time() - 86400 * self.max_days
        connection.execute("DELETE FROM bodies WHERE key IN (SELECT key FROM traces WHERE time < ?)", (limit,))
        connection.execute("DELETE FROM traces WHERE time < ?", (limit,))
        used = _used_bytes(connection)
        if used <= self.max_bytes:
            return
        excess, keys = used - (1 - EVICTED_SHARE) * self.max_bytes, []
        for key, size in connection.execute("SELECT key, CAST(bytes AS INTEGER) FROM traces ORDER BY time, key"):
            if excess <= 0:
                break
            keys.append((key,))
            excess -= size or 0  # of a damaged row it may be unknown
        connection.executemany("DELETE FROM bodies WHERE key = ?", keys)
        connection.executemany("DELETE FROM traces WHERE key = ?", keys)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction. Raises `TraceError` where the file cannot be written, or is not a store of traces, and
        `BusyError` where another process writes to it."""
        try:
            connection = self._connection(writes=True)
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        except (OSError, sqlite3.Error) as error:
            self._close()
            raise _kind(error)(f"{self.file}: traces cannot be stored ({_text(error)})") from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection. Raises `TraceError` where there is no store, or the file is none."""
        if not self.file.exists():
            raise self._no_traces()
        try:
            yield self._connection(writes=False)
        except (OSError, sqlite3.Error) as error:
            self._close()
            raise _kind(error)(f"{self.file}: the traces cannot be read ({_text(error)})") from error

    def _no_traces(self) -> TraceError:
        return TraceError(f"{self.file}: there are no traces; `autottt solve` records them unless AUTOTTT_TRACE=off")

    def _connection(self, *, writes: bool) -> sqlite3.Connection:
        """The open connection of this process, which can write if `writes`. A connection that a fork copied is never
        used, nor one to a file that was removed or replaced: what it stored would be lost."""
        if self._opened is not None and self._opened.file != _identity(self.file):
            self._close_other_file(self._opened)
        if self._opened is None or self._opened.process != os.getpid() or (writes and not self._opened.writes):
            self._close()
            if writes:
                self._make_file()
            file = _identity(self.file)  # before it is opened: a file that replaces it from now on has another one
            self._opened = _Opened(
                os.getpid(), self._open_to_write() if writes else self._open_to_read(), writes, file
            )  # fmt: skip
        return self._opened.connection

    def _close_other_file(self, opened: _Opened) -> None:
        """Closes a connection to a file that is no longer at the path; a warning says so once, if it has written."""
        if opened.writes and not self._warned_of_another_file:
            self._warned_of_another_file = True
            logging.getLogger("autottt").warning(
                "%s: the file was removed or replaced while this process had it open; traces are stored in a new file, "
                "or in the one that is there now", self.file,
            )  # fmt: skip
        self._close()

    def _make_file(self) -> None:
        """Makes an empty file where there is none."""
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.file, os.O_CREAT | os.O_RDWR, 0o600))

    def _open_to_write(self) -> sqlite3.Connection:
        """A connection to the file, in which the tables are made if it is empty."""
        connection = self._connect("mode=rw")
        try:
            if not self._has_tables(connection):
                os.chmod(self.file, 0o600)
                _write_ahead(connection)
                connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {STORE_VERSION}; COMMIT;")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA journal_size_limit = 4194304")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_to_read(self) -> sqlite3.Connection:
        """A connection that writes nothing. In a folder that this user cannot write to, SQLite reads a file without a
        write-ahead log only as one that nobody changes."""
        connection = self._connect("mode=ro")
        try:
            try:
                has_tables = self._has_tables(connection)
            except sqlite3.OperationalError:
                if self.file.with_name(self.file.name + "-wal").exists():
                    raise
                connection.close()
                connection = self._connect("mode=ro&immutable=1")
                has_tables = self._has_tables(connection)
            if not has_tables:
                raise self._no_traces()
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.file.absolute().as_uri()}?{mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None,
            check_same_thread=False, cached_statements=32,
        )  # fmt: skip
        connection.text_factory = lambda text: text.decode("utf-8", "replace")  # damage to one row hides no other
        return connection

    def _has_tables(self, connection: sqlite3.Connection) -> bool:
        """Whether the file holds the tables of a store; false for an empty file. Raises `TraceError` for a database of
        another program, and for a store of another version."""
        connection.execute("BEGIN")  # one snapshot for both reads: another process may be making the store
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        if not names and version == 0:
            return False
        if not {"traces", "bodies"} <= names:
            raise TraceError(
                f"{self.file}: expected a store of traces, as `autottt solve` writes it; received a SQLite file of "
                "another program, which is left as it is: name another file"
            )
        if version != STORE_VERSION:
            raise TraceError(
                f"{self.file}: its format is version {version}, and this package reads version {STORE_VERSION}; name "
                "another file or delete this one"
            )
        return True

    def _warn_of_damaged(self, connection: sqlite3.Connection) -> None:
        """Names the traces of which a column is damaged."""
        for key, id in connection.execute(f"SELECT key, id FROM traces WHERE NOT ({_SOUND})"):
            logging.getLogger("autottt").warning(
                "%s: trace %s is damaged (a column of row %d has another type or range than is stored); it is left out",
                self.file, id, key,
            )  # fmt: skip

    def _summary(self, row: Sequence[Any]) -> Summary:
        """The summary in a row of columns. Damaged stages are left out, with a warning."""
        values = dict(zip(_COLUMNS, row, strict=True))
        values["is_right"] = None if values["is_right"] is None else bool(values["is_right"])
        try:
            stages = {str(name): float(seconds) for name, seconds in json.loads(values["stages"]).items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            stages = {}
            logging.getLogger("autottt").warning(
                "%s: trace %s is damaged: expected its stages as JSON, received %s; they are left out",
                self.file, values["id"], shortened(values["stages"]),
            )  # fmt: skip
        return Summary(**{**values, "stages": stages, "content": bool(values["content"])})


def _identity(file: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None where there is none."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Sets the journal mode. SQLite does not wait for its busy timeout here where another process writes, so that two
    that make one store at the same time need another attempt."""
    ends = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= ends:
                raise
        time.sleep(0.01)


def local_store() -> TraceStore:
    """The store of this user."""
    return TraceStore(user_state_path("autottt") / "traces.sqlite")


def read_trace(body: bytes | None, place: str) -> Trace:
    """The trace in a stored body. Raises `TraceError`, which names the place, for one that is damaged, missing or of
    another version."""
    if body is None:
        raise TraceError(f"{place} is damaged (its content is missing)")
    try:
        plain = json.loads(zlib.decompress(body))
        version = plain["version"]
        if version == TRACE_VERSION:
            check_structure(plain)
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
        raise TraceError(f"{place} is damaged ({type(error).__name__}: {error})") from None
    if version != TRACE_VERSION:
        raise TraceError(f"{place} has version {shortened(version)}; this package reads version {TRACE_VERSION}")
    return Trace(plain)


def _newest(
    connection: sqlite3.Connection, names: str, which: Filter | None, limit: int | None, sound: str = "TRUE"
) -> list[tuple[Any, ...]]:
    """Columns of the rows that a filter and the condition `sound` select, the newest first."""
    condition, values = (which or Filter()).condition()
    order = f"ORDER BY time DESC, key DESC LIMIT {-1 if limit is None else int(limit)}"
    return connection.execute(f"SELECT {names} FROM traces WHERE {sound} AND {condition} {order}", values).fetchall()


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _kind(error: Exception) -> type[TraceError]:
    """What is raised for an error of SQLite or of the file system."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # an extended code has the primary one in its lowest byte
    return BusyError if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) else TraceError


def _text(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
