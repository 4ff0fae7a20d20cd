"""Converts a JSON object, in any of the formats that tasks are published in, into tasks. Knows nothing about files."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import TaskError
from .kinds import KINDS, guess_kind, shortened
from .task import Demonstration, Task, Value

ACCEPTED = """A task is a JSON object in one of these formats (output? may be left out):
  {"demonstrations": [{"input", "output"}, ...], "queries": [{"input", "output"?}, ...]}, or "query": an input;
  {"train": [{"input", "output"}, ...], "test": [{"input", "output"?}, ...]} (ARC);
  {"examples": [{"input", "target"}, ...]} (BIG-Bench Hard);
  {"messages": [{"role", "content"}, ...]}, user and assistant in turn, user last (chat)."""


@dataclass(frozen=True)
class ReadSettings:
    """Options of reading."""

    demonstrations: int = 10
    """Number of examples that become demonstrations if the format does not say which ones are."""
    seed: int = 0
    """Seed for sampling those demonstrations."""
    kind: str | None = None
    """Overrides the kind of every task."""

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise invalid_field("kind", f"one of {', '.join(KINDS)}", self.kind)
        if self.demonstrations < 0:
            raise invalid_field("demonstrations", "a number that is not negative", self.demonstrations)


def is_task(data: Mapping[str, object]) -> bool:
    """Whether `data` has the fields of a format; their values may still be invalid."""
    return any(fields & data.keys() for fields, _ in _FORMATS)


def read_object(data: Mapping[str, object], settings: ReadSettings, *, id: str, dataset: str) -> tuple[Task, ...]:
    """The tasks of an object for which `is_task` holds: one for each query, all of one group.

    `id` and `dataset` are defaults. Raises `TaskError` that names the invalid field.
    """
    draft = next(read for fields, read in _FORMATS if fields & data.keys())(data, settings)
    return _tasks(draft, settings.kind, id, dataset)


def task_from_messages(messages: Sequence[Mapping[str, object]], *, id: str = "task") -> Task:
    """The text task of a chat: pairs of user and assistant are the demonstrations, the last user message the query.

    A leading system message is the instruction. Raises `TaskError` that names an invalid message, or one out of order.

    >>> chat = [("user", "cat"), ("assistant", "tac"), ("user", "dog")]
    >>> task_from_messages([{"role": role, "content": content} for role, content in chat]).query
    'dog'
    """
    return read_object({"messages": messages}, ReadSettings(), id=id, dataset="")[0]


class _Missing:
    """Placeholder for a missing field; its `repr` says so in error messages."""

    def __repr__(self) -> str:
        return "nothing: the field is missing"


_MISSING = _Missing()


@dataclass(frozen=True)
class _Example:
    """Unchecked input and output from JSON, with the names of their fields."""

    number: int
    input: object
    output: object
    input_field: str
    output_field: str

    def checked(self, kind: str) -> Demonstration:
        return Demonstration(_checked(kind, self.input, self.input_field), self.checked_output(kind))

    def checked_output(self, kind: str) -> Value:
        return _checked(kind, self.output, self.output_field)

    def checked_query(self, kind: str) -> tuple[Value, Value | None]:
        has_answer = self.output is not None and self.output is not _MISSING
        return _checked(kind, self.input, self.input_field), self.checked_output(kind) if has_answer else None


@dataclass(frozen=True)
class _Draft:
    """An unchecked task from JSON with all of its queries; absent fields are None."""

    demonstrations: list[_Example]
    queries: list[_Example]
    kind: object = None
    instruction: object = None
    id: object = None
    family: object = None
    dataset: object = None


def _tasks(draft: _Draft, kind: str | None, id: str, dataset: str) -> tuple[Task, ...]:
    group = _name(draft.id, "id", id)
    kind = _kind(draft) if kind is None else kind
    instruction = None if draft.instruction is None else str(_checked("text", draft.instruction, "instruction"))
    family, dataset = _name(draft.family, "family", group), _name(draft.dataset, "dataset", dataset)
    demonstrations = tuple(d.checked(kind) for d in draft.demonstrations)
    tasks = []
    for example in draft.queries:
        query, answer = example.checked_query(kind)
        name = group if len(draft.queries) == 1 else f"{group}#{example.number}"
        tasks.append(Task(kind, demonstrations, query, answer, instruction, name, family, dataset, group))
    return tuple(tasks)


def _kind(draft: _Draft) -> str:
    if draft.kind is None:
        inputs = [e.input for e in draft.demonstrations + draft.queries]
        return guess_kind(next((x for x in inputs if isinstance(x, (str, list))), None))
    if not isinstance(draft.kind, str) or draft.kind not in KINDS:
        raise invalid_field("kind", f"one of {', '.join(KINDS)}", draft.kind)
    return draft.kind


def invalid_field(field: str, expected: str, received: object) -> TaskError:
    """The error for a field with an invalid value."""
    return TaskError(f"{field}: expected {expected}; received {shortened(received)}")


def _checked(kind: str, raw: object, field: str) -> Value:
    try:
        return KINDS[kind].check(raw)
    except TaskError as error:
        raise TaskError(f"{field}: {error}") from None


def _name(raw: object, field: str, default: str) -> str:
    if raw is None:
        return default
    if isinstance(raw, int) and not isinstance(raw, bool):
        return str(raw)
    if not isinstance(raw, str) or not raw.strip():
        raise invalid_field(field, "a text that is not blank, or an integer", raw)
    return str(_checked("text", raw, field))


def _examples(data: Mapping[str, object], field: str, output: str = "output", minimum: int = 0) -> list[_Example]:
    """The examples in `data[field]`, at least `minimum` of them; their values are not checked."""
    shape = f'{{"input", "{output}"}}'
    raw = data.get(field, _MISSING)
    if not isinstance(raw, list):
        raise invalid_field(field, f"a list of objects {shape}", raw)
    if len(raw) < minimum:
        raise TaskError(f"{field}: expected at least {minimum} of {shape}; received {len(raw)}")
    examples = []
    for number, item in enumerate(raw):
        where = f"{field}[{number}]"
        if not isinstance(item, dict):
            raise invalid_field(where, f"an object {shape}", item)
        source, target = item.get("input", _MISSING), item.get(output, _MISSING)
        examples.append(_Example(number, source, target, f"{where}.input", f"{where}.{output}"))
    return examples


def _from_demonstrations(data: Mapping[str, object], settings: ReadSettings) -> _Draft:
    if "query" in data and "queries" in data:
        raise TaskError("query: expected either query or queries; received both")
    if "query" in data:
        queries = [_Example(0, data["query"], data.get("answer"), "query", "answer")]
    else:
        queries = _examples(data, "queries", minimum=1)
    fields = {name: data.get(name) for name in ("kind", "instruction", "id", "family", "dataset")}
    return _Draft(_examples(data, "demonstrations"), queries, **fields)


def _from_arc(data: Mapping[str, object], settings: ReadSettings) -> _Draft:
    return _Draft(_examples(data, "train"), _examples(data, "test", minimum=1), kind="grid")


def _from_bbh(data: Mapping[str, object], settings: ReadSettings) -> _Draft:
    examples = _examples(data, "examples", output="target", minimum=settings.demonstrations + 1)
    sampled = random.Random(settings.seed).sample(range(len(examples)), settings.demonstrations)
    queries = [e for e in examples if e.number not in sampled]
    return _Draft([examples[n] for n in sampled], queries, kind="text", dataset="bbh")


def _from_messages(data: Mapping[str, object], settings: ReadSettings) -> _Draft:
    messages = data["messages"]
    if not isinstance(messages, (list, tuple)):
        raise invalid_field("messages", 'a list of objects {"role", "content"}', messages)
    pairs = [_message(message, f"messages[{n}]") for n, message in enumerate(messages)]
    first = 1 if pairs and pairs[0][0] == "system" else 0
    for n, (role, _) in enumerate(pairs[first:]):
        expected = ("user", "assistant")[n % 2]
        if role != expected:
            raise invalid_field(f"messages[{n + first}].role", f"{expected!r}, as user and assistant take turns", role)
    if len(pairs) % 2 == first:
        raise invalid_field("messages", "a last message from 'user', the query", pairs[-1][0] if pairs else messages)
    examples = []
    for n in range(first, len(pairs), 2):
        answer = pairs[n + 1][1] if n + 1 < len(pairs) else None
        examples.append(_Example(n, pairs[n][1], answer, f"messages[{n}].content", f"messages[{n + 1}].content"))
    return _Draft(examples[:-1], examples[-1:], kind="text", instruction=pairs[0][1] if first else None)


def _message(message: object, field: str) -> tuple[object, object]:
    """The role and the content of a message."""
    if not isinstance(message, Mapping):
        raise invalid_field(field, 'an object {"role", "content"}', message)
    content = _join_parts(message.get("content", _MISSING), f"{field}.content")
    return message.get("role", _MISSING), _checked("text", content, f"{field}.content")


def _join_parts(content: object, field: str) -> object:
    """The text of a content that is a list of parts; any other content unchanged."""
    if not isinstance(content, (list, tuple)) or not content:
        return content
    for n, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise invalid_field(
                f"{field}[{n}]", 'a part {"type": "text", "text": ...}, since only text can be read', part
            )
    return "".join(part["text"] for part in content)


_FORMATS: Sequence[tuple[frozenset[str], Callable[[Mapping[str, object], ReadSettings], _Draft]]] = (
    (frozenset({"messages"}), _from_messages),
    (frozenset({"demonstrations", "queries", "query"}), _from_demonstrations),
    (frozenset({"train", "test"}), _from_arc),
    (frozenset({"examples"}), _from_bbh),
)
"""The first format that has a field in common with an object is its format."""

__all__ = ["ACCEPTED", "ReadSettings", "invalid_field", "is_task", "read_object", "task_from_messages"]
