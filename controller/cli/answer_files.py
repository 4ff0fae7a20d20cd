"""Files of answers, as `autottt solve` writes them: what a line contains, and how a run continues a file.

Knows nothing about solving. A file that is no file of answers is never changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ttt_core.errors import TaskError
from ...ttt_core.standard_json import dumps
from ...ttt_core.tasks.kinds import STANDARD, kind_of
from ...ttt_core.tasks.readers import TASK_SUFFIXES, Problem

if TYPE_CHECKING:
    from ..results import Result
    from ..run_facts import RunFacts

SHORT = (
    "id", "status", "answer", "strategy", "reason", "difficulty", "scores", "right", "adapted", "relative_seconds",
    "cost", "proof", "error", "seed",
)  # fmt: skip
"""The fields of a line without `--trace`."""
_BEGINNING = b'{"id": '
"""Of every line."""


def line_of(result: Result, facts: RunFacts | None = None, content: bool = False) -> str:
    """The line of a result. With `facts` it has every field; `content` adds the task's demonstrations and query."""
    plain = result.to_plain(content=content)
    if result.answer is not None and result.task.kind == "text":
        plain["text"] = kind_of(result.task).render(result.answer, STANDARD)
    if facts is None:
        return dumps({name: plain[name] for name in SHORT})
    plain["run"] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **asdict(facts)}
    return dumps(plain)


def line_of_problem(problem: Problem) -> str:
    """The line of a task that could not be read."""
    fields = {"id": problem.id or problem.where, "status": "refused", "error": str(problem)}
    return dumps({name: fields.get(name) for name in SHORT})


def check_output(option: str, out: Path, inputs: Sequence[Path]) -> None:
    """Raises `TaskError` if a file cannot be written there, or if it is an input file, or would be one in the next
    run."""
    if out.is_dir():
        raise TaskError(f"{option} {out} is a folder; name a file in it")
    if not out.parent.is_dir():
        raise TaskError(f"{option} {out}: there is no folder {out.parent}; create it first")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise TaskError(f"{option} {out} cannot be written to; name another place")
    for path in inputs:
        if path.is_dir() and out.suffix.lower() in TASK_SUFFIXES and _same(path, out.parent):
            raise TaskError(f"{out} lies in {path}, of which every file is read as tasks: write to another folder")
        if _same(path, out):
            raise TaskError(f"{out} is the file that tasks are read from: write to another")


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


@dataclass(frozen=True)
class Answers:
    """The content of a file of answers."""

    file: Path
    ids: frozenset[str]
    """Of the tasks that were answered or tried."""
    problems: frozenset[str]
    """Ids or places of the tasks that could not be read."""
    models: frozenset[str]
    """Content hashes of the models that answered."""
    complete_bytes: int
    """Bytes of the complete lines; an interruption may have left an incomplete one after them."""

    @classmethod
    def read(cls, file: Path, seed: int) -> Answers:
        """Reads a file of answers, and changes nothing.

        Raises `TaskError` for a line that is not an answer, except for an incomplete last line, and for an answer with
        another seed.
        """
        hashes: dict[str, str] = {}
        problems: set[str] = set()
        complete = 0
        for number, line in enumerate(file.read_bytes().splitlines(keepends=True) if file.exists() else (), start=1):
            row = _parsed(line)
            if row is None and _may_be_incomplete(line):
                break
            complete += len(line)
            if not line.strip():
                continue
            _check_row(row, line, f"{file}:{number}", seed)
            if row["status"] == "refused" and row["proof"] is None:
                problems.add(str(row["id"]))
            else:
                hashes[str(row["id"])] = str(row["proof"].get("hash", "")) if isinstance(row["proof"], dict) else ""
        return cls(file, frozenset(hashes), frozenset(problems), frozenset(hashes.values()) - {""}, complete)

    def prepare_to_append(self, model: str) -> None:
        """Removes an incomplete last line, so that lines can be added. Raises `TaskError` if another model answered."""
        if others := self.models - {model}:
            raise TaskError(
                f"{self.file}: answered by the model {min(others)}, and this one is {model}: give the same --model to "
                "continue, or another --out"
            )
        if self.file.exists():
            with self.file.open("r+b") as stream:
                stream.truncate(self.complete_bytes)
                stream.seek(max(0, self.complete_bytes - 1))
                if stream.read(1) not in (b"", b"\n"):
                    stream.write(os.linesep.encode())  # the interruption came before the end of the line

    @property
    def incomplete(self) -> bool:
        """Whether the last line is incomplete."""
        return self.file.exists() and self.file.stat().st_size > self.complete_bytes


def _check_row(row: Any, line: bytes, place: str, seed: int) -> None:
    """Raises `TaskError` for a line that is not an answer with this seed."""
    if not isinstance(row, dict) or not {"id", "status", "proof"} <= row.keys():
        raise TaskError(
            f"{place}: expected an answer, as `autottt solve` writes them; received "
            f"{line[:60].decode(errors='replace')!r}. The file is left as it is: give another --out"
        )
    if row["status"] != "refused" and row.get("seed", seed) != seed:
        raise TaskError(
            f"{place}: answered with seed {row['seed']}, and this run has seed {seed}: give --seed {row['seed']} to "
            "continue, or another --out"
        )


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _may_be_incomplete(line: bytes) -> bool:
    """Whether a line may be the beginning of an answer: only the last line has no end."""
    return not line.endswith(b"\n") and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]
