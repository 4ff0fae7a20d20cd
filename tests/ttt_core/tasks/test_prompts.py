"""Prompts: the pieces make up the whole, answers stand where they are said to, and can be read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from autottt.ttt_core.errors import ModelError, ParseError, TaskError
from autottt.ttt_core.tasks.kinds import COMPACT, kind_of, make_task
from autottt.ttt_core.tasks.prompts import COMPACT_FORMAT, PLAIN_FORMATS, STANDARD_FORMAT, ChatFormat, PromptFormat
from autottt.ttt_core.tasks.task import Task


def template(messages: Sequence[dict[str, str]], generation: bool) -> str:
    """A chat template like most: turns between markers."""
    turns = "".join(f"<|{m['role']}|>{m['content']}<|end|>\n" for m in messages)
    return turns + "<|assistant|>" * generation


CHAT = ChatFormat(template)
FORMATS: list[PromptFormat] = [*PLAIN_FORMATS.values(), CHAT]
TASKS = [
    make_task([([1, 2], [2, 1]), ([], [])], [3, 14], answer=[14, 3], instruction="Reverse the list."),
    make_task([([[1, 2], [3, 4]], [[0]]), ([[5]], [[6, 7]])], [[8], [9]], answer=[[1, 2], [2, 1]]),
    make_task([([[1, 2, 0]], [[0, 2, 1]])], [[1, 0]], kind="grid1d", answer=[[0, 1]]),
    make_task([("it's", "its"), ("two  words", " Zwei")], "a\\nb", answer="c \\ d"),
    make_task([], [1], answer=[2]),
]
every_format = pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.kind}{len(t.demonstrations)}")


def whole(form: PromptFormat, task: Task, answer: Any = None) -> str:
    return "".join(p.text for p in form.pieces(task, answer))


def test_the_standard_format_is_text_with_blank_lines() -> None:
    assert whole(STANDARD_FORMAT, TASKS[0], (14, 3)) == (
        "Reverse the list.\n\n"
        "Input: [1, 2]\nOutput: [2, 1]\n\nInput: []\nOutput: []\n\nInput: [3, 14]\nOutput: [14, 3]\n\n"
    )


def test_the_compact_format_is_two_lines_a_demonstration() -> None:
    assert whole(COMPACT_FORMAT, TASKS[1]) == "I 1 2 / 3 4\nO 0\nI 5\nO 6 7\nI 8 / 9\nO"


def test_the_chat_format_is_the_template_with_demonstrations_as_turns() -> None:
    messages = [
        {"role": "system", "content": "Reverse the list."},
        {"role": "user", "content": "[1, 2]"}, {"role": "assistant", "content": "[2, 1]"},
        {"role": "user", "content": "[]"}, {"role": "assistant", "content": "[]"},
        {"role": "user", "content": "[3, 14]"},
    ]  # fmt: skip
    assert whole(CHAT, TASKS[0]) == template(messages, True)
    answered = [*messages, {"role": "assistant", "content": "[14, 3]"}]
    assert whole(CHAT, TASKS[0], (14, 3)) == template(answered, False)
    assert CHAT.ends == ("<|end|>\n",)


@every_format
@every_task
def test_pieces_tell_what_is_an_answer_and_what_ends_it(form: PromptFormat, task: Task) -> None:
    shown = [d.output for d in task.demonstrations]
    kind = kind_of(task)
    open_ = form.pieces(task)
    closed = form.pieces(task, task.answer)
    assert closed[: len(open_)] == open_
    for pieces, outputs in ((open_, shown), (closed, [*shown, task.answer])):
        assert [p.role for p in pieces if p.role != "context"] == ["answer", "end"] * len(outputs)
        texts = [p.text.removeprefix(" " * (form is not CHAT)) for p in pieces if p.role == "answer"]
        assert texts == [kind.render(v, form.notation) for v in outputs if v is not None]
        assert all(p.text in form.ends for p in pieces if p.role == "end")


@every_format
@every_task
def test_answers_can_be_read_back(form: PromptFormat, task: Task) -> None:
    (text,) = [p.text for p in form.pieces(task, task.answer) if p.role == "answer"][-1:]
    assert form.read(task, text) == task.answer


@every_format
@pytest.mark.parametrize(
    "written", [" (A)", "(A)\n", "(A)", "The answer is (A)", "So the answer is: (A).", "Answer: (A) "]
)
def test_white_space_around_a_text_and_an_introduction_do_not_count(form: PromptFormat, written: str) -> None:
    """One rule for what is trained on, what is read, and what is right."""
    task = make_task([("a", "(B)"), ("b", " (C)\n")], "c", answer=written)
    assert [d.output for d in task.demonstrations] == ["(B)", "(C)"]
    assert task.answer == "(A)"
    assert form.read(task, written) == "(A)"


@every_format
def test_an_introduction_that_demonstrations_have_is_part_of_the_answer(form: PromptFormat) -> None:
    task = make_task([("a", "The answer is no."), ("b", "Maybe.")], "c", answer="The answer is yes.\n")
    assert task.answer == form.read(task, " The answer is yes.") == "The answer is yes."
    assert form.read(make_task([("a", "Answer:")], "b"), "The answer is") == "The answer is"


@every_format
def test_inputs_are_shown_with_their_white_space(form: PromptFormat) -> None:
    assert " two  words " in whole(form, make_task([(" two  words ", "b")], " c"))


@every_format
def test_a_text_that_is_no_value_of_the_kind_cannot_be_parsed(form: PromptFormat) -> None:
    with pytest.raises(ParseError, match="not a list"):
        form.read(TASKS[0], "I think so")


def test_chat_answers_may_be_introduced_and_fenced() -> None:
    assert CHAT.read(TASKS[0], "Sure! Reversing gives:\n\n```\n[14, 3]\n```") == (14, 3)


@pytest.mark.parametrize(
    ("form", "output"),
    [(STANDARD_FORMAT, "two\n\nparagraphs"), (CHAT, "stop <|end|> here")],
    ids=["standard", "chat"],
)
def test_an_output_that_contains_the_end_marker_is_refused(form: PromptFormat, output: str) -> None:
    task = make_task([("a", output)], "b", id="t3")
    with pytest.raises(TaskError, match=r"t3: the output .* contains .*ends an answer"):
        form.pieces(task)
    with pytest.raises(TaskError, match=r't3: the output .*; prompt_format="auto" takes'):
        form.pieces(make_task([], "b", id="t3"), output)


def test_the_compact_notation_escapes_its_end_marker() -> None:
    task = make_task([("a", "two\nlines")], "b")
    assert whole(COMPACT_FORMAT, task) == "I a\nO two\\nlines\nI b\nO"
    assert kind_of(task).parse("two\\nlines", COMPACT) == "two\nlines"


def forgetful(messages: Sequence[dict[str, str]], generation: bool) -> str:
    """Shows the assistant's last turn only, as templates of reasoning models do."""
    kept = [
        m if m["role"] != "assistant" or m is messages[-1] else {"role": "assistant", "content": "..."}
        for m in messages
    ]
    return template(kept, generation)


