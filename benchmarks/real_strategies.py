"""Measures strategies on real language models, beside in_context on the same queries. Used by real_models.py."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from row_files import Row, percent_interval

from autottt.strategies.base import Strategy, run
from autottt.ttt_core.errors import StrategyError, TooLongError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.tasks.answers import is_right
from autottt.ttt_core.tasks.task import Task

BASE = "in_context"
ORDER = (
    "in_context", "ttt_in_context", "ttt_direct", "zero_shot", "in_context_vote", "ttt_augmented", "ttt_crossfit",
)  # fmt: skip
"""The strategies that are measured, the first of every set before the second."""
GOALS = {"smollm2-135m": 15.0, "gemma3-270m": 5.0}
"""Points that the best strategy that trains is to gain on both sets of the goals."""


def strategy_row(
    learner: Learner, strategy: Strategy, dataset: str, queries: Sequence[Task], max_tokens: int | None
) -> Row:
    """The row of a strategy on the queries of a task, which share an adapter, in the format that is chosen for the
    task. Where the prompt is longer than `max_tokens`, the row has no answers."""
    first = queries[0]
    row: Row = {
        "model": learner.base_hash, "set": dataset, "group": first.group, "family": first.family,
        "strategy": strategy.name, "right": [],
    }  # fmt: skip
    learner.clear()
    try:
        tasks = [learner.formats.formatted(task) for task in queries]
        if max_tokens and learner.window.length(tasks[0]) > max_tokens:
            return row
        meter = learner.guarded.meter()
        attempts = [run(strategy, learner, task, seed=0) for task in tasks]
    except (TooLongError, StrategyError):
        return row
    cost, record = meter.read(), attempts[0].training_record
    right = [bool(is_right(task, each.value)) for task, each in zip(tasks, attempts, strict=True)]
    return row | {
        "right": right, "format": tasks[0].prompt_format, "recipe": attempts[0].recipe, "seconds": cost.seconds,
        "training_seconds": record.seconds if record else 0.0, "token_equivalents": cost.token_equivalents,
    }  # fmt: skip


def strategy_rows(rows: Sequence[Row], name: str, model: str, sets: Sequence[str], label: str) -> list[Row]:
    """Accuracy and cost of each strategy, and what it gains over in_context on the queries that both answered."""
    by_strategy: dict[str, dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in rows:
        if row["model"] == model and row["set"] in sets and row["right"]:
            by_strategy[row["strategy"]][row["set"], row["group"]] = row
    base = by_strategy.get(BASE, {})
    numbers = []
    for strategy in [s for s in ORDER if s in by_strategy]:
        mine = by_strategy[strategy]
        both = [(mine[key], base[key]) for key in mine if key in base]
        if not both:
            continue
        gains: dict[str, list[float]] = defaultdict(list)
        right: dict[str, list[float]] = defaultdict(list)
        for one, other in both:
            right[one["family"]] += map(float, one["right"])
            gains[one["family"]] += [float(a) - float(b) for a, b in zip(one["right"], other["right"], strict=True)]
        flat = [gain for family in gains.values() for gain in family]
        best_possible = strategy == "ttt_in_context" and label == "both sets of the goals"
        gain, goal = 100 * statistics.fmean(flat), GOALS.get(name) if best_possible else None
        interval = percent_interval(gains)
        harmed = [a and not b for one, other in both for a, b in zip(other["right"], one["right"], strict=True)]
        numbers.append({
            "name": f"{name}, {label}: {strategy}",
            "value": round(100 * statistics.fmean(v for family in right.values() for v in family), 1),
            "unit": "% of queries", "interval_90": percent_interval(right), "queries": len(flat),
            "gain": round(gain, 1), "gain_interval_90": interval, "against": f"{BASE} on the same queries",
            "harmed": round(100 * statistics.fmean(harmed), 1),
            "seconds_of_a_query": round(statistics.median(one["seconds"] / len(one["right"]) for one, _ in both), 2),
            "relative_cost": round(
                statistics.fmean(one["token_equivalents"] / other["token_equivalents"] for one, other in both), 1
            ),
            "goal": goal, "holds": None if goal is None else gain >= goal and interval[0] > 0,
        })  # fmt: skip
    return numbers
