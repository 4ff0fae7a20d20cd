"""`ttt_in_context`: learn to answer each demonstration from the others."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import ClassVar

from ..ttt_core.engine.adapter_plan import AdapterPlan, TrainingExamples
from ..ttt_core.learner import Learner
from ..ttt_core.recipes import Recipe
from ..ttt_core.tasks.augmentation import leave_one_out_orders
from ..ttt_core.tasks.task import Task
from .adapter_training import BIG_BENCH_RECIPE, adapter_key, example_count, with_training
from .base import Attempt, CostClass, OnStep, from_answer, recipe_for
from .registry import register


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
    default_recipe: ClassVar[Recipe | None] = BIG_BENCH_RECIPE

    def answers_per_query(self, recipe: Recipe) -> int:
        return 1

    def plan(self, learner: Learner, task: Task, seed: int) -> AdapterPlan:
        recipe = recipe_for(self, learner.loaded.recipes, task.kind)
        rng = random.Random(f"{self.name}-{seed}")
        return AdapterPlan(
            adapter_key(self.name, task, recipe, seed), task, recipe, seed,
            make_examples=lambda: TrainingExamples([leave_one_out_orders(task, example_count(recipe), rng)]),
            inference_prompts=lambda: [task],
            strategy=self.name,
        )  # fmt: skip

    def attempt(
        self, learner: Learner, task: Task, *, seed: int = 0, deadline: float = math.inf, on_step: OnStep | None = None
    ) -> Attempt:
        adapter, from_cache = learner.adapters.get_or_train(self.plan(learner, task, seed), deadline, on_step)
        answer = learner.answer([task], adapter)[0]
        return with_training(from_answer(self.name, answer), adapter, from_cache)
