"""Converts a JSON object, in any of the formats that tasks are published in, into tasks. Knows nothing about files."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import TaskError, shortened
from .answers import canonical_output, check_comparison
from .fields import MISSING, check_name, check_seed, check_text, invalid_field, misspelled
from .kinds import KINDS, demonstration_of, kind_of_inputs
from .messages import Turn, read_chat
from .task import Demonstration, Task, Value, is_blank

ACCEPTED = """A task is a JSON object in one of these formats (output? may be left out):
  {"demonstrations": [{"input", "output"}, ...], "queries": [{"input", "output"?}, ...]}, or "query": an input;
  {"train": [{"input", "output"}, ...], "test": [{"input", "output"?}, ...]} (ARC);
  {"examples": [{"input", "target"}, ...]} (BIG-Bench Hard);
  {"messages": [{"role", "content"}, ...]}, user and assistant in turn, user last (chat).
Each may have an "id", the right "answer" where it has one query only, and a "comparison" of answers (exact,
ignore_case, words or number)."""


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
        if self.kind is not None and (not isinstance(self.kind, str) or self.kind not in KINDS):
            raise invalid_field("kind", f"one of {', '.join(KINDS)}", self.kind)
        if not isinstance(self.demonstrations, int) or self.demonstrations < 0:
            raise invalid_field("demonstrations", "a number that is not negative", self.demonstrations)
        check_seed(self.seed)


def is_task(data: Mapping[str, object]) -> bool:
    """Whether `data` has the fields of a format; their values may still be invalid."""
    return any(fields & data.keys() for fields, _ in _FORMATS)


def misspelled_field(data: Mapping[str, object]) -> tuple[str, str] | None:
    """A field of an object for which `is_task` holds that is not read, but spelled like one that is absent, and that
    one; also among the examples."""
    known = _KNOWN_FIELDS[_format_of(data)[0]]
    if (pair := misspelled(data, known)) is not None:
        return pair
    for field in _EXAMPLE_LISTS & data.keys():
        examples = data[field]
        names = ("input", "target" if field == "examples" else "output")
        for example in examples if isinstance(examples, list) else ():
            if isinstance(example, dict) and (pair := misspelled(example, names)) is not None:
                return pair
    return None


def read_object(data: Mapping[str, object], settings: ReadSettings, *, id: str, dataset: str) -> tuple[Task, ...]:
    """The tasks of an object for which `is_task` holds: one for each query, all of one group.

    `id` and `dataset` are defaults. Raises `TaskError` that names the invalid field.
    """
    _, read = _format_of(data)
    draft = read(data, settings)
    return _tasks(_with_own_fields(draft, data), settings.kind, id, dataset)


def _format_of(data: Mapping[str, object]) -> _Format:
    """The first format that has a field in common with the object; null is none: rows of a table have every field."""
    given = {name for name, value in data.items() if value is not None}
    return next(one for names in (given, data.keys()) for one in _FORMATS if one[0] & names)


def task_from_messages(messages: Sequence[Mapping[str, object]], *, id: str = "task") -> Task:
    """The text task of a chat: pairs of user and assistant are the demonstrations, the last user message the query.

    A leading system message is the instruction. Raises `TaskError` that names an invalid message, or one out of order.

    >>> chat = [("user", "cat"), ("assistant", "tac"), ("user", "dog")]
    >>> task_from_messages([{"role": role, "content": content} for role, content in chat]).query
    'dog'
    """
    return read_object({"messages": messages}, ReadSettings(), id=id, dataset="")[0]


@dataclass(frozen=True)
class _Example:
    """Unchecked input and output from JSON, with the names of their fields."""

    number: int
    input: object
    output: object
    input_field: str
    output_field: str

    def checked(self, kind: str) -> Demonstration:
        source, target = _checked(kind, self.input, self.input_field), _checked(kind, self.output, self.output_field)
        return demonstration_of(kind, source, target, self.output_field)

    def checked_query(self, kind: str, shown: Sequence[Value]) -> tuple[Value, Value | None]:
        """The query, and its answer if it has one; `shown` are the outputs of the demonstrations."""
        query = _checked(kind, self.input, self.input_field)
        if self.output is None or self.output is MISSING:
            return query, None
        return query, canonical_output(kind, _checked(kind, self.output, self.output_field), shown)


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
    comparison: object = None


def _with_own_fields(draft: _Draft, data: Mapping[str, object]) -> _Draft:
    """The draft with the object's id, family, dataset and instruction, and the answer to its only query.

    Raises `TaskError` for an answer where there are more queries, or that contradicts the query's own output.
    """
    own = {name: data[name] for name in ("id", "family", "dataset") if data.get(name) is not None}
    draft = replace(
        draft, id=own.get("id"), family=own.get("family"), dataset=own.get("dataset", draft.dataset),
        instruction=draft.instruction if is_blank(data.get("instruction")) else data["instruction"],
        comparison=data.get("comparison"),
    )  # fmt: skip
    answer = data.get("answer")
    if answer is None or data.get("query") is not None:
        return draft
    if len(draft.queries) != 1:
        raise invalid_field("answer", f"outputs in the {len(draft.queries)} queries, as one answer fits one", answer)
    (query,) = draft.queries
    if query.output is not None and query.output is not MISSING and not _is_same_output(draft, query.output, answer):
        raise invalid_field("answer", f"the {query.output_field}, {shortened(query.output)}, or nothing", answer)
    return replace(draft, queries=[replace(query, output=answer, output_field="answer")])


def _tasks(draft: _Draft, kind: str | None, id: str, dataset: str) -> tuple[Task, ...]:
    group = _name(draft.id, "id", id)
    kind = _kind(draft) if kind is None else kind
    instruction = None if draft.instruction is None else str(_checked("text", draft.instruction, "instruction"))
    family, dataset = _name(draft.family, "family", group), _name(draft.dataset, "dataset", dataset)
    demonstrations = tuple(d.checked(kind) for d in draft.demonstrations)
    shown = [d.output for d in demonstrations]
    comparison = check_comparison(draft.comparison, kind)
    tasks = []
    for example in draft.queries:
        query, answer = example.checked_query(kind, shown)
        name = group if len(draft.queries) == 1 else f"{group}#{example.number}"
        tasks.append(Task(kind, demonstrations, query, answer, instruction, name, family, dataset, group, comparison))
    return tuple(tasks)


def _kind(draft: _Draft) -> str:
    if draft.kind is None:
        return kind_of_inputs(e.input for e in draft.demonstrations + draft.queries)
    if not isinstance(draft.kind, str) or draft.kind not in KINDS:
        raise invalid_field("kind", f"one of {', '.join(KINDS)}", draft.kind)
    return draft.kind


def _checked(kind: str, raw: object, field: str) -> Value:
    try:
        return KINDS[kind].check(raw)
    except TaskError as error:
        raise TaskError(f"{field}: {error}") from None


def _name(raw: object, field: str, default: str) -> str:
    return check_text(default, field) if raw is None else check_name(raw, field)


def _is_same_output(draft: _Draft, one: object, other: object) -> bool:
    """Whether two outputs are the same, texts in the form that the outputs of the demonstrations show."""
    if not isinstance(one, str) or not isinstance(other, str):
        return one == other
    shown = [example.output for example in draft.demonstrations if isinstance(example.output, str)]
    return canonical_output("text", one, shown) == canonical_output("text", other, shown)


def _examples(data: Mapping[str, object], field: str, output: str = "output", minimum: int = 0) -> list[_Example]:
    """The examples in `data[field]`, at least `minimum` of them; their values are not checked."""
    shape = f'{{"input", "{output}"}}'
    raw = data.get(field, MISSING)
    if not isinstance(raw, list):
        raise invalid_field(field, f"a list of objects {shape}", raw)
    if len(raw) < minimum:
        raise TaskError(f"{field}: expected at least {minimum} of {shape}; received {len(raw)}")
    examples = []
    for number, item in enumerate(raw):
        where = f"{field}[{number}]"
        if not isinstance(item, dict):
            raise invalid_field(where, f"an object {shape}", item)
        source, target = item.get("input", MISSING), item.get(output, MISSING)
        examples.append(_Example(number, source, target, f"{where}.input", f"{where}.{output}"))
    return examples


def _from_demonstrations(data: Mapping[str, object], settings: ReadSettings) -> _Draft:
    query, queries = data.get("query"), data.get("queries")
    if query is not None and queries is not None:
        raise TaskError("query: expected either query or queries; received both")
    if query is not None or ("query" in data and queries is None):
        queries = [_Example(0, data["query"], data.get("answer"), "query", "answer")]
    else:
        queries = _examples(data, "queries", minimum=1)
    return _Draft(_examples(data, "demonstrations"), queries, kind=data.get("kind"))


def _from_arc(data: Mapping[str, object], settings: ReadSettings) -> _Draft:
    return _Draft(_examples(data, "train"), _examples(data, "test", minimum=1), kind="grid")


def _from_bbh(data: Mapping[str, object], settings: ReadSettings) -> _Draft:
    examples, count = _examples(data, "examples", output="target"), settings.demonstrations
    if len(examples) <= count:
        raise TaskError(
            f'examples: expected at least {count + 1} of {{"input", "target"}}, {count} of them for demonstrations '
            f"(--demonstrations, demonstrations=); received {len(examples)}"
        )
    sampled = random.Random(settings.seed).sample(range(len(examples)), count)
    queries = [e for e in examples if e.number not in sampled]
    demonstrations = [examples[n] for n in sampled]
    return _Draft(demonstrations, queries, kind="text", dataset="bbh")


def _from_messages(data: Mapping[str, object], settings: ReadSettings) -> _Draft:
    messages = data["messages"]
    chat = read_chat(messages)
    if chat.query is None:
        last = messages[-1] if isinstance(messages, (list, tuple)) and messages else None
        received = last.get("role") if isinstance(last, Mapping) else messages
        raise invalid_field("messages", "a last message from 'user', the query", received)

    def example(user: Turn, assistant: Turn | None) -> _Example:
        number = user.number + 1 if assistant is None else assistant.number
        output = None if assistant is None else assistant.text
        fields = f"messages[{user.number}].content", f"messages[{number}].content"
        return _Example(user.number, user.text, output, *fields)

    pairs = [example(user, assistant) for user, assistant in chat.demonstrations()]
    return _Draft(pairs, [example(chat.query, None)], kind="text", instruction=chat.instruction)


_Format = tuple[frozenset[str], Callable[[Mapping[str, object], ReadSettings], _Draft]]
"""The fields of a format, and the function that reads it."""
_FORMATS: Sequence[_Format] = (
    (frozenset({"messages"}), _from_messages),
    (frozenset({"demonstrations", "queries", "query"}), _from_demonstrations),
    (frozenset({"train", "test"}), _from_arc),
    (frozenset({"examples"}), _from_bbh),
)
"""The first format that has a field in common with an object is its format."""
_OWN_FIELDS = ("id", "answer", "instruction", "family", "dataset", "comparison")
_KNOWN_FIELDS = {
    fields: (*sorted(fields), *_OWN_FIELDS, *(("kind",) if "queries" in fields else ())) for fields, _ in _FORMATS
}
_EXAMPLE_LISTS = frozenset({"demonstrations", "queries", "train", "test", "examples"})

__all__ = [
    "ACCEPTED", "ReadSettings", "invalid_field", "is_task", "misspelled_field", "read_object",
    "task_from_messages",
]  # fmt: skip
