"""Removes the content of tasks from traces: what remains says how a run went, and not what was asked or answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .trace import Plain, Trace

CONTENT = frozenset(
    ("value", "text", "texts", "answer", "prompts", "ids", "demonstrations", "query", "instruction")
)  # fmt: skip
"""Names of attributes and fields that hold content, wherever they are."""
MESSAGES = frozenset(("error", "reason", "shadow"))
"""Names of fields that may quote what an exception of other code says."""


def without_content(trace: Trace) -> Trace:
    """The trace without demonstrations, queries, answers, prompts, token ids, and messages of exceptions."""
    errors = [attempt["error"] for attempt in trace.attempts if is_exception(attempt["error"])]
    root: Plain = _reduced(trace.root, errors)
    return Trace({**trace.plain, "content": False, "root": root})


def _reduced(value: Any, errors: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        fields = {name: item for name, item in value.items() if name not in CONTENT}
        return {
            name: _without_messages(item, errors)
            if name in MESSAGES and isinstance(item, str)
            else _reduced(item, errors)
            for name, item in fields.items()
        }
    if isinstance(value, (list, tuple)):
        return [_reduced(item, errors) for item in value]
    return value


def _without_messages(text: str, errors: Sequence[str]) -> str:
    """An exception as the name of its class; a reason without the messages of exceptions that it quotes."""
    if is_exception(text.removeprefix("failed: ")):
        return text.removeprefix("failed: ").partition(":")[0]
    for error in sorted(errors, key=len, reverse=True):
        text = text.replace(error, error.partition(":")[0])
    return text


def is_exception(text: str) -> bool:
    """Whether a text is the class and the message of an exception, such as `ValueError: no such key`."""
    name, separator, _ = text.partition(": ")
    return bool(separator) and name.isidentifier() and name[:1].isupper()
