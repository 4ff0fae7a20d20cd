"""Files of answers, as `autottt solve` writes them: what a line contains, and how a run continues a file.

Knows nothing about solving. A file that is no file of answers is never changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ttt_core.errors import TaskError
from ...ttt_core.standard_json import dumps
from ...ttt_core.tasks.answers import is_right
from ...ttt_core.tasks.kinds import STANDARD, kind_of
from ...ttt_core.tasks.readers import TASK_SUFFIXES, Problem
from ...ttt_core.tasks.task import as_tuples

if TYPE_CHECKING:
    from ...ttt_core.tasks.task import Task
    from ..results import Result
    from ..run_facts import RunFacts

SHORT = (
    "id", "status", "answer", "strategy", "reason", "difficulty", "scores", "right", "adapted", "relative_seconds",
    "cost", "proof", "error", "seed", "digest", "settings",
)  # fmt: skip
"""The fields of a line without `--trace`. `digest` is that of the task; `settings` are what the answer depends on
besides the task and the seed."""
_BEGINNING = b'{"id": '
"""Of every line."""


def line_of(
    result: Result, facts: RunFacts | None = None, content: bool = False, settings: Mapping[str, str] | None = None
) -> str:
    """The line of a result. With `facts` it has every field; `content` adds the task's demonstrations and query;
    `settings` are those of the run (see `run_facts.outcome_settings`)."""
    plain = result.to_plain(content=content) | {"digest": result.task.digest, "settings": settings}
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


def check_new_output(option: str, out: Path) -> None:
    """Raises `TaskError` if a file cannot be written there, or if there is one already."""
    check_output(option, out, [])
    if out.is_file():
        raise TaskError(f"{option} {out} exists; name another file, or remove this one first")


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


@dataclass(frozen=True)
class Answered:
    """What a line says of the task that was answered or tried."""

    digest: str
    """Of the task; empty in lines of earlier versions."""
    answer: Any
    right: bool | None

    def is_of(self, task: Task) -> bool:
        """Whether the task, which has the id of the line, is the one that was answered, and is judged as it was. Lines
        of earlier versions go by the id, except for an id that is a position in standard input."""
        if self.digest != task.digest and (self.digest or task.id.startswith("stdin:")):
            return False
        return self.right == (None if task.answer is None else is_right(task, as_tuples(self.answer)))


@dataclass(frozen=True)
class Answers:
    """The content of a file of answers."""

    file: Path
    answered: Mapping[str, Answered]
    """The last answer to each id."""
    problems: frozenset[tuple[str, str]]
    """Id or place of each task that could not be read, and its error."""
    models: frozenset[str]
    """Content hashes of the models that answered."""
    settings: tuple[Mapping[str, Any], ...]
    """The different settings of the lines; lines of earlier versions have none."""
    complete_bytes: int
    """Bytes of the complete lines; an interruption may have left an incomplete one after them."""

    @classmethod
    def read(cls, file: Path, seed: int) -> Answers:
        """Reads a file of answers, and changes nothing.

        Raises `TaskError` for a line that is not an answer, except for an incomplete last line, and for an answer with
        another seed.
        """
        answered: dict[str, Answered] = {}
        hashes: set[str] = set()
        settings: dict[str, Mapping[str, Any]] = {}
        problems: set[tuple[str, str]] = set()
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
                problems.add((str(row["id"]), str(row.get("error"))))
                continue
            answered[str(row["id"])] = Answered(row.get("digest") or "", row.get("answer"), row.get("right"))
            hashes.add(str(row["proof"].get("hash", "")) if isinstance(row["proof"], dict) else "")
            if row.get("settings"):
                settings[json.dumps(row["settings"])] = row["settings"]
        return cls(
            file, answered, frozenset(problems), frozenset(hashes - {""}), tuple(settings.values()), complete
        )  # fmt: skip

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the tasks that were answered or tried."""
        return frozenset(self.answered)

    @property
    def without_digest(self) -> int:
        """How many ids have answers of an earlier version, which do not say what was asked."""
        return sum(not line.digest for line in self.answered.values())

    def have(self, task: Task) -> bool:
        """Whether the file has an answer to the task."""
        return task.id in self.answered and self.answered[task.id].is_of(task)

    def prepare_to_append(self, settings: Mapping[str, str]) -> None:
        """Removes an incomplete last line, so that lines can be added. Raises `TaskError` if another model answered, or
        with other settings."""
        from ..run_facts import different_settings

        model = settings["model"]
        if others := self.models - {model}:
            raise TaskError(
                f"{self.file}: answered by the model {min(others)}, and this one is {model}: give the same --model to "
                "continue, or another --out"
            )
        for begun in self.settings:
            if different := different_settings(begun, settings):
                raise TaskError(
                    f"{self.file}: answered with other settings ({different}): give the same options to continue, or "
                    "another --out"
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
    if not isinstance(row, dict) or not {"id", "status", "proof"} <= row.keys() or not _is_sound(row):
        raise TaskError(
            f"{place}: expected an answer, as `autottt solve` writes them; received "
            f"{line[:60].decode(errors='replace')!r}. The file is left as it is: give another --out"
        )
    if row["status"] != "refused" and row.get("seed", seed) != seed:
        raise TaskError(
            f"{place}: answered with seed {row['seed']}, and this run has seed {seed}: give --seed {row['seed']} to "
            "continue, or another --out"
        )


def _is_sound(row: Mapping[str, Any]) -> bool:
    """Whether the fields by which a run continues have their types."""
    kinds = {"digest": str | None, "settings": dict | None, "right": bool | None}
    return all(isinstance(row.get(name), kind) for name, kind in kinds.items())


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _may_be_incomplete(line: bytes) -> bool:
    """Whether a line may be the beginning of an answer: only the last line has no end."""
    return not line.endswith(b"\n") and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]
