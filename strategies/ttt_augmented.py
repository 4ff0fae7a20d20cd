"""`ttt_augmented`: learn from the demonstrations under invertible transformations, and vote."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.augmentation import leave_one_out_orders, transformed
from ..ttt_core.tasks.task import Task
from ..ttt_core.tasks.transformations import Transformation
from .adapter_plan import AdapterPlan, example_count, get_or_train_adapter, with_training
from .base import Attempt, CostClass, OnStep, register
from .views import demonstration_transformations, view_prompts, vote_over_views


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

    def plan(self, learner: Learner, task: Task, seed: int) -> AdapterPlan:
        return self._planned(learner, task, seed)[0]

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        lesson, transformations = self._planned(learner, task, seed)
        adapter, known = get_or_train_adapter(learner, lesson, deadline, on_step)
        return with_training(
            vote_over_views(self.name, learner, task, lesson.recipe, transformations, seed, adapter), adapter, known
        )

    def _planned(self, learner: Learner, task: Task, seed: int) -> tuple[AdapterPlan, list[Transformation]]:
        """The lesson, and the transformations that its prompts are shown under."""
        recipe = self.recipe or learner.recipe(self.name, task.kind)
        rng = random.Random(f"{self.name}-{seed}")
        transformations = demonstration_transformations(learner, task, recipe.transformations, rng)

        def draw() -> Sequence[Task]:
            return transformed(leave_one_out_orders(task, example_count(recipe), rng), transformations)

        def asks() -> Sequence[Task]:
            return view_prompts(self.name, learner, task, recipe, transformations, seed)

        return AdapterPlan(self.name, task, recipe, seed, draw, asks), transformations
