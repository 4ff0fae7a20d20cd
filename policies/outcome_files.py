"""The files of a store of outcomes, read row by row: journals (JSON lines) and shards (Parquet).

Knows nothing about the fields of an outcome. A damaged row or file is returned as `Damage`, so that one of them does
not hide the others.
"""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal

from ..ttt_core.errors import PolicyError, shortened
from ..ttt_core.file_writing import replacing
from .versions import OUTCOMES_VERSION

try:
    import fcntl
except ImportError:  # without file locks nothing tells whether the writer of a journal is still alive
    fcntl = None  # type: ignore[assignment]

JOURNAL, SHARD, SEALING = ".journal.jsonl", ".parquet", "_sealing.lock"
"""Suffixes of journals and shards, and the name of the lock. Journals and the lock begin with an underscore, which
readers of Parquet folders skip."""
VERSION_KEY = b"autottt_outcomes_version"
"""Where a shard's metadata holds the version of its format."""
MAX_VALUES = 1 << 25
"""Values of a shard that are read, over all columns: a million outcomes. Repeated values take no place in a file."""
CHECKSUM = "crc32"
"""Where a line of a journal holds the CRC-32 of the JSON of its other fields; lines without it are read as well."""


@dataclass(frozen=True)
class Damage:
    """A part of a store that cannot be read as outcomes."""

    file: Path
    row: int | None
    """Line of a journal or table, or row of a shard, counted from 1; None for the whole file."""
    problem: str
    """The field, what was expected, and what was received."""
    kind: Literal["row", "torn", "version", "file"] = "row"
    """`torn` is an incomplete last line, which a kill of the writer leaves; `version` is another version of the
    format."""

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.problem}" if self.row else f"{self.file}: {self.problem}"


@dataclass(frozen=True)
class StoredRow:
    """The fields of one row, not yet checked."""

    file: Path
    row: int
    """Line of a journal, or row of a shard, counted from 1."""
    fields: Mapping[str, Any]
    line: bytes = b""
    """The line of a journal."""


def journals_in(folder: Path) -> list[Path]:
    """The journals of all writers; version 1 of the format had a single one, `outcomes.jsonl`."""
    return sorted([*folder.glob(f"_*{JOURNAL}"), *folder.glob("outcomes.jsonl")])


def shards_in(folder: Path) -> list[Path]:
    """The shards, in the order in which they are read."""
    return sorted(folder.glob(f"*{SHARD}"))


def read_file(file: Path) -> Iterator[StoredRow | Damage]:
    """The rows and the damaged parts of a journal or shard, in their order. Raises `PolicyError` for a shard if pyarrow
    is not installed."""
    return _read_shard(file) if file.name.endswith(SHARD) else _read_journal(file)


def journal_line(fields: Mapping[str, Any]) -> bytes:
    """A line of a journal, with the version of the format and a checksum. Raises `ValueError` or `TypeError` for what
    JSON cannot hold."""
    text = json.dumps({"version": OUTCOMES_VERSION, **fields}, allow_nan=False)
    return f'{text[:-1]}, "{CHECKSUM}": {zlib.crc32(text.encode())}}}\n'.encode()


def _read_journal(file: Path) -> Iterator[StoredRow | Damage]:
    try:
        data = file.read_bytes()
    except FileNotFoundError:  # it was sealed after it was listed
        return
    except OSError as error:
        yield Damage(file, None, f"the file cannot be read ({error.strerror})", "file")
        return
    *lines, last = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        yield _journal_row(file, number, line)
    if last:
        yield Damage(file, len(lines) + 1, f"an incomplete last line of {len(last)} bytes", "torn")


def _journal_row(file: Path, number: int, line: bytes) -> StoredRow | Damage:
    try:
        fields = json.loads(line, object_pairs_hook=_object)
    except RecursionError:
        return Damage(file, number, "not an outcome (JSON that is nested too deeply)")
    except ValueError as error:
        return Damage(file, number, f"not an outcome (not JSON: {error})")
    if not isinstance(fields, dict):
        return Damage(file, number, f"not an outcome (expected a JSON object; received {shortened(fields)})")
    checksum = fields.pop(CHECKSUM, None)
    if checksum is not None and checksum != zlib.crc32(json.dumps(fields).encode()):
        return Damage(file, number, "not an outcome (its checksum is not that of its content)")
    version = fields.pop("version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version < 1 << 31:
        expected = f"version: expected {OUTCOMES_VERSION}"
        return Damage(file, number, f"not an outcome ({expected}; received {shortened(version)})")
    if version != OUTCOMES_VERSION:
        return Damage(file, number, _other_version(version), "version")
    return StoredRow(file, number, fields, line)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises `ValueError` if a name occurs twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shortened(twice)} occurs twice in an object")
    return fields


