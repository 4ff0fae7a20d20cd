"""Statistics of many traces: where the time goes, what was decided, and what became of adaptations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from .store import Filter, TraceStore


@dataclass(frozen=True)
class StrategyStatistics:
    """What one strategy's answers took and achieved."""

    strategy: str
    runs: int
    with_known_answer: int
    accuracy: float | None
    """Share of right answers among those whose right answer is known; None where none is."""
    median_seconds: float
    mean_seconds: float


@dataclass(frozen=True)
class Statistics:
    """A summary of runs."""

    runs: int
    statuses: dict[str, int]
    strategies: tuple[StrategyStatistics, ...]
    """By the strategy whose answer was given, the most frequent first."""
    stages: dict[str, float]
    """Seconds of all runs by stage, the largest first."""
    accepted: int
    """Runs whose answer is an adapter's."""
    rejected: int
    """Runs in which an adapter's answer was not accepted."""
    fallbacks: int
    """Runs with an attempt that was not accepted."""


def statistics_of(store: TraceStore, which: Filter | None = None) -> Statistics:
    """The statistics of the stored runs, or of some. Raises `TraceError` for a store that cannot be read."""
    names = ("strategy", "status", "is_right", "seconds", "fallbacks", "adaptation")
    rows = store.columns(names, which)
    by_strategy: dict[str, list[tuple[int | None, float]]] = {}
    for strategy, _, is_right, seconds, _, _ in rows:
        by_strategy.setdefault(strategy or "(none)", []).append((is_right, seconds))
    ordered = sorted(by_strategy.items(), key=lambda item: (-len(item[1]), item[0]))
    adaptations = Counter(row[5] for row in rows)
    return Statistics(
        runs=len(rows),
        statuses=dict(Counter(row[1] for row in rows).most_common()),
        strategies=tuple(_of_strategy(name, runs) for name, runs in ordered),
        stages={name: seconds for name, seconds in store.stage_seconds(which).items() if seconds > 0},
        accepted=adaptations["accepted"],
        rejected=adaptations["rejected"],
        fallbacks=sum(row[4] > 0 for row in rows),
    )


def _of_strategy(name: str, runs: Sequence[tuple[int | None, float]]) -> StrategyStatistics:
    """The statistics of runs, given whether each is right (1, 0 or None) and its seconds."""
    known = [is_right for is_right, _ in runs if is_right is not None]
    seconds = [seconds for _, seconds in runs]
    return StrategyStatistics(
        name, len(runs), len(known), fmean(known) if known else None, median(seconds), fmean(seconds)
    )
