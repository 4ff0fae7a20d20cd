"""The events of answers: by the controller here or, where no training is needed, by another server.

Knows nothing about HTTP. Each method is a generator whose last event is the answer; None stands for no event.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from .api_errors import ApiError
from .chat import ChatTask
from .chat_answers import ChatAnswer, answer_conversation, answer_few_shot
from .engine import Engine, Event, Work
from .in_context import answered_there, chat_answered_there, converse, is_kept
from .schemas import ChatRequest, Source
from .upstream import Upstream, UpstreamError

if TYPE_CHECKING:
    from ..scheduler.scheduler import Scheduler


class Answers:
    """Answers tasks and chats by an engine, and by another server where there is one."""

    def __init__(self, engine: Engine, upstream: Upstream | None) -> None:
        self._engine = engine
        self._upstream = upstream

    async def task(self, client: str, work: Work, idle_seconds: float) -> AsyncGenerator[Event, None]:
        """The events of a task; the last one is its result, and who gave the answer."""
        upstream = self._upstream
        async with aclosing(self._engine.run(client, work, idle_seconds)) as events:
            async for event in events:
                if event is None or isinstance(event, dict):
                    yield event
                elif upstream is None or not is_kept(event):
                    yield event, None
                else:
                    asked = self._beside(client, partial(answered_there, upstream, event), idle_seconds)
                    async with aclosing(asked) as others:
                        async for other in others:
                            yield (event, other) if isinstance(other, Source) else other

    async def chat(
        self, client: str, chat: ChatTask, body: ChatRequest, idle_seconds: float
    ) -> AsyncGenerator[Event, None]:
        """The events of a chat; the last one is its answer."""
        controller, fallback = self._engine.controller, ""
        if self._upstream is not None and not chat.few_shot:
            began = False
            try:
                async with aclosing(self._conversation(self._upstream, client, chat, idle_seconds)) as events:
                    async for event in events:
                        began = began or event is not None
                        yield event
                return
            except UpstreamError as error:
                if began:
                    raise ApiError(503, f"{error}, after a part of its text was sent", code="other_server") from None
                fallback = str(error)

        def work(scheduler: Scheduler) -> AsyncGenerator[Event, None]:
            if chat.few_shot:
                how = {"strategy": body.strategy, "budget": body.budget, "seed": body.seed}
                return answer_few_shot(scheduler, chat, how, progress=bool(body.stream))
            return answer_conversation(scheduler, chat)

        async with aclosing(self._engine.run(client, work, idle_seconds)) as events:
            async for event in events:
                if self._upstream is None or not isinstance(event, ChatAnswer):
                    yield event
                elif event.result is None or not is_kept(event.result):
                    yield event.with_source(Source(fallback=fallback))
                else:
                    ask = partial(chat_answered_there, self._upstream, controller, chat, event)
                    async with aclosing(self._beside(client, ask, idle_seconds)) as others:
                        async for other in others:
                            yield event.with_source(other) if isinstance(other, Source) else other

    def _conversation(
        self, upstream: Upstream, client: str, chat: ChatTask, idle_seconds: float
    ) -> AsyncGenerator[Event, None]:
        return self._engine.run(client, lambda _: converse(upstream, chat), idle_seconds, uses_model=False)

    async def _beside(
        self, client: str, ask: Callable[[], Awaitable[Event]], idle_seconds: float
    ) -> AsyncGenerator[Event, None]:
        """What the other server is asked for, without the model here; a `Source` with the reason where it cannot be
        asked."""

        async def work(_: Scheduler) -> AsyncGenerator[Event, None]:
            yield await ask()

        try:
            async with aclosing(self._engine.run(client, work, idle_seconds, uses_model=False)) as events:
                async for event in events:
                    yield event
        except ApiError as error:
            yield Source(fallback=error.message)
