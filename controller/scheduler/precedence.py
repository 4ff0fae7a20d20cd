"""Who goes first: a queue by priority in which nothing starves, and the precedence of reading over training.

Knows nothing about tasks.
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from typing import Generic, TypeVar

from ...ttt_core.errors import Cancelled

T = TypeVar("T")
AGEING = 16
"""Later entries that may overtake one for each level of priority that they are ahead of it."""
POLL_SECONDS = 0.1
"""How often work that is paused looks whether the interpreter is shutting down."""


class PriorityQueue(Generic[T]):
    """Entries by priority, lower numbers first, and by arrival. An entry is overtaken by at most `AGEING` later ones
    for each level between their priorities, so that none waits for ever."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, T]] = []
        self._arrived = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, item: T, priority: int = 0) -> None:
        """Adds an entry."""
        self._arrived += 1
        insort(self._entries, (self._arrived + AGEING * priority, self._arrived, item))

    def take(self) -> T | None:
        """Removes and returns the first entry; None where there is none."""
        return self._entries.pop(0)[2] if self._entries else None

    def take_up_to(self, limit: int) -> list[T]:
        """Removes and returns the first entries, at most `limit`."""
        taken, self._entries = self._entries[:limit], self._entries[limit:]
        return [item for _, _, item in taken]

    def remove(self, item: T) -> bool:
        """Removes an entry; false where there is none."""
        for place, (_, _, other) in enumerate(self._entries):
            if other is item:
                del self._entries[place]
                return True
        return False

    def items(self) -> list[T]:
        """The entries in order."""
        return [item for _, _, item in self._entries]


class Precedence:
    """Reading goes before training: training pauses while there is something to read, and gets a share of the time
    where there always is."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_reading = False
        self._lets_through = False
        self._paused_threads = 0
        self._paused_since = 0.0
        self._paused_seconds = 0.0
        self.pauses = 0
        """How often a thread of training has paused."""

    def begin_reading(self) -> None:
        """From now on there is something to read."""
        self._is_reading = True

    def end_reading(self) -> None:
        """There is nothing to read any more."""
        with self._changed:
            self._is_reading = False
            self._changed.notify_all()

    @property
    def is_training_paused(self) -> bool:
        """Whether a thread of training waits now."""
        return self._paused_threads > 0

    def let_through(self, seconds: float) -> None:
        """Lets paused training continue for a while, although there is something to read."""
        with self._changed:
            self._lets_through = True
            self._changed.notify_all()
        time.sleep(seconds)
        self._lets_through = False

    def pause(self) -> None:
        """Returns once training may continue. Raises `Cancelled` where the interpreter is shutting down: threads that
        it waits for would wait for ever."""
        if not self._is_reading or self._lets_through:
            return
        with self._changed:
            self._paused_threads += 1
            if self._paused_threads == 1:
                self._paused_since = time.monotonic()
                self.pauses += 1
            try:
                while self._is_reading and not self._lets_through:
                    if not threading.main_thread().is_alive():
                        raise Cancelled("the interpreter is shutting down; this task has no answer")
                    self._changed.wait(POLL_SECONDS)
            finally:
                self._paused_threads -= 1
                if not self._paused_threads:
                    self._paused_seconds += time.monotonic() - self._paused_since

    def paused_seconds(self) -> float:
        """Seconds for which training has been paused so far."""
        with self._changed:
            now = time.monotonic() - self._paused_since if self._paused_threads else 0.0
            return self._paused_seconds + now
