"""Tasks: a few demonstrations and a query. Knows nothing about models, prompts or files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .html import task_html

Grid = tuple[tuple[int, ...], ...]
IntList = tuple[int, ...]
Value = Grid | IntList | str
"""An input or an output: a grid (rows of digits 0-9), a list of integers, or a text."""


def as_grid(value: Value) -> Grid:
    """The value as a grid, for the type checker: kinds of grids hold nothing else."""
    assert isinstance(value, tuple)
    return value  # type: ignore[return-value]


def content_digest(content: Any) -> str:
    """SHA-256 of the JSON form of `content`, shortened to 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def is_blank(instruction: object) -> bool:
    """Whether a task has no instruction by this value: None, or a text of white space."""
    return instruction is None or (isinstance(instruction, str) and not instruction.strip())


def as_tuples(value: Any) -> Any:
    """The value with every list in it, however deep, as a tuple."""
    return tuple(as_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def _make_tuples(instance: object, *names: str) -> None:
    """Replaces lists in fields of a frozen dataclass by tuples: serializers such as LangGraph's make lists of them."""
    for name in names:
        if isinstance(value := getattr(instance, name), list):
            object.__setattr__(instance, name, as_tuples(value))


@dataclass(frozen=True)
class Demonstration:
    """One input with its output."""

    input: Value
    output: Value

    def __post_init__(self) -> None:
        _make_tuples(self, "input", "output")

    def map(self, function: Callable[[Value], Value]) -> Demonstration:
        """This demonstration with `function` applied to both sides."""
        return Demonstration(function(self.input), function(self.output))


@dataclass(frozen=True)
class Task:
    """Demonstrations and one query, all of one kind.

    Values are canonical (nested tuples): `autottt.ttt_core.tasks.kinds.make_task` builds a checked task from lists.
    """

    kind: str
    """Name of the kind: `grid`, `grid1d`, `list` or `text`."""
    demonstrations: tuple[Demonstration, ...]
    query: Value
    answer: Value | None = None
    """The right answer, or None if it is unknown. Never shown to the model."""
    instruction: str | None = None
    """What to do, in words; a text of white space counts as none."""
    id: str = "task"
    """Identifies the query in outputs; unique within a file."""
    family: str = ""
    """Tasks of one family share a rule; all tasks of a family are in the same split."""
    dataset: str = ""
    group: str = ""
    """Identifies the task that this query belongs to: queries of one group share their demonstrations."""
    comparison: str = "exact"
    """How answers are compared; a key of `answers.COMPARISONS`."""
    prompt_format: str = ""
    """Name of the prompt format that was chosen for the demonstrations; empty: the model's default format."""

    def __post_init__(self) -> None:
        _make_tuples(self, "demonstrations", "query", "answer")
        if is_blank(self.instruction):
            object.__setattr__(self, "instruction", None)

    @property
    def digest(self) -> str:
        """Content digest of kind, instruction, demonstrations and query, without the answer."""
        content = (self.kind, self.instruction, [(d.input, d.output) for d in self.demonstrations], self.query)
        return content_digest(content)

    def _repr_html_(self) -> str:
        """What a notebook shows: the demonstrations and the query, grids in colour."""
        return task_html(self.kind, self.instruction, self.demonstrations, self.query)

    def map(self, function: Callable[[Value], Value]) -> Task:
        """This task with `function` applied to every input and output."""
        return replace(
            self,
            demonstrations=tuple(d.map(function) for d in self.demonstrations),
            query=function(self.query),
            answer=None if self.answer is None else function(self.answer),
        )

    def with_demonstrations(self, demonstrations: tuple[Demonstration, ...]) -> Task:
        """This task with other demonstrations."""
        return replace(self, demonstrations=demonstrations)

    def leave_out(self, index: int) -> Task:
        """The task whose query is demonstration `index`, with all the others as its demonstrations."""
        held_out = self.demonstrations[index]
        rest = self.demonstrations[:index] + self.demonstrations[index + 1 :]
        return replace(self, demonstrations=rest, query=held_out.input, answer=held_out.output)
