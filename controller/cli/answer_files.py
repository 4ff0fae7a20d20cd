"""Files of answers, as `autottt solve` writes them: what a line holds, and how a file is gone on with.

Knows nothing about solving. A file that is no file of answers is never changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ttt_core.errors import TaskError
from ...ttt_core.tasks.kinds import STANDARD, kind_of
from ...ttt_core.tasks.readers import TASK_SUFFIXES, Problem

if TYPE_CHECKING:
    from ..results import Result

SHORT = (
    "id", "status", "answer", "strategy", "reason", "difficulty", "scores", "right", "adapted", "relative_seconds",
    "cost", "proof", "error", "seed",
)  # fmt: skip
"""The fields of a line, but with `--trace`."""
_BEGINNING = b'{"id": '
"""Of every line."""


def line_of(result: Result, full: bool = False) -> str:
    """The line of a result."""
    plain = result.to_plain()
    if result.answer is not None and result.task.kind == "text":
        plain["text"] = kind_of(result.task).render(result.answer, STANDARD)
    return json.dumps(plain if full else {name: plain[name] for name in SHORT})


def line_of_problem(problem: Problem) -> str:
    """The line for a task that could not be read, for who waits for an answer to it."""
    known = {"id": problem.id or problem.where, "status": "refused", "error": str(problem)}
    return json.dumps({name: known.get(name) for name in SHORT})


def refuse_input(out: Path, inputs: Sequence[Path]) -> None:
    """Raises `TaskError` when what is to be written is a file that tasks are read from, or would be next time."""
    for given in inputs:
        if given.is_dir() and out.suffix.lower() in TASK_SUFFIXES and _same(given, out.parent):
            raise TaskError(f"{out} lies in {given}, of which every file is read as tasks: write to another folder")
        if _same(given, out):
            raise TaskError(f"{out} is the file that tasks are read from: write to another")


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


@dataclass(frozen=True)
class Answers:
    """What a file of answers holds."""

    file: Path
    ids: frozenset[str]
    models: frozenset[str]
    """Content hashes of the models that answered."""
    whole: int
    """Bytes of the whole lines; an interruption may have torn what comes after."""

    @classmethod
    def read(cls, file: Path, seed: int) -> Answers:
        """Reads a file of answers, and changes nothing. Raises `TaskError` for a line that is none, but for a last one
        that was torn, and for one that was given with another seed."""
        found: dict[str, str] = {}
        whole = 0
        for number, line in enumerate(file.read_bytes().splitlines(keepends=True) if file.exists() else (), start=1):
            row = _parsed(line)
            if row is None and _torn(line):
                break
            if not line.strip():
                whole += len(line)
                continue
            if not isinstance(row, dict) or not {"id", "status", "proof"} <= row.keys():
                raise TaskError(
                    f"{file}:{number}: expected an answer, as `autottt solve` writes them; received "
                    f"{line[:60].decode(errors='replace')!r}. The file is left as it is: give another --out"
                )
            if row["status"] != "refused" and row.get("seed", seed) != seed:
                raise TaskError(
                    f"{file}:{number}: answered with seed {row['seed']}, and this run has seed {seed}: give "
                    f"--seed {row['seed']} to go on, or another --out"
                )
            found[str(row["id"])] = str(row["proof"].get("hash", "")) if isinstance(row["proof"], dict) else ""
            whole += len(line)
        return cls(file, frozenset(found), frozenset(found.values()) - {""}, whole)

    def prepare_to_append(self, model: str) -> None:
        """Cuts off what was torn, so that lines can be added. Raises `TaskError` where another model answered."""
        if others := self.models - {model}:
            raise TaskError(
                f"{self.file}: answered by the model {min(others)}, and this one is {model}: give the same --model to "
                "go on, or another --out"
            )
        if self.file.exists():
            with self.file.open("r+b") as stream:
                stream.truncate(self.whole)
                stream.seek(max(0, self.whole - 1))
                if stream.read(1) not in (b"", b"\n"):
                    stream.write(os.linesep.encode())  # torn between a line and its end

    @property
    def torn(self) -> bool:
        """Whether there is something to cut off."""
        return self.file.exists() and self.file.stat().st_size > self.whole


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _torn(line: bytes) -> bool:
    """Whether a line may be the beginning of an answer; only a last line has no end."""
    return not line.endswith(b"\n") and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]
