"""Runs commands as the installed program does, and writes files of tasks for them."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

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
