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
from .answers import canonical_output
from .kinds import COMPACT, STANDARD, Notation, kind_of, shortened
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
        text = " " + kind.render(target, self.notation)
        _refuse_marker(task, text, self.end, self.name)
        return [prompt, Piece(text, "answer"), Piece(self.end, "end")]

    def read(self, task: Task, text: str) -> Value:
        return _read(task, text.removeprefix(" "), self.notation)

    def is_valid_prefix(self, task: Task, text: str) -> bool:
        return kind_of(task).is_valid_prefix(text.removeprefix(" "), self.notation)


Template = Callable[[Sequence[dict[str, str]], bool], str]
"""(messages, add_generation_prompt) -> text."""


@dataclass(frozen=True)
class ChatFormat:
    """Demonstrations as turns of the tokenizer's own chat template, for instruction-tuned models.

    The template is rendered once for each sequence of roles, with a placeholder for each content. Earlier turns thus
    appear as the template shows them later (it may drop their reasoning).
    """

    template: Template
    notation: Notation = STANDARD
    name: str = "chat"
    special_tokens: tuple[str, ...] = ()
    """Texts that the tokenizer encodes as one token each; the end of an answer never stops inside one."""
    strips: bool = False
    """Whether contents of users and the system are stripped of white space where the template strips them; else all
    contents appear verbatim."""

    @property
    def ends(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._ends))

    @cached_property
    def _ends(self) -> tuple[str, str]:
        """The text that ends an answer before another turn, and the text that ends the last answer.

        Both are what the template writes in both places, or a special token each. Raises `ModelError` for a template
        that does not mark where an answer ends.
        """
        last = self._segments(("user", "assistant"), False)[-1][0]
        between = self._segments(("user", "assistant", "user"), True)[2][0]
        pairs = zip(self.units(last), self.units(between), strict=False)
        common = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if common.strip():
            return common, common
        ends = [self._special_end(text) for text in (between, last)]
        if all(ends):
            return ends[0], ends[1]
        if common:
            return common, common
        raise ModelError(
            "the tokenizer's chat template does not mark the end of an answer: it writes "
            f"{shortened(last)} after the last answer and {shortened(between)} after others; "
            "use prompt_format='standard'"
        )

    def units(self, text: str) -> list[str]:
        """The text in units: special tokens and, between them, single characters."""
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.findall("|".join([*map(re.escape, filter(None, longest_first)), "."]), text, re.DOTALL)

    def _special_end(self, text: str) -> str:
        """The special token that a text begins with, after white space; nothing if there is none."""
        blank = text[: len(text) - len(text.lstrip())]
        first = next(iter(self.units(text.lstrip())), "")
        return blank + first if first in self.special_tokens else ""

    @cached_property
    def _opening(self) -> tuple[str, str]:
        """What stands between the generation prompt and a finished answer: the end of a thought that the generation
        prompt opens, which belongs to the prompt, and white space, which belongs to the answer.

        Raises `ModelError` for a template whose finished answer does not continue its generation prompt.
        """
        prompt = self._segments(("user",), True)[-1][0]
        before_answer = self._segments(("user", "assistant"), False)[1][0]
        opening = before_answer.removeprefix(prompt)
        continues = before_answer.startswith(prompt)
        thinks = _opens_thought(prompt)
        if continues and thinks and not _opens_thought(before_answer):
            return opening, ""
        if thinks:
            raise ModelError(
                "the generation prompt of the tokenizer's chat template opens a thought, and the template does not "
                "show how an empty one is closed; use prompt_format='standard'"
            )
        if not continues or opening.strip():
            raise ModelError(
                "the tokenizer's chat template writes a finished answer after "
                f"{shortened(before_answer)}, which does not continue its generation prompt {shortened(prompt)}; "
                "use prompt_format='standard'"
            )
        return "", opening

    @property
    def closing(self) -> str:
        """What closes a thought that the generation prompt opens; empty for most templates."""
        return self._opening[0]

    @cached_property
    def _cache(self) -> dict[tuple[tuple[str, ...], bool], list[tuple[str, int | None]]]:
        return {}

    def _segments(self, roles: tuple[str, ...], generation: bool) -> list[tuple[str, int | None]]:
        """The text that the template writes before each content, with the index of the content, in template order.

        The last segment is the text after the last content, with None. Raises `ModelError` if the template drops,
        repeats or reorders a content.
        """
        if (roles, generation) not in self._cache:
            first, *rest = re.split(r"@(\d+)@", self.template(placeholders(roles), generation))
            numbers = [int(n) for n in rest[::2]]
            turns = [n for n in numbers if n >= len(roles) or roles[n] != "system"]
            if sorted(numbers) != list(range(len(roles))) or turns != sorted(turns):
                raise ModelError(
                    "the tokenizer's chat template rewrites earlier turns, so answers cannot be located in it; "
                    "use prompt_format='standard'"
                )
            self._cache[roles, generation] = list(zip([first, *rest[1::2]], [*numbers, None], strict=True))
        return self._cache[roles, generation]

    def _stripped(self, roles: tuple[str, ...]) -> list[tuple[bool, bool]]:
        """For each message of a prompt, whether the template strips white space before and after its content.

        Raises `ModelError` if it changes the white space otherwise.
        """
        if not self.strips:
            return [(False, False)] * len(roles)
        if roles not in self._stripped_cache:
            parts = re.split(f"({PADDING})?@(\\d+)@({PADDING[::-1]})?", self.template(padded_placeholders(roles), True))
            numbers = [int(n) for n in parts[2::4]]
            if list(zip(parts[::4], [*numbers, None], strict=True)) != self._segments(roles, True):
                raise ModelError(
                    "the tokenizer's chat template changes the white space of messages; use prompt_format='standard'"
                )
            flags = zip(numbers, parts[1::4], parts[3::4], strict=True)
            self._stripped_cache[roles] = [(left is None, right is None) for _, left, right in sorted(flags)]
        return self._stripped_cache[roles]

    @cached_property
    def _stripped_cache(self) -> dict[tuple[str, ...], list[tuple[bool, bool]]]:
        return {}

    def messages(self, task: Task, answer: Value | None = None) -> list[dict[str, str]]:
        """The chat of the task: a turn of user and of assistant for each demonstration, and the query.

        The instruction is the system's turn, or stands before the first input if the template has no such turn.
        """
        roles = ("user", "assistant") * len(task.demonstrations) + ("user",)
        system_turn = bool(task.instruction) and self._has_system_turn(roles)
        return chat_messages(task, self.notation, answer, system_turn=system_turn)

    def _has_system_turn(self, roles: tuple[str, ...]) -> bool:
        """Whether the template shows a system's turn before turns of these roles."""
        try:
            self._segments(("system", *roles), True)
        except ModelError:
            return False
        return True

    def pieces(self, task: Task, answer: Value | None = None) -> list[Piece]:
        messages = self.messages(task)
        (between, last), (closing, gap) = self._ends, self._opening
        pieces: list[Piece] = []
        context = ""
        roles = tuple(m["role"] for m in messages)
        stripped = self._stripped(roles)
        for before, number in self._segments(roles, True):
            context += before
            if number is None:
                break
            content = messages[number]["content"]
            if roles[number] != "assistant":
                left, right = stripped[number]
                content = content.lstrip() if left else content
                context += content.rstrip() if right else content
                continue
            own_gap = gap if gap and context.endswith(gap) else ""
            context = context.removesuffix(own_gap)
            pieces += [Piece(context.removeprefix(between) if pieces else context, "context")]
            pieces += self._answer(task, own_gap + content, between)
            context = ""
        pieces.append(Piece((context.removeprefix(between) if pieces else context) + closing, "context"))
        if answer is None:
            return pieces
        return pieces + self._answer(task, gap + kind_of(task).render(answer, self.notation), last)

    def _answer(self, task: Task, text: str, end: str) -> list[Piece]:
        for marker in self.ends:
            _refuse_marker(task, text, marker.strip() or marker, self.name)
        return [Piece(text, "answer"), Piece(end, "end")]

    def read(self, task: Task, text: str) -> Value:
        return read_answer(task, text, self.notation)

    def is_valid_prefix(self, task: Task, text: str) -> bool:
        return True  # chat models often write an introduction before the answer


