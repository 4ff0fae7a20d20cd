"""Answers chats: few-shot tasks by the controller, conversations by the base model, without training.

Knows nothing about HTTP, and imports no model library: the controller brings it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ...ttt_core.errors import Cancelled
from ...ttt_core.tasks.task import Task
from ..background import Publish, aiterate
from .chat import ChatTask
from .facts import facts_of
from .schemas import Cost, Facts, Proof, Source

if TYPE_CHECKING:
    from ...ttt_core.learner import Learner
    from ..results import Result
    from ..scheduler.scheduler import Scheduler

NOT_FEW_SHOT, BASE_MODEL = "not_few_shot", "base_model"
"""The decision on a conversation, and what answers it."""


class HasLearner(Protocol):
    """A controller, or a scheduler."""

    @property
    def learner(self) -> Learner: ...


@dataclass(frozen=True)
class ChatAnswer:
    """The answer to a chat, the last event of its work."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    facts: Facts
    result: Result | None = None
    """Of a few-shot task."""
    cut: Callable[[str], str] | None = None
    """Cuts a text as the answer was cut; None where the answer is whole."""

    def with_source(self, source: Source) -> ChatAnswer:
        """The answer with who gave it."""
        return replace(self, facts=self.facts.model_copy(update={"source": source}))


def text_event(text: str) -> dict[str, Any]:
    """The event of an answer that is being written: its text so far."""
    return {"event": "text", "text": text}


async def solve_events(
    scheduler: Scheduler, task: Task, how: Mapping[str, Any], *, progress: bool
) -> AsyncGenerator[Any, None]:
    """The result of a task, with `progress` after the events of its run; `how` are arguments of `Controller.solve`."""
    if not progress:
        yield await scheduler.asolve(task, **how)
        return
    async with aclosing(scheduler.astream(task, **how)) as events:
        async for event in events:
            yield event


async def answer_few_shot(
    scheduler: Scheduler, chat: ChatTask, how: Mapping[str, Any], *, progress: bool
) -> AsyncGenerator[Any, None]:
    """The answer to a few-shot task, with `progress` after the events of its run."""
    async with aclosing(solve_events(scheduler, chat.task, how, progress=progress)) as events:
        async for event in events:
            yield event if isinstance(event, dict) else await asyncio.to_thread(answer_of, scheduler, chat, event)


async def answer_conversation(scheduler: Scheduler, chat: ChatTask) -> AsyncGenerator[Any, None]:
    """The text of the base model as it is written, and the answer."""
    stop = threading.Event()

    def work(publish: Publish[Any]) -> None:
        publish(scheduler.call(partial(complete, scheduler, chat, stop, publish), cancel=stop).result())

    async with aclosing(aiterate(work, stop)) as events:
        async for event in events:
            yield event


def answer_of(controller: HasLearner, chat: ChatTask, result: Result) -> ChatAnswer:
    """The answer of a solved task."""
    formatted = replace(chat.task, prompt_format=str(result.format_choice.get("name", "")))
    return content_of(controller, chat, result, len(controller.learner.window.encode(formatted).ids))


def content_of(controller: HasLearner, chat: ChatTask, result: Result, prompt_tokens: int) -> ChatAnswer:
    """The answer of a solved task: its value as text, cut where the request says so."""
    if result.answer is None:
        text = result.text
    else:
        text = result.answer if isinstance(result.answer, str) else json.dumps(result.answer)

    def beginning(whole: str) -> tuple[str, int, bool]:
        return _first_tokens(controller, chat.cut(whole), chat.max_tokens)

    shown, count, is_long = beginning(text)
    cut = None if shown == text else lambda whole: beginning(whole)[0]
    return ChatAnswer(shown, "length" if is_long else "stop", prompt_tokens, count, facts_of(result), result, cut)


def _first_tokens(controller: HasLearner, text: str, limit: int) -> tuple[str, int, bool]:
    """The first tokens of a text, how many those are, and whether there are more."""
    tokenizer = controller.learner.loaded.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) <= limit:
        return text, len(ids), False
    return str(tokenizer.decode(ids[:limit])), limit, True


def complete(controller: HasLearner, chat: ChatTask, stop: threading.Event, publish: Publish[Any]) -> ChatAnswer:
    """What the base model writes, with the proof that it is unchanged; `publish` receives the text so far."""
    learner = controller.learner

    def raise_if_cancelled() -> None:
        if stop.is_set():
            raise Cancelled("cancelled by the caller; this chat has no answer")

    def should_stop() -> bool:
        raise_if_cancelled()
        return False

    with learner.guarded.lock.exclusive(raise_if_cancelled), learner.guarded.stop_when(should_stop):
        meter = learner.guarded.meter()
        task = replace(chat.task, prompt_format="chat") if "chat" in learner.loaded.formats else chat.task
        seed = secrets.randbits(31) if chat.seed is None else chat.seed
        completion = learner.answerer.complete(
            task, chat.max_tokens, stops=chat.stops, temperature=chat.temperature, seed=seed,
            on_text=lambda text: publish(text_event(text), droppable=True),
        )  # fmt: skip
        proof = learner.verify()
    facts = Facts(
        decision=NOT_FEW_SHOT, strategy=BASE_MODEL, status="answered", right=None,
        reason="the chat marks no demonstrations, so the base model answers it and nothing is trained",
        cost=Cost(**asdict(meter.read()), relative_seconds=1.0), proof=Proof(**asdict(proof)),
    )  # fmt: skip
    reason: Literal["stop", "length"] = "stop" if completion.ended else "length"
    return ChatAnswer(completion.text, reason, completion.prompt_tokens, completion.completion_tokens, facts)
