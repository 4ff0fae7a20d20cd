"""Kinds of task: how a value of each kind is checked, written as text and read back, and which transformations it has.

Knows nothing about models. A notation says how values are spelled; the bundled model and large models use different
ones.
"""

from __future__ import annotations

import numbers
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import ParseError, TaskError, shortened
from .answers import canonical_output, check_comparison
from .fields import MISSING, check_name, check_text, invalid_field, is_utf8
from .messages import are_messages, read_chat
from .task import Demonstration, Task, Value, as_grid, is_blank
from .transformations import Transformation, draw_grid_transformations, draw_list_transformations

MAX_SIDE = 64
"""Longest side of a grid, in cells. The length of a single row is not limited."""


_PLAIN = frozenset({int})
_LARGEST = 2**63 - 1
"""Largest integer in a list: the state of a graph, and tables of outcomes, hold integers of 64 bits."""
_INTEGER, _INTEGER_PREFIX = r"\s*-?\d{1,19}\s*", r"\s*-?\d{0,19}\s*\ufffd*"


@dataclass(frozen=True)
class Notation:
    """How values are written as text. Both notations can be parsed back exactly."""

    name: str
    list_open: str
    list_separator: str
    list_close: str
    row_separator: str
    escapes_newlines: bool
    """Whether line breaks in a text are written as backslash-n, because a line break ends an answer."""


STANDARD = Notation("standard", "[", ", ", "]", "\n", False)
"""`[3, 14, 5]`; grids as lines of cells, as in published prompts for large models."""

COMPACT = Notation("compact", "", " ", "", " / ", True)
"""`3 14 5`; grids as rows of cells separated by ` / `. The bundled model's tokenizer has one token per number."""

NOTATIONS: Mapping[str, Notation] = {n.name: n for n in (STANDARD, COMPACT)}


class Kind(Protocol):
    """The operations that depend on the kind of a value."""

    @property
    def name(self) -> str: ...

    def check(self, raw: object) -> Value:
        """The canonical value of `raw` (from JSON, or with arrays in place of lists).

        Raises `TaskError` that says what was expected.
        """
        ...

    def render(self, value: Value, notation: Notation) -> str: ...

    def parse(self, text: str, notation: Notation) -> Value:
        """The value that `text` represents. Raises `ParseError` if there is none."""
        ...

    def is_valid_prefix(self, text: str, notation: Notation) -> bool:
        """Whether the text of some value may begin with `text`. If not, `parse` fails whatever follows."""
        ...

    def transformations(self, task: Task, count: int, rng: random.Random) -> list[Transformation]:
        """Up to `count` different transformations that suit the task; never the identity."""
        ...


def _is_int(x: object) -> bool:
    return isinstance(x, (int, numbers.Integral)) and not isinstance(x, bool)


def _as_list(raw: object) -> object:
    """Arrays (NumPy and similar) as lists; anything else unchanged."""
    tolist = None if isinstance(raw, (list, tuple)) else getattr(raw, "tolist", None)
    return tolist() if callable(tolist) else raw


def _as_lists(raw: object) -> object:
    """As `_as_list`, also for rows that are arrays within a list."""
    rows = _as_list(raw)
    return [_as_list(row) for row in rows] if isinstance(rows, (list, tuple)) else rows


