"""Where an answer differs from the right one, in words: sizes and cells of grids, lengths and places of lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST = 6
"""Cells or places that are named; of more, only the number."""


def size_text(kind: str, value: Any) -> str:
    """The size of a grid, or the length of a list; empty for other values."""
    if value is None or kind == "text":
        return ""
    if kind == "list":
        return f"{len(value)} number{'' if len(value) == 1 else 's'}"
    columns = max(map(len, value), default=0)
    return f"{len(value)} row{'' if len(value) == 1 else 's'} x {columns} column{'' if columns == 1 else 's'}"


def difference_text(kind: str, value: Any, right: Any) -> str:
    """How a value differs from the right one; empty where nothing is compared, and for texts."""
    if value is None or right is None or kind == "text":
        return ""
    if (size := size_text(kind, value)) != (expected := size_text(kind, right)):
        return f"{size}; the right answer has {expected}"
    if kind == "list":
        places = [f"place {i + 1}: {a}, right {b}" for i, (a, b) in enumerate(zip(value, right, strict=True)) if a != b]
        return _named(size, places, len(value), "numbers")
    cells = [
        f"row {y + 1} column {x + 1}: {a}, right {b}"
        for y, (row, expected_row) in enumerate(zip(value, right, strict=True))
        for x, (a, b) in enumerate(zip(row, expected_row, strict=True))
        if a != b
    ]
    return _named(size, cells, sum(map(len, value)), "cells")


def _named(size: str, differences: Sequence[str], count: int, what: str) -> str:
    if not differences:
        return f"{size}, as the right answer; no {what[:-1]} differs"
    named = f" ({'; '.join(differences)})" if len(differences) <= MOST else ""
    verb = "differs" if len(differences) == 1 else "differ"
    return f"{size}, as the right answer; {len(differences)} of {count} {what} {verb}{named}"
