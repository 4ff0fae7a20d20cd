"""Spans: what happens in a run, as a tree with times and attributes. Off until a caller begins a tree.

Code that is worth seeing says `with span("decode", ...) as decoding:` and sets attributes. Outside a tree that is an
object that stores nothing. Knows nothing about what the steps are, or where trees are kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar

from .errors import Cancelled

MAX_CHILDREN = 1000
"""Children of a span that are stored; further ones are counted."""
MAX_EVENTS = 10_000
"""Events of a span that are stored; further ones are counted."""


@dataclass(eq=False)
class Span:
    """A step of a run. It is the current span of its thread or coroutine from `with` until the end of the block."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    """Time of `time.perf_counter`."""
    seconds: float | None = None
    """None until the step has ended."""
    status: str = "ok"
    """`ok`, `cancelled` for a run that its caller ended, or `error`."""
    error: str = ""
    """Class and message of what was raised."""
    children: list[Span] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    """Each with `at`, the seconds since the step began."""
    dropped: int = 0
    """Children and events beyond the limits."""
    recording: ClassVar[bool] = True

    def set(self, **attributes: Any) -> None:
        """Adds attributes: plain data, which is not changed afterwards."""
        self.attributes.update(attributes)

    def event(self, **values: Any) -> None:
        """Adds an event that happens now."""
        if len(self.events) >= MAX_EVENTS:
            self.dropped += 1
            return
        self.events.append({"at": round(time.perf_counter() - self.began, 6), **values})

    def child(self, name: str, **attributes: Any) -> Span | NoSpan:
        """A new step inside this one."""
        if len(self.children) >= MAX_CHILDREN:
            self.dropped += 1
            return OFF
        step = Span(name, attributes)
        self.children.append(step)
        return step

    def end(self, error: BaseException | None = None) -> None:
        """Ends the step now, with what was raised inside it."""
        self.seconds = time.perf_counter() - self.began
        if error is not None:
            closed = isinstance(error, (Cancelled, GeneratorExit, KeyboardInterrupt))
            self.status = "cancelled" if closed or type(error).__name__ == "CancelledError" else "error"
            self.error = f"{type(error).__name__}: {error}".removesuffix(": ")

    def end_at_last_event(self) -> None:
        """Ends the step, unless it has ended, at the time of its last event."""
        if self.seconds is None:
            self.seconds = max((event["at"] for event in self.events), default=0.0)

    def __enter__(self) -> Span:
        self._token: Token[Span | None] = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        self.end(error)


class NoSpan:
    """What stands for a span where none is recorded: it stores nothing."""

    recording: ClassVar[bool] = False

    def set(self, **attributes: Any) -> None:
        """Stores nothing."""

    def event(self, **values: Any) -> None:
        """Stores nothing."""

    def __enter__(self) -> NoSpan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends nothing."""


OFF = NoSpan()
_current: ContextVar[Span | None] = ContextVar("autottt_span", default=None)


def span(name: str, **attributes: Any) -> Span | NoSpan:
    """A new step inside the current one, for a `with` statement; `OFF` outside a tree."""
    parent = _current.get()
    return OFF if parent is None else parent.child(name, **attributes)


@contextmanager
def inside(parent: Span | None) -> Iterator[None]:
    """While inside, `span` makes children of this span, which does not end; None: no span is recorded."""
    token = _current.set(parent)
    try:
        yield
    finally:
        _current.reset(token)
