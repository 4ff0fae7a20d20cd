"""Whether decoded JSON has the structure of a trace, so that those who read traces need not ask.

Only what every reader uses is checked: the tree of spans, and the kinds of what the nodes returned. Knows nothing about
where traces are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ...ttt_core.errors import shortened

MAX_DEPTH = 100
"""Spans inside one another; a run has about ten."""


@dataclass(frozen=True)
class _Field:
    """What a field of an object has to be."""

    expected: str
    holds: Callable[[Any], bool]
    required: bool = False
    inner: Mapping[str, _Field] = field(default_factory=dict)
    """Of an object: its own fields."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(datetime.fromisoformat(value))
    except ValueError:
        return False


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _are_edges(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(edge, list) and len(edge) == 2 and all(isinstance(name, str) for name in edge) for edge in value
    )


def _text(*, required: bool = False) -> _Field:
    return _Field("a text", lambda value: isinstance(value, str), required)


def _object(*, required: bool = False, **inner: _Field) -> _Field:
    return _Field("an object", lambda value: isinstance(value, dict), required, inner)


_NUMBER = _Field("a number", _is_number, required=True)
_NUMBER_OR_NULL = _Field("a number or null", lambda value: value is None or _is_number(value), required=True)
_OBJECTS = _Field("a list of objects", _are_objects)
_COST = _object(required=True, seconds=_NUMBER)
_ATTEMPT = _object(strategy=_text(required=True), cost=_COST)
_HEAD = {
    "id": _text(required=True), "time": _Field("a time in ISO 8601", _is_time, required=True),
    "content": _Field("true or false", lambda value: isinstance(value, bool), required=True),
    "root": _object(required=True), "label": _object(),
}  # fmt: skip
_SPAN = {
    "name": _text(required=True), "at": _NUMBER, "seconds": _NUMBER_OR_NULL, "status": _text(required=True),
    "error": _text(), "attributes": _object(), "events": _OBJECTS, "children": _OBJECTS,
}  # fmt: skip
_ROOT = {
    "seconds": _NUMBER,  # a trace is stored when its run has ended
    "attributes": _object(
        task=_object(), model=_object(), policy=_object(thresholds=_object()), versions=_object(), sizes=_object(),
        edges=_Field("a list of pairs of texts", _are_edges),
        result=_object(status=_text(required=True), strategy=_text(required=True), cost=_COST),
    ),
}  # fmt: skip
_NODE = {
    "attributes": _object(
        node=_text(required=True), features=_object(values=_object()), in_context=_ATTEMPT, attempt=_ATTEMPT,
        decision=_object(strategy=_text(required=True)), verdict=_object(action=_text(required=True)),
    )
}  # fmt: skip


def check_structure(plain: Mapping[str, Any]) -> None:
    """Raises `ValueError`, which names the field, for decoded JSON that has not the structure of a trace."""
    _check(plain, _HEAD, "")
    _check(plain["root"], _SPAN, "root.")
    _check(plain["root"], _ROOT, "root.")
    for place, span in _spans_below(plain["root"]):
        _check(span, _SPAN, place)
        if "node" in span.get("attributes", {}):
            _check(span, _NODE, place)


def _spans_below(root: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every span inside the root with its place, parents first; a span is asked for its children after it was given.
    Raises `ValueError` for a tree that is too deep."""
    waiting = [("root.", root, 0)]
    while waiting:
        place, span, depth = waiting.pop()
        if depth:
            yield place, span
        if depth > MAX_DEPTH:
            raise ValueError(f"{place}children: expected spans at most {MAX_DEPTH} deep")
        children = span.get("children", ())
        waiting += [(f"{place}children[{at}].", child, depth + 1) for at, child in enumerate(children)]


def _check(values: Mapping[str, Any], fields: Mapping[str, _Field], place: str) -> None:
    for name, each in fields.items():
        if name not in values:
            if each.required:
                raise ValueError(f"{place}{name} is missing")
            continue
        if not each.holds(values[name]):
            raise ValueError(f"{place}{name}: expected {each.expected}; received {shortened(values[name])}")
        _check(values[name], each.inner, f"{place}{name}.")
