"""Every published format is read; everything else is refused in words, with its place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autottt.ttt_core.errors import TaskError
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.readers import LoadedTasks, Problem, read_lines, read_tasks, task_from_messages
from autottt.ttt_core.tasks.task import Demonstration

MISSING = "nothing: the field is missing"


def example(x, y):
    return {"input": x, "output": y}


def public(id="flip", **changes):
    task = {
        "id": id,
        "dataset": "mine",
        "family": "reversal",
        "kind": "list",
        "demonstrations": [example([1, 2], [2, 1]), example([3], [3])],
        "queries": [example([5, 6], [6, 5])],
    }
    return {k: v for k, v in {**task, **changes}.items() if v is not ...}


ARC = {"train": [example([[0, 1]], [[1, 0]])], "test": [example([[2, 3]], [[3, 2]])]}
BBH = {"canary": "x", "examples": [{"input": f"in {n}", "target": f"out {n}"} for n in range(15)]}
CHAT = {
    "messages": [
        {"role": "system", "content": "Reverse."},
        {"role": "user", "content": "cat"},
        {"role": "assistant", "content": "tac"},
        {"role": "user", "content": "dog"},
    ]
}


def write(path: Path, *values: object) -> Path:
    """A file with one value a line; strings are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values), encoding="utf-8")
    return path


def ids(reading: LoadedTasks) -> list[str]:
    return [task.id for task in reading.tasks]


def one_problem(reading: LoadedTasks) -> str:
    assert reading.tasks == ()
    assert len(reading.problems) == 1
    return str(reading.problems[0])


# The public format


def test_a_line_with_one_query_is_one_task(tmp_path):
    reading = read_tasks([write(tmp_path / "tasks.jsonl", public())])
    pairs = [([1, 2], [2, 1]), ([3], [3])]
    expected = make_task(pairs, [5, 6], answer=[6, 5], kind="list", id="flip", family="reversal", dataset="mine")
    assert reading == LoadedTasks((expected,), ())


def test_every_query_is_a_task_of_the_group(tmp_path):
    line = public(queries=[example([5, 6], [6, 5]), {"input": [7]}, example([8], None)])
    reading = read_tasks([write(tmp_path / "tasks.jsonl", line)])
    assert ids(reading) == ["flip#0", "flip#1", "flip#2"]
    assert {(t.group, t.family, t.dataset) for t in reading.tasks} == {("flip", "reversal", "mine")}
    assert [t.query for t in reading.tasks] == [(5, 6), (7,), (8,)]
    assert [t.answer for t in reading.tasks] == [(6, 5), None, None]


@pytest.mark.parametrize("answer", [[6, 5], None])
def test_a_query_may_be_given_alone(tmp_path, answer):
    line = public(queries=..., query=[5, 6], **({} if answer is None else {"answer": answer}))
    (task,) = read_tasks([write(tmp_path / "tasks.jsonl", line)]).tasks
    assert (task.id, task.query, task.answer) == ("flip", (5, 6), answer and tuple(answer))


FIELDS = (
    "answer", "comparison", "dataset", "demonstrations", "examples", "family", "id", "instruction", "kind", "messages",
    "queries", "query", "test", "train",
)  # fmt: skip
EXAMPLES = {"examples": [{"input": f"{n} + 1", "target": str(n + 1)} for n in range(5)]}


@pytest.mark.parametrize("line", [public(), public(queries=..., query=[5, 6], answer=[6, 5]), ARC, EXAMPLES, CHAT])
def test_a_field_that_is_null_is_absent(tmp_path, line):
    """Rows of a table have a value for every column."""
    row = dict.fromkeys(FIELDS) | line
    for name, content in ("plain", line), ("row", row):
        write(tmp_path / name / "tasks.jsonl", content)
    plain, filled = (read_tasks([tmp_path / name], demonstrations=3) for name in ("plain", "row"))
    assert plain.tasks
    assert filled == plain


@pytest.mark.parametrize(("output", "answer"), [("The answer is c.", "c"), ("c", "c "), ("c", "c")])
def test_an_answer_beside_the_output_of_the_query_may_have_another_form(tmp_path, output, answer):
    pairs = [example("1", "a"), example("2", "b")]
    line = {"demonstrations": pairs, "queries": [example("3", output)], "answer": answer}
    (task,) = read_tasks([write(tmp_path / "tasks.jsonl", line)]).tasks
    assert task.answer == "c"


def test_an_instruction_of_its_own_precedes_the_system_message_in_a_file_as_in_make_task(tmp_path):
    (task,) = read_tasks([write(tmp_path / "tasks.jsonl", {**CHAT, "instruction": "Spell."})]).tasks
    *shown, query = CHAT["messages"]
    assert (task.instruction, task.query) == ("Spell.", query["content"])
    assert make_task(shown, query["content"], instruction="Spell.").digest == task.digest


def test_names_come_from_the_place_where_the_line_has_none(tmp_path):
    line = public(id=..., dataset=..., family=..., kind=...)
    (task,) = read_tasks([write(tmp_path / "tasks.jsonl", "", line)]).tasks
    assert (task.id, task.group, task.family, task.dataset) == ("tasks:2", "tasks:2", "tasks:2", "tasks")


