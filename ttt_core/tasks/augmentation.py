"""Training examples for an adapter, made from the demonstrations of one task. Knows nothing about models."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .task import Task
from .transformations import Transformation


def leave_one_out(task: Task) -> list[Task]:
    """One task for each demonstration, which becomes the query; the others stay demonstrations, in their order."""
    return [task.leave_out(i) for i in range(len(task.demonstrations))]


def single_pairs(task: Task) -> list[Task]:
    """One task without demonstrations for each demonstration, which becomes the query."""
    return [t.with_demonstrations(()) for t in leave_one_out(task)]


def leave_one_out_orders(task: Task, count: int, rng: random.Random) -> list[Task]:
    """`count` leave-one-out tasks, demonstrations in random orders; every demonstration is the query in turn."""
    n = len(task.demonstrations)
    tasks: list[Task] = []
    queries: list[int] = []
    while n and len(tasks) < count:
        queries = queries or rng.sample(range(n), n)
        example = task.leave_out(queries.pop())
        tasks.append(example.with_demonstrations(tuple(rng.sample(example.demonstrations, n - 1))))
    return tasks


def shuffled(task: Task, rng: random.Random) -> Task:
    """The same task with its demonstrations in a random order."""
    return task.with_demonstrations(tuple(rng.sample(task.demonstrations, len(task.demonstrations))))


def transformed(tasks: Sequence[Task], transformations: Sequence[Transformation]) -> list[Task]:
    """Applies to the tasks in turn: no change, then each of the transformations, then no change again, and so on."""
    results = []
    for index, task in enumerate(tasks):
        turn = index % (len(transformations) + 1)
        results.append(task if turn == 0 else task.map(transformations[turn - 1].apply))
    return results
