"""SHA-256 of files, recorded with what the file system says about each file, so that a large file is hashed once.

Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

SUFFIX = ".sha256"
"""Of the records in a folder."""
SETTLED_NS = 2_000_000_000
"""A file that changed less than this many nanoseconds ago is hashed without a record: another change may have the same
time stamp where the file system's clock is coarse."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read whole; 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def recorded_sha256(path: Path, records: Path) -> str:
    """The SHA-256 of a file: the one recorded in the folder `records` where path, inode, size and the times of the last
    changes of content and inode are those of the record; else the file is read and recorded.

    The time of the inode's change cannot be set by programs, so a file that was replaced by another of the same size
    and date is read again. Records that are damaged or cannot be written are ignored. Raises `OSError`.
    """
    where = path.resolve()
    record = records / f"{hashlib.sha256(os.fsencode(where)).hexdigest()[:32]}{SUFFIX}"
    facts = _facts(where)
    with suppress(OSError, ValueError, KeyError, TypeError):
        recorded = json.loads(record.read_text("utf-8"))
        if recorded["facts"] == facts:
            return str(recorded["sha256"])
    settled = time.time_ns() - max(facts[-2:]) > SETTLED_NS
    digest = sha256_of(where)
    if settled and _facts(where) == facts:
        with suppress(OSError):
            _write(record, json.dumps({"path": str(where), "facts": facts, "sha256": digest}))
    return digest


def remove_stale_records(records: Path) -> None:
    """Removes the records of files that do not exist any more, and damaged ones."""
    for record in records.glob(f"*{SUFFIX}"):
        try:
            stale = not Path(json.loads(record.read_text("utf-8"))["path"]).is_file()
        except (OSError, ValueError, KeyError, TypeError):
            stale = True
        if stale:
            record.unlink(missing_ok=True)


def _facts(path: Path) -> list[int]:
    """Device, inode, size, and the times of the last changes of content and inode, in nanoseconds."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _write(record: Path, text: str) -> None:
    """Writes a record, whole or not at all."""
    record.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=record.parent, prefix=record.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(partial, record)
    except BaseException:
        os.unlink(partial)
        raise
