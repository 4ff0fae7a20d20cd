"""A lock on what a command writes, so that two commands never write one file or folder at the same time."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...ttt_core.errors import TaskError

if TYPE_CHECKING:
    from filelock import BaseFileLock

MAX_NAME_BYTES = 255
"""Bytes of a file's name at most, on common file systems."""


@contextmanager
def exclusive(path: Path | None, is_option: bool = True) -> Iterator[None]:
    """Locks a file or a folder, which need not exist, against other commands. Raises `TaskError` if one has it locked;
    `is_option` says whether the user could name another path.

    The lock is the hidden file `.NAME.lock` in the same folder, else the first of `_places` that can be written; it
    ends with the process, however that ends, and the empty file stays. Without a path there is nothing to lock.
    """
    if path is None:
        yield
        return
    lock = _acquired(path, ", or name another place" if is_option else "")
    try:
        yield
    finally:
        lock.release()


def _acquired(path: Path, or_else: str) -> BaseFileLock:
    """The lock of a path, held. Raises `TaskError` where another process holds it, or no lock can be made."""
    from filelock import FileLock, Timeout

    problem = ""
    for place in _places(path.resolve()):
        lock = FileLock(place, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise TaskError(
                f"{path}: another autottt process is writing it; wait until it has ended{or_else}"
            ) from None
        except (OSError, NotImplementedError) as error:
            problem = problem or f"{place}: {getattr(error, 'strerror', None) or error}"
        else:
            return lock
    raise TaskError(
        f"{path}: cannot be locked against other autottt processes ({problem}): make its folder writable{or_else}"
    )


def _places(target: Path) -> list[Path]:
    """Where the lock file of a path may be, in the order in which the places are tried, which is the same for every
    process of a user: the path's own folder; the path itself, if it is a folder; the folder for temporary files. A file
    name that the file system would not allow is replaced by a digest of the path."""
    digest = hashlib.sha256(os.fsencode(target)).hexdigest()[:32]
    beside = f".{target.name}.lock"
    places = [target.with_name(beside if len(os.fsencode(beside)) <= MAX_NAME_BYTES else f".{digest}.lock")]
    if target.is_dir():
        places.append(target / ".autottt.lock")
    return [*places, Path(tempfile.gettempdir()) / f"autottt-{digest}.lock"]