def test_a_template_that_drops_earlier_answers_is_refused_with_advice() -> None:
    with pytest.raises(ModelError, match=r"rewrites earlier turns.*use prompt_format='standard'"):
        ChatFormat(forgetful).pieces(TASKS[0])


def turns(messages: Sequence[dict[str, str]], before_answer: str = "") -> str:
    return "".join(
        f"<|{m['role']}|>{before_answer * (m['role'] == 'assistant')}{m['content']}<|end|>" for m in messages
    )


def thinking(messages: Sequence[dict[str, str]], generation: bool) -> str:
    """An empty thought before the last answer alone, as in Qwen3's."""
    last = messages[-1]["role"] == "assistant"
    text = turns(messages[:-1]) + turns(messages[-1:], "<think></think>") if last else turns(messages)
    return text + "<|assistant|><think></think>" * generation


def stripping(messages: Sequence[dict[str, str]], generation: bool) -> str:
    """Contents without white space at their ends, and no system turns, as in Gemma's."""
    if any(m["role"] == "system" for m in messages):
        raise ModelError("System role not supported")
    return turns([{**m, "content": m["content"].strip()} for m in messages]) + "<|assistant|>" * generation


def late(messages: Sequence[dict[str, str]], generation: bool) -> str:
    """The system's words in the last user's turn, and a space before answers, as in Mistral's."""
    system = "".join(m["content"] + "\n\n" for m in messages if m["role"] == "system")
    rest = [m for m in messages if m["role"] != "system"]
    last = max(n for n, m in enumerate(rest) if m["role"] == "user")
    rest = [{**m, "content": system * (n == last) + m["content"]} for n, m in enumerate(rest)]
    return turns(rest, " ") + "<|assistant|>" * generation


@pytest.mark.parametrize(
    ("rendered", "expected"),
    [
        (
            thinking,
            "<|system|>Shout.<|end|><|user|> a <|end|><|assistant|>[A]<|end|><|user|>b<|end|>"
            "<|assistant|><think></think>[B]<|end|>",
        ),
        (
            stripping,
            "<|user|>Shout.\n\n a <|end|><|assistant|>[A]<|end|><|user|>b<|end|><|assistant|>[B]<|end|>",
        ),
        (
            late,
            "<|user|> a <|end|><|assistant|>[ A]<|end|><|user|>Shout.\n\nb<|end|><|assistant|>[ B]<|end|>",
        ),
    ],
    ids=["thinking", "stripping", "late"],
)
def test_templates_in_use_are_written_out_with_contents_as_they_are(rendered: Any, expected: str) -> None:
    task = make_task([(" a ", "A")], "b", instruction="Shout.", answer="B")
    pieces = ChatFormat(rendered).pieces(task, task.answer)
    text = "".join(f"[{p.text}]" if p.role == "answer" else p.text for p in pieces)
    assert text == expected
    assert [p.role for p in pieces] == ["context", "answer", "end"] * 2
    assert ChatFormat(rendered).ends == ("<|end|>",)
