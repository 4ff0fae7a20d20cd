"""JSON as its standard defines it: a number that is not finite is written as null. Knows nothing about what it writes.

Python's `json` writes `NaN` and `Infinity`, which other readers refuse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any


def finite_or_none(value: Any) -> Any:
    """Plain data with None in place of every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):  # a named tuple becomes a plain one
        return (tuple if isinstance(value, tuple) else list)(map(finite_or_none, value))
    return value


def dumps(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """The value as JSON, as `json.dumps` writes it. `default` converts what JSON cannot hold to finite numbers or
    text."""
    try:
        return json.dumps(value, indent=indent, default=default, allow_nan=False)
    except ValueError:  # a number that is not finite, which is rare: most values need no copy
        return json.dumps(finite_or_none(value), indent=indent, default=default, allow_nan=False)
