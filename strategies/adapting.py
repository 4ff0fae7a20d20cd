"""Trains a task's adapter, or finds it: shared by the strategies that learn. Not a strategy itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..ttt_core.adapters import Adapter
from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks import Task
from .base import Attempt, OnStep

MOST_EXAMPLES = 250
"""Different prompts that an adapter is trained on, as in Akyürek et al. 2025; more steps see them again."""


def examples_of(recipe: Recipe) -> int:
    """How many prompts the steps of a recipe use, up to `MOST_EXAMPLES`."""
    return min(MOST_EXAMPLES, recipe.steps * recipe.batch)


def adapter_for(
    name: str,
    learner: Learner,
    task: Task,
    recipe: Recipe,
    examples: Callable[[], Sequence[Task]],
    *,
    seed: int,
    deadline: float,
    on_step: OnStep | None,
) -> tuple[Adapter, bool]:
    """The adapter of the task's demonstrations and whether it was known: queries of one task share it.

    A few demonstrations make fewer different prompts than the recipe's batch; then a step has each of them once.
    """

    def train() -> Adapter:
        different = list(dict.fromkeys(examples()))
        fitting = replace(recipe, batch=max(1, min(recipe.batch, len(different))))
        return learner.adapt(different, fitting, seed=seed, deadline=deadline, on_step=on_step)

    return learner.remembered((name, recipe, seed, task.kind, task.demonstrations, task.instruction), train)


def learned(attempt: Attempt, adapter: Adapter, known: bool) -> Attempt:
    """The attempt with what training did."""
    return replace(attempt, training=adapter.training, evidence=adapter.evidence, reused=known)
