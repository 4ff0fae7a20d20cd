"""Turns at a model: what several threads, and several learners around one model, wait for. Knows nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from weakref import WeakKeyDictionary

from torch import nn


class ModelLock:
    """The locks of one model."""

    def __init__(self) -> None:
        self.compute = threading.RLock()
        """Held while the model computes, or an adapter is attached to it."""
        self._exclusive = threading.Lock()

    @contextmanager
    def exclusive(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """One caller's turn from its first use of the model to its last, so that what it takes can be told from what
        others take. What is called from inside belongs to the same turn. `waiting` is called now and then until it
        begins, and may raise.
        """
        mine = _HELD.get()
        if self in mine:
            yield
            return
        while not self._exclusive.acquire(timeout=0.05):
            on_wait()
        token = _HELD.set((*mine, self))
        try:
            yield
        finally:
            self._exclusive.release()
            with suppress(ValueError):  # a generator that was left behind is closed in a context of its own
                _HELD.reset(token)


_HELD: ContextVar[tuple[ModelLock, ...]] = ContextVar("turns", default=())
"""The turns of whoever asks. By context and not by thread, since LangGraph may run a node in another one."""
_LOCKS: WeakKeyDictionary[nn.Module, ModelLock] = WeakKeyDictionary()
_CREATING = threading.Lock()


def lock_of(model: nn.Module) -> ModelLock:
    """The model's turns, the same for all learners around it."""
    with _CREATING:
        return _LOCKS.setdefault(model, ModelLock())