@dataclass(frozen=True)
class GridKind:
    """Rows of cells 0-9, all of the same length; with `one_row`, a single row."""

    name: str
    one_row: bool

    def check(self, raw: object) -> Value:
        expected = "one row: [[0, 1, ...]]" if self.one_row else "rows of equal length: [[0, 1], [1, 0]]"
        raw = _as_lists(raw)
        if not isinstance(raw, (list, tuple)) or not raw or not all(isinstance(r, (list, tuple)) and r for r in raw):
            raise TaskError(f"expected a grid, {expected}, cells 0-9; received {shortened(raw)}")
        if self.one_row and len(raw) != 1:
            raise TaskError(f"expected {expected}; received {len(raw)} rows (kind 'grid' takes many)")
        if len({len(r) for r in raw}) != 1:
            raise TaskError(f"expected {expected}; received rows of lengths {[len(r) for r in raw]}")
        wrong = [c for r in raw for c in r if not (_is_int(c) and 0 <= c <= 9)][:1]
        if wrong:
            (received,) = wrong
            raise TaskError(f"expected cells that are integers 0-9; received {shortened(received)}")
        if not self.one_row and max(len(raw), len(raw[0])) > MAX_SIDE:
            raise TaskError(f"expected sides of at most {MAX_SIDE} cells; received {len(raw)} x {len(raw[0])}")
        return tuple(tuple(int(c) for c in r) for r in raw)

    def render(self, value: Value, notation: Notation) -> str:
        return notation.row_separator.join(" ".join(map(str, row)) for row in as_grid(value))

    def parse(self, text: str, notation: Notation) -> Value:
        rows = text.strip().split(notation.row_separator.strip() or notation.row_separator)
        try:
            return self.check([self._row(row.split()) for row in rows])
        except ValueError as error:
            raise ParseError(f"not a {self.name}: {shortened(text)} ({error})") from None

    def is_valid_prefix(self, text: str, notation: Notation) -> bool:
        *complete, last = text.strip().split(notation.row_separator.strip() or notation.row_separator)
        if complete and self.one_row:
            return False
        cells = last.split()
        try:
            widths = {len(self._row(row.split())) for row in complete}
            self._row(cells[:-1])
        except ValueError:
            return False
        last_cell_valid = re.fullmatch(r"[0-9]?\ufffd*", cells[-1]) is not None if cells else True
        return len(widths) < 2 and 0 not in widths and len(cells) <= min(widths, default=len(cells)) and last_cell_valid

    @staticmethod
    def _row(cells: list[str]) -> list[int]:
        """The cells of a row, one digit each. Raises `ValueError`."""
        if invalid := next((c for c in cells if not re.fullmatch("[0-9]", c)), None):
            raise ValueError(f"expected cells 0-9; received {shortened(invalid)}")
        return [int(c) for c in cells]

    def transformations(self, task: Task, count: int, rng: random.Random) -> list[Transformation]:
        return draw_grid_transformations(count, rng, one_row=self.one_row)


def _not_a_list_of_integers(raw: object) -> TaskError:
    """The error also says how numbers and objects are given: a list is the kind of inputs that show no other."""
    expected = "a list of integers such as [3, 1, 4] (a task of other values has strings throughout)"
    return TaskError(f"expected {expected}; received {shortened(raw)}")


@dataclass(frozen=True)
class ListKind:
    """A list of integers, possibly empty."""

    name: str = "list"

    def check(self, raw: object) -> Value:
        raw = raw if type(raw) is list else _as_list(raw)
        if not isinstance(raw, (list, tuple)):
            raise _not_a_list_of_integers(raw)
        plain = _PLAIN.issuperset(map(type, raw))
        if not plain and not all(map(_is_int, raw)):
            raise _not_a_list_of_integers(raw)
        integers = tuple(raw if plain else map(int, raw))
        if integers and (max(integers) > _LARGEST or min(integers) < -_LARGEST):
            received = next(i for i in integers if abs(i) > _LARGEST)
            raise TaskError(f"expected integers between -{_LARGEST} and {_LARGEST}; received {shortened(received)}")
        return integers

    def render(self, value: Value, notation: Notation) -> str:
        if not value:
            return "[]"
        return notation.list_open + notation.list_separator.join(map(str, value)) + notation.list_close

    def parse(self, text: str, notation: Notation) -> Value:
        body = text.strip()
        if body == "[]":
            return ()
        if notation.list_open:
            if not (body.startswith(notation.list_open) and body.endswith(notation.list_close)):
                raise ParseError(f"not a list: {shortened(text)}")
            body = body[len(notation.list_open) : -len(notation.list_close)]
        parts = body.split(notation.list_separator.strip() or None)
        integers = tuple(int(p) if re.fullmatch(_INTEGER, p) else _LARGEST + 1 for p in parts)
        if not integers or max(map(abs, integers)) > _LARGEST:
            raise ParseError(f"not a list of integers of at most 64 bits: {shortened(text)}")
        return integers

    def is_valid_prefix(self, text: str, notation: Notation) -> bool:
        body = text.rstrip("\ufffd").strip()
        if body.startswith("[") and not notation.list_open:
            return body in ("[", "[]")
        if not body.startswith(notation.list_open):
            return not body
        *complete, last = body[len(notation.list_open) :].split(notation.list_separator.strip() or None) or [""]
        if notation.list_close and notation.list_close in last:
            last, _, after = last.partition(notation.list_close)
            if after.strip() or not (last.strip() or not complete):
                return False
        all_integers = all(re.fullmatch(_INTEGER, p) for p in complete)
        return all_integers and re.fullmatch(_INTEGER_PREFIX, last) is not None

    def transformations(self, task: Task, count: int, rng: random.Random) -> list[Transformation]:
        return draw_list_transformations(task, count, rng)


