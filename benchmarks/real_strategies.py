"""Measures strategies on real language models, beside in_context on the same queries. Used by real_models.py."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from row_files import Row, percent_interval

from autottt import Controller
from autottt.controller.evaluation import CONTROLLER
from autottt.strategies.base import Strategy, run
from autottt.ttt_core.errors import StrategyError, TooLongError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.tasks.answers import is_right
from autottt.ttt_core.tasks.task import Task

BASE = "in_context"
ORDER = (
    "in_context", "ttt_in_context", "ttt_direct", "zero_shot", "in_context_vote", "ttt_augmented", "ttt_crossfit",
    "ttt_race",
)  # fmt: skip
"""The strategies that are measured, in this order on each task; `ttt_warm` depends on the tasks before."""
TOGETHER = "both sets of the goals"
GOALS = {"smollm2-135m": 15.0, "gemma3-270m": 5.0}
"""Points that the best strategy that trains is to gain on both sets of the goals."""
CONTROLLER_GOAL, CONTROLLER_COST = 10.0, 0.4
"""Points that the controller is to gain on both sets of the goals, and the most that it is to cost, as a share of the
best fixed strategy's cost."""

WEIGHTED = f"{CONTROLLER}, cost weight "
"""How the names of controllers with another cost weight than the policy's own begin."""


def with_cost_weight(cost_weight: float) -> str:
    """The name of the controller whose policy has this cost weight in place of its own."""
    return f"{WEIGHTED}{cost_weight:g}"


def is_controller(name: str) -> bool:
    """Whether rows of this name are those of a controller, whatever its cost weight."""
    return name == CONTROLLER or name.startswith(WEIGHTED)


def strategy_row(
    learner: Learner, strategy: Strategy, dataset: str, queries: Sequence[Task], max_tokens: int | None
) -> Row:
    """The row of a strategy on the queries of a task, which share an adapter, in the format that is chosen for the
    task. Where the prompt is longer than `max_tokens`, the row has no answers."""
    row = _row(learner, dataset, queries[0], strategy.name)
    try:
        tasks = _formatted(learner, queries, max_tokens)
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


def controller_row(
    controller: Controller, name: str, dataset: str, queries: Sequence[Task], max_tokens: int | None
) -> Row:
    """The row of a controller, by its name, on the queries of a task, as `strategy_row`, with the strategy of each
    answer. All that it measures to decide is part of the cost; the format of the prompt is chosen before."""
    learner = controller.learner
    row = _row(learner, dataset, queries[0], name)
    try:
        _formatted(learner, queries, max_tokens)
        meter = learner.guarded.meter()
        results = controller.solve_many(queries, seed=0)
    except TooLongError:
        return row
    if any(result.status == "refused" for result in results):
        return row
    cost = meter.read()
    return row | {
        "right": [bool(result.right) for result in results], "strategies": [result.strategy for result in results],
        "policy": controller.policy.name, "seconds": cost.seconds, "token_equivalents": cost.token_equivalents,
    }  # fmt: skip


def _row(learner: Learner, dataset: str, task: Task, strategy: str) -> Row:
    """A row without answers."""
    return {
        "model": learner.base_hash, "set": dataset, "group": task.group, "family": task.family, "strategy": strategy,
        "right": [],
    }  # fmt: skip


def _formatted(learner: Learner, queries: Sequence[Task], max_tokens: int | None) -> list[Task]:
    """The queries in the format that is chosen for them, with nothing of earlier tasks in memory. Raises
    `TooLongError` where the prompt is longer than `max_tokens`."""
    learner.clear()
    tasks = [learner.formats.formatted(task) for task in queries]
    learner.answerer.clear_prefix()  # which the choice of the format has read
    if max_tokens and (length := learner.window.length(tasks[0])) > max_tokens:
        raise TooLongError(f"{tasks[0].id}: the prompt has {length} tokens, of at most {max_tokens}")
    return tasks


