"""What an adapter is trained on: prompts made of the task's own demonstrations. Knows nothing about models."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .task import Task
from .transformations import Transformation


def leave_one_out(task: Task) -> list[Task]:
    """Every demonstration once as the query, with the others as demonstrations, in their order."""
    return [task.leave_out(i) for i in range(len(task.demonstrations))]


def single_pairs(task: Task) -> list[Task]:
    """Every demonstration on its own, as a query without demonstrations."""
    return [t.with_demonstrations(()) for t in leave_one_out(task)]


def leave_one_out_orders(task: Task, count: int, rng: random.Random) -> list[Task]:
    """`count` leave-one-out tasks, their demonstrations in random orders; every demonstration is the query in turn."""
    n = len(task.demonstrations)
    found: list[Task] = []
    queries: list[int] = []
    while n and len(found) < count:
        queries = queries or rng.sample(range(n), n)
        held = task.leave_out(queries.pop())
        found.append(held.with_demonstrations(tuple(rng.sample(held.demonstrations, n - 1))))
    return found


def shuffled(task: Task, rng: random.Random) -> Task:
    """The same task with its demonstrations in a random order."""
    return task.with_demonstrations(tuple(rng.sample(task.demonstrations, len(task.demonstrations))))


def transformed(tasks: Sequence[Task], transformations: Sequence[Transformation]) -> list[Task]:
    """The tasks as they are and under the transformations, in turn; as many as there are tasks."""
    found = []
    for index, task in enumerate(tasks):
        which = index % (len(transformations) + 1)
        found.append(task if which == 0 else task.map(transformations[which - 1].apply))
    return found
