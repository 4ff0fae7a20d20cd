"""What work costs: seconds and tokens, and the meter that reads them. Knows nothing about what the work is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import clock

if TYPE_CHECKING:
    from ..lora.training import TrainingRecord

BACKWARD_WEIGHT = 2
"""Tokens read forward that a token read backward counts as: a backward pass takes about as long as two forward passes.
"""
TRAINING_WEIGHT = 1 + BACKWARD_WEIGHT
"""Tokens read forward that a token counts as which is trained on: it is read forward and backward."""


def token_equivalents(forward_tokens: int, backward_tokens: int) -> int:
    """Forward-token equivalents of tokens read forward and backward."""
    return forward_tokens + BACKWARD_WEIGHT * backward_tokens


@dataclass(frozen=True)
class Cost:
    """Time and tokens that went through the model."""

    seconds: float = 0.0
    forward_tokens: int = 0
    backward_tokens: int = 0

    @property
    def token_equivalents(self) -> int:
        """Forward-token equivalents: a token read backward counts `BACKWARD_WEIGHT` times."""
        return token_equivalents(self.forward_tokens, self.backward_tokens)

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


def training_cost(record: TrainingRecord) -> Cost:
    """What an adapter cost: its training, and the evaluation of a cross-validation."""
    forward = record.tokens + record.estimate_tokens + record.evaluation_tokens
    return Cost(record.seconds + record.evaluation_seconds, forward, record.tokens)


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