def _other_version(version: int) -> str:
    remedy = (
        "update this package" if version > OUTCOMES_VERSION else "collect again: `autottt collect TASKS --store NEW`"
    )
    return f"outcomes in version {version} of the format, and this package reads version {OUTCOMES_VERSION}; {remedy}"


def pyarrow_if_installed() -> ModuleType | None:
    """The module pyarrow with its Parquet reader; None if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        return None
    return pyarrow  # type: ignore[no-any-return]


def write_shard(columns: Mapping[str, Sequence[Any]], hints: Mapping[str, Any], target: Path) -> None:
    """Writes a Parquet file, completely or not at all. `hints` has the type of each column: `str`, `int`, `float`, a
    tuple of floats, or a mapping to floats."""
    arrow = pyarrow_if_installed()
    assert arrow is not None
    kinds = {
        str: arrow.string(),
        int: arrow.int64(),
        float: arrow.float64(),
        tuple[float, ...]: arrow.list_(arrow.float64()),
    }
    types = {name: kinds.get(hint, arrow.map_(arrow.string(), arrow.float64())) for name, hint in hints.items()}
    table = arrow.table({name: arrow.array(columns[name], type) for name, type in types.items()})
    with replacing(target, "free space on its disk; the outcomes stay in journals, which are read as well") as partial:
        arrow.parquet.write_table(
            table.replace_schema_metadata({VERSION_KEY: str(OUTCOMES_VERSION)}),
            partial, compression="zstd", write_page_checksum=True,
        )  # fmt: skip


def _read_shard(file: Path) -> Iterator[StoredRow | Damage]:
    arrow = pyarrow_if_installed()
    if arrow is None:
        raise PolicyError(f"{file}: reading Parquet files of outcomes needs pyarrow: pip install 'autottt[policy]'")
    try:
        # Neither a Python file, which a thread of pyarrow would hold while the process ends and abort it, nor the path:
        # pyarrow would read a folder of this name.
        content = arrow.BufferReader(file.read_bytes())
        shard = arrow.parquet.ParquetFile(content, page_checksum_verification=True)
        _refuse_oversized(shard.metadata)
        table = shard.read(use_threads=False)
        version = int((table.schema.metadata or {}).get(VERSION_KEY, b"1"))
    except FileNotFoundError:  # it was set aside after it was listed
        return
    except Exception as error:  # whatever pyarrow raises on damaged files
        yield Damage(file, None, f"not a shard of outcomes ({_first_line(error)})", "file")
        return
    if version != OUTCOMES_VERSION:
        yield Damage(file, None, _other_version(version), "version")
        return
    try:
        rows = table.to_pylist()
    except (arrow.ArrowException, ValueError, TypeError, KeyError):  # UnicodeDecodeError is a ValueError
        yield from _row_by_row(file, table)
    else:
        yield from (StoredRow(file, number, fields) for number, fields in enumerate(rows, start=1))


def _refuse_oversized(metadata: Any) -> None:
    """Raises `ValueError` for a shard of more than `MAX_VALUES` values."""
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    values = sum(group.column(n).num_values for group in groups for n in range(group.num_columns))
    if max(values, metadata.num_rows) > MAX_VALUES:
        raise ValueError(f"{metadata.num_rows:,} rows with {values:,} values; expected at most {MAX_VALUES:,} values")


def _row_by_row(file: Path, table: Any) -> Iterator[StoredRow | Damage]:
    """The rows of a table that has values which cannot be converted."""
    for number in range(1, table.num_rows + 1):
        try:
            (fields,) = table.slice(number - 1, 1).to_pylist()
        except Exception as error:
            yield Damage(file, number, f"not an outcome ({_first_line(error)})")
        else:
            yield StoredRow(file, number, fields)


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def sealing_lock(folder: Path) -> Iterator[None]:
    """Holds the lock under which shards are written and files are moved. Raises `PolicyError` if the folder cannot be
    written to."""
    try:
        opened = (folder / SEALING).open("ab")
    except OSError as error:
        raise PolicyError(f"{folder}: the folder cannot be written to ({error.strerror})") from None
    with opened:
        if fcntl is not None:
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def open_journal(folder: Path) -> BinaryIO:
    """A new journal, locked while the writer lives."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = open(folder / f"_{os.getpid()}-{secrets.token_hex(4)}{JOURNAL}", "ab")  # noqa: SIM115
    if fcntl is not None:
        fcntl.flock(opened, fcntl.LOCK_EX)
    return opened


def lock_journal(file: Path, locks: ExitStack) -> bool:
    """Takes the lock of a journal if no running process writes to it, until `locks` are closed. Returns whether it is
    taken."""
    if fcntl is None:
        return False
    try:
        opened = locks.enter_context(file.open("r+b"))
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is locked, or was sealed
        return False
    return os.fstat(opened.fileno()).st_nlink > 0
