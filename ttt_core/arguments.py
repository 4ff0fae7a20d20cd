"""Checks of arguments that programs pass, before any work. Knows nothing about what they mean."""

from __future__ import annotations

import math
import os
from numbers import Real


def as_number(value: object) -> float:
    """A number as float, infinity if it is too large for one; NaN, which no limit holds for, for anything else,
    booleans included."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return -math.inf if value < 0 else math.inf


def check_path(name: str, value: object, also: str = "") -> None:
    """Raises `TypeError` for an argument that is neither a path nor None, nor what `also` says in words."""
    if value is not None and not isinstance(value, (str, os.PathLike)):
        expected = f"{also}, or a path" if also else "a path"
        raise TypeError(f"{name}: expected {expected} (str or os.PathLike); received {value!r}")


def check_callable(name: str, function: object) -> None:
    """Raises `TypeError` for a callback that cannot be called."""
    if function is not None and not callable(function):
        raise TypeError(f"{name}: expected a function of one argument; received {function!r}")
