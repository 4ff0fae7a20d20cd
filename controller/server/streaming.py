"""Server-sent events that clients of OpenAI's API survive: unnamed, each a JSON object, with comments while there is
nothing to say. Knows nothing about how answers are made."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from time import monotonic
from typing import Any

from ...ttt_core.standard_json import dumps
from .api_errors import api_error
from .chat_answers import ChatAnswer
from .facts import progress_of

KEEP_ALIVE_SECONDS = 10.0
"""Longest silence of a stream; then a comment is sent, which clients skip."""
POLL_SECONDS = 1.0
"""How long a stream waits for an event before it looks whether it must send a comment."""
KEEP_ALIVE, DONE = ": keep-alive\n\n", "data: [DONE]\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Headers with which proxies pass a stream on at once."""
Event = Any


def data(content: object) -> str:
    """A server-sent event without a name."""
    return f"data: {dumps(content)}\n\n"


async def stream(
    first: Event, events: AsyncGenerator[Event, None], to_data: Callable[[Event], Iterator[object]]
) -> AsyncIterator[str]:
    """The text of a stream: what `to_data` makes of each event, comments meanwhile, and at the end an error, if there
    was one, and `[DONE]`. `first` is an event that was read already; None stands for no event."""
    sent = monotonic()
    try:
        async with aclosing(events):
            event = first
            while True:
                if event is not None:
                    for content in to_data(event):
                        sent = monotonic()
                        yield data(content)
                elif monotonic() - sent > KEEP_ALIVE_SECONDS - POLL_SECONDS:
                    sent = monotonic()
                    yield KEEP_ALIVE
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    break
    except Exception as error:
        yield data(api_error(error).body)
    yield DONE


class ChatChunks:
    """The chunks of one streamed chat."""

    def __init__(self, head: dict[str, Any], include_usage: bool) -> None:
        """`head` are the fields that all chunks share; with `include_usage` a last chunk has the usage."""
        self._head = {**head, "object": "chat.completion.chunk"}
        self._include_usage = include_usage
        self._sent = ""
        self._began = False

    def of_event(self, event: Event, usage: Callable[[ChatAnswer], dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The chunks of an event: of progress one with an empty delta, of text the new part, of the answer the rest."""
        if not self._began:
            self._began = True
            yield self._chunk({"role": "assistant", "content": ""})
        if isinstance(event, ChatAnswer):
            yield from self._text(event.text)
            yield self._chunk({}, event.finish_reason, event.facts.model_dump())
            if self._include_usage:
                yield {**self._head, "choices": [], "usage": usage(event), "autottt": event.facts.model_dump()}
        elif event["event"] == "text":
            yield from self._text(event["text"])
        else:
            yield self._chunk({}, None, progress_of(event))

    def _text(self, text: str) -> Iterator[dict[str, Any]]:
        if len(text) > len(self._sent):
            new, self._sent = text[len(self._sent) :], text
            yield self._chunk({"content": new})

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, facts: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return chunk if facts is None else {**chunk, "autottt": facts}
