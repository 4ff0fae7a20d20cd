"""The clock of budgets, deadlines and costs: `time.monotonic`, except that it stands still while work is paused.

Knows nothing about who pauses work, or why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_PAUSED: ContextVar[Callable[[], float] | None] = ContextVar("autottt_paused_seconds", default=None)


def monotonic() -> float:
    """The time of the caller's work, in seconds."""
    return reader()()


def reader() -> Callable[[], float]:
    """A function that returns the time of the caller's work, also from other threads, which context variables do not
    reach."""
    paused = _PAUSED.get()
    if paused is None:
        return time.monotonic
    return lambda: time.monotonic() - paused()


@contextmanager
def without_pauses(paused_seconds: Callable[[], float]) -> Iterator[None]:
    """While inside, the clock is late by the seconds that `paused_seconds` returns."""
    token = _PAUSED.set(paused_seconds)
    try:
        yield
    finally:
        _PAUSED.reset(token)
