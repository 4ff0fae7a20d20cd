"""Calibration of a policy on the model that answers, by the demonstrations of the queries that it serves.

Each query brings labels: the model answers demonstrations from others, and the right answers are there. The mean of
these against the mean of the estimates shifts the log-odds of later estimates. Knows nothing about policies.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from .features import Features

PRIOR_QUERIES = 10.0
"""Queries whose weight the estimates without calibration have."""
DECAY = 0.99
"""Factor of the weight of earlier queries with each new one: about the last hundred count."""
MAX_SHIFT = 1.5
"""Largest shift, in log-odds."""


@dataclass(frozen=True)
class Calibration:
    """What was observed of a model: a snapshot."""

    queries: int = 0
    """Queries that were observed."""
    weight: float = 0.0
    """Their total weight."""
    estimated: float = 0.0
    """Weighted sum of the estimated probabilities of a right in-context answer."""
    right: float = 0.0
    """Weighted sum of the shares of demonstrations that the model answered right (see `share_answered_right`)."""

    @property
    def shift(self) -> float:
        """What is added to the log-odds of a right in-context answer, at most `MAX_SHIFT` either way."""
        if not self.weight:
            return 0.0
        mean = self.estimated / self.weight
        smoothed = (self.right + PRIOR_QUERIES * mean) / (self.weight + PRIOR_QUERIES)
        return max(-MAX_SHIFT, min(MAX_SHIFT, _log_odds(smoothed) - _log_odds(mean)))

    def updated(self, estimated: float, right: float) -> Calibration:
        """The snapshot after one more query."""
        return Calibration(
            self.queries + 1, DECAY * self.weight + 1, DECAY * self.estimated + estimated, DECAY * self.right + right
        )

    def to_plain(self) -> dict[str, float]:
        """The numbers by name, for the record of a decision."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Calibration:
        """The snapshot that a decision recorded."""
        return cls(int(plain["queries"]), *(float(plain[name]) for name in ("weight", "estimated", "right")))


class CalibrationState:
    """The latest snapshot of one policy in this process. Threads may share it; it is not stored."""

    def __init__(self) -> None:
        self._lock, self._current = threading.Lock(), Calibration()

    @property
    def current(self) -> Calibration:
        """The latest snapshot."""
        return self._current

    def restore(self, calibration: Calibration) -> None:
        """Continues after a snapshot, such as that of an interrupted command."""
        with self._lock:
            self._current = calibration

    def observe(self, estimated: float, right: float) -> None:
        """Adds a query: the estimated probability of a right in-context answer, and the share of demonstrations that
        the model answered right (see `share_answered_right`)."""
        with self._lock:
            self._current = self._current.updated(estimated, right)


def share_answered_right(features: Mapping[str, float]) -> float | None:
    """The share of demonstrations that the model answered right from the others, by the features of a query: of all
    demonstrations where the probe left out each in turn, else of the last one alone, which reading the prompt answers
    from those before it. None with fewer than two demonstrations, or where it was not measured."""
    if features.get("loo_possible"):
        return features["loo_hits"]
    return features.get("reading_hit_last") if features.get("demonstrations", 0) >= 2 else None


@runtime_checkable
class Calibrates(Protocol):
    """A policy that calibrates itself on the queries that it serves."""

    def snapshot(self) -> Any:
        """The policy by which one run decides."""
        ...

    def observe(self, features: Features) -> None:
        """Notes a query that was measured."""
        ...

    def observed(self) -> Calibration:
        """What was noted until now."""
        ...

    def restore(self, calibration: Calibration) -> None:
        """Continues after what was noted until a snapshot, such as that of an interrupted command."""
        ...


def _log_odds(probability: float) -> float:
    clipped = min(max(probability, 1e-3), 1 - 1e-3)
    return math.log(clipped / (1 - clipped))
