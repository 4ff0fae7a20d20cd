"""A cache in memory that is bounded by bytes. Knows nothing about what it holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
ENTRY_BYTES = 256
"""About what an entry takes beside its key and value."""


class BoundedCache(Generic[K, V]):
    """Values by key. The oldest entries are evicted first. Safe to use from several threads."""

    def __init__(self, max_bytes: int, size_of: Callable[[K, V], int]) -> None:
        """`size_of` gives the bytes of an entry. An entry larger than `max_bytes` is not stored."""
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._entries: dict[K, tuple[V, int]] = {}
        self._lock = threading.Lock()
        self.nbytes = 0
        """Bytes of all entries."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value of a key; None where there is none."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: K, value: V) -> None:
        """Stores a value as the newest one, and evicts the oldest ones that exceed the bound."""
        size = self._size_of(key, value)
        with self._lock:
            self._remove(key)
            if size > self._max_bytes:
                return
            self._entries[key] = value, size
            self.nbytes += size
            while self.nbytes > self._max_bytes:
                self._remove(next(iter(self._entries)))

    def clear(self) -> None:
        """Removes all entries."""
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def _remove(self, key: K) -> None:
        if key in self._entries:
            self.nbytes -= self._entries.pop(key)[1]
