"""A run continues a file of answers, and no other file is ever changed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from autottt.controller.cli.answer_files import SHORT, Answers, check_output, line_of_problem
from autottt.ttt_core.errors import TaskError
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.readers import Problem

MODEL = "0f" * 16


def line(name, **changes):
    answer = {"id": name, "status": "answered", "seed": 0, "proof": {"hash": MODEL}}
    return json.dumps({**answer, **changes}) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        "# Notes\n\nprecious\n",
        "precious",
        json.dumps({"id": "a", "query": [1]}) + "\n",
        json.dumps({"id": "a", "query": [1]}),
        json.dumps({"id": "a", "query": [1]})[:-3] + "\n",
        line("a") + "precious\n" + line("b"),
        line("a") + "precious",
        line("a") + line("b")[:20] + "\n",
        line("a")[:20] + "\n" + line("b"),
        line("a") + "[1]\n",
        "\x00\x00",
    ],
)
def test_a_file_with_anything_but_answers_is_refused(tmp_path, text):
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(TaskError, match=r"file:\d: expected an answer, .* give another --out"):
        Answers.read(file, 0)
    assert file.read_text() == text


@pytest.mark.parametrize("end", ["", "{", '{"id"', line("b")[:-2], line("b")[:-1]])
def test_a_run_continues_what_an_interruption_left(tmp_path, end):
    file = tmp_path / "answers.jsonl"
    file.write_text(line("a") + end)
    answers = Answers.read(file, 0)
    complete = end == line("b")[:-1]
    assert answers.ids == ({"a", "b"} if complete else {"a"})
    assert answers.incomplete == (bool(end) and not complete)
    assert file.read_text() == line("a") + end, "reading changes nothing"
    answers.prepare_to_append({"model": MODEL})
    assert file.read_text() == line("a") + (line("b") if complete else "")


def test_a_missing_or_empty_file_has_no_answers(tmp_path):
    file = tmp_path / "answers.jsonl"
    for _ in range(2):
        answers = Answers.read(file, 0)
        answers.prepare_to_append({"model": MODEL})
        assert (answers.ids, answers.incomplete) == (frozenset(), False)
        file.touch()


def test_a_file_with_another_seed_or_model_is_not_continued(tmp_path):
    file = tmp_path / "answers.jsonl"
    text = line("a", seed=3) + line("b", status="refused", seed=0) + line("c", seed=3, proof=None)
    file.write_text(text)
    with pytest.raises(TaskError, match=r":1: answered with seed 3, and this run has seed 0: give --seed 3"):
        Answers.read(file, 0)
    answers = Answers.read(file, 3)
    assert answers.ids == {"a", "b", "c"}
    with pytest.raises(TaskError, match=f"answered by the model {MODEL}, and this one is another"):
        answers.prepare_to_append({"model": "another"})
    assert file.read_text() == text


def test_a_file_with_other_settings_is_not_continued(tmp_path):
    file = tmp_path / "answers.jsonl"
    settings = {"model": MODEL, "policy": "fixed (1)", "starting_adapter": "none"}
    file.write_text(line("a") + line("b", settings=settings))
    Answers.read(file, 0).prepare_to_append({**settings, "budget": "unlimited"})
    for name, value in (("policy", "fixed (2)"), ("starting_adapter", "0a1b+read")):
        with pytest.raises(TaskError, match=rf'other settings \({name}: "{settings[name][:4]}.* before, "{value[:4]}'):
            Answers.read(file, 0).prepare_to_append({**settings, name: value})


def test_a_line_answers_the_task_of_its_digest_only(tmp_path):
    file = tmp_path / "answers.jsonl"
    task = make_task([([1], [2])], [3], answer=[4], id="a")
    of_stdin = replace(task, id="stdin:1")
    changed = replace(task, query=(5,))

    def answers(*lines):
        file.write_text("".join(lines))
        return Answers.read(file, 0)

    sound = {"answer": [4], "right": True}
    current = answers(line("a", digest=task.digest, **sound), line("stdin:1", digest=task.digest, **sound))
    assert current.have(task)
    assert current.have(of_stdin)
    assert not current.have(changed)
    assert not current.have(replace(of_stdin, query=(5,))), "positions in standard input occur again"
    assert not current.have(replace(task, answer=(7,))), "it would be judged by another right answer"
    assert not current.have(replace(task, answer=None))
    assert current.without_digest == 0
    later = answers(line("a", digest=task.digest, **sound), line("a", digest=changed.digest, **sound))
    assert later.have(changed)
    assert not later.have(task), "the last line of an id counts"
    earlier = answers(line("a", **sound), line("stdin:1", **sound))
    assert earlier.have(changed), "lines of earlier versions go by their ids"
    assert not earlier.have(of_stdin)
    assert earlier.without_digest == 2


@pytest.mark.parametrize("field", [{"digest": 3}, {"settings": "text"}, {"right": "yes"}])
def test_a_field_of_another_type_is_refused(tmp_path, field):
    file = tmp_path / "answers.jsonl"
    file.write_text(line("a", **field))
    with pytest.raises(TaskError, match="expected an answer"):
        Answers.read(file, 0)


def test_an_input_file_is_not_written(tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    tasks.touch()
    (tmp_path / "link").symlink_to(tasks)
    (tmp_path / "runs").mkdir()
    for out, inputs in ((tasks, [tasks]), (tmp_path / "link", [tasks]), (tmp_path / "new.jsonl", [tmp_path])):
        with pytest.raises(TaskError, match="write to another"):
            check_output("--out", out, inputs)
    for out in (tmp_path / "new.jsonl", tmp_path / "runs" / "new.jsonl", tmp_path / "new.txt"):
        check_output("--out", out, [tasks])
    check_output("--out", tmp_path / "runs" / "new.jsonl", [tmp_path])
    check_output("--out", tmp_path / "new.txt", [tmp_path])


def test_a_task_that_could_not_be_read_has_a_line_of_the_same_fields():
    row = json.loads(line_of_problem(Problem("stdin:3", "query: expected a text", "mine")))
    assert list(row) == list(SHORT)
    assert (row["id"], row["status"], row["error"]) == ("mine", "refused", "stdin:3: query: expected a text")
    assert json.loads(line_of_problem(Problem("stdin:3", "not JSON")))["id"] == "stdin:3"
