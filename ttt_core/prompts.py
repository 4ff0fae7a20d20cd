"""Prompts: how demonstrations and a query become text, in pieces that are encoded one by one.

Knows nothing about models or token ids. Encoding the pieces separately makes a token belong to exactly one of them, so
that measuring, training and decoding see the same ids whatever the tokenizer merges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .errors import ModelError, ParseError, TaskError
from .kinds import COMPACT, STANDARD, Notation, kind_of
from .tasks import Task, Value

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

    def may_begin(self, task: Task, text: str) -> bool:
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

    def may_begin(self, task: Task, text: str) -> bool:
        return kind_of(task).may_begin(text.removeprefix(" "), self.notation)


Template = Callable[[Sequence[dict[str, str]], bool], str]
"""(messages, add_generation_prompt) -> text."""


@dataclass(frozen=True)
class ChatFormat:
    """Demonstrations as turns of the tokenizer's own chat template, for instruction-tuned models."""

    template: Template
    notation: Notation = STANDARD
    name: str = "chat"

    @property
    def ends(self) -> tuple[str, ...]:
        probe = [{"role": "user", "content": "1"}]
        return (self._after(probe, "2")[len("2") :],)

    def _after(self, messages: list[dict[str, str]], content: str) -> str:
        """What the template adds when the assistant says `content`; it must begin with it."""
        before = self.template(messages, True)
        whole = self.template([*messages, {"role": "assistant", "content": content}], False)
        if not whole.startswith(before + content):
            raise ModelError(
                "the tokenizer's chat template rewrites earlier turns, so answers cannot be located in it; "
                "use prompt_format='standard'"
            )
        return whole[len(before) :]

    def pieces(self, task: Task, answer: Value | None = None) -> list[Piece]:
        kind = kind_of(task)
        messages = [{"role": "system", "content": task.instruction}] if task.instruction else []
        found: list[Piece] = []
        done = ""
        turns: list[tuple[Value, Value | None]] = [(d.input, d.output) for d in task.demonstrations]
        for source, target in [*turns, (task.query, answer)]:
            messages.append({"role": "user", "content": kind.render(source, self.notation)})
            before = self.template(messages, True)
            if not before.startswith(done):
                raise ModelError("the tokenizer's chat template rewrites earlier turns; use prompt_format='standard'")
            found.append(Piece(before[len(done) :], "context"))
            if target is not None:
                content = kind.render(target, self.notation)
                after = self._after(messages, content)
                end = after[len(content) :]
                if end.strip() and end.strip() in content:
                    raise TaskError(
                        f"{task.id}: an output contains {end.strip()!r}, which ends an answer in this prompt format"
                    )
                found.extend((Piece(content, "answer"), Piece(end, "end")))
                messages.append({"role": "assistant", "content": content})
                done = before + after
        return found

    def read(self, task: Task, text: str) -> Value:
        try:
            return kind_of(task).parse(text, self.notation)
        except ParseError:
            return kind_of(task).parse(_last_block(text), self.notation)

    def may_begin(self, task: Task, text: str) -> bool:
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
