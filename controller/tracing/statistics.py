"""Statistics of many traces: where the time goes, what was decided, and what became of adaptations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from .store import Summary


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


def statistics_of(summaries: Sequence[Summary]) -> Statistics:
    """The statistics of runs."""
    by_strategy: dict[str, list[Summary]] = {}
    stages: Counter[str] = Counter()
    for summary in summaries:
        by_strategy.setdefault(summary.strategy or "(none)", []).append(summary)
        stages.update(summary.stages)
    ordered = sorted(by_strategy.items(), key=lambda item: (-len(item[1]), item[0]))
    return Statistics(
        runs=len(summaries),
        statuses=dict(Counter(summary.status for summary in summaries).most_common()),
        strategies=tuple(_of_strategy(name, runs) for name, runs in ordered),
        stages={name: seconds for name, seconds in stages.most_common() if seconds > 0},
        accepted=sum(summary.adaptation == "accepted" for summary in summaries),
        rejected=sum(summary.adaptation == "rejected" for summary in summaries),
        fallbacks=sum(summary.fallbacks > 0 for summary in summaries),
    )


def _of_strategy(name: str, runs: Sequence[Summary]) -> StrategyStatistics:
    known: list[Any] = [run.is_right for run in runs if run.is_right is not None]
    seconds = [run.seconds for run in runs]
    return StrategyStatistics(
        name, len(runs), len(known), fmean(known) if known else None, median(seconds), fmean(seconds)
    )
