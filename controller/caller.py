"""Who called: the span of a program on the other side of a connection, and the trace of a run that has failed.

Knows nothing about HTTP and about how traces are stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

MAX_STATE = 512
"""Characters of a `tracestate` that are kept, as W3C's trace context has it."""
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[\x20-\x7e]*)?")
_remote: ContextVar[Mapping[str, Any] | None] = ContextVar("autottt_remote_caller", default=None)
_TRACE_ID = "autottt_trace_id"


@contextmanager
def remote_caller(traceparent: str | None, tracestate: str | None = None) -> Iterator[None]:
    """Runs that begin inside are children of the span that a `traceparent` of W3C's trace context names, also in
    threads and coroutines that inherit context variables. An invalid one counts as none."""
    token = _remote.set(_carrier(traceparent or "", tracestate or ""))
    try:
        yield
    finally:
        _remote.reset(token)


def remote_carrier() -> Mapping[str, Any] | None:
    """`traceparent`, `tracestate` and `remote` of the caller; None where there is none."""
    return _remote.get()


def _carrier(traceparent: str, tracestate: str) -> Mapping[str, Any] | None:
    is_longer = traceparent.startswith("00-") and traceparent.count("-") > 3  # later versions may have more fields
    if is_longer or not _PARENT.fullmatch(traceparent):
        return None
    is_valid = tracestate and len(tracestate) <= MAX_STATE and tracestate.isascii() and tracestate.isprintable()
    return {"traceparent": traceparent, "remote": True, **({"tracestate": tracestate} if is_valid else {})}


def name_trace(error: BaseException, trace_id: str) -> None:
    """Notes in an error which trace its run has."""
    vars(error).setdefault(_TRACE_ID, trace_id)


def trace_id_of(error: BaseException) -> str:
    """Identifies the trace of the run that an error has ended; empty where none was recorded."""
    return str(vars(error).get(_TRACE_ID, ""))
