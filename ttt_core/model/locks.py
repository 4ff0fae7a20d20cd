"""Locks of a model: what several threads, and several learners around one model, wait for. Knows nothing else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from ..errors import ModelError
from ..spans import span

POLL_SECONDS = 0.001
"""How often a caller that waits looks whether its turn has come."""


Token: TypeAlias = Any
"""A lock of `threading`, whose type has no name in Python 3.11."""
Reference: TypeAlias = Callable[[], Token]


class ModelLock:
    """The locks of one model."""

    def __init__(self) -> None:
        self.compute: Any = threading.RLock()
        """Held while the model computes, or an adapter is attached to it."""
        self._state = threading.RLock()
        self._turns: list[tuple[Reference, int]] = []
        """The turns under way, each inside the one before it: their tokens and the threads that claimed them."""

    def exclusive(self, on_wait: Callable[[], None] = lambda: None) -> Turn:
        """One caller's turn from its first use of the model to its last, so that its cost can be told from that of
        others. What is called from inside, by nodes in other threads too, is a turn inside this one; of several such
        callers each waits for the others. `on_wait` is called now and then until the turn begins, and may raise.
        """
        return Turn(self, on_wait)

    def owner(self) -> Token | None:
        """The token of the innermost turn under way."""
        return next((token for reference, _ in reversed(self._turns) if (token := _held(reference))), None)

    def is_held_by_caller(self) -> bool:
        """Whether the caller is inside a turn under way, so that other callers wait for it."""
        outer = _turns_of_caller()
        return any(_held(reference) in outer for reference, _ in self._turns)

    def is_open_to(self, variables: Context) -> bool:
        """Whether who calls with these context variables need not wait for the turn under way, if there is one."""
        owner = self.owner()
        return owner is None or any(_held(reference) is owner for reference in variables.get(_HELD, ()))

    def claim(self, token: Token, outer: Sequence[Token]) -> bool:
        """Begins the turn of a token, which must be held, unless a turn is under way that is none of `outer`."""
        with self._state:
            if (owner := self.owner()) is not None and owner not in outer:
                return False
            under_way = [turn for turn in self._turns if _held(turn[0])]
            self._turns = [*under_way, (ref(token), threading.get_ident())]
            return True

    def after_fork(self, was_computing: bool) -> None:
        """In a forked process: drops the turns of threads that do not exist here. Where one of them computed, the model
        is in the middle of its work, so each use raises `ModelError`."""
        self._state = threading.RLock()
        self._turns = [turn for turn in self._turns if turn[1] == threading.get_ident()]
        if was_computing:
            self.compute = _Unusable()


def _held(reference: Reference) -> Token | None:
    """The token, if its turn has not ended."""
    token = reference()
    return token if token is not None and token.locked() else None


def _turns_of_caller() -> list[Token]:
    """The tokens of the turns that the caller is inside of, of all models."""
    return [token for reference in _HELD.get() if (token := _held(reference))]


class Turn:
    """A caller's turn at a model, a context manager. It ends with its `with` block, or when its token is dropped.

    A signal may raise between any two instructions, so the block ends by a function in C, and `__enter__` claims the
    turn inside a `try`: no instruction lies between the claim and what ends it.
    """

    def __init__(self, lock: ModelLock, on_wait: Callable[[], None]) -> None:
        self._lock, self._on_wait = lock, on_wait
        self._token: Token = threading.Lock()
        """Held from the claim to the end; one that is not held is worth nothing."""

    def __enter__(self) -> None:
        outer = _turns_of_caller()
        try:
            self._token.acquire()
            self._wait(outer)
            _HELD.set((*map(ref, outer), ref(self._token)))
        except BaseException:
            with suppress(RuntimeError):  # raised before it was acquired
                self._token.release()
            raise

    @property
    def __exit__(self) -> Callable[..., None]:
        end: Callable[..., None] = self._token.__exit__
        return end

    def _wait(self, outer: Sequence[Token]) -> None:
        if isinstance(self._lock.compute, _Unusable):
            self._lock.compute.__enter__()
        if self._lock.claim(self._token, outer):
            return
        with span("wait"):
            while not self._lock.claim(self._token, outer):
                self._on_wait()
                time.sleep(POLL_SECONDS)  # waiting on the owner's token would keep a dropped one alive


class _Unusable:
    """Stands for the compute lock of a model that another thread used while the process forked."""

    def __enter__(self) -> None:
        raise ModelError(
            "this process was forked while another thread used the model, which is in the middle of its work here; "
            "load the model again in this process, or start processes with the method 'spawn' or 'forkserver'"
        )

    def __exit__(self, *error: object) -> None:
        return

    def acquire(self, *arguments: object, **options: object) -> bool:
        """As the lock's; raises `ModelError`."""
        self.__enter__()
        return False

    def release(self) -> None:
        """Nothing is held."""


_HELD: ContextVar[tuple[Reference, ...]] = ContextVar("turns", default=())
"""The turns of the caller, as weak references to their tokens. By context and not by thread, since LangGraph may run a
node in another thread."""
_LOCKS: WeakKeyDictionary[nn.Module, ModelLock] = WeakKeyDictionary()
_CREATING = threading.RLock()


def lock_of(model: nn.Module) -> ModelLock:
    """The model's locks, the same for all learners around it."""
    with _CREATING:
        return _LOCKS.setdefault(model, ModelLock())


_FORKING: list[list[tuple[ModelLock, bool]]] = []
"""For each fork under way: the locks, and whether this thread has acquired them."""


def _before_fork() -> None:
    _CREATING.acquire()
    _FORKING.append([(lock, lock.compute.acquire(blocking=False)) for lock in list(_LOCKS.values()) if _usable(lock)])


def _usable(lock: ModelLock) -> bool:
    return not isinstance(lock.compute, _Unusable)


def _in_parent() -> None:
    for lock, acquired in _FORKING.pop():
        if acquired:
            lock.compute.release()
    _CREATING.release()


def _in_child() -> None:
    """Sets the number of PyTorch's threads to 1 where a model is in use: the threads of its pool end with the fork, and
    work that is given to them would wait for ever."""
    locks = _FORKING.pop()
    if locks and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
    for lock, acquired in locks:
        if acquired:
            lock.compute.release()
        lock.after_fork(was_computing=not acquired)
    _CREATING.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