@pytest.mark.parametrize("blank", ["", " \n"])
def test_an_instruction_of_white_space_is_none(tmp_path, blank: str) -> None:
    pairs, chat = [{"input": "a", "output": "b"}], [
        {"role": "system", "content": "Spell it backwards."}, {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "ba"}, {"role": "user", "content": "cd"},
    ]  # fmt: skip
    lines = [{"demonstrations": pairs, "query": "c"}, {"messages": chat}]
    lines += [{**line, "instruction": blank} for line in lines]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    without, said, with_blank, said_and_blank = read_tasks(tmp_path / "t.jsonl").tasks
    assert with_blank.instruction is without.instruction is None
    assert with_blank.digest == without.digest == make_task([("a", "b")], "c", instruction=blank).digest
    assert said_and_blank.instruction == said.instruction == "Spell it backwards."
    assert make_task(chat, None, instruction=blank) == make_task(chat)


def test_an_instruction_is_read(tmp_path):
    (task,) = read_tasks([write(tmp_path / "tasks.jsonl", public(instruction="Reverse."))]).tasks
    assert task.instruction == "Reverse."


@pytest.mark.parametrize(("value", "kind"), [("a", "text"), ([1], "list"), ([], "list"), ([[1], [2]], "grid")])
def test_a_kind_that_is_not_given_is_guessed(tmp_path, value, kind):
    line = public(kind=..., demonstrations=[example(value, value)], queries=[{"input": value}])
    assert read_tasks([write(tmp_path / "tasks.jsonl", line)]).tasks[0].kind == kind


def test_the_requested_kind_replaces_the_kind_of_the_file(tmp_path):
    path = write(tmp_path / "a.json", ARC)
    assert read_tasks([path]).tasks[0].kind == "grid"
    assert read_tasks([path], kind="grid1d").tasks[0].kind == "grid1d"
    assert "train[0].input: expected a list of integers" in one_problem(read_tasks([path], kind="list"))


def test_a_task_may_have_no_demonstrations(tmp_path):
    assert read_tasks([write(tmp_path / "tasks.jsonl", public(demonstrations=[]))]).tasks[0].demonstrations == ()


def test_unknown_fields_are_ignored(tmp_path):
    assert ids(read_tasks([write(tmp_path / "tasks.jsonl", public(source="somewhere"))])) == ["flip"]


def test_byte_order_marks_blank_lines_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(public()).encode() + b"\r\n\r\n" + json.dumps(public("b")).encode())
    assert ids(read_tasks([path])) == ["flip", "b"]


def test_a_line_separator_within_a_text_does_not_end_the_line(tmp_path):
    text = "one\u2028two"
    line = json.dumps({"demonstrations": [], "query": text}, ensure_ascii=False)
    assert read_tasks([write(tmp_path / "tasks.jsonl", line)]).tasks[0].query == text


def test_one_path_may_be_given_without_a_list(tmp_path):
    path = write(tmp_path / "tasks.jsonl", public())
    assert read_tasks(path) == read_tasks(str(path)) == read_tasks([str(path)])


# Where one file is many tasks, and where lines are not in a .jsonl


def test_json_in_lines_is_read_whatever_the_suffix(tmp_path):
    for name in ("a.json", "a.txt", "a.ndjson", "a"):
        assert ids(read_tasks([write(tmp_path / name, public("x"), public("y"))])) == ["x", "y"]


def test_one_json_value_over_many_lines_is_read_whatever_the_suffix(tmp_path):
    for name in ("a.jsonl", "a.txt", "a.json"):
        assert ids(read_tasks([write(tmp_path / name, json.dumps(public(), indent=1))])) == ["flip"]


def test_a_list_of_tasks_is_read_and_problems_name_the_place_in_it(tmp_path):
    path = write(tmp_path / "a.json", json.dumps([public(), 3, public(...)], indent=1))
    reading = read_tasks([path])
    assert ids(reading) == ["flip", "a:2"]
    expected = "expected a task, which is a JSON object; received 3"
    assert reading.problems == (Problem(f"{path}, task 1", expected),)


# ARC


def test_an_arc_file_is_named_after_its_stem_and_its_folder(tmp_path):
    (task,) = read_tasks([write(tmp_path / "training" / "007bbfb7.json", ARC)]).tasks
    assert (task.kind, task.query, task.answer) == ("grid", ((2, 3),), ((3, 2),))
    assert task.demonstrations == (Demonstration(((0, 1),), ((1, 0),)),)
    assert (task.id, task.group, task.family, task.dataset) == ("007bbfb7", "007bbfb7", "007bbfb7", "training")


def test_a_folder_of_arc_files_is_read_in_order(tmp_path):
    two = {**ARC, "test": ARC["test"] * 2}
    write(tmp_path / "training" / "b.json", ARC)
    write(tmp_path / "training" / "a.json", two)
    write(tmp_path / "training" / ".hidden.json", ARC)
    write(tmp_path / "training" / "notes.txt", "no task")
    reading = read_tasks([tmp_path / "training"])
    assert ids(reading) == ["a#0", "a#1", "b"]
    assert reading.problems == ()


def test_an_arc_challenge_file_holds_tasks_by_id_without_answers(tmp_path):
    open_task = {**ARC, "test": [{"input": [[5]]}]}
    path = write(tmp_path / "challenges.json", {"aa": open_task, "bb": ARC, "cc": None, "dd": {"train": []}})
    reading = read_tasks([path])
    assert [(t.id, t.dataset, t.family) for t in reading.tasks] == [
        ("aa", "challenges", "aa"),
        ("bb", "challenges", "bb"),
    ]
    assert [t.answer for t in reading.tasks] == [None, ((3, 2),)]
    assert [p.where for p in reading.problems] == [f"{path}, task cc", f"{path}, task dd"]
    expected = 'test: expected a list of objects {"input", "output"}; received ' + MISSING
    assert reading.problems[1].message == expected