def strategy_rows(rows: Sequence[Row], name: str, model: str, sets: Sequence[str], label: str) -> list[Row]:
    """Accuracy and cost of each strategy and of the controllers, and what each gains over in_context on the queries
    that both answered."""
    by_strategy: dict[str, dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in rows:
        if row["model"] == model and row["set"] in sets and row["right"]:
            by_strategy[row["strategy"]][row["set"], row["group"]] = row
    base = by_strategy.get(BASE, {})
    numbers = []
    controllers = sorted(filter(is_controller, by_strategy))
    for strategy in [*(s for s in ORDER if s in by_strategy), *controllers]:
        mine = by_strategy[strategy]
        if not any(key in base for key in mine):
            continue
        row = {"name": f"{name}, {label}: {strategy}", **_compared(mine, base)}
        goal = None
        if label == TOGETHER:
            goal = CONTROLLER_GOAL if strategy in controllers else {"ttt_in_context": GOALS.get(name)}.get(strategy)
        reached = goal is not None and row["gain"] >= goal and row["gain_interval_90"][0] > 0
        numbers.append(row | {"goal": goal, "holds": None if goal is None else reached})
    for controller in controllers if label == TOGETHER else ():
        numbers += _against_best(by_strategy, controller, f"{name}, {label}")
    return numbers


def _compared(mine: Mapping[tuple[str, str], Row], base: Mapping[tuple[str, str], Row]) -> Row:
    """Accuracy and cost of a strategy, and its gain over in_context on the tasks that both answered."""
    both = [(mine[key], base[key]) for key in mine if key in base]
    gains: dict[str, list[float]] = defaultdict(list)
    right: dict[str, list[float]] = defaultdict(list)
    for one, other in both:
        right[one["family"]] += map(float, one["right"])
        gains[one["family"]] += [float(a) - float(b) for a, b in zip(one["right"], other["right"], strict=True)]
    flat = [gain for family in gains.values() for gain in family]
    harmed = [a and not b for one, other in both for a, b in zip(other["right"], one["right"], strict=True)]
    return {
        "value": round(100 * statistics.fmean(v for family in right.values() for v in family), 1),
        "unit": "% of queries", "interval_90": percent_interval(right), "queries": len(flat),
        "gain": round(100 * statistics.fmean(flat), 1), "gain_interval_90": percent_interval(gains),
        "against": f"{BASE} on the same queries", "harmed": round(100 * statistics.fmean(harmed), 1),
        "seconds_of_a_query": round(statistics.median(one["seconds"] / len(one["right"]) for one, _ in both), 2),
        "relative_cost": round(_relative_cost(both), 1),
    }  # fmt: skip


def _relative_cost(pairs: Sequence[tuple[Row, Row]]) -> float:
    """The mean over tasks of the cost of one row of a task as a multiple of another's."""
    return statistics.fmean(one["token_equivalents"] / other["token_equivalents"] for one, other in pairs)


def _against_best(by_strategy: Mapping[str, Mapping[tuple[str, str], Row]], controller: str, name: str) -> list[Row]:
    """A controller's accuracy and cost beside those of the fixed strategy with the most right answers, of the
    strategies that answered all of its tasks; of the first controller also the bounds of such a choice."""
    mine, base = by_strategy[controller], by_strategy[BASE]
    right = {
        strategy: sum(sum(rows[key]["right"]) for key in mine)
        for strategy, rows in by_strategy.items() if not is_controller(strategy) and mine.keys() <= rows.keys()
    }  # fmt: skip
    if not right:
        return []
    best = max(right, key=right.__getitem__)
    rows = by_strategy[best]
    compared = _compared(mine, rows)
    costs = [_relative_cost([(some[key], base[key]) for key in mine]) for some in (mine, rows)]
    share = costs[0] / costs[1]
    has_bounds = controller == CONTROLLER and best != BASE
    bounds = _bounds([(rows[key], base[key]) for key in mine], name, best) if has_bounds else []
    return [
        {
            "name": f"{name}: {controller} minus the best fixed strategy", "value": compared["gain"], "unit": "points",
            "interval_90": compared["gain_interval_90"], "against": best, "goal": None, "holds": None,
        },
        {
            "name": f"{name}: {controller}, cost of the best fixed strategy's", "value": round(share, 3),
            "unit": "times", "against": best, "goal": CONTROLLER_COST, "holds": share <= CONTROLLER_COST,
        },
        *bounds,
    ]  # fmt: skip


def _bounds(pairs: Sequence[tuple[Row, Row]], name: str, best: str) -> list[Row]:
    """What a choice for each task between in_context and another strategy reaches at most, where the gain of every task
    is known beforehand: the other one answers the tasks of the largest gains, and in_context is paid for on all."""
    tasks = [(sum(one["right"]) - sum(other["right"]), _relative_cost([(one, other)])) for one, other in pairs]
    tasks.sort(key=lambda task: -task[0])
    always, total = sum(cost for _, cost in tasks), sum(gain for gain, _ in tasks)
    chosen = [(0, float(len(tasks)))]
    for gain, cost in tasks:
        chosen.append((chosen[-1][0] + gain, chosen[-1][1] + cost))
    shares = [(gain, cost / always) for gain, cost in chosen]
    equal = min(share for gain, share in shares if gain >= total)
    most = max((gain for gain, share in shares if share <= CONTROLLER_COST), default=0)
    points = 100 * most / sum(len(one["right"]) for one, _ in pairs)
    choice, facts = f"{name}: a choice that knows every gain", {"against": best, "goal": None, "holds": None}
    return [
        {"name": f"{choice}, cost of as many right answers", "value": round(equal, 3), "unit": "times"} | facts,
        {
            "name": f"{choice}, over {BASE} at {CONTROLLER_COST:g} of the cost",
            "value": round(points, 1), "unit": "points",
        } | facts,
    ]  # fmt: skip
