"""Runs work in a thread of its own and hands what it publishes to a reader, who may be slow or leave.

The work never waits for its reader. Knows nothing about tasks.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from typing import Generic, Protocol, TypeVar

from ..ttt_core.errors import BaseChangedError, ClosedError

T = TypeVar("T")
Published = TypeVar("Published", contravariant=True)
EVENT_LIMIT = 1024
"""Droppable events that wait for a slow reader; of more, the oldest are dropped."""


class Publish(Protocol[Published]):
    """Hands an event to the reader. A droppable one may be lost if the reader is slow."""

    def __call__(self, event: Published, *, droppable: bool = False) -> None: ...


class BackgroundRun(Generic[T]):
    """Work that has been started in a thread. It runs with a copy of the caller's context variables."""

    def __init__(
        self,
        work: Callable[[Publish[T]], None],
        stop: threading.Event,
        *,
        limit: int = EVENT_LIMIT,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`work` ends soon after `stop` is set. `on_change` is called in the thread when there is something to read."""
        self._work, self._stop, self._limit, self._on_change = work, stop, limit, on_change
        self._events: deque[tuple[T, bool]] = deque()
        self._droppable, self._done = 0, False
        self._error: BaseException | None = None
        self._changed, self._process = threading.Condition(), os.getpid()
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name="autottt", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work(self._publish)
        except BaseException as error:  # raised again where the events are read
            self._error = error
        with self._changed:
            self._done = True
            self._changed.notify_all()
        self._on_change()

    def _publish(self, event: T, *, droppable: bool = False) -> None:
        with self._changed:
            if droppable and self._droppable == self._limit:
                del self._events[next(i for i, (_, can_drop) in enumerate(self._events) if can_drop)]
                self._droppable -= 1
            self._events.append((event, droppable))
            self._droppable += droppable
            self._changed.notify_all()
        self._on_change()

    def take(self, *, wait: bool) -> tuple[list[T], bool]:
        """The events that were not read yet, and whether no more will come. `wait` blocks until either is the case.
        Raises `ClosedError` in a process that was forked since: the thread that works is not there."""
        if os.getpid() != self._process:
            raise ClosedError("this stream was begun by the process that this one was forked from; begin one here")
        with self._changed:
            while wait and not self._events and not self._done:
                self._changed.wait()
            events = [event for event, _ in self._events]
            self._events.clear()
            self._droppable = 0
            return events, self._done

    def raise_error(self) -> None:
        """Raises what the work raised, if it has."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Makes the work end and waits until it has, in the process that began it. Raises only `BaseChangedError`:
        nobody reads other errors now."""
        if os.getpid() != self._process:
            return
        self._stop.set()
        self._thread.join()
        if isinstance(self._error, BaseChangedError):
            raise self._error


def iterate(work: Callable[[Publish[T]], None], stop: threading.Event) -> Iterator[T]:
    """What the work publishes. It is started at the first `next` and stopped when this iterator is closed."""
    run = BackgroundRun(work, stop)
    try:
        done = False
        while not done:
            events, done = run.take(wait=True)
            yield from events
        run.raise_error()
    finally:
        run.stop()


async def aiterate(work: Callable[[Publish[T]], None], stop: threading.Event) -> AsyncGenerator[T, None]:
    """The same for coroutines: the event loop is free meanwhile. Cancelling stops the work, and waits for that."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(changed.set)

    run = BackgroundRun(work, stop, on_change=wake)
    try:
        done = False
        while not done:
            await changed.wait()
            changed.clear()
            events, done = run.take(wait=False)
            for event in events:
                yield event
        run.raise_error()
    finally:
        stop.set()
        await asyncio.to_thread(run.stop)