# BIG-Bench Hard


def test_a_bbh_file_is_one_group_with_ten_demonstrations(tmp_path):
    reading = read_tasks([write(tmp_path / "navigate.json", BBH)])
    assert len(reading.tasks) == 5
    assert {(t.group, t.family, t.dataset, t.kind) for t in reading.tasks} == {("navigate", "navigate", "bbh", "text")}
    demonstrations = {d.input: d.output for d in reading.tasks[0].demonstrations}
    queries = {t.query: t.answer for t in reading.tasks}
    assert {t.demonstrations for t in reading.tasks} == {reading.tasks[0].demonstrations}
    assert demonstrations | queries == {e["input"]: e["target"] for e in BBH["examples"]}
    assert len(demonstrations) == 10


def test_the_id_of_a_bbh_query_is_its_position_for_every_seed(tmp_path):
    path = write(tmp_path / "navigate.json", BBH)
    for seed in range(3):
        for task in read_tasks([path], seed=seed).tasks:
            assert task.query == "in " + task.id.removeprefix("navigate#")


def test_bbh_demonstrations_depend_on_the_seed(tmp_path):
    path = write(tmp_path / "navigate.json", BBH)
    first, second, other = (read_tasks([path], demonstrations=4, seed=seed) for seed in (1, 1, 2))
    assert first == second != other
    assert len(first.tasks[0].demonstrations) == 4
    assert len(first.tasks) == 11


def test_a_bbh_file_needs_more_examples_than_demonstrations(tmp_path):
    path = write(tmp_path / "navigate.json", BBH)
    assert one_problem(read_tasks([path], demonstrations=15)) == (
        f'{path}: examples: expected at least 16 of {{"input", "target"}}, 15 of them for demonstrations '
        "(--demonstrations, demonstrations=); received 15"
    )


# Chat


@pytest.mark.parametrize("name", ["chat.json", "chat.jsonl"])
def test_a_chat_is_a_text_task(tmp_path, name):
    (task,) = read_tasks([write(tmp_path / name, CHAT)]).tasks
    assert (task.kind, task.instruction, task.query, task.answer) == ("text", "Reverse.", "dog", None)
    assert task.demonstrations == (Demonstration("cat", "tac"),)
    assert task.id == ("chat" if name == "chat.json" else "chat:1")


def test_messages_in_memory_are_a_task():
    task = task_from_messages(CHAT["messages"], id="mine")
    assert (task.id, task.group, task.query, task.instruction) == ("mine", "mine", "dog", "Reverse.")
    assert task_from_messages(tuple(CHAT["messages"][1:])).instruction is None
    assert task_from_messages([{"role": "user", "content": ""}]).demonstrations == ()


def test_text_in_parts_is_joined():
    parts = [{"type": "text", "text": "do"}, {"type": "text", "text": "g"}]
    messages = [*CHAT["messages"][:-1], {"role": "user", "content": parts}]
    assert task_from_messages(messages) == task_from_messages(CHAT["messages"])


SAID = {"type": "text", "text": "hello"}
PART = 'expected a part {"type": "text", "text": ...}, since only text can be read; received '


def chat(*turns: tuple[object, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: expected a last message from 'user', the query; received []"),
        (None, 'messages: expected a list of objects {"role", "content"}; received None'),
        ("hello", 'messages: expected a list of objects {"role", "content"}; received \'hello\''),
        (["hello"], 'messages[0]: expected an object {"role", "content"}; received \'hello\''),
        ([{"role": "user"}], f"messages[0].content: expected a text; received {MISSING}"),
        (
            [{"content": "a"}],
            f"messages[0].role: expected 'user', as user and assistant take turns; received {MISSING}",
        ),
        (chat(("user", [{"type": "text"}])), f"messages[0].content[0]: {PART}{{'type': 'text'}}"),
        (chat(("user", [SAID, {"type": "image"}])), f"messages[0].content[1]: {PART}{{'type': 'image'}}"),
        (chat(("user", ["hello"])), f"messages[0].content[0]: {PART}'hello'"),
        (chat(("user", [])), "messages[0].content: expected a text; received []"),
        (chat(("system", "a")), "messages: expected a last message from 'user', the query; received 'system'"),
        (
            chat(("assistant", "a"), ("user", "b")),
            "messages[0].role: expected 'user', as user and assistant take turns; received 'assistant'",
        ),
        (
            chat(("user", "a"), ("user", "b")),
            "messages[1].role: expected 'assistant', as user and assistant take turns; received 'user'",
        ),
        (
            chat(("user", "a"), ("system", "b"), ("user", "c")),
            "messages[1].role: expected 'assistant', as user and assistant take turns; received 'system'",
        ),
        (
            chat(("system", "s"), ("assistant", "a")),
            "messages[1].role: expected 'user', as user and assistant take turns; received 'assistant'",
        ),
        (
            chat(("user", "a"), ("assistant", "b")),
            "messages: expected a last message from 'user', the query; received 'assistant'",
        ),
    ],
)
def test_messages_out_of_order_are_refused(messages, message):
    with pytest.raises(TaskError) as caught:
        task_from_messages(messages)
    assert str(caught.value) == message


