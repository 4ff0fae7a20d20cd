"""Checks of fields that come from outside, and how errors name them. Knows nothing about tasks."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import TaskError, shortened

MAX_SEED = 2**63 - 1
"""Largest seed; stores keep seeds as 64-bit integers."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class Missing:
    """Placeholder for a missing field; its `repr` says so in error messages."""

    def __repr__(self) -> str:
        return "nothing: the field is missing"


MISSING = Missing()


def invalid_field(field: str, expected: str, received: object) -> TaskError:
    """The error for a field with an invalid value."""
    return TaskError(f"{field}: expected {expected}; received {shortened(received)}")


def is_utf8(text: str) -> bool:
    """Whether the text can be written as UTF-8."""
    return text.isascii() or _SURROGATE.search(text) is None


def as_utf8(text: str) -> str:
    """The text with U+FFFD in place of each half of a surrogate pair, which UTF-8 cannot hold."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def check_text(raw: object, field: str) -> str:
    """The text. Raises `TaskError` if it is none, or cannot be written as UTF-8."""
    if not isinstance(raw, str):
        raise invalid_field(field, "a text", raw)
    if not is_utf8(raw):
        raise invalid_field(field, "a text that can be written as UTF-8", raw)
    return raw


def check_name(raw: object, field: str) -> str:
    """The text of a name, which may be given as an integer. Raises `TaskError`."""
    expected = "a text that is not blank, or an integer"
    if isinstance(raw, int) and not isinstance(raw, bool):
        if abs(raw) > MAX_SEED:
            raise invalid_field(field, f"{expected} of at most 64 bits", raw)
        return str(raw)
    if not isinstance(raw, str) or not raw.strip():
        raise invalid_field(field, expected, raw)
    return check_text(raw, field)


def check_seed(raw: object, field: str = "seed") -> int:
    """The seed. Raises `TaskError` if it is no integer of 64 bits."""
    if not isinstance(raw, int) or isinstance(raw, bool) or abs(raw) > MAX_SEED:
        raise invalid_field(field, f"an integer between -{MAX_SEED} and {MAX_SEED}", raw)
    return raw


def misspelled(fields: Iterable[object], known: Iterable[str]) -> tuple[str, str] | None:
    """The first field that is not known but spelled like a known one that is absent, and that one."""
    present = {field for field in fields if isinstance(field, str)}
    absent = [field for field in known if field not in present]
    unknown = present.difference(known)
    if not absent or not unknown:
        return None
    import difflib

    for field in sorted(unknown):
        near = difflib.get_close_matches(field[:64].lower(), absent, n=1, cutoff=0.76)
        if near:
            return field, near[0]
    return None
