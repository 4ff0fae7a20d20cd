"""Files that are written whole or not at all, and the error for one that cannot be written."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import FileError

_PARTIAL = re.compile(r"\.(.+\.)?[0-9a-f]{8}\.partial", re.DOTALL)
"""The names of partial files and folders."""
FREE_SPACE = "free space on its disk, or name another place"


@contextmanager
def explained(file: Path, remedy: str = FREE_SPACE) -> Iterator[None]:
    """Turns an `OSError` of writing into a `FileError`, which names the file and the remedy."""
    try:
        yield
    except (FileError, BrokenPipeError):
        raise
    except OSError as error:
        raise FileError(f"{file} cannot be written ({error.strerror or error}): {remedy}") from error


@contextmanager
def replacing(file: Path, remedy: str = FREE_SPACE) -> Iterator[Path]:
    """The path of a partial file in the same folder, which replaces `file` when the block ends, with its permissions.
    Where the block raises an exception, the partial file is deleted and `file` is as it was. A link stays a link; what
    is no file, such as `/dev/stdout`, is written to directly. Raises `FileError` as `explained` does."""
    if file.exists() and not file.is_file():
        with explained(file, remedy):
            yield file
        return
    target = file.resolve() if file.is_symlink() else file
    partial = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.partial")
    try:
        with explained(file, remedy):
            yield partial
            if target.exists():
                shutil.copymode(target, partial)
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_together(folder: Path, remedy: str = FREE_SPACE) -> Iterator[Path]:
    """A new folder inside `folder`, which is made; the files in it replace those in `folder` when the block ends. All
    are complete before the first one is moved: an error or a full disk leaves `folder` as it was, and only a kill
    between two moves leaves files of both. Raises `FileError`, which names `folder`, as `explained` does."""
    partial = folder / f".{secrets.token_hex(4)}.partial"
    try:
        with explained(folder, remedy):
            partial.mkdir(parents=True)
            try:
                yield partial
            except FileError as error:
                if isinstance(error.__cause__, OSError):
                    raise error.__cause__ from None
                raise
            for file in sorted(partial.iterdir()):
                if (target := folder / file.name).exists():
                    shutil.copymode(target, file)
                os.replace(file, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(folder: Path) -> None:
    """Deletes what a killed process left of the files that it was writing into a folder by `replacing` and
    `replacing_together`. For a folder that one process at a time writes to. Raises `OSError`."""
    for partial in folder.glob(".*.partial"):
        if not _PARTIAL.fullmatch(partial.name):
            continue
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_whole(file: Path, text: str, remedy: str = FREE_SPACE) -> None:
    """Writes a text in UTF-8 to a file, whole or not at all. Raises `FileError`."""
    with replacing(file, remedy) as partial:
        partial.write_text(text, "utf-8")
