"""Reads files and folders of tasks. Knows nothing about models; what a task looks like, `formats` knows."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import TaskError
from .formats import ACCEPTED, ReadSettings, is_task, read_object, task_from_messages, wrong
from .kinds import shortened
from .task import Task

LINE_SUFFIXES = (".jsonl", ".ndjson")
TASK_SUFFIXES = (*LINE_SUFFIXES, ".json")
"""Of the files of a folder that are read."""

ACCEPTED_FILES = f"""\
Accepted: .jsonl files (a task a line), .json files (a task, a list or {{id: task}}), folders of them.
{ACCEPTED}"""


@dataclass(frozen=True)
class Problem:
    """Something in a file that is not a task."""

    where: str
    """File and line, `tasks.jsonl:12`; where one JSON value holds many, file and task, `tasks.json, task 007bbfb7`."""
    message: str
    """The field, what was expected, and what was received."""
    id: str = field(default="", compare=False)
    """Of the task, where something like one is there."""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(frozen=True)
class LoadedTasks:
    """What files hold: the tasks, in the order of the files, and what could not be read."""

    tasks: tuple[Task, ...]
    problems: tuple[Problem, ...]


def read_tasks(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    demonstrations: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    kind: str | None = None,
) -> LoadedTasks:
    """The tasks of files and folders. Every query is a `Task`; the queries of one task are a group.

    `demonstrations` is how many examples of a BIG-Bench Hard file are drawn as demonstrations (10 unless given; the
    other formats name their own). `limit` keeps that many groups of each file, drawn at random by `seed` and left in
    their order; the .json files of a folder count as one file. `kind` replaces what files say about the kind.

    A task that is wrong, a repeated id, and a file of a folder that cannot be read become problems; the others are
    returned. Raises `TaskError` if a path is missing, cannot be read, or has nothing like a task in it, the last with
    the formats that are accepted.

    >>> read_tasks("tasks.jsonl", limit=20).problems  # doctest: +SKIP
    ()
    """
    settings = ReadSettings(ReadSettings.demonstrations if demonstrations is None else demonstrations, seed, kind)
    if limit is not None and limit < 1:
        raise wrong("limit", "a positive number", limit)
    named = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not named:
        raise TaskError("paths: expected at least one file or folder; received none")
    tasks: list[Task] = []
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for path in named:
        for entries in _sources(Path(path)):
            groups, wrong_here = _groups(entries, settings, places)
            tasks += [task for group in _sample(groups, limit, seed) for task in group]
            problems += wrong_here
    return LoadedTasks(tuple(tasks), tuple(problems))


def read_lines(
    lines: Iterable[str | bytes], name: str = "stdin", *, demonstrations: int | None = None, seed: int = 0
) -> Iterator[LoadedTasks]:
    """What JSON lines hold, each read when it comes: the queries of a task, or a problem. Blank lines are passed over.

    `name` stands for the file in places and in names of tasks that have none; ids may repeat. The rest is as in
    `read_tasks`.
    """
    settings = ReadSettings(ReadSettings.demonstrations if demonstrations is None else demonstrations, seed)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            groups, problems = _groups([_line(line.rstrip(), Path(name), number)], settings, {})
            yield LoadedTasks(tuple(task for group in groups for task in group), tuple(problems))


@dataclass(frozen=True)
class _Record:
    """A JSON object that looks like a task, its place, and what its task is called if it does not say."""

    where: str
    data: Mapping[str, object]
    id: str
    dataset: str


_Entry = _Record | Problem


def _sources(path: Path) -> list[list[_Entry]]:
    """The entries of a file; of a folder, those of every .jsonl file, then those of all .json files together."""
    try:
        sources = _folder(path) if os.path.isdir(path) else [_entries(path)]
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror}") from None
    entries = [entry for source in sources for entry in source]
    if not _any_record(entries):
        first = next((e for e in entries if isinstance(e, Problem)), None)
        nothing = Problem(str(path), "expected .jsonl or .json files; received a folder without any")
        raise TaskError(f"{first or nothing}\n{ACCEPTED_FILES}")
    return sources


def _any_record(entries: list[_Entry]) -> bool:
    return any(isinstance(entry, _Record) for entry in entries)


def _folder(path: Path) -> list[list[_Entry]]:
    files = sorted(path / name for name in os.listdir(path) if not name.startswith("."))
    by_line = [_file(f) for f in files if f.suffix.lower() in LINE_SUFFIXES]
    return [*by_line, [entry for f in files if f.suffix.lower() == ".json" for entry in _file(f)]]


def _file(path: Path) -> list[_Entry]:
    """The entries of a file of a folder; a problem if it cannot be read."""
    try:
        return _entries(path)
    except OSError as error:
        return [Problem(str(path), f"cannot be read: {error.strerror}")]


def _entries(path: Path) -> list[_Entry]:
    """The records of a file and its problems; one problem if nothing in it looks like a task. Raises `OSError`."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        return [Problem(str(path), f"expected UTF-8 text; received {error.reason} at byte {error.start}")]
    if not text.strip():
        return [Problem(str(path), "expected tasks; received an empty file")]
    ways = (_lines, _document) if path.suffix.lower() in LINE_SUFFIXES else (_document, _lines)
    likely = ways[0](text, path)
    if _any_record(likely):
        return likely
    other = ways[1](text, path)
    return other if _any_record(other) else likely[:1]


