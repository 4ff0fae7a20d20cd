"""A lock on what a command writes, so that two commands never write one file or folder at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...ttt_core.errors import TaskError


@contextmanager
def exclusive(path: Path | None) -> Iterator[None]:
    """Locks a file or a folder, which need not exist, against other commands. Raises `TaskError` if one has it locked.

    The lock is the hidden file `.NAME.lock` in the same folder; it ends with the process, however that ends, and the
    empty file stays. Without a path there is nothing to lock.
    """
    if path is None:
        yield
        return
    from filelock import FileLock, Timeout

    target = path.resolve()
    lock = FileLock(target.with_name(f".{target.name}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise TaskError(
            f"{path}: another autottt process is writing it; wait until it has ended, or name another place"
        ) from None
    try:
        yield
    finally:
        lock.release()