def chat_messages(
    task: Task, notation: Notation, answer: Value | None = None, *, system_turn: bool = True
) -> list[dict[str, str]]:
    """The chat of a task; without `system_turn`, its instruction stands before the first input."""
    values = [v for d in task.demonstrations for v in (d.input, d.output)] + [task.query]
    contents = [kind_of(task).render(v, notation) for v in (values if answer is None else [*values, answer])]
    roles = ["user", "assistant"] * len(contents)
    if task.instruction and system_turn:
        roles, contents = ["system", *roles], [task.instruction, *contents]
    elif task.instruction:
        contents[0] = f"{task.instruction}\n\n{contents[0]}"
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def placeholders(roles: Sequence[str]) -> list[dict[str, str]]:
    """Messages of these roles with contents that can be located in a rendering: `@0@`, `@1@`, ..."""
    return [{"role": role, "content": f"@{n}@"} for n, role in enumerate(roles)]


PADDING = "\t \n"
"""White space that no template writes around a content."""


def padded_placeholders(roles: Sequence[str]) -> list[dict[str, str]]:
    """As `placeholders`, with white space around those of users and the system."""
    return [
        {**message, "content": message["content"] if message["role"] == "assistant" else
         f"{PADDING}{message['content']}{PADDING[::-1]}"}
        for message in placeholders(roles)
    ]  # fmt: skip


