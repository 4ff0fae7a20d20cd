"""`ttt_augmented`: learn from the demonstrations under invertible transformations, and vote."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from ..ttt_core.engine.adapter_plan import AdapterPlan, TrainingExamples
from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.augmentation import leave_one_out_orders, transformed
from ..ttt_core.tasks.task import Task
from ..ttt_core.tasks.transformations import Transformation
from .adapter_training import ARC_RECIPE, adapter_key, example_count, with_training
from .base import Attempt, CostClass, OnStep, recipe_for
from .registry import register
from .voting import demonstration_transformations, view_prompts, vote_over_views


@register
@dataclass(frozen=True)
class TttAugmented:
    """Idea: as `ttt_in_context`, with the prompts also shown turned, flipped or recoloured; then vote over such views.

    Wins on grids: transformations are worth 16 of the 29 ARC tasks that the paper solves. Loses where a
    transformation breaks the rule (numbers that mean amounts, not symbols), and costs several answers more. Text has no
    transformations but the order. Source: Akyürek et al. 2025, sections 3 and 4.
    """

    name: str = "ttt_augmented"
    cost_class: CostClass = "train"
    min_demonstrations: int = 2
    recipe: Recipe | None = None
    default_recipe: ClassVar[Recipe | None] = ARC_RECIPE

    def answers_per_query(self, recipe: Recipe) -> int:
        return recipe.views

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
        """The plan, and the transformations that its prompts are shown under, which are found when they are needed."""
        recipe = recipe_for(self, learner.loaded.recipes, task.kind)
        rng = random.Random(f"{self.name}-{seed}")
        transformations = cache(lambda: demonstration_transformations(learner, task, recipe.transformations, rng))

        def make_examples() -> TrainingExamples:
            chosen = transformations()  # drawn before the orders
            return TrainingExamples([transformed(leave_one_out_orders(task, example_count(recipe), rng), chosen)])

        plan = AdapterPlan(
            adapter_key(self.name, task, recipe, seed), task, recipe, seed, make_examples,
            inference_prompts=lambda: view_prompts(self.name, learner, task, recipe, transformations(), seed),
            strategy=self.name,
        )  # fmt: skip
        return plan, transformations