# What is wrong in a task

OBJECTS = 'expected a list of objects {"input", "output"}; received '
OBJECT = 'expected an object {"input", "output"}; received '
NUMBERS = "expected a list of integers such as [3, 1, 4] (a task of other values has strings throughout); received "
GRID = "expected a grid, rows of equal length: [[0, 1], [1, 0]], cells 0-9; received "
KINDS = "expected one of grid, grid1d, list, text; received "


NAME = "expected a text that is not blank, or an integer; received "


def third(output):
    return {"demonstrations": [example([1], [1]), example([1], [1]), example([1], output)]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"demonstrations": None}, f"demonstrations: {OBJECTS}None"),
        ({"demonstrations": {}}, f"demonstrations: {OBJECTS}{{}}"),
        ({"demonstrations": ...}, f"demonstrations: {OBJECTS}{MISSING}"),
        ({"demonstrations": [3]}, f"demonstrations[0]: {OBJECT}3"),
        ({"demonstrations": [[[1], [2]]]}, f"demonstrations[0]: {OBJECT}[[1], [2]]"),
        ({"demonstrations": [{"input": [1]}]}, f"demonstrations[0].output: {NUMBERS}{MISSING}"),
        ({"demonstrations": [{"output": [1]}]}, f"demonstrations[0].input: {NUMBERS}{MISSING}"),
        (third(None), f"demonstrations[2].output: {NUMBERS}None"),
        (third([True]), f"demonstrations[2].output: {NUMBERS}[True]"),
        (third([1.0]), f"demonstrations[2].output: {NUMBERS}[1.0]"),
        (third([float("nan")]), f"demonstrations[2].output: {NUMBERS}[nan]"),
        (third("1"), f"demonstrations[2].output: {NUMBERS}'1'"),
        (third({"a": 1}), f"demonstrations[2].output: {NUMBERS}{{'a': 1}}"),
        ({**third([[1]]), "kind": "grid"}, f"demonstrations[0].input: {GRID}[1]"),
        ({**third([1]), "kind": ...}, None),
        ({**third([[1]]), "kind": ...}, f"demonstrations[2].output: {NUMBERS}[[1]]"),
        ({"queries": None}, f"queries: {OBJECTS}None"),
        ({"queries": ...}, f"queries: {OBJECTS}{MISSING}"),
        ({"queries": []}, 'queries: expected at least 1 of {"input", "output"}; received 0'),
        ({"queries": [example([1], [1]), {}]}, f"queries[1].input: {NUMBERS}{MISSING}"),
        ({"queries": [example([1], "x")]}, f"queries[0].output: {NUMBERS}'x'"),
        ({"queries": [None]}, f"queries[0]: {OBJECT}None"),
        ({"queries": ..., "query": None}, f"query: {NUMBERS}None"),
        ({"queries": ..., "query": [1], "answer": "x"}, f"answer: {NUMBERS}'x'"),
        ({"query": [1]}, "query: expected either query or queries; received both"),
        ({"kind": "lists"}, f"kind: {KINDS}'lists'"),
        ({"kind": ["list"]}, f"kind: {KINDS}['list']"),
        ({"id": 7}, None),
        ({"id": 7.0}, f"id: {NAME}7.0"),
        ({"id": " "}, f"id: {NAME}' '"),
        ({"family": []}, f"family: {NAME}[]"),
        ({"dataset": False}, f"dataset: {NAME}False"),
        ({"instruction": 1}, "instruction: expected a text; received 1"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected_and_received(tmp_path, changes, message):
    path = write(tmp_path / "tasks.jsonl", public(**changes))
    reading = read_tasks([path])
    assert reading.problems == (() if message is None else (Problem(f"{path}:1", message),))
    assert len(reading.tasks) == (message is None)


def test_wrong_grids_are_refused_with_the_names_of_the_arc_fields(tmp_path):
    ragged = {**ARC, "train": [*ARC["train"], example([[1]], [[1, 2], [3]])]}
    text = {**ARC, "test": [{"input": [["1"]]}]}
    path = write(tmp_path / "arc.json", {"a": ragged, "b": text})
    assert [p.message for p in read_tasks([path]).problems] == [
        "train[1].output: expected rows of equal length: [[0, 1], [1, 0]]; received rows of lengths [2, 1]",
        "test[0].input: expected cells that are integers 0-9; received '1'",
    ]


def test_bad_lines_are_reported_and_the_others_returned(tmp_path):
    path = write(
        tmp_path / "mixed.jsonl",
        public("one"),
        '{"id": "two", ',
        public("three", demonstrations=None),
        [1, 2],
        {"question": "?"},
        "",
        "9" * 5000,
        ARC,
        CHAT,
        public("ten"),
    )
    reading = read_tasks([path])
    assert ids(reading) == ["one", "mixed:8", "mixed:9", "ten"]
    assert [str(p).removeprefix(str(path)) for p in reading.problems][:4] == [
        ":2: not JSON: Expecting property name enclosed in double quotes, column 15",
        f":3: demonstrations: {OBJECTS}None",
        ":4: expected a task, which is a JSON object; received [1, 2]",
        ":5: expected a task, with demonstrations, train, examples or messages; received the fields ['question']",
    ]
    assert str(reading.problems[4]).startswith(f"{path}:7: JSON that cannot be read: Exceeds the limit")


def test_json_nested_too_deeply_is_a_problem(tmp_path):
    path = write(tmp_path / "tasks.jsonl", "[" * 100_000 + "]" * 100_000, public())
    (problem,) = read_tasks([path]).problems
    assert problem.where == f"{path}:1"


def test_a_repeated_id_is_a_problem_that_names_both_places(tmp_path):
    first = write(tmp_path / "a.jsonl", public("x"), public("y"), public("x"))
    second = write(tmp_path / "b.jsonl", public("y"))
    reading = read_tasks([first, second])
    assert ids(reading) == ["x", "y"]
    assert [str(p) for p in reading.problems] == [
        f"{first}:3: id: expected a unique id; received 'x', which is also the id of {first}:1",
        f"{second}:1: id: expected a unique id; received 'y', which is also the id of {first}:2",
    ]


def test_a_number_as_id_is_its_digits(tmp_path):
    reading = read_tasks([write(tmp_path / "tasks.jsonl", public(id=7), public(id="7"))])
    assert ids(reading) == ["7"]
    assert "received '7', which is also the id of" in str(reading.problems[0])


def test_an_id_may_not_repeat_the_name_of_a_query(tmp_path):
    path = write(tmp_path / "a.jsonl", public("x", queries=[example([1], [1])] * 2), public("x#1"))
    (problem,) = read_tasks([path]).problems
    assert problem.message == f"id: expected a unique id; received 'x#1', which is also the id of {path}:1"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 12) | st.floats() | st.sampled_from(["", "a", "user", "grid", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["input", "output", "target", "role", "content"]), inner, max_size=3)
    ),
    max_leaves=6,
)
fields = st.sampled_from(
    ("id", "kind", "family", "demonstrations", "queries", "query", "answer", "train", "test", "examples", "messages")
)


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=json_values | st.dictionaries(fields, json_values | st.lists(json_values, max_size=3), max_size=4))
def test_any_json_is_a_task_or_a_problem_or_a_task_error(tmp_path, data):
    for name in ("any.json", "any.jsonl"):
        path = write(tmp_path / name, json.dumps(data))
        try:
            reading = read_tasks([path], demonstrations=1)
        except TaskError:
            continue
        assert reading.tasks or reading.problems
        assert all(p.where.startswith(str(path)) for p in reading.problems)


