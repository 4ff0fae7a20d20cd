"""Tasks: a few worked examples and a query. Knows nothing about models, prompts or files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

Grid = tuple[tuple[int, ...], ...]
IntList = tuple[int, ...]
Value = Grid | IntList | str
"""What an input or an output is: a grid (rows of digits 0-9), a list of integers, or a text."""


def as_grid(value: Value) -> Grid:
    """The value as a grid, for the type checker: kinds of grids hold nothing else."""
    assert isinstance(value, tuple)
    return value  # type: ignore[return-value]


def content_digest(content: Any) -> str:
    """Names a value, or several, by the content: 16 hexadecimal digits of what JSON makes of it."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Demonstration:
    """One worked example."""

    input: Value
    output: Value

    def map(self, function: Callable[[Value], Value]) -> Demonstration:
        """This demonstration with `function` applied to both sides."""
        return Demonstration(function(self.input), function(self.output))


@dataclass(frozen=True)
class Task:
    """Worked examples and one query, all of one kind.

    Values are in their canonical form: `autottt.ttt_core.tasks.kinds.make_task` builds a task from lists and checks it.
    """

    kind: str
    """Name of the kind: `grid`, `grid1d`, `list` or `text`."""
    demonstrations: tuple[Demonstration, ...]
    query: Value
    answer: Value | None = None
    """The right answer, where it is known. Never shown to the model."""
    instruction: str | None = None
    id: str = "task"
    """Names the query in outputs; unique within a file."""
    family: str = ""
    """Tasks of one family share what has to be learned; families never straddle a split."""
    dataset: str = ""
    group: str = ""
    """Names the task that this query belongs to: queries of one group share their demonstrations."""

    @property
    def digest(self) -> str:
        """Names what is asked by its content: kind, instruction, demonstrations and query, but not the answer."""
        asked = (self.kind, self.instruction, [(d.input, d.output) for d in self.demonstrations], self.query)
        return content_digest(asked)

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
        held = self.demonstrations[index]
        rest = self.demonstrations[:index] + self.demonstrations[index + 1 :]
        return replace(self, demonstrations=rest, query=held.input, answer=held.output)
