"""`in_context_vote`: many views of the prompt, one vote."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import ClassVar

from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.task import Task
from .base import Attempt, CostClass, OnStep, recipe_for
from .registry import register
from .voting import distinct_transformations, vote


@register
@dataclass(frozen=True)
class InContextVote:
    """Idea: answer under several orders of the demonstrations and invertible transformations, undo them, and vote.

    Wins on grids, whose symmetries show the model other sides of the same rule; +0.5 points on BIG-Bench Hard, where
    only the order can change. Loses nothing but its cost: one answer per view. Source: Akyürek et al. 2025, sec. 4.2.
    """

    name: str = "in_context_vote"
    cost_class: CostClass = "sample"
    min_demonstrations: int = 1
    recipe: Recipe | None = None
    default_recipe: ClassVar[Recipe | None] = Recipe(views=10)
    """Of a recipe, only `views` and `transformations` are used."""

    def answers_per_query(self, recipe: Recipe) -> int:
        return recipe.views

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        recipe = recipe_for(self, learner.loaded.recipes, task.kind)
        rng = random.Random(f"{self.name}-{seed}")
        return vote(
            self.name, learner, task, recipe.views, distinct_transformations(learner, task, recipe.views - 1, rng), rng
        )
