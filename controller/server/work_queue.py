"""The places of requests: how many each client may have under way. Knows nothing about the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .api_errors import ApiError
from .limits import Limits

RETRY_SECONDS = 5
"""Seconds after which a client with too many requests may try again."""


class WorkQueue:
    """Counts requests by client. All methods belong to one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._of_client: Counter[str] = Counter()
        self._beside = 0

    @contextmanager
    def place_of(self, client: str) -> Iterator[None]:
        """A client's request is under way while inside. Raises `ApiError` where the client has too many."""
        if self._of_client[client] >= self.limits.requests_per_client:
            raise ApiError(
                429, f"this client has {self.limits.requests_per_client} requests under way, which is the limit; wait "
                "for one of them", code="too_many_requests", retry_after=RETRY_SECONDS,
            )  # fmt: skip
        self._of_client[client] += 1
        try:
            yield
        finally:
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]

    @contextmanager
    def beside(self, retry_after: float) -> Iterator[None]:
        """Work that does not use the model is under way while inside. Raises `ApiError` where there is too much of it;
        a client may try again after `retry_after` seconds."""
        if self._beside >= self.limits.queue:
            raise ApiError(503, f"{self._beside} requests are under way at the other server, which is the limit",
                           code="queue_full", retry_after=retry_after)  # fmt: skip
        self._beside += 1
        try:
            yield
        finally:
            self._beside -= 1