# What is wrong with a file


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: expected tasks; received an empty file"),
        ("a.json", b" \n\n", "a.json: expected tasks; received an empty file"),
        ("a.jsonl", b"{,}\n{", "a.jsonl:1: not JSON: Expecting property name enclosed in double quotes, column 2"),
        ("a.json", b'{\n"train": [\n}', "a.json:3: not JSON: Expecting value, column 1"),
        ("a.csv", b"x,y\n1,2", "a.csv:1: not JSON: Expecting value, column 1"),
        ("a.json", b"[]", "a.json: expected a task, which is a JSON object; received []"),
        ("a.json", b"3", "a.json: expected a task, which is a JSON object; received 3"),
        (
            "a.json",
            b'{"a": {"b": 1}}',
            "a.json: expected a task, with demonstrations, train, examples or messages; received the fields ['a']",
        ),
        ("a.jsonl", b"[1]\n[2]", "a.jsonl:1: expected a task, which is a JSON object; received [1]"),
        ("a.jsonl", b"\xff\xfe", "a.jsonl: expected UTF-8 text; received invalid start byte at byte 0"),
        ("a.json", b"9" * 5000, "a.json:1: JSON that cannot be read: Exceeds the limit"),
    ],
)
def test_a_file_without_anything_like_a_task_is_an_error_that_names_the_formats(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TaskError) as caught:
        read_tasks([path])
    assert str(caught.value).startswith(str(tmp_path / message))
    assert "folders of them" in str(caught.value)
    assert "(BIG-Bench Hard)" in str(caught.value)


def test_a_missing_file_is_an_error_of_one_line_that_names_the_path(tmp_path):
    with pytest.raises(TaskError) as caught:
        read_tasks([write(tmp_path / "a.jsonl", public()), tmp_path / "missing.jsonl"])
    assert str(caught.value) == f"{tmp_path / 'missing.jsonl'}: cannot be read: No such file or directory"


def test_a_folder_without_tasks_is_an_error(tmp_path):
    with pytest.raises(TaskError, match="received a folder without any"):
        read_tasks([tmp_path])
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(TaskError, match="received an empty file"):
        read_tasks([tmp_path])


def test_a_file_of_a_folder_that_cannot_be_read_is_a_problem(tmp_path):
    write(tmp_path / "bad.json", '{"train": ')
    write(tmp_path / "empty.jsonl")
    write(tmp_path / "good.json", ARC)
    write(tmp_path / "other.json", {"version": 1})
    (tmp_path / "folder.json").mkdir()
    reading = read_tasks([tmp_path])
    assert ids(reading) == ["good"]
    assert [Path(p.where).name for p in reading.problems] == ["empty.jsonl", "bad.json:2", "folder.json", "other.json"]


def test_a_folder_of_line_files_is_read_in_sorted_order(tmp_path):
    write(tmp_path / "b.jsonl", public("b1"), public("b2"))
    write(tmp_path / "a.jsonl", public("a1"))
    assert ids(read_tasks([tmp_path])) == ["a1", "b1", "b2"]


