"""What work costs: seconds and tokens, and the meter that reads them. Knows nothing about what the work is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .. import clock


@dataclass(frozen=True)
class Cost:
    """Time and tokens that went through the model."""

    seconds: float = 0.0
    forward_tokens: int = 0
    backward_tokens: int = 0

    @property
    def token_equivalents(self) -> int:
        """Forward-token equivalents: a backward pass counts as two forward passes."""
        return self.forward_tokens + 2 * self.backward_tokens

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.forward_tokens + other.forward_tokens,
            self.backward_tokens + other.backward_tokens,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds - other.seconds,
            self.forward_tokens - other.forward_tokens,
            self.backward_tokens - other.backward_tokens,
        )


class Meter:
    """Reads what was spent since it was made: seconds without pauses, the seconds of prefetched work, and tokens."""

    def __init__(self, charged: Callable[[], Cost]) -> None:
        """`charged` returns the running total of a model; its seconds are those of prefetched work alone."""
        self._charged = charged
        self._before = charged()
        self._began = clock.monotonic()

    def read(self) -> Cost:
        """The cost so far; may be read more than once."""
        spent = self._charged() - self._before
        return replace(spent, seconds=spent.seconds + clock.monotonic() - self._began)
