"""`ttt_in_context`: learn to answer each demonstration from the others."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.augmentation import leave_one_out_orders
from ..ttt_core.tasks.task import Task
from .adapter_plan import AdapterPlan, example_count, get_or_train_adapter, with_training
from .base import Attempt, CostClass, OnStep, from_answer, register


@register
@dataclass(frozen=True)
class TttInContext:
    """Idea: train on leave-one-out prompts in many orders, with the loss on every answer; answer with the full prompt.

    Wins on rules that the model has not met but can express: 50.5 to 57.8 on BIG-Bench Hard. Loses where the
    demonstrations suffice (it costs a hundred prompts) and harms about a third of the runs a little. Source: Akyürek et
    al., "The Surprising Effectiveness of Test-Time Training for Few-Shot Learning", ICML 2025.
    """

    name: str = "ttt_in_context"
    cost_class: CostClass = "train"
    min_demonstrations: int = 2
    recipe: Recipe | None = None

    def plan(self, learner: Learner, task: Task, seed: int) -> AdapterPlan:
        recipe = self.recipe or learner.recipe(self.name, task.kind)
        rng = random.Random(f"{self.name}-{seed}")
        return AdapterPlan(
            self.name,
            task,
            recipe,
            seed,
            lambda: leave_one_out_orders(task, example_count(recipe), rng),
            lambda: [task],
        )

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        adapter, known = get_or_train_adapter(learner, self.plan(learner, task, seed), deadline, on_step)
        return with_training(from_answer(self.name, learner.answer([task], adapter)[0]), adapter, known)
