"""Prompts: how demonstrations and a query become text, in pieces that are encoded one by one.

Knows nothing about models or token ids. Encoding the pieces separately makes a token belong to exactly one of them, so
that measuring, training and decoding see the same ids whatever the tokenizer merges.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Literal, Protocol

from ..errors import ModelError, ParseError, TaskError
from .kinds import COMPACT, STANDARD, Notation, kind_of
from .task import Task, Value

Role = Literal["context", "answer", "end"]


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt. Answers and their ends are what is learned and scored; context is given."""

    text: str
    role: Role


class PromptFormat(Protocol):
    """Turns a task into pieces, and a model's text back into a value."""

    @property
    def name(self) -> str: ...

    @property
    def notation(self) -> Notation: ...

    @property
    def ends(self) -> tuple[str, ...]:
        """Texts any of which ends an answer."""
        ...

    def pieces(self, task: Task, answer: Value | None = None) -> list[Piece]:
        """The prompt of the task, up to where the answer to the query begins; with `answer`, through its end."""
        ...

    def read(self, task: Task, text: str) -> Value:
        """The value that an answer's text (without its end) spells. Raises `ParseError`."""
        ...

    def is_valid_prefix(self, task: Task, text: str) -> bool:
        """Whether an answer that begins with `text` can still be read."""
        ...


@dataclass(frozen=True)
class PlainFormat:
    """Demonstrations one after the other as plain text, for base models."""

    name: str
    notation: Notation
    input_prefix: str
    output_prefix: str
    end: str

    @property
    def ends(self) -> tuple[str, ...]:
        return (self.end,)

    def pieces(self, task: Task, answer: Value | None = None) -> list[Piece]:
        kind = kind_of(task)
        found = [Piece(task.instruction + self.end, "context")] if task.instruction else []

        def pair(source: Value, target: Value | None) -> None:
            shown = kind.render(source, self.notation)
            found.append(Piece(f"{self.input_prefix} {shown}\n{self.output_prefix}", "context"))
            if target is not None:
                text = " " + kind.render(target, self.notation)
                if self.end in text:
                    raise TaskError(
                        f"{task.id}: an output contains {self.end!r}, which ends an answer in this prompt format"
                    )
                found.extend((Piece(text, "answer"), Piece(self.end, "end")))

        for demonstration in task.demonstrations:
            pair(demonstration.input, demonstration.output)
        pair(task.query, answer)
        return found

    def read(self, task: Task, text: str) -> Value:
        return kind_of(task).parse(text.removeprefix(" "), self.notation)

    def is_valid_prefix(self, task: Task, text: str) -> bool:
        return kind_of(task).is_valid_prefix(text.removeprefix(" "), self.notation)


Template = Callable[[Sequence[dict[str, str]], bool], str]
"""(messages, add_generation_prompt) -> text."""


@dataclass(frozen=True)
class ChatFormat:
    """Demonstrations as turns of the tokenizer's own chat template, for instruction-tuned models.

    The template is asked once for each shape of a conversation, with a mark in place of each content: so contents stand
    in the prompt as they are, and turns that are over as the template shows them then (it may drop a thought).
    """

    template: Template
    notation: Notation = STANDARD
    name: str = "chat"

    @property
    def ends(self) -> tuple[str, ...]:
        return (self._end,)

    @cached_property
    def _end(self) -> str:
        """What follows an answer, whether or not another turn comes after it."""
        last = self._around(("user", "assistant"), False)[-1][0]
        between = self._around(("user", "assistant", "user"), True)[2][0]
        return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(last, between, strict=False)))

    @cached_property
    def _gap(self) -> str:
        """White space that the template puts between the prompt for an answer and the answer."""
        prompt = self._around(("user",), True)[-1][0]
        shown = self._around(("user", "assistant"), False)[1][0]
        gap = shown.removeprefix(prompt)
        return gap if shown == prompt + gap and gap.isspace() else ""

    @cached_property
    def _shapes(self) -> dict[tuple[tuple[str, ...], bool], list[tuple[str, int | None]]]:
        return {}

    def _around(self, roles: tuple[str, ...], generation: bool) -> list[tuple[str, int | None]]:
        """What the template writes before each content of a conversation, in its order, and the content's number;
        last, what it writes after them, with None. Raises `ModelError` where a content is left out or comes twice.
        """
        if (roles, generation) not in self._shapes:
            messages = [{"role": role, "content": f"@{n}@"} for n, role in enumerate(roles)]
            first, *rest = re.split(r"@(\d+)@", self.template(messages, generation))
            numbers = [int(n) for n in rest[::2]]
            turns = [n for n in numbers if n >= len(roles) or roles[n] != "system"]
            if sorted(numbers) != list(range(len(roles))) or turns != sorted(turns):
                raise ModelError(
                    "the tokenizer's chat template rewrites earlier turns, so answers cannot be located in it; "
                    "use prompt_format='standard'"
                )
            self._shapes[roles, generation] = list(zip([first, *rest[1::2]], [*numbers, None], strict=True))
        return self._shapes[roles, generation]

    def pieces(self, task: Task, answer: Value | None = None) -> list[Piece]:
        values = [v for d in task.demonstrations for v in (d.input, d.output)] + [task.query]
        contents = [kind_of(task).render(v, self.notation) for v in values]
        roles = ("user", "assistant") * len(task.demonstrations) + ("user",)
        around = self._around(roles, True)
        if task.instruction:
            try:
                around = self._around(("system", *roles), True)
                roles, contents = ("system", *roles), [task.instruction, *contents]
            except ModelError:  # there is no such turn for this model
                contents[0] = f"{task.instruction}\n\n{contents[0]}"
        found: list[Piece] = []
        context = ""
        for before, number in around:
            context += before
            if number is None or roles[number] != "assistant":
                context += "" if number is None else contents[number]
                continue
            if found:
                context = context.removeprefix(self._end)
            found += [Piece(context, "context"), *self._answered(task, contents[number])]
            context = ""
        found.append(Piece((context.removeprefix(self._end) if found else context) + self._gap, "context"))
        return found if answer is None else found + self._answered(task, kind_of(task).render(answer, self.notation))

    def _answered(self, task: Task, content: str) -> list[Piece]:
        end = self._end
        if end.strip() and end.strip() in content:
            raise TaskError(
                f"{task.id}: an output contains {end.strip()!r}, which ends an answer in this prompt format"
            )
        return [Piece(content, "answer"), Piece(end, "end")]

    def read(self, task: Task, text: str) -> Value:
        try:
            return kind_of(task).parse(text, self.notation)
        except ParseError:
            return kind_of(task).parse(_last_block(text), self.notation)

    def is_valid_prefix(self, task: Task, text: str) -> bool:
        return True  # chat models like to introduce their answers


def _last_block(text: str) -> str:
    """The last paragraph of a reply, without code fences: chat models like to introduce their answers."""
    lines = [line for line in text.strip().splitlines() if not line.startswith("```")]
    return "\n".join(lines).rsplit("\n\n", 1)[-1]


COMPACT_FORMAT = PlainFormat("compact", COMPACT, "I", "O", "\n")
"""The bundled model's: `I 3 1 4` / `O 4 1 3`, a line each."""
STANDARD_FORMAT = PlainFormat("standard", STANDARD, "Input:", "Output:", "\n\n")
"""For base models trained on ordinary text."""
PLAIN_FORMATS = {f.name: f for f in (COMPACT_FORMAT, STANDARD_FORMAT)}
