"""The session that runs belong to, such as one conversation: traces carry its id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_current: ContextVar[str] = ContextVar("autottt_session", default="")


@contextmanager
def session(id: str) -> Iterator[None]:
    """Runs that begin inside belong to a session, also in threads and coroutines that inherit context variables."""
    token = _current.set(str(id))
    try:
        yield
    finally:
        _current.reset(token)


def session_of(config: Mapping[str, Any] | None) -> str:
    """The id of the session that a run begins in: that of `session`, else of LangGraph's configuration, from the
    metadata `session_id` or the `thread_id`; empty where there is none."""
    if id := _current.get():
        return id
    config = config or {}
    metadata, configurable = config.get("metadata") or {}, config.get("configurable") or {}
    return str(metadata.get("session_id") or configurable.get("thread_id") or "")
