"""Reads chats as tasks: which messages are demonstrations, which is the query, which are instructions.

Knows nothing about kinds of task: contents are texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .fields import MISSING, check_text, invalid_field

_SYSTEM_ROLES = ("system", "developer")
_NAMED_ROLES = {"example_user": "user", "example_assistant": "assistant"}
"""Names that make a message, of the system as a rule, a turn of a demonstration."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_TOOL_FIELDS = ("tool_calls", "function_call", "tool_call_id")
_TOOL_ROLES = ("tool", "function")


@dataclass(frozen=True)
class Turn:
    """What one message of a user or an assistant says."""

    number: int
    """Position among the messages, from 0."""
    role: str
    text: str


@dataclass(frozen=True)
class Chat:
    """The messages of a chat by what they are to a task."""

    instruction: str | None
    """The texts of the system, joined by blank lines."""
    pairs: tuple[tuple[Turn, Turn], ...]
    """What a user wrote and how an assistant answered."""
    query: Turn | None
    """The last turn, of a user; None if an assistant answered every turn."""

    def demonstrations(self, field: str = "messages") -> tuple[tuple[Turn, Turn], ...]:
        """The pairs, to learn from. Raises `TaskError` for an answer without a text, which a conversation may have."""
        for _, assistant in self.pairs:
            if not assistant.text.strip():
                expected = (
                    "an answer with a text: leave out the pair (in a task with demonstrations an output may be empty)"
                )
                raise invalid_field(f"{field}[{assistant.number}].content", expected, assistant.text)
        return self.pairs


def read_chat(messages: object, field: str = "messages") -> Chat:
    """The parts of a chat. Raises `TaskError` that names an invalid message, or one out of order."""
    if not isinstance(messages, (list, tuple)):
        raise invalid_field(field, 'a list of objects {"role", "content"}', messages)
    turns: list[Turn] = []
    instructions: list[str] = []
    for number, message in enumerate(messages):
        where = f"{field}[{number}]"
        role, text = _read_message(message, where)
        if role in _SYSTEM_ROLES and len(turns) % 2 == 0:
            instructions.append(text)
            continue
        expected = ("user", "assistant")[len(turns) % 2]
        if role != expected:
            raise invalid_field(f"{where}.role", f"{expected!r}, as user and assistant take turns", role)
        turns.append(Turn(number, expected, text))
    pairs = tuple(zip(turns[::2], turns[1::2], strict=False))
    return Chat("\n\n".join(instructions) or None, pairs, turns[-1] if len(turns) % 2 else None)


def _read_message(message: object, where: str) -> tuple[object, str]:
    """The role and the text of a message; that of an example is its name's."""
    if not isinstance(message, Mapping):
        raise invalid_field(where, 'an object {"role", "content"}', message)
    role = message.get("role", MISSING)
    tools = next((name for name in _TOOL_FIELDS if message.get(name)), None)
    if tools is not None or (isinstance(role, str) and role in _TOOL_ROLES):
        received = f"{where}.{tools}" if tools is not None else f"{where}.role"
        expected = "messages without tool calls, which are no demonstrations: leave out the calls and their results"
        raise invalid_field(received, expected, message[tools] if tools is not None else role)
    if is_example(message):
        role = _NAMED_ROLES[message["name"]]
    content = _join_parts(message.get("content", MISSING), f"{where}.content")
    return role, check_text(content, f"{where}.content")


def is_example(message: Mapping[str, object]) -> bool:
    """Whether a message is marked as a turn of a demonstration, as OpenAI documents it: by its name, and a role of the
    system or of that turn."""
    name, role = message.get("name"), message.get("role")
    return isinstance(name, str) and name in _NAMED_ROLES and role in (*_SYSTEM_ROLES, _NAMED_ROLES[name])


def _join_parts(content: object, field: str) -> object:
    """The text of a content that is a list of parts; any other content unchanged."""
    if not isinstance(content, (list, tuple)) or not content:
        return content
    for n, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            expected = 'a part {"type": "text", "text": ...}, since only text can be read'
            raise invalid_field(f"{field}[{n}]", expected, part)
    return "".join(part["text"] for part in content)


def are_messages(values: Sequence[object]) -> bool:
    """Whether the first of the values is an object with a role, as those of a chat are."""
    return bool(values) and isinstance(values[0], Mapping) and "role" in values[0]
