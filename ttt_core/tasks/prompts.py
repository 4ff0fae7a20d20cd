"""Prompt formats: demonstrations and a query as text, in pieces that are encoded one by one.

Knows nothing about models or token ids. Because the pieces are encoded separately, each token belongs to exactly one of
them, and scoring, training and decoding see the same ids whatever the tokenizer would merge.
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
    """A part of a prompt. Answers and their end markers have a loss and are scored; context is not."""

    text: str
    role: Role


class PromptFormat(Protocol):
    """Converts a task into pieces, and the text of an answer back into a value."""

    @property
    def name(self) -> str: ...

    @property
    def notation(self) -> Notation: ...

    @property
    def ends(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        ...

    def pieces(self, task: Task, answer: Value | None = None) -> list[Piece]:
        """The prompt of the task up to the answer to the query; with `answer`, up to its end marker."""
        ...

    def read(self, task: Task, text: str) -> Value:
        """The value of the text of an answer (without its end marker). Raises `ParseError`."""
        ...

    def is_valid_prefix(self, task: Task, text: str) -> bool:
        """Whether an answer that begins with `text` can still be parsed."""
        ...


@dataclass(frozen=True)
class PlainFormat:
    """Demonstrations as plain text, one after the other, for base models."""

    name: str
    notation: Notation
    input_prefix: str
    output_prefix: str
    end: str

    @property
    def ends(self) -> tuple[str, ...]:
        return (self.end,)

    def pieces(self, task: Task, answer: Value | None = None) -> list[Piece]:
        pieces = [Piece(task.instruction + self.end, "context")] if task.instruction else []
        for demonstration in task.demonstrations:
            pieces += self._pair(task, demonstration.input, demonstration.output)
        return pieces + self._pair(task, task.query, answer)

    def _pair(self, task: Task, source: Value, target: Value | None) -> list[Piece]:
        """The pieces of an input and, unless it is None, its output."""
        kind = kind_of(task)
        rendered = kind.render(source, self.notation)
        prompt = Piece(f"{self.input_prefix} {rendered}\n{self.output_prefix}", "context")
        if target is None:
            return [prompt]
        return [prompt, *_answer_pieces(task, " " + kind.render(target, self.notation), self.end, self.end)]

    def read(self, task: Task, text: str) -> Value:
        return kind_of(task).parse(text.removeprefix(" "), self.notation)

    def is_valid_prefix(self, task: Task, text: str) -> bool:
        return kind_of(task).is_valid_prefix(text.removeprefix(" "), self.notation)


Template = Callable[[Sequence[dict[str, str]], bool], str]
"""(messages, add_generation_prompt) -> text."""


@dataclass(frozen=True)
class ChatFormat:
    """Demonstrations as turns of the tokenizer's own chat template, for instruction-tuned models.

    The template is rendered once for each sequence of roles, with a placeholder for each content. Contents thus appear
    verbatim in the prompt, and earlier turns as the template shows them later (it may drop their reasoning).
    """

    template: Template
    notation: Notation = STANDARD
    name: str = "chat"

    @property
    def ends(self) -> tuple[str, ...]:
        return (self._end,)

    @cached_property
    def _end(self) -> str:
        """The text that follows an answer whether or not another turn comes after it."""
        last = self._segments(("user", "assistant"), False)[-1][0]
        between = self._segments(("user", "assistant", "user"), True)[2][0]
        return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(last, between, strict=False)))

    @cached_property
    def _gap(self) -> str:
        """White space that the template puts between the generation prompt and the answer."""
        prompt = self._segments(("user",), True)[-1][0]
        before_answer = self._segments(("user", "assistant"), False)[1][0]
        gap = before_answer.removeprefix(prompt)
        return gap if before_answer == prompt + gap and gap.isspace() else ""

    @cached_property
    def _cache(self) -> dict[tuple[tuple[str, ...], bool], list[tuple[str, int | None]]]:
        return {}

    def _segments(self, roles: tuple[str, ...], generation: bool) -> list[tuple[str, int | None]]:
        """The text that the template writes before each content, with the index of the content, in template order.

        The last segment is the text after the last content, with None. Raises `ModelError` if the template drops,
        repeats or reorders a content.
        """
        if (roles, generation) not in self._cache:
            messages = [{"role": role, "content": f"@{n}@"} for n, role in enumerate(roles)]
            first, *rest = re.split(r"@(\d+)@", self.template(messages, generation))
            numbers = [int(n) for n in rest[::2]]
            turns = [n for n in numbers if n >= len(roles) or roles[n] != "system"]
            if sorted(numbers) != list(range(len(roles))) or turns != sorted(turns):
                raise ModelError(
                    "the tokenizer's chat template rewrites earlier turns, so answers cannot be located in it; "
                    "use prompt_format='standard'"
                )
            self._cache[roles, generation] = list(zip([first, *rest[1::2]], [*numbers, None], strict=True))
        return self._cache[roles, generation]

    def pieces(self, task: Task, answer: Value | None = None) -> list[Piece]:
        values = [v for d in task.demonstrations for v in (d.input, d.output)] + [task.query]
        contents = [kind_of(task).render(v, self.notation) for v in values]
        roles = ("user", "assistant") * len(task.demonstrations) + ("user",)
        segments = self._segments(roles, True)
        if task.instruction:
            try:
                segments = self._segments(("system", *roles), True)
                roles, contents = ("system", *roles), [task.instruction, *contents]
            except ModelError:  # the template has no system turn
                contents[0] = f"{task.instruction}\n\n{contents[0]}"
        pieces: list[Piece] = []
        context = ""
        for before, number in segments:
            context += before
            if number is None or roles[number] != "assistant":
                context += "" if number is None else contents[number]
                continue
            if pieces:
                context = context.removeprefix(self._end)
            pieces += [Piece(context, "context"), *self._answer(task, contents[number])]
            context = ""
        pieces.append(Piece((context.removeprefix(self._end) if pieces else context) + self._gap, "context"))
        return pieces if answer is None else pieces + self._answer(task, kind_of(task).render(answer, self.notation))

    def _answer(self, task: Task, content: str) -> list[Piece]:
        return _answer_pieces(task, content, self._end, self._end.strip())

    def read(self, task: Task, text: str) -> Value:
        try:
            return kind_of(task).parse(text, self.notation)
        except ParseError:
            return kind_of(task).parse(_last_block(text), self.notation)

    def is_valid_prefix(self, task: Task, text: str) -> bool:
        return True  # chat models often write an introduction before the answer


def _answer_pieces(task: Task, text: str, end: str, marker: str) -> list[Piece]:
    """An answer and its end. Raises `TaskError` if the text contains `marker`, the end as it would be recognized."""
    if marker and marker in text:
        raise TaskError(f"{task.id}: an output contains {marker!r}, which ends an answer in this prompt format")
    return [Piece(text, "answer"), Piece(end, "end")]


def _last_block(text: str) -> str:
    """The last paragraph of a reply, without code fences: chat models often write an introduction."""
    lines = [line for line in text.strip().splitlines() if not line.startswith("```")]
    return "\n".join(lines).rsplit("\n\n", 1)[-1]


COMPACT_FORMAT = PlainFormat("compact", COMPACT, "I", "O", "\n")
"""For the bundled model: `I 3 1 4` / `O 4 1 3`, one line each."""
STANDARD_FORMAT = PlainFormat("standard", STANDARD, "Input:", "Output:", "\n\n")
"""For base models trained on ordinary text."""
PLAIN_FORMATS = {f.name: f for f in (COMPACT_FORMAT, STANDARD_FORMAT)}
