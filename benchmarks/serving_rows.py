"""Tasks, rows and seconds that the parts of the serving benchmark share. Knows nothing about servers."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

from row_files import Row

from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Task

HARD, STRATEGY = 16, "ttt_in_context"
HARD_EVERY = 8
"""In a mixture one query in eight is hard."""


def task(seed: int) -> Task:
    """Reverse a list: a task with demonstrations of its own, and so with an adapter of its own."""
    rng = random.Random(seed)
    rows = [[rng.randrange(10) for _ in range(3 + n % 3)] for n in range(5)]
    pairs: list[tuple[object, object]] = [(row, row[::-1]) for row in rows[:4]]
    return make_task(pairs, rows[4], answer=rows[4][::-1], id=f"reverse{seed}")


def row(
    name: str, value: float, unit: str, against: str, goal: float | None, *, at_least: bool = False, **facts: Any
) -> Row:
    """A row of the results; one without a goal only informs."""
    holds = None if goal is None else value >= goal if at_least else value <= goal
    return {
        "name": name, "value": round(value, 3), "unit": unit, "against": against, "goal": goal, "holds": holds,
        "load": round(os.getloadavg()[0], 1), **facts,
    }  # fmt: skip


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock seconds of a call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
