"""Turns at a model: what several threads, and several learners around one model, wait for. Knows nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from weakref import WeakKeyDictionary

from torch import nn


class Turns:
    """The locks of one model."""

    def __init__(self) -> None:
        self.use = threading.RLock()
        """Held while the model computes, or an adapter is attached to it."""
        self._whole = threading.Lock()

    @contextmanager
    def whole(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """One caller's turn from its first use of the model to its last, so that what it takes can be told from what
        others take. What is called from inside belongs to the same turn. `waiting` is called now and then until it
        begins, and may raise.
        """
        mine = _MINE.get()
        if self in mine:
            yield
            return
        while not self._whole.acquire(timeout=0.05):
            waiting()
        token = _MINE.set((*mine, self))
        try:
            yield
        finally:
            self._whole.release()
            with suppress(ValueError):  # a generator that was left behind is closed in a context of its own
                _MINE.reset(token)


_MINE: ContextVar[tuple[Turns, ...]] = ContextVar("turns", default=())
"""The turns of whoever asks. By context and not by thread, since LangGraph may run a node in another one."""
_TURNS: WeakKeyDictionary[nn.Module, Turns] = WeakKeyDictionary()
_CREATING = threading.Lock()


def turns_at(model: nn.Module) -> Turns:
    """The model's turns, the same for all learners around it."""
    with _CREATING:
        return _TURNS.setdefault(model, Turns())
