"""Limits of the server: what one request, one client and the queue may take. Knows nothing about HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from .api_errors import ApiError


@dataclass(frozen=True)
class Limits:
    """Upper bounds; a request beyond one is refused with an error that names it."""

    body_bytes: int = 1 << 20
    """Bytes of a request's body: 413."""
    demonstrations: int = 256
    """Demonstrations of a task: 400."""
    max_tokens: int = 4096
    """Tokens that an answer may take: 400."""
    queue: int = 64
    """Requests that wait: 503."""
    requests_per_client: int = 16
    """Requests of one client that wait or run: 429."""
    seconds: float = 600.0
    """Time that a request may wait and run: 503."""
    adapters_per_client: int = 64
    """Cached adapters of one client; its least recently used ones are removed first."""
    shutdown_seconds: float = 30.0
    """Time that running requests have to finish when the server is stopped."""

    def check_demonstrations(self, count: int) -> None:
        """Raises `ApiError` for a task with more demonstrations than the limit."""
        if count > self.demonstrations:
            message = f"demonstrations: expected at most {self.demonstrations}, the limit here; received {count}"
            raise ApiError(400, message, "demonstrations", "too_many_demonstrations")