def _lines(text: str, path: Path) -> list[_Entry]:
    return [_line(line, path, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _line(line: str | bytes, path: Path, number: int) -> _Entry:
    data = _decode(line, path, number)
    if isinstance(data, Problem):
        return data
    return _record(data, f"{path}:{number}", f"{path.stem}:{number}", path.stem)


def _document(text: str, path: Path) -> list[_Entry]:
    data = _decode(text, path)
    if isinstance(data, Problem):
        return [data]
    if isinstance(data, list) and data:
        return [_record(x, f"{path}, task {i}", f"{path.stem}:{i}", path.stem) for i, x in enumerate(data)]
    whole = _record(data, str(path), path.stem, path.resolve().parent.name)
    if isinstance(whole, Problem) and isinstance(data, dict):
        named = [_record(x, f"{path}, task {key}", key, path.stem) for key, x in data.items()]
        return named if _any_record(named) else [whole]
    return [whole]


def _decode(text: str | bytes, path: Path, line: int = 1) -> object:
    """The JSON value of `text`, which begins on `line`; a `Problem` if it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return Problem(f"{path}:{line + error.lineno - 1}", f"not JSON: {error.msg}, column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists thousands deep
        return Problem(f"{path}:{line}", f"JSON that cannot be read: {error}")


def _record(data: object, where: str, id: str, dataset: str) -> _Entry:
    if not isinstance(data, dict):
        return Problem(where, f"expected a task, which is a JSON object; received {shortened(data)}")
    if not is_task(data):
        expected = "a task, with demonstrations, train, examples or messages"
        return Problem(where, f"expected {expected}; received the fields {shortened(list(data))}")
    return _Record(where, data, id, dataset)


def _groups(
    entries: list[_Entry], settings: ReadSettings, places: dict[str, str]
) -> tuple[list[tuple[Task, ...]], list[Problem]]:
    """The groups of tasks among `entries`, and the problems. Notes in `places` where each id stands."""
    groups: list[tuple[Task, ...]] = []
    problems: list[Problem] = []
    for entry in entries:
        if isinstance(entry, Problem):
            problems.append(entry)
            continue
        try:
            group = read_object(entry.data, settings, id=entry.id, dataset=entry.dataset)
            _note_ids(group, entry.where, places)
            groups.append(group)
        except TaskError as error:
            given = entry.data.get("id")
            problems.append(Problem(entry.where, str(error), str(given) if isinstance(given, (int, str)) else entry.id))
    return groups, problems


def _note_ids(group: tuple[Task, ...], where: str, places: dict[str, str]) -> None:
    ids = [group[0].group, *(task.id for task in group)]
    for id in ids:
        if id in places:
            raise TaskError(f"id: expected one that is new; received {id!r}, which also stands at {places[id]}")
    places.update(dict.fromkeys(ids, where))


def _sample(groups: list[tuple[Task, ...]], limit: int | None, seed: int) -> list[tuple[Task, ...]]:
    if limit is None or limit >= len(groups):
        return groups
    return [groups[i] for i in sorted(random.Random(seed).sample(range(len(groups)), limit))]


__all__ = ["LoadedTasks", "Problem", "read_lines", "read_tasks", "task_from_messages"]