@dataclass(frozen=True)
class TextKind:
    """Any text. It has no transformations."""

    name: str = "text"

    def check(self, raw: object) -> Value:
        if not isinstance(raw, str):
            raise TaskError(f"expected a text; received {shortened(raw)}")
        if not is_utf8(raw):
            raise TaskError(f"expected a text that can be written as UTF-8; received {shortened(raw)}")
        return raw

    def render(self, value: Value, notation: Notation) -> str:
        text = str(value)
        return text.replace("\\", "\\\\").replace("\n", "\\n") if notation.escapes_newlines else text

    def parse(self, text: str, notation: Notation) -> Value:
        if not notation.escapes_newlines:
            return text
        return re.sub(r"\\(\\|n)", lambda m: "\n" if m[1] == "n" else "\\", text)

    def is_valid_prefix(self, text: str, notation: Notation) -> bool:
        return True

    def transformations(self, task: Task, count: int, rng: random.Random) -> list[Transformation]:
        return []


KINDS: Mapping[str, Kind] = {
    "grid": GridKind("grid", one_row=False),
    "grid1d": GridKind("grid1d", one_row=True),
    "list": ListKind(),
    "text": TextKind(),
}


def kind_of(task: Task) -> Kind:
    """The kind of a task."""
    return KINDS[task.kind]


def guess_kind(raw: object) -> str:
    """The kind of `raw` by its shape: text, list, or grid. Accepts what `Kind.check` accepts."""
    raw = _as_lists(raw)
    if isinstance(raw, str):
        return "text"
    if isinstance(raw, (list, tuple)) and raw and all(isinstance(r, (list, tuple)) for r in raw):
        return "grid"
    return "list"


def kind_of_inputs(inputs: Iterable[object]) -> str:
    """The kind by the shape of the first input that is a text, a list or an array; a list where none is."""
    shapes = map(_as_list, inputs)
    return guess_kind(next((shape for shape in shapes if isinstance(shape, (str, list, tuple))), None))


