"""Answers chats in this process, by the rules of the server: what is a demonstration is never guessed.

Knows nothing about the programs that ask.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ...ttt_core.errors import AutotttError, BaseChangedError, Cancelled, TaskError
from ...ttt_core.tasks.task import Demonstration
from ..background import Publish, iterate
from ..controller import Controller
from ..server.api_errors import ApiError, invalid_request
from ..server.chat import FEW_SHOT_SUFFIX, ChatTask, read_chat_request
from ..server.chat_answers import ChatAnswer, answer_of, complete
from ..server.limits import Limits
from ..server.schemas import ChatRequest

LIMITS = Limits(demonstrations=1_000_000, max_tokens=1_000_000)
"""Bounds of one chat: the context of the model is the only limit."""
DEFAULT_MAX_TOKENS = 4096
"""Tokens of an answer to a chat that says nothing else, as the server has it."""


@dataclass(frozen=True)
class ChatQuery:
    """A chat that was read, with the settings of its answer."""

    chat: ChatTask
    strategy: str | None
    budget: str | float | None
    seed: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `Controller.solve`."""
        return {"strategy": self.strategy, "budget": self.budget, "seed": self.seed}


def read_chat_query(messages: Sequence[Mapping[str, Any]], *, few_shot: bool = False, **parameters: Any) -> ChatQuery:
    """The query of a chat: messages as OpenAI's API has them, and parameters of `/v1/chat/completions`.

    With `few_shot` every earlier turn is a demonstration. `demonstrations` may be pairs. Raises `TaskError` that names
    the field: what would change the answer and is not implemented is refused.
    """
    if isinstance(demonstrations := parameters.get("demonstrations"), (list, tuple)):
        parameters["demonstrations"] = [_pair(each) for each in demonstrations]
    fields = {**parameters, "messages": list(messages), "model": FEW_SHOT_SUFFIX if few_shot else "autottt"}
    if fields.get("max_tokens") is None and fields.get("max_completion_tokens") is None:
        fields["max_tokens"] = DEFAULT_MAX_TOKENS
    try:
        body = ChatRequest.model_validate(fields)
        return ChatQuery(read_chat_request(body, LIMITS), body.strategy, body.budget, body.seed)
    except ValidationError as error:
        first = error.errors()[0]
        raise TaskError(str(invalid_request(first, first["loc"]))) from None
    except ApiError as error:
        raise TaskError(str(error)) from None


def answer(controller: Controller, query: ChatQuery, cancel: threading.Event | None = None) -> ChatAnswer:
    """The answer to a chat. Raises as `Controller.solve` does."""
    if not query.chat.few_shot:
        return complete(controller, query.chat, cancel or threading.Event(), _ignore)
    return answer_of(controller, query.chat, controller.solve(query.chat.task, **query.settings, cancel=cancel))


def answer_events(
    controller: Controller, query: ChatQuery, cancel: threading.Event | None = None
) -> Iterator[dict[str, Any] | ChatAnswer]:
    """The events of an answer as they happen, then the answer: the text of a conversation so far, or the events of
    `Controller.stream`. Closing the iterator cancels the work."""
    stop = cancel or threading.Event()

    def work(publish: Publish[Any]) -> None:
        publish(complete(controller, query.chat, stop, publish))

    if query.chat.few_shot:
        events = controller.stream(query.chat.task, **query.settings, cancel=cancel)
    else:
        events = iterate(work, stop)
    with closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, (dict, ChatAnswer)):
                yield event
            else:
                yield answer_of(controller, query.chat, event)


def answer_many(
    controller: Controller, queries: Sequence[ChatQuery], cancel: threading.Event | None = None
) -> list[ChatAnswer | Exception]:
    """The answers to chats in order; adapters that few-shot chats need are trained in batches. A chat that cannot be
    answered has its error in the list. Raises `Cancelled` and `BaseChangedError`."""
    answers: list[ChatAnswer | Exception | None] = [None] * len(queries)
    groups: dict[str, list[int]] = {}
    for number, query in enumerate(queries):
        if query.chat.few_shot:
            groups.setdefault(repr(query.settings), []).append(number)
    for numbers in groups.values():
        tasks = [queries[number].chat.task for number in numbers]
        results = controller.solve_many(tasks, **queries[numbers[0]].settings, cancel=cancel)
        for number, result in zip(numbers, results, strict=True):
            if result.status != "refused":
                answers[number] = answer_of(controller, queries[number].chat, result)
    return [
        _answer_or_error(controller, query, cancel) if solved is None else solved
        for query, solved in zip(queries, answers, strict=True)
    ]


def _answer_or_error(
    controller: Controller, query: ChatQuery, cancel: threading.Event | None
) -> ChatAnswer | Exception:
    """The answer to a chat, or why there is none."""
    try:
        return answer(controller, query, cancel)
    except (BaseChangedError, Cancelled):
        raise
    except AutotttError as error:
        return error


def _pair(pair: Any) -> Any:
    """A demonstration as the schema has it; what is none is left to the schema to refuse."""
    if isinstance(pair, Demonstration):
        pair = (pair.input, pair.output)
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        pair = {"input": pair[0], "output": pair[1]}
    return {name: _as_lists(value) for name, value in pair.items()} if isinstance(pair, Mapping) else pair


def _as_lists(value: Any) -> Any:
    """A value with lists in place of tuples."""
    return [_as_lists(part) for part in value] if isinstance(value, (tuple, list)) else value


def _ignore(event: Any, *, droppable: bool = False) -> None:
    """A publisher without a reader."""
