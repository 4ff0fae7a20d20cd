"""What the strategies that train an adapter share. Not a strategy; knows nothing about how adapters are trained."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol, runtime_checkable

from ..ttt_core.engine.adapter_plan import AdapterPlan
from ..ttt_core.learner import Learner
from ..ttt_core.lora.adapter import Adapter
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.task import Task
from .base import Attempt, Strategy, answer_count, is_plugin

QV_MLP = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
"""The modules that Akyürek et al. 2025 adapt on ARC; on BIG-Bench Hard also `o_proj`."""
BIG_BENCH_RECIPE = Recipe(
    rank=64,
    alpha=64.0,
    dropout=0.05,
    target_modules=(*QV_MLP, "o_proj"),
    learning_rate=1e-4,
    max_steps=8,
    batch_size=5,
)
"""As on BIG-Bench Hard in Akyürek et al., ICML 2025, for models of 1 to 8 billion parameters."""
ARC_RECIPE = Recipe(
    rank=128, alpha=16.0, dropout=0.0, target_modules=QV_MLP, learning_rate=1e-4, max_steps=250, batch_size=2,
    transformations=16, views=10,
)  # fmt: skip
"""As on ARC in Akyürek et al., ICML 2025, for models of 1 to 8 billion parameters."""
MAX_EXAMPLES = 250
"""Distinct prompts that an adapter is trained on, as in Akyürek et al. 2025; further steps repeat them."""


@runtime_checkable
class PlansAdapter(Protocol):
    """A strategy that says which adapter it will use before it trains, so that a queue can train many in one batch."""

    def plan(self, learner: Learner, task: Task, seed: int) -> AdapterPlan: ...


def example_count(recipe: Recipe) -> int:
    """How many prompts the steps of a recipe use, up to `MAX_EXAMPLES`."""
    return min(MAX_EXAMPLES, recipe.max_steps * recipe.batch_size)


def adapter_key(strategy: str, task: Task, recipe: Recipe, seed: int, *settings: object) -> object:
    """What the adapter of a task's demonstrations is cached under; `settings` are the strategy's own."""
    return strategy, recipe, seed, task.kind, task.demonstrations, task.instruction, *settings


def has_adapter(learner: Learner, strategy: object, task: Task, seed: int) -> bool:
    """Whether the strategy's adapter for a task is there already, so that only the answer costs."""
    return isinstance(strategy, PlansAdapter) and learner.adapters.has_adapter(strategy.plan(learner, task, seed))


def adapter_answers(
    learner: Learner, among: Iterable[Strategy], task: Task, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Strategies of this package with an adapter for a task's demonstrations, and the number of answers that it gives a
    query: first those whose adapter is cached or expected (see `AdapterProvider.expect`), then the others."""
    cached, others = dict[str, float](), dict[str, float]()
    for strategy in among:
        if isinstance(strategy, PlansAdapter) and not is_plugin(strategy):
            with suppress(Exception):  # a task that a strategy cannot plan for, which says so when it runs
                found = learner.adapters.is_cached(strategy.plan(learner, task, seed))
                answers = answer_count(strategy, learner.loaded.recipes, task)
                (cached if found else others)[strategy.name] = float(answers)
    return cached, others


def with_training(attempt: Attempt, adapter: Adapter, from_cache: bool) -> Attempt:
    """The attempt with the record of its adapter's training."""
    return replace(
        attempt, training_record=adapter.training, cross_validation=adapter.cross_validation, from_cache=from_cache
    )
