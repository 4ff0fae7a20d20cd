"""What every kind of value promises: it is checked, and its text can be read back exactly."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autottt.ttt_core.errors import ParseError, TaskError
from autottt.ttt_core.tasks.kinds import (
    COMPACT,
    KINDS,
    MAX_SIDE,
    NOTATIONS,
    STANDARD,
    guess_kind,
    kind_of,
    make_task,
)
from autottt.ttt_core.tasks.task import Demonstration
from tests.ttt_core.tasks.values import VALUES, every_kind, for_all

both_notations = pytest.mark.parametrize("notation", [STANDARD, COMPACT], ids=lambda n: n.name)


# Notations


@every_kind
@both_notations
@for_all(data=st.data())
def test_a_rendered_value_is_parsed_exactly(kind, notation, data):
    value = KINDS[kind].check(data.draw(VALUES[kind]))
    assert KINDS[kind].parse(KINDS[kind].render(value, notation), notation) == value


@every_kind
@both_notations
@for_all(data=st.data())
def test_every_beginning_of_a_value_is_a_valid_prefix(kind, notation, data):
    text = KINDS[kind].render(KINDS[kind].check(data.draw(VALUES[kind])), notation)
    assert [n for n in range(len(text) + 1) if not KINDS[kind].is_valid_prefix(text[:n], notation)] == []
    assert KINDS[kind].is_valid_prefix(text + "\n", notation)  # which may be the first half of an answer's end


SCRIBBLES = st.text("0123456789 -+_[],/\nab", max_size=8)


@pytest.mark.parametrize("kind", ["grid", "grid1d", "list"])
@both_notations
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(begin=SCRIBBLES, rest=SCRIBBLES)
def test_no_text_after_an_invalid_prefix_makes_a_value(kind, notation, begin, rest):
    if not KINDS[kind].is_valid_prefix(begin, notation):
        with pytest.raises(ParseError):
            KINDS[kind].parse(begin + rest, notation)


@pytest.mark.parametrize(
    ("kind", "notation", "text"),
    [
        ("list", COMPACT, "3 I"), ("list", COMPACT, "[1"), ("list", COMPACT, "3 -4 5x"), ("list", STANDARD, "3, 4"),
        ("list", STANDARD, "[1, 2] 3"), ("list", STANDARD, "[1, , "), ("list", STANDARD, "[1 2"),
        ("grid", COMPACT, "1 2 / 3 4 5"), ("grid", COMPACT, "1 2 / 3 / "), ("grid", COMPACT, "1 12"),
        ("list", COMPACT, "1 12345678901234567890"),
        ("grid", COMPACT, "1 a"), ("grid", STANDARD, "1 2\n3 4 5"), ("grid1d", COMPACT, "1 2 / "),
    ],
)  # fmt: skip
def test_text_that_begins_no_value_is_an_invalid_prefix(kind, notation, text):
    assert not KINDS[kind].is_valid_prefix(text, notation)


@every_kind
@for_all(data=st.data())
def test_the_compact_notation_writes_no_line_break(kind, data):
    value = KINDS[kind].check(data.draw(VALUES[kind]))
    assert "\n" not in KINDS[kind].render(value, COMPACT)


@every_kind
@both_notations
@for_all(data=st.data())
def test_different_values_are_spelled_differently(kind, notation, data):
    one, other = (KINDS[kind].check(data.draw(VALUES[kind])) for _ in range(2))
    render = KINDS[kind].render
    assert (render(one, notation) == render(other, notation)) == (one == other)


@pytest.mark.parametrize(
    ("kind", "raw", "standard", "compact"),
    [
        ("grid", [[0, 1], [2, 3]], "0 1\n2 3", "0 1 / 2 3"),
        ("grid", [[7]], "7", "7"),
        ("grid1d", [[0, 4, 4]], "0 4 4", "0 4 4"),
        ("list", [3, -14, 5], "[3, -14, 5]", "3 -14 5"),
        ("list", [1 - 2**63], f"[{1 - 2**63}]", f"{1 - 2**63}"),
        ("list", [], "[]", "[]"),
        ("text", "a\\n\nb", "a\\n\nb", "a\\\\n\\nb"),
        ("text", "", "", ""),
    ],
)
def test_values_are_spelled_like_this(kind, raw, standard, compact):
    value = KINDS[kind].check(raw)
    assert KINDS[kind].render(value, STANDARD) == standard
    assert KINDS[kind].render(value, COMPACT) == compact


@pytest.mark.parametrize(
    ("kind", "text", "notation"),
    [
        ("grid", "", STANDARD),
        ("grid", "0 1\n2", STANDARD),
        ("grid", "0 1\n\n2 3", STANDARD),
        ("grid", "0 12", COMPACT),
        ("grid", "0 x", COMPACT),
        ("grid", "0 1 /", COMPACT),
        ("grid1d", "0 1 / 2 3", COMPACT),
        ("list", "", COMPACT),
        ("list", "3 four", COMPACT),
        ("list", "3.5", COMPACT),
        ("list", "3, 4", STANDARD),
        ("list", "[3 4]", STANDARD),
        ("list", "[3,, 4]", STANDARD),
        ("list", "[", STANDARD),
        ("list", "9" * 5000, COMPACT),
        ("grid", "9" * 5000, COMPACT),
    ],
)
def test_text_that_spells_no_value_is_a_parse_error(kind, text, notation):
    with pytest.raises(ParseError):
        KINDS[kind].parse(text, notation)


@pytest.mark.parametrize("kind", ["grid", "grid1d", "list"])
@both_notations
@for_all(text=st.text("0123456789-+_, /[]\n.x٣", max_size=12))
def test_any_text_is_a_value_or_a_parse_error(kind, notation, text):
    try:
        value = KINDS[kind].parse(text, notation)
    except ParseError:
        return
    assert KINDS[kind].check(value) == value


def test_space_around_an_answer_does_not_matter():
    assert KINDS["list"].parse(" [3,4 ]\n", STANDARD) == (3, 4)
    assert KINDS["grid"].parse("\n0 1\n2 3 \n", STANDARD) == ((0, 1), (2, 3))
    assert KINDS["grid"].parse(" 0 1/2 3", COMPACT) == ((0, 1), (2, 3))


def test_notations_have_names():
    assert {n: NOTATIONS[n].name for n in NOTATIONS} == {"standard": "standard", "compact": "compact"}


# Checking


@every_kind
@for_all(data=st.data())
def test_a_checked_value_is_hashable_and_passes_again(kind, data):
    value = KINDS[kind].check(data.draw(VALUES[kind]))
    assert KINDS[kind].check(value) == value
    assert hash(value) == hash(KINDS[kind].check(value))


ROW = "one row: [[0, 1, ...]]"
ROWS = "rows of equal length: [[0, 1], [1, 0]]"
NUMBERS = "expected a list of integers such as [3, 1, 4] (a task of other values has strings throughout); received "
CELLS = "expected cells that are integers 0-9; received "


@pytest.mark.parametrize(
    ("kind", "raw", "message"),
    [
        ("grid", None, f"expected a grid, {ROWS}, cells 0-9; received None"),
        ("grid", [], f"expected a grid, {ROWS}, cells 0-9; received []"),
        ("grid", [[]], f"expected a grid, {ROWS}, cells 0-9; received [[]]"),
        ("grid", [1, 2], f"expected a grid, {ROWS}, cells 0-9; received [1, 2]"),
        ("grid", "0 1", f"expected a grid, {ROWS}, cells 0-9; received '0 1'"),
        ("grid", ["01"], f"expected a grid, {ROWS}, cells 0-9; received ['01']"),
        ("grid", {"a": 1}, f"expected a grid, {ROWS}, cells 0-9; received {{'a': 1}}"),
        ("grid", [[1, 2], [3]], f"expected {ROWS}; received rows of lengths [2, 1]"),
        ("grid", [[True]], CELLS + "True"),
        ("grid", [[1.0]], CELLS + "1.0"),
        ("grid", [[math.nan]], CELLS + "nan"),
        ("grid", [["1"]], CELLS + "'1'"),
        ("grid", [[0, [1]]], CELLS + "[1]"),
        ("grid", [[None]], CELLS + "None"),
        ("grid", [[0, 10]], CELLS + "10"),
        ("grid", [[-1]], CELLS + "-1"),
        ("grid", [[0]] * 65, f"expected sides of at most {MAX_SIDE} cells; received 65 x 1"),
        ("grid", [[0] * 65], f"expected sides of at most {MAX_SIDE} cells; received 1 x 65"),
        ("grid1d", [[1], [2]], f"expected {ROW}; received 2 rows (kind 'grid' takes many)"),
        ("grid1d", [1], f"expected a grid, {ROW}, cells 0-9; received [1]"),
        ("list", None, NUMBERS + "None"),
        ("list", 3, NUMBERS + "3"),
        ("list", "3", NUMBERS + "'3'"),
        ("list", [1, True], NUMBERS + "[1, True]"),
        ("list", [1.5], NUMBERS + "[1.5]"),
        ("list", [math.inf], NUMBERS + "[inf]"),
        ("list", ["1"], NUMBERS + "['1']"),
        ("list", [[1]], NUMBERS + "[[1]]"),
        ("list", {"1": 1}, NUMBERS + "{'1': 1}"),
        ("text", None, "expected a text; received None"),
        ("text", 3, "expected a text; received 3"),
        ("text", ["a"], "expected a text; received ['a']"),
        ("text", b"a", "expected a text; received b'a'"),
        ("text", "a\ud800", "expected a text that can be written as UTF-8; received 'a\\ud800'"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_received(kind, raw, message):
    with pytest.raises(TaskError) as caught:
        KINDS[kind].check(raw)
    assert str(caught.value) == message


def test_a_long_wrong_value_is_shortened():
    with pytest.raises(TaskError) as caught:
        KINDS["list"].check(["a" * 1000])
    assert len(str(caught.value)) < 200


def test_a_number_too_long_to_print_is_refused_without_printing_it():
    with pytest.raises(TaskError, match="received a value of type int that cannot be printed"):
        KINDS["grid"].check([[10**5000]])


def test_a_row_may_be_longer_than_a_side():
    assert len(KINDS["grid1d"].check([[1] * 100])[0]) == 100


@pytest.mark.parametrize(
    ("raw", "kind"),
    [("a", "text"), ("", "text"), ([[0]], "grid"), (((0,),), "grid"), ([1], "list"), ([], "list"), (None, "list")],
)
def test_a_kind_is_guessed_from_the_shape_of_a_value(raw, kind):
    assert guess_kind(raw) == kind


# Making tasks


def test_a_task_is_made_from_plain_lists():
    task = make_task([([1, 2], [2, 1])], [5, 6], answer=[6, 5], id="flip", family="reversal", dataset="mine")
    assert (task.kind, task.query, task.answer) == ("list", (5, 6), (6, 5))
    assert (task.demonstrations[0].input, task.demonstrations[0].output) == ((1, 2), (2, 1))
    assert (task.id, task.group, task.family, task.dataset) == ("flip", "flip", "reversal", "mine")
    assert kind_of(task) is KINDS["list"]


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
@pytest.mark.parametrize("rows", [[1, 2], [[1, 2], [3, 4]]])
def test_arrays_and_their_numbers_make_the_task_that_lists_make(rows, dtype):
    array = np.array(rows, dtype)
    expected = make_task([(rows, rows)], rows, answer=rows)
    for raw in (array, list(array), tuple(array)):
        task = make_task([(raw, raw)], raw, answer=raw)
        assert task == expected
        assert task.digest == expected.digest, "plain integers, which JSON can hold"


@pytest.mark.parametrize("array", [np.array([1.0]), np.array([True]), np.array([[True]]), np.float64(1), np.array(1)])
def test_arrays_of_anything_but_integers_are_refused(array):
    with pytest.raises(TaskError, match=r"^query: expected"):
        make_task([], array)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"demonstrations": [([1], [1]), ([1], "x")]}, "demonstrations[1].output: expected a list of integers"),
        ({"demonstrations": [([True], [1])]}, "demonstrations[0].input: expected a list of integers"),
        ({"query": [1.0]}, "query: expected a list of integers"),
        ({"answer": "x"}, "answer: expected a list of integers"),
        ({"kind": "lists"}, "kind: expected one of grid, grid1d, list, text; received 'lists'"),
    ],
)
def test_a_task_names_the_field_that_is_wrong(arguments, message):
    with pytest.raises(TaskError) as caught:
        make_task(**{"demonstrations": [([1], [1])], "query": [2], **arguments})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "pairs",
    [
        [{"input": [1, 2], "output": [2, 1]}],
        [[[1, 2], [2, 1]]],
        (pair for pair in [([1, 2], [2, 1])]),
        [Demonstration((1, 2), (2, 1))],
        np.array([[[1, 2], [2, 1]]]),
    ],
)
def test_demonstrations_are_pairs_or_objects(pairs):
    assert make_task(pairs, [5, 6]) == make_task([([1, 2], [2, 1])], [5, 6])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"demonstrations": None}, "demonstrations: expected a list of pairs (input, output); received None"),
        ({"demonstrations": 3}, "demonstrations: expected a list of pairs (input, output); received 3"),
        ({"demonstrations": "ab"}, "demonstrations: expected a list of pairs (input, output); received 'ab'"),
        ({"demonstrations": {"a": 1}}, "demonstrations: expected a list of pairs (input, output); received {'a': 1}"),
        (
            {"demonstrations": [3]},
            'demonstrations[0]: expected a pair (input, output) or an object {"input", "output"}',
        ),
        ({"demonstrations": [([1], [2], [3])]}, "demonstrations[0]: expected a pair"),
        ({"demonstrations": [{"input": [1]}]}, "demonstrations[0].output: expected a list of integers"),
        ({"demonstrations": [{}]}, "demonstrations[0].input: expected a list of integers"),
        (
            {"demonstrations": [("a", "b"), ("", " ")], "query": "c"},
            "demonstrations[1].output: expected a demonstration that is not empty; received ' '",
        ),
        ({"kind": []}, "kind: expected one of grid, grid1d, list, text; received []"),
        ({"kind": {}}, "kind: expected one of grid, grid1d, list, text; received {}"),
        ({"kind": 3}, "kind: expected one of"),
        ({"instruction": 3}, "instruction: expected a text; received 3"),
        ({"instruction": "\ud800"}, "instruction: expected a text that can be written as UTF-8"),
        ({"id": ""}, "id: expected a text that is not blank, or an integer; received ''"),
        ({"id": None}, "id: expected a text that is not blank, or an integer; received None"),
        ({"id": "a\ud800"}, "id: expected a text that can be written as UTF-8"),
        ({"id": 2**70}, "id: expected a text that is not blank, or an integer of at most 64 bits"),
        ({"family": 3}, "family: expected a text; received 3"),
        ({"dataset": "\udfff"}, "dataset: expected a text that can be written as UTF-8"),
        ({"group": []}, "group: expected a text; received []"),
        (
            {"query": [10**5000]},
            "query: expected integers between -9223372036854775807 and 9223372036854775807; received",
        ),
        (
            {"answer": [1, -(2**63)]},
            f"answer: expected integers between -{2**63 - 1} and {2**63 - 1}; received -{2**63}",
        ),
        (
            {"query": "a"},
            f"query: {NUMBERS}'a'",
        ),
        ({"demonstrations": [("1.5", "3.0")], "query": 2.5}, "query: expected a text; received 2.5"),
        ({"demonstrations": [(None, [1])], "query": [1]}, "demonstrations[0].input: expected a list of integers"),
    ],
)
def test_wrong_arguments_are_task_errors(arguments, message):
    with pytest.raises(TaskError) as caught:
        make_task(**{"demonstrations": [([1], [1])], "query": [2], **arguments})
    assert str(caught.value).startswith(message)


def test_many_demonstrations_are_checked_in_a_second():
    pairs = [([n, n + 1], [n + 1, n]) for n in range(100_000)]
    began = time.process_time()
    assert len(make_task(pairs, [1]).demonstrations) == 100_000
    assert time.process_time() - began < 2
    began = time.process_time()
    make_task([("a", "b")], "x" * 1_000_000)
    assert time.process_time() - began < 0.5