def test_files_are_read_in_the_order_given(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", public(name)) for name in "ba"]
    assert ids(read_tasks(paths)) == ["b", "a"]


def test_reading_nothing_is_an_error():
    with pytest.raises(TaskError, match="paths: expected at least one file or folder"):
        read_tasks([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "grids"}, f"kind: {KINDS}'grids'"),
        ({"limit": 0}, "limit: expected a positive number; received 0"),
        ({"demonstrations": -1}, "demonstrations: expected a number that is not negative; received -1"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, arguments, message):
    with pytest.raises(TaskError) as caught:
        read_tasks([write(tmp_path / "a.json", ARC)], **arguments)
    assert str(caught.value) == message


# Sampling


@pytest.fixture
def hundred(tmp_path):
    two = [example([1], [1])] * 2
    return write(tmp_path / "many.jsonl", *(public(f"t{n:02}", family=f"f{n // 10}", queries=two) for n in range(100)))


def test_a_limit_counts_groups_and_keeps_all_of_their_queries(hundred):
    reading = read_tasks([hundred], limit=7)
    assert len({t.group for t in reading.tasks}) == 7
    assert len(reading.tasks) == 14


def test_a_sample_is_reproducible_by_its_seed_and_in_the_order_of_the_file(hundred):
    first, second, other = (read_tasks([hundred], limit=7, seed=seed) for seed in (0, 0, 1))
    assert first == second != other
    assert ids(first) == sorted(ids(first))


def test_a_sample_is_not_of_the_first_families_only(hundred):
    assert len({t.family for t in read_tasks([hundred], limit=10).tasks}) > 3


def test_a_limit_beyond_the_file_takes_all_of_it(hundred):
    assert read_tasks([hundred], limit=1000) == read_tasks([hundred])


def test_a_limit_holds_for_every_file_and_for_the_json_files_of_a_folder_together(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", *(public(f"{name}{n}") for n in range(9)))
        for n in range(5):
            write(tmp_path / f"arc-{name}{n}.json", ARC)
    groups = ids(read_tasks([tmp_path], limit=4))
    assert [sum(g.startswith(start) for g in groups) for start in ("a", "b", "arc-")] == [8, 4, 4]


def test_problems_are_reported_whatever_the_sample(tmp_path):
    path = write(tmp_path / "tasks.jsonl", *(public(f"t{n}") for n in range(9)), "{")
    assert len(read_tasks([path], limit=2).problems) == 1


# Lines as they come


def test_each_line_is_read_when_it_comes():
    taken = []

    def lines():
        for line in (public("a"), public("b")):
            taken.append(line["id"])
            yield json.dumps(line).encode()

    readings = read_lines(lines())
    assert ids(next(readings)) == taken == ["a"]
    assert ids(next(readings)) == ["b"]


def test_a_line_that_is_no_task_is_a_problem_with_its_place_and_its_id():
    bad = [b"{\n", b"\xff\n", b"", b"3", {"id": 7, "demonstrations": None}, public(id=...), public(id=..., queries=[])]
    readings = list(read_lines(x if isinstance(x, bytes) else json.dumps(x) for x in bad))
    problems = [(p.where, p.id) for reading in readings for p in reading.problems]
    assert problems == [("stdin:1", ""), ("stdin:2", ""), ("stdin:4", ""), ("stdin:5", "7"), ("stdin:7", "stdin:7")]
    assert [ids(reading) for reading in readings if reading.tasks] == [["stdin:6"]]


def test_an_id_may_come_again_in_a_later_line():
    assert [ids(reading) for reading in read_lines([json.dumps(public())] * 2)] == [["flip"], ["flip"]]


# Ids and answers beside every format

ONE_BBH = {"examples": [{"input": "a", "target": "b"}, {"input": "c"}]}
ONE_CHAT = {"messages": CHAT["messages"]}
ONE_ARC = {"train": ARC["train"], "test": [{"input": [[2, 3]]}]}
ONE_OWN = public(id=..., queries=[{"input": [5, 6]}])


@pytest.mark.parametrize(
    ("task", "answer", "value"),
    [(ONE_CHAT, "god", "god"), (ONE_ARC, [[3, 2]], ((3, 2),)), (ONE_OWN, [6, 5], (6, 5))],
    ids=["chat", "arc", "own"],
)
def test_an_id_and_an_answer_are_read_in_every_format(tmp_path, task, answer, value):
    given = {"id": "x7", "answer": answer, "family": "f", "dataset": "d", **task}
    if task is ONE_OWN:
        given |= {"family": "f", "dataset": "d"}
    expected = [("x7", "x7", value, "f", "d")]
    for loaded in (
        read_tasks([write(tmp_path / "a.jsonl", given)]),
        read_tasks([write(tmp_path / "a.json", given)]),
        next(read_lines([json.dumps(given)])),
    ):
        assert loaded.problems == ()
        assert [(t.id, t.group, t.answer, t.family, t.dataset) for t in loaded.tasks] == expected


def test_an_id_and_an_answer_are_read_with_examples_of_bbh(tmp_path):
    path = write(tmp_path / "a.json", {"id": 7, "answer": " d\n", "instruction": "Next.", **ONE_BBH})
    reading = read_tasks([path], demonstrations=0)
    assert [p.message for p in reading.problems] == [
        "answer: expected outputs in the 2 queries, as one answer fits one; received ' d\\n'"
    ]
    one = write(tmp_path / "b.json", {"id": 7, "answer": " d\n", "instruction": "Next.", "examples": [{"input": "c"}]})
    (task,) = read_tasks([one], demonstrations=0).tasks
    assert (task.id, task.query, task.answer, task.instruction) == ("7", "c", "d", "Next.")


def test_an_answer_that_contradicts_the_output_of_the_query_is_a_problem(tmp_path):
    same = {**ARC, "answer": [[3, 2]]}
    assert read_tasks([write(tmp_path / "a.jsonl", same)]).tasks[0].answer == ((3, 2),)
    message = one_problem(
        read_tasks(
            [
                write(
                    tmp_path / "b.jsonl",
                    {**ARC, "answer": [[1, 1]]},
                )
            ]
        )
    )
    assert message.endswith("answer: expected the test[0].output, [[3, 2]], or nothing; received [[1, 1]]")


def test_a_refused_line_keeps_the_id_of_its_task():
    lines = [
        json.dumps({"id": "x7", "messages": []}),
        json.dumps({"id": 7, "train": 3}),
        json.dumps({"id": [], "train": 3}),
    ]
    assert [p.id for read in read_lines(lines) for p in read.problems] == ["x7", "7", "stdin:3"]


# One form of answers


def test_white_space_around_texts_that_are_answers_does_not_count(tmp_path):
    line = {
        "demonstrations": [example(" a ", " (B)\n")],
        "queries": [example("c\n", "(A)\n"), example("d", "The answer is (A).")],
    }
    tasks = read_tasks([write(tmp_path / "a.jsonl", line)]).tasks
    assert tasks[0].demonstrations == (Demonstration(" a ", "(B)"),)
    assert [t.query for t in tasks] == ["c\n", "d"]
    assert [t.answer for t in tasks] == ["(A)", "(A)"]


@pytest.mark.parametrize("pair", [example("", ""), example(" ", "\n")])
def test_an_empty_pair_of_texts_is_a_problem(tmp_path, pair):
    line = {"kind": "text", "demonstrations": [example("a", "b"), pair], "query": "c"}
    message = one_problem(read_tasks([write(tmp_path / "a.jsonl", line)]))
    assert "demonstrations[1].output: expected a demonstration that is not empty" in message


# Families by content


def arc(*pairs, test=((5, 6),)):
    def grid(n):
        return [[n, 1], [0, n]]

    return {
        "train": [example(grid(a), grid(b)) for a, b in pairs],
        "test": [{"input": grid(a)} if b is None else example(grid(a), grid(b)) for a, b in test],
    }


PUBLISHED = arc((1, 2), (3, 4))


@pytest.mark.parametrize(
    "again",
    [
        PUBLISHED,
        arc((3, 4), (1, 2)),
        arc((3, 4), (1, 2), test=[(5, None)]),
        arc((1, 2), (3, 4), test=[(7, 8)]),
        arc((1, 2), (5, 6), test=[(3, 4)]),
    ],
    ids=["same", "other order", "no answer", "other query", "query as a demonstration"],
)
def test_an_arc_task_under_two_ids_is_one_family(tmp_path, again):
    other = arc((1, 2), (4, 4), test=[(9, 9)])
    both = write(tmp_path / "a.json", {"40853293": PUBLISHED, "070dd51e": again, "other": other})
    write(tmp_path / "two" / "40853293.json", PUBLISHED)
    write(tmp_path / "two" / "070dd51e.json", again)
    assert [t.family for t in read_tasks([both]).tasks] == ["40853293", "40853293", "other"]
    assert len({t.family for t in read_tasks([tmp_path / "two"]).tasks}) == 1
    lines = [json.dumps({"id": n, **task}) for n, task in enumerate((PUBLISHED, again))]
    assert [t.family for read in read_lines(lines) for t in read.tasks] == ["0", "0"]


def test_a_task_that_has_pairs_of_two_families_makes_them_one(tmp_path):
    tasks = {
        "x": arc((1, 2), (3, 4)),
        "y": arc((5, 6), (7, 8)),
        "other": arc((1, 2), (8, 8), test=[(9, 2)]),
        "z": PUBLISHED,
    }
    tasks["both"] = arc((1, 2), (3, 4), (5, 6), (7, 8), test=[(9, 1)])
    for order in (["x", "y", "both"], ["y", "x", "both"], ["both", "y", "x"], ["x", "other", "y", "both", "z"]):
        (loaded,) = {read_tasks([write(tmp_path / "a.json", {name: tasks[name] for name in order})]).tasks}
        families = {t.id: t.family for t in loaded}
        assert {families.pop(name) for name in order if name != "other"} == {order[0]}
        assert families == ({"other": "other"} if "other" in order else {})


def test_tasks_of_grids_are_compared_in_every_format(tmp_path):
    own = {"demonstrations": PUBLISHED["train"], "query": PUBLISHED["test"][0]["input"]}
    path = write(tmp_path / "a.jsonl", {"id": "x", **own}, {"id": "y", **PUBLISHED}, {"id": "z", **own})
    assert [t.family for t in read_tasks([path]).tasks] == ["x", "x", "x"]


def test_a_family_that_is_given_stays(tmp_path):
    path = write(tmp_path / "a.jsonl", {"family": "x", **PUBLISHED}, {"family": "y", **PUBLISHED})
    assert [t.family for t in read_tasks([path]).tasks] == ["x", "y"]


def test_a_family_that_is_null_is_that_of_equal_tasks(tmp_path):
    path = write(tmp_path / "a.jsonl", {"id": "a", "family": None, **PUBLISHED}, {"id": "b", **PUBLISHED})
    assert [t.family for t in read_tasks([path]).tasks] == ["a", "a"]


# At the door


@pytest.mark.parametrize("seed", [2**63, 2**70, -(2**63), "1", 1.0, True, None])
def test_a_seed_that_no_store_can_hold_is_refused(tmp_path, seed):
    with pytest.raises(TaskError, match=r"^seed: expected an integer between -9223372036854775807 and"):
        read_tasks([write(tmp_path / "a.jsonl", public())], seed=seed)


@pytest.mark.parametrize("field", ["id", "family", "dataset", "instruction"])
def test_half_a_character_in_a_name_is_a_problem(tmp_path, field):
    message = one_problem(read_tasks([write(tmp_path / "a.jsonl", json.dumps(public(**{field: "a\ud800"})))]))
    assert f"{field}: expected a text that can be written as UTF-8; received 'a\\ud800'" in message


def test_half_a_character_in_a_key_or_in_the_name_of_a_file_is_a_problem(tmp_path):
    keys = write(tmp_path / "a.json", json.dumps({"a\ud800": ARC, "b": ARC}))
    reading = read_tasks([keys])
    assert ids(reading) == ["b"]
    assert "id: expected a text that can be written as UTF-8" in str(reading.problems[0])
    str(reading.problems[0]).encode()
    named = tmp_path / os.fsdecode(b"bad\xff.json")
    try:
        write(named, ARC)
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    problem = one_problem(read_tasks([named]))
    assert "\\udcff.json: id: expected a text that can be written as UTF-8" in problem
    assert ids(read_tasks([write(named, {**ARC, "id": "fine"})])) == ["fine"]


def test_control_characters_of_a_file_are_shown_as_escapes(tmp_path):
    (problem,) = read_tasks([write(tmp_path / "a.jsonl", json.dumps({"id": "\x1b[31m", "train": 3}), ARC)]).problems
    assert problem.id == "\x1b[31m"
    keys = write(tmp_path / "b.json", json.dumps({"\x1b[31m": {"train": 3}, "b": ARC}))
    assert "\x1b" not in str(read_tasks([keys]).problems[0])


@pytest.mark.parametrize("path", ["a\0b", 3, None, [3]])
def test_a_source_that_is_no_path_is_a_task_error(path):
    with pytest.raises(TaskError):
        read_tasks(path if isinstance(path, list) else [path])


@pytest.mark.parametrize(
    "text",
    [
        '{"query": ' + "[" * 100_000 + "]" * 100_000 + ', "demonstrations": []}',
        '{"query": [' + "9" * 5000 + '], "demonstrations": []}',
        '{"query": [' + "9" * 4200 + '], "demonstrations": []}',
        '{"query": [1e999], "demonstrations": []}',
        '{"query": [NaN], "demonstrations": []}',
        '{"query": [-Infinity], "demonstrations": []}',
        '{"id": ' + "9" * 4000 + ', "query": [1], "demonstrations": []}',
        '{"kind": {}, "query": [1], "demonstrations": []}',
        '{"query": [1], "demonstrations": {"a": []}}',
    ],
)
def test_deep_and_huge_values_are_problems(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_text(text + "\n" + json.dumps(public()))
    reading = read_tasks([path])
    assert ids(reading) == ["flip"]
    assert [p.where for p in reading.problems] == [f"{path}:1"]
    assert len(str(reading.problems[0])) < 400


# Fields that are spelled wrong


@pytest.mark.parametrize(
    ("task", "field", "nearest"),
    [
        ({**public(), "anwser": [1]}, "anwser", "answer"),
        ({**ONE_CHAT, "anwser": "god"}, "anwser", "answer"),
        ({**ARC, "Answer": [[1]]}, "Answer", "answer"),
        ({**public(id=...), "Id": 3}, "Id", "id"),
        ({**public(kind=...), "kinds": "list"}, "kinds", "kind"),
        ({**public(), "instructions": "Reverse."}, "instructions", "instruction"),
        ({**public(family=...), "familiy": "f"}, "familiy", "family"),
        (public(queries=[{"input": [1], "ouput": [2]}]), "ouput", "output"),
        ({**ARC, "test": [{"input": [[1]], "outputs": [[2]]}]}, "outputs", "output"),
    ],
)
def test_an_unknown_field_similar_to_a_field_is_a_warning(tmp_path, caplog, task, field, nearest):
    path = write(tmp_path / "a.jsonl", task, task if "id" not in task else public("more"))
    reading = read_tasks([path])
    expected = f"{path}:1: unknown field {field!r}, which is not read: did you mean {nearest!r}?"
    assert [str(w) for w in reading.warnings] == [expected]
    assert [r.getMessage() for r in caplog.records if r.name == "autottt"] == [expected]
    assert not reading.problems
    (loaded,) = read_lines([json.dumps(task)], name="in")
    assert [w.where for w in loaded.warnings] == ["in:1"]


@pytest.mark.parametrize("extra", [{"canary": "x"}, {"note": 1}, {"": 1}, {"ANSWERABLE": True}, {"z" * 10_000: 1}])
def test_a_field_that_resembles_none_is_no_warning(tmp_path, extra):
    assert read_tasks([write(tmp_path / "a.jsonl", {**public(), **extra})]).warnings == ()
