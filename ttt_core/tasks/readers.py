"""Reads files and folders of tasks. Knows nothing about models; `formats` defines what a task looks like."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from ..errors import TaskError, shortened
from .fields import check_name, invalid_field
from .formats import ACCEPTED, ReadSettings, is_task, misspelled_field, read_object, task_from_messages
from .task import Task, content_digest

LINE_SUFFIXES = (".jsonl", ".ndjson")
TASK_SUFFIXES = (*LINE_SUFFIXES, ".json")
"""Suffixes of the files that are read from a folder."""

ACCEPTED_FILES = f"""\
Accepted: .jsonl files (a task a line), .json files (a task, a list or {{id: task}}), folders of them.
{ACCEPTED}"""


@dataclass(frozen=True)
class Problem:
    """A part of a file that is not a valid task."""

    where: str
    """File and line (`tasks.jsonl:12`), or file and task if one JSON value has many (`tasks.json, task 007bbfb7`)."""
    message: str
    """The field, what was expected, and what was received."""
    id: str = field(default="", compare=False)
    """Id of the task, if it has one."""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}"
        return _printable(text)


def _printable(text: object) -> str:
    """The text with control characters, and parts of characters, as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


@dataclass(frozen=True)
class LoadedTasks:
    """The tasks of files, in the order of the files, and the problems."""

    tasks: tuple[Task, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = field(default=(), compare=False)
    """Fields that are not read but spelled like one that is; the first of each name."""


@dataclass
class _Seen:
    """What the tasks that were read so far have in common with later ones."""

    places: dict[str, str] = field(default_factory=dict)
    """Id -> where it was."""
    families: dict[str, str] = field(default_factory=dict)
    """Content of a task of grids, or of two of its pairs -> its family: some ARC tasks have several ids."""
    ranks: dict[str, int] = field(default_factory=dict)
    """Such a family -> how many came before it."""
    merged: dict[str, str] = field(default_factory=dict)
    """Family -> the earlier one that a later task of both has shown it to be."""
    misspelled: dict[str, Problem] = field(default_factory=dict)
    """Field -> the warning about it."""

    def merged_family(self, family: str) -> str:
        """The earliest family that a family is known to be."""
        while family in self.merged:
            family = self.merged[family]
        return family


def read_tasks(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    demonstrations: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    kind: str | None = None,
) -> LoadedTasks:
    """The tasks of files and folders. Every query is a `Task`; the queries of one task form a group.

    `demonstrations` is the number of examples of a BIG-Bench Hard file that become demonstrations (default: 10; the
    other formats name theirs). `limit` samples that many groups of each file by `seed` and preserves their order; the
    .json files of a folder count as one file. `kind` overrides the kind that files give.

    Invalid tasks, repeated ids and files of a folder that cannot be read become problems; all other tasks are returned.
    Raises `TaskError` if a path is missing, cannot be read, or has no task; the last error lists the accepted formats.

    >>> read_tasks("tasks.jsonl", limit=20).problems  # doctest: +SKIP
    ()
    """
    settings = ReadSettings(ReadSettings.demonstrations if demonstrations is None else demonstrations, seed, kind)
    if limit is not None and limit < 1:
        raise invalid_field("limit", "a positive number", limit)
    path_list = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not path_list:
        raise TaskError("paths: expected at least one file or folder; received none")
    tasks: list[Task] = []
    problems: list[Problem] = []
    seen = _Seen()
    for path in path_list:
        if not isinstance(path, (str, os.PathLike)):
            raise invalid_field("paths", "files or folders", path)
        for entries in _sources(Path(path)):
            groups, group_problems = _groups(entries, settings, seen)
            tasks += [task for group in _sample(groups, limit, seed) for task in group]
            problems += group_problems
    tasks = [replace(t, family=seen.merged_family(t.family)) if t.family in seen.merged else t for t in tasks]
    return LoadedTasks(tuple(tasks), tuple(problems), tuple(seen.misspelled.values()))


def read_lines(
    lines: Iterable[str | bytes], name: str = "stdin", *, demonstrations: int | None = None, seed: int = 0
) -> Iterator[LoadedTasks]:
    """Reads JSON lines lazily and yields for each the queries of its task, or a problem. Blank lines are skipped.

    `name` takes the place of the file name in problems and in default ids. Ids may repeat. The rest is as in
    `read_tasks`.
    """
    settings = ReadSettings(ReadSettings.demonstrations if demonstrations is None else demonstrations, seed)
    seen = _Seen()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            seen.places.clear()
            earlier = set(seen.misspelled)
            groups, problems = _groups([_line(line.rstrip(), Path(name), number)], settings, seen)
            warnings = tuple(warning for field, warning in seen.misspelled.items() if field not in earlier)
            yield LoadedTasks(tuple(task for group in groups for task in group), tuple(problems), warnings)


@dataclass(frozen=True)
class _Record:
    """A JSON object that looks like a task, its place, and its default id and dataset."""

    where: str
    data: Mapping[str, object]
    id: str
    dataset: str


_Entry = _Record | Problem


def _sources(path: Path) -> list[list[_Entry]]:
    """The entries of a file; for a folder, one list for each .jsonl file, and one for all .json files."""
    try:
        sources = _folder(path) if os.path.isdir(path) else [_entries(path)]
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise TaskError(f"{_printable(path)}: cannot be read: {getattr(error, 'strerror', error)}") from None
    entries = [entry for source in sources for entry in source]
    if not _any_record(entries):
        first = next((e for e in entries if isinstance(e, Problem)), None)
        empty = Problem(str(path), "expected .jsonl or .json files; received a folder without any")
        raise TaskError(f"{first or empty}\n{ACCEPTED_FILES}")
    return sources


def _any_record(entries: list[_Entry]) -> bool:
    return any(isinstance(entry, _Record) for entry in entries)


def _folder(path: Path) -> list[list[_Entry]]:
    files = sorted(path / name for name in os.listdir(path) if not name.startswith("."))
    by_line = [_file(f) for f in files if f.suffix.lower() in LINE_SUFFIXES]
    return [*by_line, [entry for f in files if f.suffix.lower() == ".json" for entry in _file(f)]]


def _file(path: Path) -> list[_Entry]:
    """The entries of a file in a folder, or one problem if it cannot be read."""
    try:
        return _entries(path)
    except (OSError, ValueError) as error:
        return [Problem(str(path), f"cannot be read: {getattr(error, 'strerror', error)}")]


def _entries(path: Path) -> list[_Entry]:
    """The records and problems of a file; one problem if nothing in it looks like a task. Raises `OSError`."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        return [Problem(str(path), f"expected UTF-8 text; received {error.reason} at byte {error.start}")]
    if not text.strip():
        return [Problem(str(path), "expected tasks; received an empty file")]
    parsers = (_lines, _document) if path.suffix.lower() in LINE_SUFFIXES else (_document, _lines)
    entries = parsers[0](text, path)
    if _any_record(entries):
        return entries
    alternative = parsers[1](text, path)
    return alternative if _any_record(alternative) else entries[:1]


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
    single = _record(data, str(path), path.stem, path.resolve().parent.name)
    if isinstance(single, Problem) and isinstance(data, dict):
        by_id = [_record(x, f"{path}, task {key}", key, path.stem) for key, x in data.items()]
        return by_id if _any_record(by_id) else [single]
    return [single]


def _decode(text: str | bytes, path: Path, line: int = 1) -> object:
    """The JSON value of `text`, which begins on line `line`; a `Problem` if it is not JSON."""
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


def _groups(entries: list[_Entry], settings: ReadSettings, seen: _Seen) -> tuple[list[tuple[Task, ...]], list[Problem]]:
    """The groups of tasks in `entries`, and the problems. Adds to what was seen."""
    groups: list[tuple[Task, ...]] = []
    problems: list[Problem] = []
    for entry in entries:
        if isinstance(entry, Problem):
            problems.append(entry)
            continue
        try:
            _note_misspelled(entry, seen)
            group = read_object(entry.data, settings, id=entry.id, dataset=entry.dataset)
            _note_ids(group, entry.where, seen.places)
            if group[0].kind == "grid" and entry.data.get("family") is None:
                group = _in_one_family(group, seen)
            groups.append(group)
        except TaskError as error:
            problems.append(Problem(entry.where, str(error), _id_of(entry)))
    return groups, problems


def _id_of(entry: _Record) -> str:
    """The id of a task that is not valid, so that a program can pair the problem with the task."""
    try:
        return check_name(entry.data.get("id"), "id")
    except TaskError:
        return entry.id


def _note_misspelled(entry: _Record, seen: _Seen) -> None:
    """Logs and notes the first field of each name that is not read but spelled like one that is."""
    misspelled = misspelled_field(entry.data)
    if misspelled is None or misspelled[0] in seen.misspelled:
        return
    unknown, nearest = misspelled
    warning = Problem(entry.where, f"unknown field {shortened(unknown)}, which is not read: did you mean {nearest!r}?")
    seen.misspelled[unknown] = warning
    logging.getLogger("autottt").warning("%s", warning)


def _in_one_family(group: tuple[Task, ...], seen: _Seen) -> tuple[Task, ...]:
    """The group in the family of an earlier task with the same content or two pairs in common, or in its own. Adds to
    what was seen; families of several such tasks are merged."""
    shown = sorted(content_digest((d.input, d.output)) for d in group[0].demonstrations)
    answered = [content_digest((t.query, t.answer)) for t in group if t.answer is not None]
    whole = content_digest((shown, sorted(content_digest(task.query) for task in group)))
    keys = [whole, *("".join(two) for two in combinations(sorted({*shown, *answered}), 2))]
    known = {seen.merged_family(seen.families[key]) for key in keys if key in seen.families}
    family, *others = sorted(known, key=seen.ranks.__getitem__) or [group[0].family]
    seen.merged.update(dict.fromkeys(others, family))
    seen.ranks.setdefault(family, len(seen.ranks))
    seen.families.update((key, family) for key in keys if key not in seen.families)
    return tuple(replace(task, family=family) for task in group)


def _note_ids(group: tuple[Task, ...], where: str, places: dict[str, str]) -> None:
    ids = [group[0].group, *(task.id for task in group)]
    for id in ids:
        if id in places:
            raise TaskError(f"id: expected a unique id; received {id!r}, which is also the id of {places[id]}")
    places.update(dict.fromkeys(ids, where))


def _sample(groups: list[tuple[Task, ...]], limit: int | None, seed: int) -> list[tuple[Task, ...]]:
    if limit is None or limit >= len(groups):
        return groups
    return [groups[i] for i in sorted(random.Random(seed).sample(range(len(groups)), limit))]


__all__ = ["LoadedTasks", "Problem", "read_lines", "read_tasks", "task_from_messages"]
