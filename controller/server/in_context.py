"""Lets the other server answer what needs no training: conversations, and tasks that are kept in context.

Knows nothing about HTTP. Where the other server gives no answer, the one of this server stands, and the record says so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from ...ttt_core.errors import ParseError
from ...ttt_core.tasks.kinds import STANDARD
from ...ttt_core.tasks.prompts import chat_messages, read_answer
from .chat import ChatTask
from .chat_answers import BASE_MODEL, NOT_FEW_SHOT, ChatAnswer, content_of, text_event
from .schemas import Cost, Facts, Source
from .upstream import Upstream, UpstreamAnswer, UpstreamError

if TYPE_CHECKING:
    from ..controller import Controller
    from ..results import Result

MAX_ANSWER_TOKENS = 1024
"""Tokens that the other server may write for a task."""


def is_kept(result: Result) -> bool:
    """Whether the in-context answer of a task was decided on and stands."""
    return result.strategy == "in_context" and result.decision.get("strategy") == "in_context"


async def converse(upstream: Upstream, chat: ChatTask) -> AsyncGenerator[Any, None]:
    """The text of a conversation as the other server writes it, and the answer. Raises `UpstreamError`."""
    began = monotonic()
    messages = chat_messages(chat.task, STANDARD)
    events = upstream.answer(
        messages, max_tokens=chat.max_tokens, stops=chat.stops, temperature=chat.temperature, seed=chat.seed
    )
    async with aclosing(events):
        async for event in events:
            if isinstance(event, str):
                yield text_event(event)
                continue
            facts = Facts(
                decision=NOT_FEW_SHOT, strategy=BASE_MODEL, status="answered",
                reason="the chat marks no demonstrations, so nothing is trained; the other server answers it",
                cost=Cost(seconds=monotonic() - began, forward_tokens=0, backward_tokens=0, relative_seconds=None),
                source=Source(server=upstream.server),
            )  # fmt: skip
            reason: Literal["stop", "length"] = "length" if event.finish_reason == "length" else "stop"
            yield ChatAnswer(event.text, reason, event.prompt_tokens or 0, event.completion_tokens or 0, facts)


async def answered_there(upstream: Upstream, result: Result) -> tuple[Result, Source]:
    """The result with the answer of the other server, and who answered."""
    task, answer = result.task, None
    try:
        events = upstream.answer(chat_messages(task, STANDARD), max_tokens=MAX_ANSWER_TOKENS)
        async with aclosing(events):
            async for event in events:
                answer = event if isinstance(event, UpstreamAnswer) else answer
        assert answer is not None
        if answer.finish_reason == "length":
            return result, Source(fallback="the answer of the other server was cut off at its token limit")
        value = read_answer(task, answer.text)
    except UpstreamError as error:
        return result, Source(fallback=str(error))
    except ParseError:
        return result, Source(fallback=f"the answer of the other server is no value of the kind {task.kind}")
    return replace(result, answer=value, text=answer.text, status="answered"), Source(server=upstream.server)


async def chat_answered_there(
    upstream: Upstream, controller: Controller, chat: ChatTask, answer: ChatAnswer
) -> ChatAnswer:
    """The answer to a few-shot chat with the text of the other server, or the one of this server."""
    assert answer.result is not None
    result, source = await answered_there(upstream, answer.result)
    facts = answer.facts.model_copy(update={"source": source, "right": result.right})
    if not source.server:
        return replace(answer, facts=facts)
    return replace(content_of(controller, chat, result, answer.prompt_tokens), facts=facts)
