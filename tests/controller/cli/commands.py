"""Runs commands as the installed program does, and writes files of tasks for them."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing.reduction
import os
import pty
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from autottt.controller.cli import console
from autottt.controller.cli import main as cli

GOOD = {
    "id": "swap",
    "kind": "list",
    "demonstrations": [{"input": [1, 2], "output": [2, 1]}, {"input": [3, 4], "output": [4, 3]}],
}


def tasks_file(folder: Path, *lines: object) -> str:
    file = folder / "tasks.jsonl"
    file.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return str(file)


def task(name: str, **more: object) -> dict[str, object]:
    return {**GOOD, "id": name, "family": name, "queries": [{"input": [5, 6], "output": [6, 5]}], **more}


def call(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error, through `main` as the installed command runs it."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["autottt", *words]
    console.errors.file, console.screen.file = err, out
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        sys.argv = before
        console.errors.file = console.screen.file = None  # type: ignore[assignment]
    return int(stopped.value.code or 0), out.getvalue(), err.getvalue()


class Descriptor:
    """An open file that a process of the forkserver gets."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> Any:
        return multiprocessing.reduction.DupFd(self.number)

    def __setstate__(self, duplicate: Any) -> None:
        self.number = duplicate.detach()


def run_program(words: list[str], variables: Mapping[str, str], streams: list[Descriptor]) -> None:
    """Runs a command in this process, with its environment and its standard input, output and error.

    The modules of the command line are imported again: their consoles look at the terminal when they are made.
    """
    if os.isatty(streams[0].number):
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream.number, number)
        os.close(stream.number)
    os.environ.clear()
    os.environ.update(variables)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, "r" if number == 0 else "w", closefd=False) for number in range(3)
    )
    sys.stderr.reconfigure(line_buffering=True)
    sys.argv = ["autottt", *words]
    for name in [name for name in sys.modules if name.startswith("autottt.controller.cli.")]:
        del sys.modules[name]
    from autottt.controller.cli.main import main

    main()


@contextmanager
def program(
    forkserver: ForkServerContext, words: list[str], streams: tuple[int, int, int], **variables: str
) -> Iterator[ForkServerProcess]:
    """A command in a process of its own, started at once because its libraries are imported; the caller's environment
    and `variables`."""
    descriptors = [Descriptor(number) for number in streams]
    process = forkserver.Process(target=run_program, args=(words, {**os.environ, **variables}, descriptors))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def read_all(descriptor: int) -> bytes:
    """What is written to the other side until it is closed."""
    read = b""
    with contextlib.suppress(OSError):  # Linux reports the end of the other side of a terminal so
        while chunk := os.read(descriptor, 65536):
            read += chunk
    os.close(descriptor)
    return read


def on_a_terminal(forkserver: ForkServerContext, words: list[str], columns: int = 60) -> str:
    """What a command prints on a terminal of that width."""
    master, slave = pty.openpty()
    variables = {"COLUMNS": str(columns), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with program(forkserver, words, (slave, slave, slave), **variables) as process:
        os.close(slave)
        printed = read_all(master)
        process.join()
    assert process.exitcode == 0, printed
    return printed.decode()


def piped(forkserver: ForkServerContext, words: list[str], **variables: str) -> tuple[int | None, str, str]:
    """Exit code, standard output and standard error of a command whose output goes into pipes."""
    (out, out_end), (err, err_end), (end, begin) = os.pipe(), os.pipe(), os.pipe()
    os.close(begin)
    with program(forkserver, words, (end, out_end, err_end), **variables) as process:
        for number in (end, out_end, err_end):
            os.close(number)
        errors: list[bytes] = []
        reader = threading.Thread(target=lambda: errors.append(read_all(err)))
        reader.start()
        printed = read_all(out)
        reader.join()
        process.join()
    return process.exitcode, printed.decode(), errors[0].decode()
