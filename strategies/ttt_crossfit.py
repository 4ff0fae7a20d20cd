"""`ttt_crossfit`: an adapter per fold of the demonstrations, judged by those left out, and a vote of all."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ..ttt_core.errors import StrategyError
from ..ttt_core.learner import Learner
from ..ttt_core.lora.adapter import Adapter
from ..ttt_core.lora.cross_validation import split_folds
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.augmentation import leave_one_out_orders, transformed
from ..ttt_core.tasks.task import Task
from .adapter_plan import adapter_key, example_count, fit_to_context, with_training
from .base import Attempt, CostClass, OnStep, register
from .views import demonstration_transformations, vote_over_views


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
    folds: int = 4
    """At least 2."""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise StrategyError(f"{self.name} needs at least 2 folds, one to learn from; received {self.folds}")

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        recipe = self.recipe or learner.recipe(self.name, task.kind)
        rng = random.Random(f"{self.name}-{seed}")
        transformations = demonstration_transformations(learner, task, recipe.transformations, rng)

        def train() -> Adapter:
            parts = split_folds(task, self.folds, rng)
            drawn = [
                transformed(leave_one_out_orders(f.training_task, example_count(recipe), rng), transformations)
                for f in parts
            ]
            examples, fit = fit_to_context(learner, drawn, recipe)
            return learner.cross_validate(
                examples, [f.held_out for f in parts], fit, seed=seed, deadline=deadline, on_step=on_step
            )

        adapter, known = learner.get_or_train(adapter_key(self.name, task, recipe, seed, self.folds), train)
        return with_training(
            vote_over_views(self.name, learner, task, recipe, transformations, seed, adapter), adapter, known
        )