_THOUGHT = re.compile(
    r"[<\[\u25c1](?P<name>[^<>\[\]\u25c1\u25b7\s]*(?:think|thought|reason|reflect|analysis|scratch)[^<>\[\]\u25c1\u25b7\s]*)"
    r"[>\]\u25b7]|(?<=[>\]])(?:thought|thinking|analysis|reasoning)(?=\s|<|$)",
    re.IGNORECASE,
)
"""A mark of a thought such as `<think>`, `</think>`, `[THINK]`, `<|END_THINKING|>`, or a channel named after one."""


def _opens_thought(text: str) -> bool:
    """Whether the last mark of a thought in the text opens one."""
    marks = list(_THOUGHT.finditer(text))
    name = (marks[-1]["name"] or "") if marks else "/"
    return re.search(r"/|(?<![a-z])end(?![a-z])", name, re.IGNORECASE) is None


def _read(task: Task, text: str, notation: Notation) -> Value:
    """The value of an answer's text. Raises `ParseError`."""
    return canonical_output(task.kind, kind_of(task).parse(text, notation), [d.output for d in task.demonstrations])


def read_answer(task: Task, text: str, notation: Notation = STANDARD) -> Value:
    """The value of a chat model's answer, also behind an introduction. Raises `ParseError`."""
    try:
        return _read(task, text, notation)
    except ParseError:
        return _read(task, _last_block(text), notation)


def _refuse_marker(task: Task, text: str, marker: str, name: str) -> None:
    """Raises `TaskError` if the text of an answer contains `marker`, where reading it would stop in the format of this
    name."""
    if marker and marker in text:
        raise TaskError(
            f"{task.id}: the output {shortened(text.strip())} contains {marker!r}, which ends an answer in the prompt "
            f'format {name}; prompt_format="auto" takes a format that has room for every output, where there is one'
        )


def _last_block(text: str) -> str:
    """The last paragraph of a reply, without code fences: chat models often write an introduction."""
    lines = [line for line in text.strip().split("\n") if not line.startswith("```")]
    return "\n".join(lines).rsplit("\n\n", 1)[-1]


COMPACT_FORMAT = PlainFormat("compact", COMPACT, "I", "O", "\n")
"""For the bundled model: `I 3 1 4` / `O 4 1 3`, one line each."""
STANDARD_FORMAT = PlainFormat("standard", STANDARD, "Input:", "Output:", "\n\n")
"""For base models trained on ordinary text."""
PLAIN_FORMATS = {f.name: f for f in (COMPACT_FORMAT, STANDARD_FORMAT)}
FORMAT_NAMES = ("chat", *PLAIN_FORMATS)
"""Every prompt format; `chat` needs a tokenizer with a chat template."""


def check_format(name: str) -> str:
    """The name of a prompt format, or an empty one. Raises `TaskError` for any other."""
    if name and name not in FORMAT_NAMES:
        raise TaskError(f"prompt_format: expected one of {', '.join(FORMAT_NAMES)}; received {shortened(name)}")
    return name