def make_task(
    demonstrations: Iterable[object],
    query: object = MISSING,
    *,
    kind: str | None = None,
    answer: object = None,
    instruction: str | None = None,
    id: str = "task",
    family: str = "",
    dataset: str = "",
    group: str = "",
    comparison: str | None = None,
) -> Task:
    """A checked task from lists, NumPy arrays and strings. Without `kind`, the shape of the first input
    decides it.

    A demonstration is a pair (input, output) or an object {"input", "output"}. The demonstrations may also be the
    messages of a chat, as OpenAI's clients write them; then the query may be its last message, of a user.
    `comparison` names how answers are compared: `exact` unless given, or a key of `answers.COMPARISONS`.

    Raises `TaskError` that names the invalid field.

    >>> make_task([([1, 2], [2, 1]), ([3, 4], [4, 3])], [5, 6]).kind
    'list'
    """
    pairs, query, instruction = _parts(demonstrations, query, instruction)
    name = kind_of_inputs([*(source for source, _ in pairs), query]) if kind is None else kind
    if not isinstance(name, str) or name not in KINDS:
        raise invalid_field("kind", f"one of {', '.join(KINDS)}", name)
    check = KINDS[name].check

    def checked(raw: object, field: str, number: int = -1, side: str = "") -> Value:
        try:
            return check(raw)
        except TaskError as error:
            raise TaskError(f"{field if number < 0 else f'{field}[{number}].{side}'}: {error}") from None

    shown = tuple(
        demonstration_of(name, checked(a, "demonstrations", i, "input"), checked(b, "demonstrations", i, "output"), i)
        for i, (a, b) in enumerate(pairs)
    )
    right = None if answer is None else canonical_output(name, checked(answer, "answer"), [d.output for d in shown])
    texts = {"family": family, "dataset": dataset, "group": group}
    family, dataset, group = (check_text(text, field) for field, text in texts.items())
    if instruction is not None:
        check_text(instruction, "instruction")
    id = check_name(id, "id")
    return Task(
        name, shown, checked(query, "query"), right, instruction, id, family, dataset, group or id,
        comparison=check_comparison(comparison, name),
    )  # fmt: skip


def demonstration_of(kind: str, source: Value, target: Value, field: str | int) -> Demonstration:
    """A demonstration of checked values, with its output in canonical form. Raises `TaskError` for an empty pair of
    texts; `field` is the output's name in the error, or the number of the demonstration."""
    if kind != "text":
        return Demonstration(source, target)
    output = canonical_output(kind, target, [target])
    if output == "" and not str(source).strip():
        name = field if isinstance(field, str) else f"demonstrations[{field}].output"
        raise invalid_field(name, "a demonstration that is not empty", target)
    return Demonstration(source, output)


def _parts(
    demonstrations: Iterable[object], query: object, instruction: str | None
) -> tuple[list[tuple[object, object]], object, str | None]:
    """Pairs of input and output, the query and the instruction, unchecked. Raises `TaskError` for what is no pair."""
    raw = None if isinstance(demonstrations, (str, bytes, Mapping)) else _as_sequence(demonstrations)
    if raw is None:
        raise invalid_field("demonstrations", "a list of pairs (input, output)", demonstrations)
    if are_messages(raw):
        chat = read_chat(raw, "demonstrations")
        if (query is MISSING or query is None) and chat.query is not None:
            query = chat.query.text
        elif chat.query is not None:
            raise TaskError("query: expected no query with a chat that ends with one; received both")
        instruction = chat.instruction if is_blank(instruction) else instruction
        pairs: list[tuple[object, object]] = [
            (user.text, assistant.text) for user, assistant in chat.demonstrations("demonstrations")
        ]
    else:
        pairs = [_pair(item, f"demonstrations[{n}]") for n, item in enumerate(raw)]
    if query is MISSING:
        raise invalid_field("query", "the input to answer", MISSING)
    return pairs, query, instruction


def _as_sequence(values: object) -> Sequence[object] | None:
    try:
        return values if isinstance(values, (list, tuple)) else list(values)  # type: ignore[call-overload]
    except TypeError:
        return None


def _pair(item: object, field: str) -> tuple[object, object]:
    """Input and output of a demonstration. Raises `TaskError`."""
    if type(item) is tuple and len(item) == 2:
        return item
    if isinstance(item, Demonstration):
        return item.input, item.output
    if isinstance(item, Mapping):
        return item.get("input", MISSING), item.get("output", MISSING)
    values = _as_list(item)
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        raise invalid_field(field, 'a pair (input, output) or an object {"input", "output"}', item)
    return values[0], values[1]


__all__ = [
    "COMPACT", "KINDS", "NOTATIONS", "STANDARD", "Kind", "Notation", "canonical_output", "demonstration_of",
    "guess_kind", "kind_of", "kind_of_inputs", "make_task", "shortened",
]  # fmt: skip
