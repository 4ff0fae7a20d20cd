"""Chats in the shapes that clients write: what is a demonstration, what is the query, what is an instruction."""

from __future__ import annotations

from typing import Any

import pytest

from autottt.ttt_core.errors import TaskError
from autottt.ttt_core.tasks.formats import task_from_messages
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.messages import read_chat
from autottt.ttt_core.tasks.task import Demonstration

Message = dict[str, Any]


def said(role: str, content: Any, **fields: Any) -> Message:
    return {"role": role, "content": content, **fields}


PAIR = [said("user", "cat"), said("assistant", "tac")]
QUERY = said("user", "dog")
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "system",
    [
        [said("system", "Reverse.\n\nShout.")],
        [said("developer", "Reverse.\n\nShout.")],
        [said("system", "Reverse."), said("developer", "Shout.")],
        [
            said("system", [{"type": "text", "text": "Reverse."}]),
            said("system", [{"type": "input_text", "text": "Shout."}]),
        ],
    ],
)
def test_turns_of_the_system_and_the_developer_are_the_instruction(system: list[Message]) -> None:
    task = task_from_messages([*system, *PAIR, QUERY])
    assert task.instruction == "Reverse.\n\nShout."
    assert task.demonstrations == (Demonstration("cat", "tac"),)
    assert task.query == "dog"


def test_a_turn_of_the_system_between_demonstrations_is_joined_to_the_instruction() -> None:
    task = task_from_messages([said("system", "Reverse."), *PAIR, said("system", "Shout."), QUERY])
    assert (task.instruction, len(task.demonstrations)) == ("Reverse.\n\nShout.", 1)


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text"])
def test_every_kind_of_text_part_is_text(kind: str) -> None:
    parts = [{"type": kind, "text": "do"}, {"type": kind, "text": "g", "annotations": []}]
    assert task_from_messages([*PAIR, said("user", parts)]).query == "dog"


@pytest.mark.parametrize("roles", [("system", "system"), ("developer", "developer"), ("user", "assistant")])
def test_examples_by_name_are_demonstrations(roles: tuple[str, str]) -> None:
    examples = [said(roles[0], "cat", name="example_user"), said(roles[1], "tac", name="example_assistant")]
    task = task_from_messages([said("system", "Reverse."), *examples, *examples, QUERY])
    assert task.demonstrations == (Demonstration("cat", "tac"),) * 2
    assert task.instruction == "Reverse."
    assert task_from_messages([said("user", "a", name="Ann")]).query == "a", "other names mean nothing"


def test_an_example_must_be_complete_too() -> None:
    with pytest.raises(TaskError, match=r"messages\[1\].role: expected 'assistant'.*received 'user'"):
        task_from_messages([said("system", "cat", name="example_user"), QUERY])


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (said("assistant", None, tool_calls=[CALL]), "tool_calls"),
        (said("assistant", "", tool_calls=[CALL]), "tool_calls"),
        ({"role": "assistant", "tool_calls": [CALL]}, "tool_calls"),
        (said("assistant", "calling", function_call={"name": "f"}), "function_call"),
        (said("tool", "42", tool_call_id="1"), "tool_call_id"),
        (said("function", "42", name="f"), "role"),
        (said("tool", "42"), "role"),
    ],
)
def test_tool_calls_are_no_demonstrations(message: Message, field: str) -> None:
    with pytest.raises(TaskError, match=rf"^messages\[1\]\.{field}: .*tool calls, which are no demonstrations"):
        task_from_messages([said("user", "cat"), message, QUERY])


@pytest.mark.parametrize("nothing", [None, [], {}])
def test_fields_for_tools_without_tools_mean_nothing(nothing: object) -> None:
    message = said("assistant", "tac", tool_calls=nothing, function_call=None, refusal=None)
    assert task_from_messages([said("user", "cat"), message, QUERY]) == task_from_messages([*PAIR, QUERY])


@pytest.mark.parametrize("blank", ["", " ", "\n", []])
def test_an_empty_pair_is_refused(blank: Any) -> None:
    with pytest.raises(TaskError, match=r"^messages\[1\].content: expected (an answer with )?a text"):
        task_from_messages([said("user", ""), said("assistant", blank), QUERY])


@pytest.mark.parametrize("blank", ["", " \n", [{"type": "text", "text": ""}]])
@pytest.mark.parametrize("fields", [{}, {"refusal": "No."}, {"reasoning_content": "Hm."}])
def test_a_pair_without_an_answer_is_refused(blank: Any, fields: dict[str, str]) -> None:
    """An empty content stands for a refusal, a thought or a tool call; nobody teaches to answer nothing."""
    with pytest.raises(TaskError, match=r"^messages\[1\].content: expected an answer with a text: leave out the pair"):
        task_from_messages([said("user", "cat"), said("assistant", blank, **fields), QUERY])
    with pytest.raises(TaskError, match=r"^demonstrations\[1\].content: expected an answer with a text"):
        make_task([said("user", "cat"), said("assistant", blank, **fields)], "dog")


def test_a_conversation_may_have_an_answer_without_a_text() -> None:
    chat = read_chat([said("user", "cat"), said("assistant", ""), QUERY])
    assert [(user.text, assistant.text) for user, assistant in chat.pairs] == [("cat", "")]
    with pytest.raises(TaskError, match=r"^messages\[1\].content: expected an answer with a text"):
        chat.demonstrations()


def test_an_input_may_be_empty() -> None:
    assert task_from_messages([said("user", ""), said("assistant", "tac"), QUERY]).demonstrations[0].output == "tac"


def test_a_content_that_is_null_is_refused_by_its_place() -> None:
    with pytest.raises(TaskError, match=r"^messages\[0\].content: expected a text; received None"):
        task_from_messages([said("user", None)])


@pytest.mark.parametrize("message", [said("user", "a\ud800"), said("user", [{"type": "text", "text": "\udfff"}])])
def test_half_a_character_is_refused(message: Message) -> None:
    with pytest.raises(TaskError, match=r"^messages\[0\].content: expected a text that can be written as UTF-8"):
        task_from_messages([message])


@pytest.mark.parametrize(
    "junk", [None, 3, "a", [], {"role": []}, {"role": {}, "content": "a"}, {"content": {}}, {1: 2}]
)
def test_any_other_message_is_a_task_error(junk: Any) -> None:
    for messages in ([junk], [*PAIR, junk], junk):
        with pytest.raises(TaskError):
            task_from_messages(messages)


def test_a_chat_without_a_query_has_its_pairs() -> None:
    chat = read_chat([said("system", "s"), *PAIR])
    assert (chat.query, chat.instruction) == (None, "s")
    assert [(user.text, assistant.text) for user, assistant in chat.pairs] == [("cat", "tac")]


# Tasks in memory


def test_a_task_is_made_from_the_messages_of_a_chat() -> None:
    expected = make_task([("cat", "tac")], "dog", instruction="Reverse.")
    system = said("system", "Reverse.")
    assert make_task([system, *PAIR, QUERY]) == expected
    assert make_task([system, *PAIR], "dog") == expected
    assert make_task(PAIR, "dog", instruction="Reverse.") == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([*PAIR, QUERY], "bird"), "query: expected no query with a chat that ends with one; received both"),
        ((PAIR,), "query: expected the input to answer; received nothing"),
        (([("a", "b")],), "query: expected the input to answer; received nothing"),
        (([said("user", 3)], "x"), "demonstrations[0].content: expected a text; received 3"),
    ],
)
def test_a_chat_with_another_query_or_without_one_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        make_task(*arguments)
    assert str(caught.value).startswith(message)
