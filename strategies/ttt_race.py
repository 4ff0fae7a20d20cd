"""`ttt_race`: cross-validated training that is given up after a few steps where it does not pay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from ..ttt_core.engine.adapter_plan import AdapterPlan
from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.task import Task
from ..ttt_core.tasks.transformations import Transformation
from .adapter_training import ARC_RECIPE, with_training
from .base import Attempt, CostClass, OnStep, recipe_for
from .registry import register
from .ttt_crossfit import crossfit_plan
from .voting import vote_over_views

FEWEST_STEPS = 2
"""Steps after which training is given up at the earliest."""


@register
@dataclass(frozen=True)
class TttRace:
    """Idea: train two adapters, each without half of the demonstrations, and compare them with the base on those. If no
    evaluation in the first quarter of the steps beats the base, training is given up, and the in-context answer stands
    where it is more certain; else both adapters train on and vote.

    Wins where many tasks are hopeless or easy: these cost a quarter of a training. Loses on tasks that training solves
    late, and where demonstrations are few, since each adapter has half of them. Source: racing of Maron and Moore,
    "Hoeffding Races", NIPS 1993, with the paired evaluation of `ttt_crossfit`.
    """

    name: str = "ttt_race"
    cost_class: CostClass = "train"
    min_demonstrations: int = 3
    recipe: Recipe | None = None
    default_recipe: ClassVar[Recipe | None] = ARC_RECIPE
    trial_share: float = 0.25
    """Share of the steps after which training has to have beaten the base."""

    def answers_per_query(self, recipe: Recipe) -> int:
        return 2 * recipe.views

    def fold_count(self, demonstrations: int) -> int:
        return 2 if demonstrations > self.min_demonstrations else self.min_demonstrations

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
        trial = max(FEWEST_STEPS, math.ceil(self.trial_share * recipe.max_steps))
        folds = self.fold_count(len(task.demonstrations))
        plan, transformations = crossfit_plan(self.name, learner, task, recipe, seed, folds)
        return replace(plan, key=(plan.key, trial), trial_steps=trial), transformations
