"""Removes the content of tasks from traces: what remains says how a run went, and not what was asked or answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...ttt_core.errors import without_messages
from .trace import Plain, Trace

CONTENT = frozenset(
    ("value", "text", "texts", "answer", "prompts", "ids", "demonstrations", "query", "instruction")
)  # fmt: skip
"""Names of attributes and fields that hold content, wherever they are."""
MESSAGES = frozenset(("error", "reason", "shadow"))
"""Names of fields that may quote what an exception of other code says."""


def without_content(trace: Trace) -> Trace:
    """The trace without demonstrations, queries, answers, prompts, token ids, and messages of exceptions."""
    errors = [attempt["error"] for attempt in trace.attempts]
    root: Plain = _reduced(trace.root, errors)
    return Trace({**trace.plain, "content": False, "root": root})


def _reduced(value: Any, errors: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        fields = {name: item for name, item in value.items() if name not in CONTENT}
        return {
            name: without_messages(item, errors)
            if name in MESSAGES and isinstance(item, str)
            else _reduced(item, errors)
            for name, item in fields.items()
        }
    if isinstance(value, (list, tuple)):
        return [_reduced(item, errors) for item in value]
    return value
