"""`ttt_crossfit`: an adapter per fold of the demonstrations, judged by those left out, and a vote of all."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from ..ttt_core.engine.adapter_plan import AdapterPlan, TrainingExamples
from ..ttt_core.errors import StrategyError
from ..ttt_core.learner import Learner
from ..ttt_core.lora.cross_validation import split_folds
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.augmentation import leave_one_out_orders, transformed
from ..ttt_core.tasks.task import Task
from ..ttt_core.tasks.transformations import Transformation
from .adapter_training import ARC_RECIPE, adapter_key, example_count, with_training
from .base import Attempt, CostClass, OnStep, recipe_for
from .registry import register
from .voting import demonstration_transformations, vote_over_views


@register
@dataclass(frozen=True)
class TttCrossfit:
    """Idea: train as `ttt_augmented`, but one adapter for each fold of the demonstrations, without them; stop when
    those left out are answered best; then let all adapters vote on the query, under several views.

    Wins where one wants to know whether training helped: the held-out demonstrations say so, and the attempt carries it
    as its evidence. Loses where demonstrations are few (each adapter has fewer still) and costs a training per fold.
    Source: ours, of cross-validation and bagging; see `autottt.ttt_core.lora.cross_validation`.
    """

    name: str = "ttt_crossfit"
    cost_class: CostClass = "train"
    min_demonstrations: int = 3
    recipe: Recipe | None = None
    default_recipe: ClassVar[Recipe | None] = ARC_RECIPE
    folds: int = 4
    """At least 2."""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise StrategyError(f"{self.name} needs at least 2 folds, one to learn from; received {self.folds}")

    def answers_per_query(self, recipe: Recipe) -> int:
        return self.folds * recipe.views

    def fold_count(self, demonstrations: int) -> int:
        return min(self.folds, demonstrations)

    def plan(self, learner: Learner, task: Task, seed: int) -> AdapterPlan:
        return self._plan(learner, task, seed)[0]

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        plan, transformations = self._plan(learner, task, seed)
        adapter, from_cache = learner.adapters.get_or_train(plan, deadline, on_step)
        attempt = vote_over_views(self.name, learner, task, plan.recipe, transformations(), seed, adapter)
        return with_training(attempt, adapter, from_cache)

    def _plan(self, learner: Learner, task: Task, seed: int) -> tuple[AdapterPlan, Callable[[], list[Transformation]]]:
        recipe = recipe_for(self, learner.loaded.recipes, task.kind)
        return crossfit_plan(self.name, learner, task, recipe, seed, self.folds)


def crossfit_plan(
    name: str, learner: Learner, task: Task, recipe: Recipe, seed: int, folds: int
) -> tuple[AdapterPlan, Callable[[], list[Transformation]]]:
    """The plan of an adapter per fold, and the transformations that its prompts are shown under, which are found when
    they are needed."""
    rng = random.Random(f"{name}-{seed}")
    transformations = cache(lambda: demonstration_transformations(learner, task, recipe.transformations, rng))

    def make_examples() -> TrainingExamples:
        chosen = transformations()  # drawn before the folds
        parts = split_folds(task, folds, rng)
        orders = [leave_one_out_orders(part.training_task, example_count(recipe), rng) for part in parts]
        return TrainingExamples([transformed(o, chosen) for o in orders], [part.held_out for part in parts])

    key = adapter_key(name, task, recipe, seed, folds)
    plan = AdapterPlan(key, task, recipe, seed, make_examples, cross_validates=True, strategy=name)
    return plan, transformations
