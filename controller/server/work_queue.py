"""The queue of requests: one works at a time, the others wait in order, up to limits. Knows nothing about the work."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

from .api_errors import ApiError
from .limits import Limits


class WorkQueue:
    """Whose turn it is. All methods belong to one event loop."""

    def __init__(self, limits: Limits, on_wait: Callable[[float], None] = lambda seconds: None) -> None:
        """`on_wait` receives the seconds that each request waited."""
        self.limits = limits
        self.waiting = 0
        self.running = 0
        self._on_wait = on_wait
        self._of_client: Counter[str] = Counter()
        self._turn = asyncio.Lock()  # wakes its waiters in order
        self._beside = 0
        self._seconds = 1.0
        """Mean length of the last turns."""

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """A client's turn; it begins when those before it have ended. Raises `ApiError` where too many wait."""
        self._refuse(client)
        self._of_client[client] += 1
        self.waiting += 1
        began, is_waiting = monotonic(), True
        try:
            async with self._turn:
                self.waiting, is_waiting = self.waiting - 1, False
                self._on_wait(monotonic() - began)
                self.running, began = self.running + 1, monotonic()
                try:
                    yield
                finally:
                    self.running -= 1
                    self._seconds += 0.2 * (monotonic() - began - self._seconds)
        finally:
            self.waiting -= is_waiting
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """Work that does not use the model and waits for no turn. Raises `ApiError` where there is too much of it."""
        if self._beside >= self.limits.queue:
            raise ApiError(503, f"{self._beside} requests are under way at the other server, which is the limit",
                           code="queue_full", retry_after=self.expected_seconds())  # fmt: skip
        self._beside += 1
        try:
            yield
        finally:
            self._beside -= 1

    def expected_seconds(self) -> float:
        """Seconds until a request that came now would have its turn."""
        return self._seconds * (self.waiting + self.running)

    def _refuse(self, client: str) -> None:
        if self._of_client[client] >= self.limits.requests_per_client:
            raise ApiError(
                429, f"this client has {self.limits.requests_per_client} requests under way, which is the limit; wait "
                "for one of them", code="too_many_requests", retry_after=self.expected_seconds(),
            )  # fmt: skip
        if self.waiting + self.running > self.limits.queue:  # one works, and does not wait
            raise ApiError(
                503, f"{self.waiting} requests wait, which is the limit; try again later", code="queue_full",
                retry_after=self.expected_seconds(),
            )  # fmt: skip
