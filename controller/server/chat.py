"""Reads chat requests: which messages are demonstrations, and whether every parameter can be honoured.

What is a demonstration is never guessed. History counts as demonstrations where it is marked (turns named
`example_user` and `example_assistant`, or the field `demonstrations`), or where the client chose the model name that
says so; any other history is a conversation. Knows nothing about how chats are answered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ttt_core.errors import TaskError, shortened
from ...ttt_core.tasks.kinds import KINDS, guess_kind, make_task
from ...ttt_core.tasks.messages import Chat, Turn, is_example, read_chat
from ...ttt_core.tasks.task import Demonstration, Task
from .api_errors import ApiError, unsupported
from .limits import Limits
from .schemas import NEUTRAL, ChatRequest

FEW_SHOT_SUFFIX = "-fewshot"
"""Ending of the model name with which every earlier turn is a demonstration."""
MAX_STOPS = 16
GREEDY_BELOW = 1e-3
"""Temperatures below this one are greedy decoding: their logits exceed what numbers of 32 bits hold."""


@dataclass(frozen=True)
class ChatTask:
    """A chat as a task, and the parameters of its answer."""

    task: Task
    few_shot: bool
    """Whether the demonstrations are examples to learn from, and no conversation."""
    max_tokens: int
    stops: tuple[str, ...]
    temperature: float
    seed: int | None

    def cut(self, text: str) -> str:
        """The text up to the first stop text."""
        ends = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text


def read_chat_request(body: ChatRequest, limits: Limits) -> ChatTask:
    """The task and the parameters of a request. Raises `ApiError` or `TaskError`, which name the field."""
    _refuse_unsupported(body)
    task, few_shot = _task(body)
    limits.check_demonstrations(len(task.demonstrations))
    temperature = body.temperature or 0.0
    if few_shot and temperature >= GREEDY_BELOW:
        expected = "answers to few-shot tasks are decoded greedily; leave it out, or give 0"
        raise unsupported("temperature", expected, temperature)
    if not few_shot:
        for name in ("strategy", "budget"):
            if (value := getattr(body, name)) is not None:
                raise unsupported(name, "a chat without demonstrations is answered by the base model", value)
    return ChatTask(
        task, few_shot, _max_tokens(body, limits), _stops(body.stop),
        temperature if temperature >= GREEDY_BELOW else 0.0, body.seed,
    )  # fmt: skip


def _refuse_unsupported(body: ChatRequest) -> None:
    """Raises `ApiError` for a parameter that would change the answer and is not implemented."""
    for name, neutral in NEUTRAL.items():
        value = getattr(body, name)
        if value is not None and not any(value == other and type(value) is type(other) for other in neutral):
            if name in ("top_p", "frequency_penalty", "presence_penalty") and type(value) is float and value in neutral:
                continue  # 1.0 for 1
            expected = " or ".join(json.dumps(other) for other in neutral)
            raise unsupported(name, f"leave it out{f', or give {expected}' if expected else ''}", value)


def _max_tokens(body: ChatRequest, limits: Limits) -> int:
    given = {n: v for n in ("max_tokens", "max_completion_tokens") if (v := getattr(body, n)) is not None}
    for name, value in given.items():
        if value > limits.max_tokens:
            message = f"{name}: expected at most {limits.max_tokens}, the limit here; received {value}"
            raise ApiError(400, message, name, "too_many_tokens")
    if len(set(given.values())) > 1:
        message = "max_tokens: expected the same number as max_completion_tokens, or only one of them"
        raise ApiError(400, message, "max_tokens", "invalid_value")
    return next(iter(given.values()), limits.max_tokens)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > MAX_STOPS or not all(stops):
        message = f"stop: expected at most {MAX_STOPS} texts that are not empty; received {len(stops)}"
        raise ApiError(400, message, "stop", "invalid_value")
    return tuple(stops)


def _task(body: ChatRequest) -> tuple[Task, bool]:
    """The task of a chat, and whether it has demonstrations. Raises `ApiError` or `TaskError`."""
    messages = [message.model_dump(exclude_unset=True) for message in body.messages]
    chat = read_chat(messages)
    if chat.query is None:
        role = messages[-1]["role"] if messages else None
        raise TaskError(f"messages: expected a last message from 'user', the query; received {role!r}")
    _refuse_late_instructions(messages)
    marked = [is_example(messages[turn.number]) for pair in chat.pairs for turn in pair]
    if is_example(messages[chat.query.number]):
        place = f"messages[{chat.query.number}]"
        raise TaskError(f"{place}: expected an answer of 'example_assistant' after it; received the end of the chat")
    if body.demonstrations is not None:
        if chat.pairs:
            raise TaskError("demonstrations: expected messages of one query only; received earlier turns as well")
        return _with_demonstrations(body, chat, chat.query)
    if any(marked) and not all(marked):
        turns = [turn for pair in chat.pairs for turn in pair]
        first = next(turn.number for turn, is_marked in zip(turns, marked, strict=True) if not is_marked)
        raise TaskError(f"messages[{first}]: expected only marked examples before the query; received another turn")
    few_shot = bool(chat.pairs) and (all(marked) or body.model.endswith(FEW_SHOT_SUFFIX))
    if few_shot:
        pairs: list[tuple[object, object]] = [(user.text, answer.text) for user, answer in chat.demonstrations()]
        return make_task(pairs, chat.query.text, kind="text", instruction=chat.instruction, id="chat"), True
    turns_of_conversation = tuple(Demonstration(user.text, assistant.text) for user, assistant in chat.pairs)
    return Task("text", turns_of_conversation, chat.query.text, instruction=chat.instruction, id="chat"), False


def _with_demonstrations(body: ChatRequest, chat: Chat, query: Turn) -> tuple[Task, bool]:
    """The task of a chat whose demonstrations are a field of their own; a query that is no text is written in JSON."""
    assert body.demonstrations is not None
    pairs: list[tuple[object, object]] = [(pair.input, pair.output) for pair in body.demonstrations]
    if not pairs:
        raise TaskError("demonstrations: expected at least one pair; received none")
    kind = guess_kind(pairs[0][0])
    value: object = query.text
    if kind != "text":
        place = f"messages[{query.number}].content"
        try:
            value = KINDS[kind].check(json.loads(query.text))
        except TaskError as error:
            raise TaskError(f"{place}: {error}") from None
        except (ValueError, RecursionError):
            expected = f"expected JSON of the kind {kind}, as the demonstrations are"
            raise TaskError(f"{place}: {expected}; received {shortened(query.text)}") from None
    return make_task(pairs, value, kind=kind, instruction=chat.instruction, id="chat"), True


def _refuse_late_instructions(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises `TaskError` for a message of the system behind a turn, which no prompt of the model can show there."""
    turn_began = False
    for number, message in enumerate(messages):
        is_system = message["role"] in ("system", "developer") and not is_example(message)
        if is_system and turn_began:
            raise TaskError(
                f"messages[{number}].role: expected system messages before all others; received a later one"
            )
        turn_began = turn_began or not is_system
