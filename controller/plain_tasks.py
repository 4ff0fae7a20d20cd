"""Tasks as plain data, which can be checkpointed, streamed and logged, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from ..ttt_core.errors import TaskError
from ..ttt_core.tasks.fields import check_text
from ..ttt_core.tasks.kinds import make_task, shortened
from ..ttt_core.tasks.prompts import check_format
from ..ttt_core.tasks.task import Demonstration, Task, as_tuples

Plain = dict[str, Any]


def task_to_plain(task: Task) -> Plain:
    """The task as plain data."""
    return asdict(task)


def task_from_plain(plain: Plain) -> Task:
    """The task of a state, also after JSON or msgpack turned its tuples into lists. Values are not checked again."""
    values = {**plain, "query": as_tuples(plain["query"]), "answer": as_tuples(plain["answer"])}
    values["demonstrations"] = tuple(
        Demonstration(as_tuples(d["input"]), as_tuples(d["output"])) for d in plain["demonstrations"]
    )
    return Task(**values)


_REQUIRED = ("kind", "demonstrations", "query")
_TEXTS = ("instruction", "id", "family", "dataset", "group", "comparison")


def checked_task(given: Any) -> Task:
    """A task from what a caller gives: a `Task`, or its plain form. Raises `TaskError` that names the field."""
    if isinstance(given, Task):
        return given
    if not isinstance(given, Mapping):
        raise TaskError(
            f"task: expected a Task, such as make_task gives, or its plain form; received {shortened(given)}"
        )
    known = [f.name for f in fields(Task)]
    for name in _REQUIRED:
        if name not in given:
            raise TaskError(f"task: the field {name} is missing; expected {', '.join(known)}")
    for name in given:
        if name not in known:
            raise TaskError(f"task: unknown field {name!r}; expected {', '.join(known)}")
    texts = {name: check_text(given[name], name) for name in _TEXTS if given.get(name) is not None}
    task = make_task(given["demonstrations"], given["query"], kind=given["kind"], answer=given.get("answer"), **texts)
    return replace(task, prompt_format=check_format(check_text(given.get("prompt_format") or "", "prompt_format")))
