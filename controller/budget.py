"""Budgets: how much an answer may take. Knows nothing about what it is spent on."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..ttt_core.arguments import as_number
from ..ttt_core.errors import BudgetError


@dataclass(frozen=True)
class Budget:
    """A limit for one query: in seconds, in multiples of its in-context time, or both."""

    seconds: float = math.inf
    multiples: float = math.inf
    """Of the time that this query's in-context answer took."""

    def __post_init__(self) -> None:
        for name in ("seconds", "multiples"):
            value: object = getattr(self, name)
            if not as_number(value) > 0:
                raise BudgetError(f"budget: expected {name} above 0, as a number; received {value!r}")
            object.__setattr__(self, name, as_number(value))

    @classmethod
    def of(cls, value: Budget | str | float | None) -> Budget:
        """A budget as callers give it: a `Budget`, a text that `parse` reads, seconds, or None for no limit. Raises
        `BudgetError`."""
        if isinstance(value, Budget):
            return value
        if value is None:
            return UNLIMITED
        return cls.parse(value) if isinstance(value, str) else cls(seconds=value)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """A budget from `10s` (seconds) or `20x` (multiples of the in-context time). Raises `BudgetError`.

        >>> Budget.parse("20x").multiples
        20.0
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([sx])\s*", text)
        if not match or float(match[1]) <= 0:
            raise BudgetError(
                f"budget: expected seconds such as 10s, or multiples of the in-context time such as 20x; "
                f"received {text!r}"
            )
        amount = float(match[1])
        return cls(seconds=amount) if match[2] == "s" else cls(multiples=amount)

    def __str__(self) -> str:
        parts = [f"{self.seconds:g}s"] * (self.seconds < math.inf) + [f"{self.multiples:g}x"] * (
            self.multiples < math.inf
        )
        return " and ".join(parts) or "unlimited"

    def total(self, in_context_seconds: float) -> float:
        """The whole budget in seconds, once it is known what in-context took."""
        return min(self.seconds, self.multiples * in_context_seconds)


UNLIMITED = Budget()
